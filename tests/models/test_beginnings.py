"""Prompts that begin alike share keys and values: the same logits, fewer tokens."""

import numpy as np
import torch

from repscope.models.engine.hooks import unhooked
from repscope.models.prompts import Prompt
from repscope.models.variants.prompt_variants import Beginnings
from repscope.steer.fact_editing import logits_after_edit
from repscope.worlds.tiny import tiny

SHOTS = "Peru: Lima. Chile: Santiago. "
NAMES = ("Italy", "Iran", "France", "It")


def test_edits_of_prompts_with_one_beginning_are_those_of_each_prompt_alone():
    lm = tiny()
    steps = [("resid_post.1", np.full(32, 0.5, np.float32)), ("resid_post.0", np.linspace(-1, 1, 32, dtype=np.float32))]
    prompts = [Prompt.fill(SHOTS + "{subject} has", subject=name) for name in NAMES]
    prompts += [Prompt.fill("Elsewhere {subject} has", subject="Peru"), prompts[0], Prompt.fill("{subject} has", subject="Peru")]
    shared = Beginnings()
    tokens = []
    handle = lm.module.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        for prompt in prompts:
            together = logits_after_edit(lm, prompt, steps, beginnings=shared)
            with_own = tokens.copy()
            tokens.clear()
            alone = logits_after_edit(lm, prompt, steps)
            assert np.allclose(together, alone, atol=1e-5 * np.abs(alone).max())
            if prompt in prompts[1:4]:  # the examples are there from the first prompt
                assert max(with_own) < 12 < len(SHOTS) < max(tokens)
            tokens.clear()
    finally:
        handle.remove()


def test_positions_are_those_of_a_prompt_run_alone():
    lm, shared = tiny(), Beginnings()
    with unhooked(lm.module), torch.no_grad():
        for text in ("abcdef", "abc", "abc", "x"):
            ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
            found = shared.filled(lm, ids)
            whole = lm.cache()
            lm.module(input_ids=ids, **{lm.cache_name: whole}, **lm.plain(use_cache=True))
            for ours, theirs in zip(found.layers, whole.layers):
                assert torch.allclose(ours.keys, theirs.keys, atol=1e-6)
                assert torch.allclose(ours.values, theirs.values, atol=1e-6)
