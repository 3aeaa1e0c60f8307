"""LoRA adapters as checkpoints of a set: merged as they are read, and nothing that is more than plain LoRA is read as one."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.checkpoint_files import config_of

BASE = {"model.up.weight": torch.arange(12.0).reshape(4, 3), "model.norm.weight": torch.ones(3)}
A, B = torch.tensor([[1.0, 0, 2], [0, 1, 0]]), torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 0]])
FACTORS = {"base_model.model.model.up.lora_A.weight": A, "base_model.model.model.up.lora_B.weight": B}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "../base", "bias": "none"}


@pytest.fixture
def series(tmp_path):
    """A set of a base and an adapter; change its files before opening it."""
    base, step = tmp_path / "set" / "base", tmp_path / "set" / "step-3"
    base.mkdir(parents=True)
    step.mkdir()
    save_file(BASE, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(FACTORS, step / "adapter_model.safetensors")
    (step / "adapter_config.json").write_text(json.dumps(CONFIG))
    pd.DataFrame({"run": "r", "step": [0, 3], "path": ["base", "step-3"]}).to_csv(tmp_path / "set" / "checkpoints.csv", index=False)
    return tmp_path / "set"


def changed(series, **config):
    (series / "step-3" / "adapter_config.json").write_text(json.dumps(CONFIG | config))


def test_a_row_of_the_set_is_the_merged_network(series):
    found = CheckpointSet.open(series)
    assert torch.equal(found.state(1)["model.up.weight"], BASE["model.up.weight"] + 2 * B @ A)
    assert torch.equal(found.state(1)["model.norm.weight"], BASE["model.norm.weight"])
    assert torch.equal(found.state(0)["model.up.weight"], BASE["model.up.weight"])
    assert found.sizes == {"model.up.weight": (4, 3), "model.norm.weight": (3,)}
    assert config_of(series / "step-3")["model_type"] == "llama"


def test_the_fingerprint_covers_factors_and_scale(series):
    prints = {str(CheckpointSet.open(series).fingerprint())}
    changed(series, lora_alpha=5)
    prints.add(str(CheckpointSet.open(series).fingerprint()))
    save_file(FACTORS | {"base_model.model.model.up.lora_A.weight": 2 * A}, series / "step-3" / "adapter_model.safetensors")
    prints.add(str(CheckpointSet.open(series).fingerprint()))
    assert len(prints) == 3


def test_rank_stabilised_and_transposed_layers(series):
    changed(series, use_rslora=True)
    assert torch.allclose(CheckpointSet.open(series).state(1)["model.up.weight"], BASE["model.up.weight"] + 4 / 2**0.5 * B @ A)
    changed(series, fan_in_fan_out=True)
    flipped = {
        "base_model.model.model.up.lora_A.weight": torch.ones(2, 4),
        "base_model.model.model.up.lora_B.weight": torch.ones(3, 2),
    }
    save_file(flipped, series / "step-3" / "adapter_model.safetensors")
    assert torch.equal(CheckpointSet.open(series).state(1)["model.up.weight"], BASE["model.up.weight"] + 4)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"base_model_name_or_path": "../../base"}, "no folder beside it"),
        ({"base_model_name_or_path": "/etc"}, "no folder beside it"),
        ({"base_model_name_or_path": "."}, "no folder beside it"),
        ({"base_model_name_or_path": "org/name"}, "no folder beside it"),
        ({"base_model_name_or_path": None}, "names the base none"),
        ({"peft_type": "IA3"}, "only LoRA is read"),
        ({"use_dora": True}, "use_dora=True, which is more than plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"up": 2}}, "rank_pattern"),
        ({"rank_pattern": {"up": 3}}, "factors of rank 2 and 2 for model.up and rank 3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 3}, "factors of rank 2 and 2 for model.up and rank 3"),
        ({"lora_alpha": "x"}, "the alpha 'x', which is no positive number"),
        ({"lora_alpha": float("inf")}, "no positive number"),
    ],
)
def test_what_is_more_than_plain_lora_or_elsewhere_is_refused(series, config, says):
    changed(series, **config)
    with pytest.raises(UserError, match=says):
        CheckpointSet.open(series)


@pytest.mark.parametrize(
    ("factors", "says"),
    [
        ({"base_model.model.model.up.lora_magnitude_vector": torch.ones(4)}, "no part of a plain LoRA"),
        ({"base_model.model.model.up.lora_B.weight": torch.ones(5, 2)}, r"5 × 3, and .* has \[4, 3\] there"),
        (
            {"base_model.model.other.lora_A.weight": A + 1, "base_model.model.other.lora_B.weight": B + 1},
            "adapts other, which .* lacks",
        ),
        (
            {"base_model.model.up.lora_embedding_A": A + 1, "base_model.model.up.lora_embedding_B": B + 1},
            "lora_embedding_A, which is no part of a plain LoRA",
        ),
        ({"base_model.model.other.lora_A.weight": A + 1}, "no lora_B for other, one half"),
    ],
)
def test_factors_that_do_not_fit_are_refused(series, factors, says):
    save_file(FACTORS | factors, series / "step-3" / "adapter_model.safetensors")
    with pytest.raises(UserError, match=says):
        CheckpointSet.open(series)


def test_damaged_files_are_one_sentence(series):
    file = series / "step-3" / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        CheckpointSet.open(series)
    file.unlink()
    with pytest.raises(UserError, match=r"pickled weights \(.bin\) are never read"):
        CheckpointSet.open(series)
    (series / "step-3" / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        CheckpointSet.open(series)
    assert load_file(series / "base" / "model.safetensors").keys() == BASE.keys()
