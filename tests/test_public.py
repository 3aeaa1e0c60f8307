"""What users type, how quickly it comes, and the docstrings' examples."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import repscope


def test_the_public_names_are_these():
    assert repscope.__all__ == sorted(
        [
            "Activations",
            "CheckpointSet",
            "Contrast",
            "Direction",
            "DirectionSet",
            "Edit",
            "LanguageModel",
            "Network",
            "Prompt",
            "Relation",
            "Result",
            "Site",
            "Task",
            "UserError",
            "ablation",
            "activation_patching",
            "attribution_patching",
            "contrast",
            "load",
            "logit_difference",
            "path_attribution",
            "relation",
            "task",
            "verify",
        ]
    )
    for name in repscope.__all__:
        assert getattr(repscope, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = repscope.nothing


def test_what_a_completion_offers_holds_all_that_can_be_typed():
    assert {"read", "steer", "trace", "discovery", "worlds", *repscope.__all__} <= set(dir(repscope))
    for name in dir(repscope):
        assert getattr(repscope, name) is not None


def test_importing_is_quick_and_brings_no_torch():
    code = (
        "import time, sys; t = time.perf_counter(); import repscope as rs; took = time.perf_counter() - t;"
        "assert took < 0.5, took;"
        "heavy = {'torch', 'transformers', 'pandas', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("words", ["--help", "study --help", "runs", "study nothing"])
def test_commands_that_run_no_model_bring_no_torch(words, tmp_path):
    code = (
        f"import sys; from repscope.cli import run; run({words.split()!r});"
        "heavy = {'torch', 'transformers', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def _modules():
    return [m.name for m in pkgutil.walk_packages(repscope.__path__, "repscope.")]


@pytest.mark.parametrize("name", _modules())
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert not result.failed
