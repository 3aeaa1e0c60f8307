"""Variants of the last token alone against whole passes with the engine's own edits, in every family."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.sites import Site
from repscope.models.variants import last_token
from repscope.models.variants.last_token import LastTokenVariant, last_token_refused, last_token_variants

REFUSED = {"gemma2", "bloom", "mamba"}  #: attention that is not torch's, position bias per row, no attention


def _variants(lm):
    draw = torch.Generator().manual_seed(0)
    sites = [*(Site("z", s.layer, h) for s in _z(lm) for h in range(lm.tap(s).heads)), *lm.resolve("resid_post")]
    found = [
        LastTokenVariant(s, 3 * torch.randn(lm.anatomy.width if s.head is None else _size(lm, s), generator=draw)) for s in sites
    ]
    return [found[int(i)] for i in np.random.default_rng(0).permutation(len(found))]  # in no order


def _z(lm):
    return [site for site in lm.anatomy.taps if site.kind == "z"]


def _size(lm, site):
    return lm.module.get_submodule(lm.tap(Site("z", site.layer)).path).weight.numel() // lm.anatomy.width // lm.anatomy.heads


def _by_edits(lm, ids, variants):
    rows = [lm.capture([ids], lm.last)[lm.last][0]]
    for variant in variants:
        with lm.edit(Edit.replace(variant.site, variant.value, tokens="last")):
            rows.append(lm.capture([ids], lm.last)[lm.last][0])
    return np.stack(rows)


def test_variants_are_those_of_edits_over_whole_passes(family):
    name, lm = family
    ids = np.arange(3, 17)
    if not lm.causal:
        with pytest.raises(UserError, match="not causal"):
            last_token_variants(lm, ids, [])
        return
    assert bool(last_token_refused(lm, len(ids))) == (name in REFUSED)
    variants = _variants(lm)
    found, expected = last_token_variants(lm, ids, variants).numpy(), _by_edits(lm, ids, variants)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("length", [1, 2, 108, 120])
def test_attention_windows_and_short_prompts(length, tokenizer):
    from families import build
    from repscope.models.language import LanguageModel

    lm = LanguageModel(build("mistral"), tokenizer, "mistral")  # a window of 100 tokens
    ids = np.arange(length) % 300
    variants = _variants(lm)[:6]
    found, expected = last_token_variants(lm, ids, variants).numpy(), _by_edits(lm, ids, variants)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_functions_of_what_is_there_and_several_passes(llama, monkeypatch):
    ids = np.arange(5, 20)
    variants = [LastTokenVariant(site, lambda there: 1.5 * there) for site in llama.resolve("resid_post")[:3]]
    variants += _variants(llama)
    whole = last_token_variants(llama, ids, variants)
    monkeypatch.setattr(last_token, "_PASS_ROWS", 4)
    assert torch.allclose(last_token_variants(llama, ids, variants), whole, atol=1e-4)
    state = llama.capture([ids], "resid_post.1")["resid_post.1"][0]
    with llama.edit(Edit.replace("resid_post.1", 1.5 * state, tokens="last")):
        assert np.allclose(whole[2], llama.capture([ids], llama.last)[llama.last][0], atol=1e-4)


def test_interventions_that_change_nothing_raise(llama):
    ids = np.arange(5, 20)
    same = [LastTokenVariant(site, lambda there: there) for site in llama.resolve("resid_post")]
    with pytest.raises(UserError, match="change no logit"):
        last_token_variants(llama, ids, same)
    assert len(last_token_variants(llama, ids, [])) == 1


def test_what_it_refuses(llama):
    with pytest.raises(UserError, match="last token alone"):
        last_token_variants(llama, np.arange(4), [LastTokenVariant(Site("k", 0), torch.zeros(2, 8))])
    with llama.edit(Edit.add("resid_post.0", np.ones(32))):
        llama.capture([np.arange(4)], llama.last)
        with pytest.raises(UserError, match="is installed"):
            last_token_variants(llama, np.arange(4), [])


def test_the_network_is_left_as_it_was(llama):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()]
    last_token_variants(llama, np.arange(9), _variants(llama))
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in llama.model.modules()] == hooks
