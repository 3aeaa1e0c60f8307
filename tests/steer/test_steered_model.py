"""Steering a model: whose directions are refused, that nothing stays behind, a batch is each prompt alone, text as it grows."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.steer.steered_model import edits, side_by_side, steering
from repscope.worlds.tiny import tiny

PROMPTS = ["The map", "A rather longer prompt about the sea", "We", "I went to the new restaurant and"]


@pytest.fixture(scope="module")
def lm():
    return tiny()


def made(site="resid_post.2", length=6.0, seed=0, tokens="all", width=32):
    return Direction.of(length * np.random.default_rng(seed).standard_normal(width), site, f"d{seed}", tokens=tokens)


@pytest.mark.parametrize("tokens", ["all", "generated", "last"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_in_a_batch_of_unequal_prompts_is_each_prompt_alone(lm, tokens, temperature):
    direction = made(tokens=tokens)
    how = {"max_new_tokens": 8, "temperature": temperature}
    with steering(lm, direction):
        together = lm.generate(PROMPTS, **how)
        alone = [lm.generate([p], **how)[0] for p in PROMPTS]
        small = lm.generate(PROMPTS, batch_tokens=40, **how)
    plain = lm.generate(PROMPTS, **how)
    for a, b, c in zip(together, alone, small):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.ids, c.ids)
    assert [c.text for c in together] != [c.text for c in plain]


def test_leaving_the_context_restores_the_model_bit_for_bit(lm):
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
    before = lm.logits(PROMPTS)
    with steering(lm, made()):
        assert not np.array_equal(lm.logits(PROMPTS), before)

    def interrupted():
        with steering(lm, made()):
            lm.logits(PROMPTS)
            raise RuntimeError("bang")

    with pytest.raises(RuntimeError, match="bang"):
        interrupted()
    np.testing.assert_array_equal(lm.logits(PROMPTS), before)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
    assert all(torch.equal(weights[name], value) for name, value in lm.model.state_dict().items())


def test_it_adds_the_weights_and_several_add_up(lm):
    a, b = made(), made("mlp_out.1", seed=1)
    with lm.edit(Edit.add("resid_post.2", 2 * a.weights.astype(float)), Edit.add("mlp_out.1", 2 * b.weights.astype(float))):
        slow = lm.logits(PROMPTS)
    with steering(lm, DirectionSet.of(a, b, model=lm.fingerprint), times=2.0):
        np.testing.assert_allclose(lm.logits(PROMPTS), slow, atol=1e-5)
    with lm.edit(Edit.add("resid_post.2", -3 * a.vector)):
        slow = lm.logits(PROMPTS)
    with steering(lm, a, scale=-3.0):
        np.testing.assert_allclose(lm.logits(PROMPTS), slow, atol=1e-5)


@pytest.mark.parametrize(
    ("directions", "how", "says"),
    [
        (made("resid_post.9"), {}, "blocks 0 to 3"),
        (made(width=16), {}, "has 16 features, and resid_post.2 of this model has 32"),
        (DirectionSet.of(made(), model="sampled:another"), {}, "made for the model with fingerprint sampled:another"),
        (DirectionSet.of(made(), model="sampled:another")[0], {}, "made for the model with fingerprint sampled:another"),
        (DirectionSet.of(made(), blocks=12), {}, "model of 12 blocks, and this one has 4"),
        (DirectionSet.of(made(), architecture="gpt2"), {}, "made for a gpt2, and this model is a llama"),
        ("none.gguf", {}, "no file 'none.gguf'"),
        # whose they are comes before where they act
        (DirectionSet.of(made("resid_post.9"), model="sampled:another"), {}, "made for the model with fingerprint"),
        (DirectionSet.of(made("resid_post.9"), architecture="gpt2", blocks=12), {}, "made for a gpt2"),
        (DirectionSet.of(made("resid_post.9", width=16), blocks=12), {}, "model of 12 blocks"),
        (["sentiment"], {}, "'sentiment' is no direction"),
        ([], {}, "no direction to steer with"),
        (made(), {"scale": 0.0}, "steers nothing"),
        (made(), {"times": float("nan")}, "steers nothing"),
        (made("resid_post"), {}, "one place"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(lm, directions, how, says):
    with pytest.raises(UserError, match=says), steering(lm, directions, **how):
        pass
    assert not lm.installed


def test_directions_of_other_weights_where_that_is_wanted(lm):
    other = DirectionSet.of(made(), model="sampled:another")
    assert len(edits(lm, other, anyway=True)) == 1
    assert len(edits(lm, other[0], anyway=True)) == 1
    with pytest.raises(UserError, match="has 16 features"):
        edits(lm, DirectionSet.of(made(width=16), model="sampled:another"), anyway=True)


def test_a_file_is_as_good_as_what_it_holds(lm, tmp_path):
    held = DirectionSet.of(made(), model=lm.fingerprint)
    with steering(lm, held):
        there = lm.logits(PROMPTS)
    for path in (held.save(tmp_path / "d.safetensors"), str(held.to_gguf(tmp_path / "d.gguf"))):
        with steering(lm, path):
            np.testing.assert_array_equal(lm.logits(PROMPTS), there)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_side_by_side_is_steered_beside_unsteered(lm, temperature):
    direction, seen = made(), []
    how = {"max_new_tokens": 6, "temperature": temperature}
    found = side_by_side(lm, direction, PROMPTS[:2], told=lambda *said: seen.append(said), **how)
    plain = lm.generate(PROMPTS[:2], **how)
    with steering(lm, direction):
        steered = lm.generate(PROMPTS[:2], **how)
    assert [t.unsteered for t in found] == [c.text for c in plain]
    assert [t.steered for t in found] == [c.text for c in steered]
    assert [number for number, _, _ in seen] == sorted(number for number, _, _ in seen)
    lasts = {number: (left, right) for number, left, right in seen}
    assert lasts == {i: (t.unsteered, t.steered) for i, t in enumerate(found)}
    lefts = [left for number, left, _ in seen if number == 0]
    assert len(set(lefts)) >= 4  # it grew
    assert all(b.startswith(a) or "\ufffd" in a for a, b in pairwise(lefts))
