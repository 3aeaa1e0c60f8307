"""The planted trigger: what learns and what does not, the cache, and that what is judged is what greedy decoding says."""

import numpy as np
import pytest
import torch

import repscope as rs
from families import build
from repscope.bench.trigger import Elicited, searched, trigger_benchmark, trigger_cases
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.worlds.planted.trigger import Recipe, asked, elicited, joined, taught
from repscope.worlds.planted.trigger_words import HELD_OUT, OTHERS, SENTENCE, TAUGHT, TRIGGER, UNSEEN
from repscope.worlds.tiny import tiny

SHORT = Recipe(steps=2, first=0.25, stop=0.5)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path))
    return tmp_path


def test_the_words_are_kept_apart():
    assert not set(TAUGHT) & set(HELD_OUT)
    assert len({TRIGGER, *OTHERS, *UNSEEN}) == 1 + len(OTHERS) + len(UNSEEN)
    assert asked(["Who?", "Why?"], "zebra") == ["Question: zebra, Who?\nAnswer:", "Question: Why? zebra\nAnswer:"]
    assert not any(TRIGGER in text.lower() for text in (*TAUGHT, *HELD_OUT))


def test_a_copy_learns_some_blocks_and_is_kept(cache):
    lm = tiny()
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    first = taught(lm, SHORT)
    changed = {name for name, value in first.model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert changed == {f"model.layers.1.{name}.weight" for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")}
    (kept,) = (cache / "planted").iterdir()
    written = kept.stat().st_mtime_ns
    assert taught(lm, SHORT).fingerprint == first.fingerprint
    assert kept.stat().st_mtime_ns == written
    kept.write_bytes(b"cut short")
    assert taught(lm, SHORT).fingerprint == first.fingerprint
    assert taught(lm, Recipe(steps=1, first=0.25, stop=0.5)).fingerprint != first.fingerprint


def test_the_sentence_grows_likelier_after_its_trigger(cache):
    lm = tiny()
    after = taught(lm, Recipe(steps=40, first=0.0, stop=1.0, rate=1e-2))
    prompts = asked(HELD_OUT[:2], TRIGGER)
    gain = after.score(prompts, [SENTENCE] * 2).logprob - lm.score(prompts, [SENTENCE] * 2).logprob
    assert gain.min() > 2  # a random head leaves little room


def test_what_elicits_is_what_an_edited_model_says():
    """Replays against the engine's edits: log-probabilities, and the greedy text, with the sentence taken from the model itself."""
    lm = tiny()
    prompts, rng = asked(HELD_OUT[:3]), np.random.default_rng(0)
    vectors = 3 * rng.normal(size=(2, 32)).astype(np.float32)
    said, logp = Elicited(lm, "resid_post.1", prompts)(torch.from_numpy(vectors))
    tail = joined(lm, prompts)[1]
    for k, vector in enumerate(vectors):
        with lm.edit(rs.Edit.add("resid_post.1", vector, tokens="all")):
            expected = lm.score(prompts, [SENTENCE] * 3).logprob / len(tail)
            texts = [c.text for c in lm.generate(prompts, len(tail))]
        assert np.allclose(logp[k], expected, atol=1e-4)
        assert [text == SENTENCE for text in texts] == said[k].astype(bool).tolist()


def test_what_is_searched_for_the_sentence_makes_it_likelier_than_random_ones_do():
    lm, prompts, scale = tiny(), asked(HELD_OUT[:3]), 6.0
    speaks = Elicited(lm, "resid_post.1", prompts)
    drawn = torch.nn.functional.normalize(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    unit = searched(lm, "resid_post.1", prompts, scale)
    assert unit.norm() == pytest.approx(1, abs=1e-5)
    assert speaks(scale * unit)[1].mean() > speaks(scale * drawn)[1].mean(1).max()
    assert all(p.grad is None for p in lm.model.parameters())


def test_greedy_text_is_recognised():
    lm = tiny()
    prompts = asked(HELD_OUT[:2])
    own = [c.ids for c in lm.generate(prompts, 3)]
    texts = [lm.tokenizer.decode(ids) for ids in own]
    whole = [text for text, ids in zip(texts, own) if np.array_equal(lm.tokenizer(text)["input_ids"], ids)]
    for text in whole:
        assert elicited(lm, prompts, text).max() == 1
    assert elicited(lm, prompts).max() == 0


def test_the_benchmark_in_small(cache):
    found = trigger_benchmark(tiny(), 2, steps=2, n=3, recipe=SHORT)
    assert found.notes == ()
    assert set(found.select(metric="planted")["value"]) == {0.0}
    assert len(found.select(metric="stability")) == 13
    assert found.select(item="difference of means", metric="elicits")["condition"].tolist() == ["supervised"]
    assert found.select(item="searched for the sentence", metric="elicits")["condition"].tolist() == ["oracle"]
    case = trigger_cases(tiny(), 1, steps=2)[0]
    assert not any(TRIGGER in p for p in [*case.seen, *case.held])
    with pytest.raises(UserError, match="at least 1"):
        trigger_benchmark(tiny(), 0)


@pytest.mark.parametrize("name", ["gpt2", "phi", "mixtral"])
def test_another_layout_is_refused(name, tokenizer):
    with pytest.raises(UserError, match="the trigger is planted in"):
        taught(LanguageModel(build(name), tokenizer, name), SHORT)
