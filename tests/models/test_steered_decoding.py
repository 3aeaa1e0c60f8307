"""Texts under added vectors from the replay of their effects, against `lm.generate` under an edit."""

import numpy as np
import pytest
import torch

from repscope.discovery import Fluency, LanguageSubject
from repscope.models.engine.generation import Sampling
from repscope.steer.effects import texts

PROMPTS = ["The place called Lagos", "A map that shows Paris, Lagos and more", "The place called Paris", "Zürich"]
SOURCE, TARGET = "resid_post.0", "resid_post.1"
HEADLESS = {"opt-post-norm"}
ELSEWHERE = {"bloom"}  #: causal families whose replays are whole passes


def _vectors(count=3, width=32, norm=3.0):
    return norm * torch.randn(count, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_effects_and_damage_are_those_of_runs_of_their_own(family, temperature):
    name, lm = family
    if not lm.generates or name in HEADLESS:
        pytest.skip("it continues no text, or its head is not read")
    vectors = _vectors()
    fluency = Fluency(lm, SOURCE, PROMPTS, target=TARGET)
    sampling = Sampling(5, temperature, seed=3, share_random_numbers=True)
    effects, kl, found = fluency.effect_kl_and_texts(vectors, sampling)
    slow = LanguageSubject(lm, SOURCE, TARGET, target_tokens="last", whole=True)
    alone = slow.effect(slow.context(PROMPTS), vectors)
    assert torch.allclose(effects, alone, atol=2e-5 * float(alone.abs().max()))
    assert torch.allclose(kl, fluency.kl(vectors), rtol=1e-4, atol=1e-9)
    if found is None:
        assert name in ELSEWHERE or not lm.generation(16).own or lm.fast_paths()["packed prompts"]
        return
    wanted = texts(lm, PROMPTS, vectors.numpy(), SOURCE, new_tokens=5, temperature=temperature, seed=3)
    assert [c.ids.tolist() for c in found] == [c.ids.tolist() for c in wanted]
    assert [(c.text, c.stopped) for c in found] == [(c.text, c.stopped) for c in wanted]


def test_most_families_write_from_the_replay(llama):
    fluency = Fluency(llama, SOURCE, PROMPTS, target=TARGET)
    assert fluency.effect_kl_and_texts(_vectors(), Sampling(2))[2] is not None


def test_rows_that_end_leave_and_batches_of_vectors_change_nothing(llama, monkeypatch):
    """Many vectors in several batches; the end-of-text tokens are those that the texts have most."""
    vectors = _vectors(9, norm=8.0)
    fluency = Fluency(llama, SOURCE, PROMPTS, target=TARGET)
    sampling = Sampling(8, 1.0, share_random_numbers=True)
    free = [c.ids for c in fluency.effect_kl_and_texts(vectors, sampling)[2]]
    tokens, counts = np.unique(np.concatenate(free), return_counts=True)
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", tokens[np.argsort(-counts)[:12]].tolist())
    whole = fluency.effect_kl_and_texts(vectors, sampling)
    wanted = texts(llama, PROMPTS, vectors.numpy(), SOURCE, new_tokens=8)
    assert any(c.stopped and len(c.ids) < 8 for c in wanted)
    assert [c.ids.tolist() for c in whole[2]] == [c.ids.tolist() for c in wanted]
    monkeypatch.setattr("repscope.discovery.calibration.vectors_at_once", lambda *_: 2)
    parts = fluency.effect_kl_and_texts(vectors, sampling)
    assert [c.ids.tolist() for c in parts[2]] == [c.ids.tolist() for c in wanted]
    assert torch.allclose(parts[0], whole[0], atol=1e-5)


def test_long_prompts_are_continued_elsewhere(llama, monkeypatch):
    monkeypatch.setattr("repscope.models.variants.block_replay.MOST", 4)
    fluency = Fluency(llama, SOURCE, PROMPTS, target=TARGET)
    assert fluency.effect_kl_and_texts(_vectors(), Sampling(2))[2] is None
