#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer makes an empty tokenizer of a model folder that has no tokenizer.
#
# Expected: an error that says that the folder holds no tokenizer. The documentation of AutoTokenizer.from_pretrained
# (https://huggingface.co/docs/transformers/model_doc/auto) says that it loads "vocabulary files" saved in the directory; there are none.
# For a Llama folder it does raise an error.
# Seen: for GPT-2 and Qwen 2, a tokenizer of one special token that reads every text as no tokens; for BERT, one of five special tokens
# that reads every word as unknown. No error and no warning.
#
# Ground truth: a text has at least one token, and different texts have different ones. Exits with an error when the behaviour is no longer
# as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
cd "$home"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
"$home/venv/bin/python" - <<'PYTHON'
from transformers import AutoTokenizer, BertConfig, GPT2Config, LlamaConfig, Qwen2Config

seen = {}
for config in (GPT2Config, Qwen2Config, BertConfig):
    config().save_pretrained(config.__name__)  # config.json alone, as of a folder to which only the weights were copied
    tokenizer = AutoTokenizer.from_pretrained(config.__name__)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the cat", "a dog")]
    seen[config.__name__] = (len(tokenizer), *ids)
    print(f"{config.__name__}: expected an error, seen a vocabulary of {len(tokenizer)}; two texts are {ids[0]} and {ids[1]}")
LlamaConfig().save_pretrained("llama")
try:
    AutoTokenizer.from_pretrained("llama")
    raised = False
except Exception as error:
    raised = True
    print(f"LlamaConfig: {type(error).__name__}")
assert raised, "the behaviour has changed for Llama"
assert all(first == second for _, first, second in seen.values()), "the behaviour has changed: texts are told apart"
PYTHON
