"""The default model itself: what a toy cannot show."""

import time

import numpy as np
import pytest
import torch

import repscope as rs

pytestmark = pytest.mark.model

NAMES = ["San Diego", "Lagos", "Rio de Janeiro", "São Paulo", "Ulaanbaatar", "Paris", "New York City", "Nizhny Novgorod"]
PROMPTS = [f"The place called {n}" for n in NAMES] + ["In a hole in the ground there lived a hobbit. " * k for k in (1, 2, 4)]


def test_captures_agree_with_hugging_face_one_prompt_at_a_time(smollm):
    acts = smollm.capture(PROMPTS, "resid_post", "last")
    last = smollm.capture(PROMPTS, "resid_post.-1", "last").numpy()
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            out = smollm.model(torch.tensor([smollm.tokenizer(prompt)["input_ids"]]), output_hidden_states=True)
        for block in range(29):
            theirs = out.hidden_states[block + 1][0, -1].numpy()
            ours = acts[f"resid_post.{block}"][i]
            assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
        # the trap: the last entry of hidden_states comes after the final norm
        assert np.linalg.norm(out.hidden_states[-1][0, -1]) < 0.5 * np.linalg.norm(last[i])


def test_what_prompts_share_runs_once_and_changes_nothing(smollm):
    shots = "Paris is in France. Lagos is in Nigeria. Lima is in Peru. Oslo is in Norway. "
    prompts = [f"{shots}{name} is in" for name in NAMES]
    assert smollm.plan(prompts).tokens < 15 + 8 * 12
    acts = smollm.capture(prompts, "resid_post.20", "last").numpy()
    for i, prompt in enumerate(prompts):
        alone = smollm.capture([prompt], "resid_post.20", "last").numpy()[0]
        assert np.linalg.norm(acts[i] - alone) <= 1e-5 * np.linalg.norm(alone)


def test_identities_hold_and_no_bos_is_added(smollm):
    assert (smollm.blocks, smollm.anatomy.width, smollm.anatomy.form) == (30, 576, "sequential")
    assert smollm.anatomy.error <= 1e-5
    assert smollm.tokens("The place called Paris") == ["The", " place", " called", " Paris"]
    assert "Q4_1" in smollm.source.precision


def test_the_second_load_is_quick(smollm):
    started = time.perf_counter()
    again = rs.load()
    assert time.perf_counter() - started < 3
    assert again.fingerprint == smollm.fingerprint


def test_city_names_are_composed_in_the_first_ten_blocks_and_country_names_are_not(smollm):
    """The figure of the field, coarse: at block 8 continents of cities read out better than from a bag of their tokens."""
    from repscope.data.entities import cities, countries
    from repscope.read.probe_sweep import gain, panels, sweep_probes
    from repscope.read.probes import average

    def tops(entities):
        prompts = [rs.Prompt.fill("The place called {}", name=n) for n in entities.frame["name"]]
        acts = smollm.capture(prompts, ["embed", "resid_post.8"], "name.all")
        bag = np.add.reduceat(acts["embed"], acts.offsets[:-1]) / np.diff(acts.offsets)[:, None]
        panel = panels(entities, ["continent"], k=5, seed=0, min_count=8)[0][0]
        swept = sweep_probes({"ours": [acts["resid_post.8"][acts.offsets[1:] - 1]], "bag": [bag]}, panel, shuffles=10)
        ours, control = (average(swept.scores[s][:1]) for s in ("ours", "bag"))
        pair = [np.stack([s.top[0], s.bottom[0]]) for s in (ours, control)]
        return ours, gain(panel.tasks[0], *pair)

    ours, over_bag = tops(cities(60, lambda text: len(smollm.tokenizer(text)["input_ids"])))
    assert ours.estimate().n == 300
    assert ours.estimate().lo > 0.65
    assert ours.shuffled().hi < 0.3
    assert over_bag.lo > 0.05
    _, none = tops(countries())
    assert none.lo < 0.05, "no composition to claim for countries"
