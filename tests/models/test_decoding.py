"""Rows continued at their own positions, with keys and values in place: logits of plain passes, texts of transformers."""

import numpy as np
import pytest
import torch

from families import CAUSAL, build
from repscope.models.edits import Edit
from repscope.models.engine.decoding import decoded
from repscope.models.engine.generating_network import WAYS
from repscope.models.engine.generation import inverted
from repscope.models.language import LanguageModel
from repscope.models.prompts import Ragged

#: families that are not continued this way, and why
OTHERWISE = {
    "gemma2": "NotImplementedError",
    "bloom": "no token positions",
    "opt-post-norm": "UserError",
    "mamba": "no token positions",
    "gptj": "NotImplementedError",
}


def full_sort(p, u, top_p):
    """The slow twin of `inverted`: every row sorted in float64, token by token."""
    found = []
    for row, draw in zip(p.tolist(), u.tolist()):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        kept, before = [], 0.0
        for i in order:
            if before >= top_p:
                break
            kept.append(i)
            before += row[i]
        mass, total = draw * sum(row[i] for i in kept), 0.0
        for i in kept:
            total += row[i]
            if total >= mass:
                break
        found.append(i)
    return found


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-9])
@pytest.mark.parametrize("kind", ["peaked", "flat", "ties"])
def test_a_drawn_token_is_that_of_a_full_sort(kind, top_p):
    torch.manual_seed(0)
    logits = torch.randn(200, 300, dtype=torch.float64) * {"peaked": 4, "flat": 0.3, "ties": 1}[kind]
    if kind == "ties":
        logits = (logits * 2).round() / 2
    p, u = logits.softmax(-1), torch.rand(200, dtype=torch.float64)
    for likely in (20, 100, 1000):
        assert inverted(p, u, top_p, likely).tolist() == full_sort(p, u, top_p)


def test_every_family_is_continued_at_its_own_positions_or_says_why(family):
    name, lm = family
    if name not in CAUSAL:
        return
    way = lm.generation(12)
    if name in OTHERWISE and not (way.own and name in ("gemma2", "gptj")):  # which attend by torch in some versions
        assert not way.own
        assert OTHERWISE[name] in way.why
    else:
        assert way == WAYS[0]


def rows_of(seed, lengths):
    rng = np.random.default_rng(seed)
    shared = rng.integers(2, 250, 60)
    return [np.concatenate([shared[: n // 2], rng.integers(2, 250, n - n // 2)]) for n in lengths]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "gemma3", "opt", "mixtral", "falcon"])
@pytest.mark.parametrize("budget", [None, 50])
def test_each_step_has_the_logits_of_a_plain_pass(name, budget, tokenizer):
    """Prompts that share beginnings, in packs and in one, with copies: each step of each row as a whole pass of that row."""
    lm = LanguageModel(build(name), tokenizer, name)
    prompts = rows_of(0, [40, 3, 30, 1, 22, 40])
    prompts += [prompts[0], prompts[1]]
    new, seen = np.random.default_rng(1).integers(2, 250, (len(prompts), 4)), []

    def force(logits, rows):
        seen.append(logits)
        return torch.from_numpy(new[rows, len(seen) - 1])

    decoded(lm, Ragged.of(prompts), np.arange(len(prompts)), force, 4, batch_tokens=budget)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            whole = lm.model(torch.from_numpy(np.concatenate([prompt, new[i, :3]]))[None]).logits[0, -4:]
        torch.testing.assert_close(torch.stack([step[i] for step in seen]), whole, rtol=1e-3, atol=2e-5)


def test_prompts_run_packed_once(llama):
    """16 copies of a prompt cost one prompt and one row per step."""
    prompt = rows_of(2, [60])[0]
    seen = []
    handle = llama.module.register_forward_pre_hook(lambda m, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    try:
        llama.generate([prompt] * 16, 4, temperature=1.0)
    finally:
        handle.remove()
    assert seen[-4:] == [(1, 60), (16, 1), (16, 1), (16, 1)]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.1}, {"temperature": 0.8, "top_p": 0.9}])
def test_texts_are_those_of_transformers(llama, options, monkeypatch):
    prompts = rows_of(3, [40, 3, 30, 1, 22, 40]) * 2
    ours = [c.ids.tolist() for c in llama.generate(prompts, 6, **options)]
    with llama.edit(Edit.add("resid_post.1", np.full(32, 0.5))):
        steered = [c.ids.tolist() for c in llama.generate(prompts, 6, **options)]
    monkeypatch.setattr("repscope.models.engine.generating_network.WAYS", WAYS[1:])
    assert ours == [c.ids.tolist() for c in llama.generate(prompts, 6, **options)]
    with llama.edit(Edit.add("resid_post.1", np.full(32, 0.5))):
        assert steered == [c.ids.tolist() for c in llama.generate(prompts, 6, **options)]
    assert steered != ours


def test_rows_that_end_leave_and_the_others_go_on(tokenizer):
    model = build("llama")
    model.generation_config.eos_token_id = None
    lm = LanguageModel(model, tokenizer, "llama")
    prompts = rows_of(4, [5 + i for i in range(24)])
    free = [c.ids.tolist() for c in lm.generate(prompts, 8)]
    ends = sorted({new[1] for new in free[:14]})  # many rows end at their second token
    model.generation_config.eos_token_id = ends
    widths = []
    handle = lm.module.register_forward_pre_hook(lambda m, a, k: widths.append(len(k["input_ids"])), with_kwargs=True)
    told = {}
    try:
        found = lm.generate(prompts, 8, on_token=lambda i, text: told.setdefault(i, []).append(text))
    finally:
        handle.remove()
    for i, (cont, new) in enumerate(zip(found, free)):
        cut = next((n + 1 for n, token in enumerate(new) if token in ends), 8)
        assert cont.ids.tolist() == new[:cut]
        assert len(told[i]) == cut
        assert told[i][-1] == cont.text
    assert min(widths[1:]) <= 24 - 8


def test_edits_that_reach_into_attention_go_another_way(llama):
    prompts = rows_of(5, [9, 4])
    with llama.edit(Edit.replace("z.1.0", 0.0)):
        assert llama.generation(12, own=True).own
        llama.generate(prompts, 3)
    with llama.edit(Edit.add("k.1", np.full((2, 8), 0.3))):
        cached = [c.ids.tolist() for c in llama.generate(prompts, 5)]
        assert cached == [c.ids.tolist() for c in llama.generate(prompts, 5, use_cache=False)]
