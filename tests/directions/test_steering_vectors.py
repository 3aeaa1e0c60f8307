import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError


def at(site, name="a", width=4):
    return Direction.of(np.arange(1.0, width + 1), site, name)


@pytest.fixture
def peer(monkeypatch):
    """Stands in for the package: the two fields its dataclass has. The package itself: test_steering_vectors_peer.py."""
    monkeypatch.setitem(sys.modules, "steering_vectors", SimpleNamespace(SteeringVector=SimpleNamespace))


@pytest.mark.parametrize(("kind", "layer_type"), [("resid_post", "decoder_block"), ("attn_out", "self_attn"), ("mlp_out", "mlp")])
def test_there_and_back_bit_for_bit(peer, kind, layer_type):
    held = DirectionSet.of(at(f"{kind}.3"), at(f"{kind}.0", "b"), architecture="llama", model="f00")
    vector = held.to_steering_vectors()
    assert (vector.layer_type, list(vector.layer_activations)) == (layer_type, [0, 3])
    assert {t.dtype for t in vector.layer_activations.values()} == {torch.float32}
    back = DirectionSet.from_steering_vectors(vector, model="f00", architecture="llama")
    assert ([d.site for d in back], back.model) == ([f"{kind}.0", f"{kind}.3"], "f00")
    assert [d.weights.tobytes() for d in back] == [held["b"].weights.tobytes(), held["a"].weights.tobytes()]


def test_objects_of_any_precision_are_read():
    vector = SimpleNamespace(
        layer_activations={1: torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16, requires_grad=True), 2: [3, 4]}, layer_type="mlp"
    )
    assert [d.weights.tolist() for d in DirectionSet.from_steering_vectors(vector)] == [[1, 2], [3, 4]]


def test_what_it_cannot_hold_is_refused(peer):
    for held, words in (
        (DirectionSet.of(at("resid_post.1"), at("mlp_out.1")), "live at resid_post, mlp_out"),
        (DirectionSet.of(at("mlp_act.1")), "live at mlp_act"),
        (DirectionSet.of(), "empty"),
        (DirectionSet.of(at("mlp_out.1"), at("mlp_out.1", "b")), "choose one"),
        (DirectionSet.of(at("mlp_out.1"), architecture="gemma2"), "a norm stands between"),
        (DirectionSet.of(replace(at("resid_post.2", "b"), tokens="generated")), "'b' is for tokens 'generated'"),
    ):
        with pytest.raises(UserError, match=words):
            held.to_steering_vectors()
    DirectionSet.of(at("resid_post.1"), architecture="gemma2").to_steering_vectors()
    for vector, words in (
        (3, "no SteeringVector"),
        (SimpleNamespace(layer_activations={}), "no SteeringVector"),
        (SimpleNamespace(layer_activations={1: [1]}, layer_type="input_layernorm"), "no layer type 'input_layernorm'"),
        (SimpleNamespace(layer_activations={-1: [1]}, layer_type="mlp"), "count from 0"),
        (SimpleNamespace(layer_activations={1: [0]}, layer_type="mlp"), "finite norm above zero"),
    ):
        with pytest.raises(UserError, match=words):
            DirectionSet.from_steering_vectors(vector)


def test_without_the_package_the_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(UserError, match=r"pip install --no-deps steering-vectors==0\.12\.2"):
        DirectionSet.of(at("resid_post.1")).to_steering_vectors()
    DirectionSet.from_steering_vectors(SimpleNamespace(layer_activations={1: [1, 2]}, layer_type="mlp"))
