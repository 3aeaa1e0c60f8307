"""Edits as forks against the engine's own edits."""

import numpy as np
import pytest

from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.prompts import Prompt
from repscope.steer.fact_editing import kl, logits_after_edit, random_step


def test_a_fork_is_what_an_edit_does(llama):
    prompt = Prompt.fill("The capital of {subject} is", subject="Upper Volta")
    rng = np.random.default_rng(0)
    steps = [(f"resid_post.{block}", rng.normal(size=32).astype(np.float32)) for block in (0, 1, 1, 2)]
    found = logits_after_edit(llama, prompt, steps)
    assert np.allclose(found[0], llama.logits([prompt])[0], atol=1e-4)
    for row, (site, step) in zip(found[1:], steps):
        with llama.edit(Edit.add(site, step, tokens="subject.last")):
            assert np.allclose(row, llama.logits([prompt])[0], atol=1e-4)
        assert not np.allclose(row, found[0], atol=1e-2)


def test_damage_is_zero_without_a_step_and_above_with_one(llama):
    prompt = Prompt.fill("The capital of {subject} is", subject="Chile")
    step = np.random.default_rng(0).normal(size=32).astype(np.float32)
    found = kl(logits_after_edit(llama, prompt, [("resid_post.1", 0 * step), ("resid_post.1", 5 * step)]))
    assert abs(found[0]) < 1e-6
    assert found[1] > 1e-4


def test_a_random_step_is_as_long_and_has_its_seed():
    step = np.arange(5, dtype=np.float32)
    drawn = random_step(step, 1)
    assert np.isclose(np.linalg.norm(drawn), np.linalg.norm(step))
    assert np.array_equal(drawn, random_step(step, 1))
    assert not np.allclose(drawn, random_step(step, 2))


def test_a_prompt_without_the_span(llama):
    with pytest.raises(UserError, match="subject"):
        logits_after_edit(llama, Prompt("no subject here"), [("resid_post.1", np.ones(32))])
