# make demo: sets everything up and answers the first question on the default model. make test: sets everything up and tests.
# make test-oldest: the tests of models, with the oldest transformers that pyproject.toml admits. make chaos: everything that can break.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Tests start dozens of interpreters, and torch and transformers take three times longer to import where no bytecode is kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-oldest lint bench chaos browser docs notebooks clean

demo: $(VENV)/.demo
	$(BIN)/repscope tour

test: $(VENV)/.dev .peers/.done browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# One process a core, one thread each: tiny networks gain nothing from a second thread.
# PYTHONPATH stands before site-packages, so the environment stays as it is. -v undoes -q: the header says which version won.
# diffusers needs a newer transformers than the oldest one.
test-oldest: .oldest/.done
	PYTHONPATH=$(CURDIR)/.oldest OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v -n auto tests/steer tests/discovery tests/bench tests/models/test_families.py \
		tests/models/test_anatomy.py tests/models/test_edits.py tests/models/test_generation.py tests/models/test_network.py \
		tests/models/test_packed_attention.py tests/models/test_jacobian.py tests/read/test_path_attribution.py tests/models/test_block_replay.py \
		--ignore tests/discovery/test_generators.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in site/: built offline; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# Runs the notebooks on the default model and stores their outputs: minutes.
notebooks: $(VENV)/.docs
	cd docs/notebooks && $(CURDIR)/$(BIN)/jupyter execute --inplace --timeout=3600 *.ipynb

# Kills, damage, hostile files, bad disks: minutes to an hour. The table goes to tests/chaos/RESULTS.md.
chaos: $(VENV)/.dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests:src $(BIN)/python -m chaos --write

# Every table of benchmarks/RESULTS*.md, unattended: hours. Peers live in environments of their own. The same command goes on where
# it was stopped; BENCH="paths cka", BENCH=--fresh and other options of benchmarks/run_all.py.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run_all.py $(BENCH)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "repscope needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.demo $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/.worm: pyproject.toml constraints.txt | $(VENV)/.dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[worm]'
	@touch $@

.venv-bench/.done: benchmarks/requirements-peers.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements-peers.txt -e .
	@touch $@

.venv-relations/.done: benchmarks/requirements-relations.txt
	$(PYTHON) -m venv .venv-relations
	.venv-relations/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements-relations.txt
	@touch $@

# SAELens needs an older transformer-lens than .venv-bench has. dictionary-learning without what it imports for models.
.venv-sae/.done: benchmarks/requirements-sae.txt
	$(PYTHON) -m venv .venv-sae
	.venv-sae/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements-sae.txt
	.venv-sae/bin/pip install --quiet --disable-pip-version-check --no-deps dictionary-learning==0.1.0
	@touch $@

.peers-cka/.done: benchmarks/requirements-cka.txt pyproject.toml
	$(PYTHON) -m venv .peers-cka
	.peers-cka/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	.peers-cka/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements-cka.txt
	@touch $@

.peers-llc/.done: benchmarks/requirements-learning-coefficient.txt pyproject.toml
	$(PYTHON) -m venv .peers-llc
	.peers-llc/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e . datasets xarray
	.peers-llc/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements-learning-coefficient.txt
	@touch $@

.peers-rsa/.done: benchmarks/requirements-rsa.txt pyproject.toml
	$(PYTHON) -m venv .peers-rsa
	.peers-rsa/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	.peers-rsa/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements-rsa.txt
	@touch $@

# Code alone: what it imports is in the environment already.
.peers-minimal-pairs/.done: benchmarks/requirements-minimal-pairs.txt | $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .peers-minimal-pairs -r $<
	@touch $@

.peers-melbo/.done: Makefile | $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .peers-melbo batched-melbo==0.1.1
	@touch $@

.peers-nngeom/.done: Makefile | $(VENV)/.demo
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .peers-nngeom nngeom==0.2.0
	@touch $@

# That version refuses today's tokenizers and Hub client when imported; the older client stands on httpx, and that on httpcore.
.oldest/.done: Makefile | $(VENV)/.dev
	rm -rf .oldest
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .oldest \
		transformers==5.0.0 tokenizers==0.22.0 huggingface-hub==1.3.0 httpx==0.28.1 httpcore==1.0.9
	@touch $@

# They pin other versions of what we have, so they stand apart: tests run them in processes of their own. What else they import we
# have, or the tests leave out (tests/read/sae/peers.py).
.peers/.done: Makefile | $(VENV)/.dev
	rm -rf .peers
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .peers steering-vectors==0.12.2 \
		sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0 simple-parsing==0.1.8 natsort==8.4.0 einops==0.8.2
	@touch $@

# A real browser for the tests of pages: the one named in CHROMIUM, one on the path, else it is installed.
browser: $(VENV)/.dev
	@$(BIN)/python tests/report/browser.py

clean:
	rm -rf $(VENV) site .venv-bench .venv-relations .venv-sae .oldest .peers .peers-* .bench runs
