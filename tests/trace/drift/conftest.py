"""Tiny networks before and after an imitated tuning: weights with small changes, or a constant vector added at one block."""

import copy

import pytest
import torch

from repscope.models.language import LanguageModel
from repscope.worlds.tiny import tiny, untrained_llama

WORDS = ("Paris", "Lagos", "helium", "seven", "a map", "the sea", "Rome", "iron", "winter", "green")


def changed(lm, scale, seed):
    """The network with noise on its weights, relative to each tensor's norm."""
    model = copy.deepcopy(lm.model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * weight.std().nan_to_num() * torch.randn(weight.shape, generator=draw)
    return LanguageModel(model, lm.tokenizer, f"changed {seed}")


def small(tokenizer, **sizes):
    """A network of another shape."""
    model = untrained_llama(0, **{"vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 2} | sizes)
    return LanguageModel(model, tokenizer, "small")


def steered(lm, block, vector):
    """The network with a constant added to the output of a block's MLP: a change that one vector explains."""
    model = copy.deepcopy(lm.model)
    old = model.model.layers[block].mlp.down_proj
    new = torch.nn.Linear(old.in_features, old.out_features)
    with torch.no_grad():
        new.weight.copy_(old.weight)
        new.bias.copy_(torch.as_tensor(vector))
    model.model.layers[block].mlp.down_proj = new
    return LanguageModel(model, lm.tokenizer, "steered")


@pytest.fixture(scope="session")
def prompts():
    return [f"{a} and {b}" for a in WORDS for b in WORDS[:8] if a != b][:64]


@pytest.fixture(scope="session")
def base():
    return changed(tiny(), 1.0, 99)  # larger weights than at initialisation, so that blocks matter


@pytest.fixture(scope="session")
def tuned(base):
    return changed(base, 0.3, 1)


@pytest.fixture(scope="session")
def other(base):
    return changed(base, 0.3, 2)
