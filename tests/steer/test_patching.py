"""Patching: every cell is one plain forward with a hook; integrated gradients add up; what cannot be compared is refused."""

import numpy as np
import pytest
import torch

from families import CAUSAL, build
from repscope.conditions import RANDOM
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt
from repscope.steer.patching.methods import ablation, activation_patching, attribution_patching, logit_difference

CLEAN = ["The map of Xqzwk shows it", "A name of Kzwqx in the map"]
CORRUPT = ["The map of Kzwqx shows it", "A name of Xqzwk in the map"]


def metric(logits, pair):
    return logits[:, 7] - logits[:, 11 + pair]


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt-neox", "falcon-alibi", "bloom", "mamba"])
def lm(request, tokenizer):
    return LanguageModel(build(request.param), tokenizer, request.param)


def ids_of(lm, text):
    return torch.tensor(lm.tokenizer(text)["input_ids"])[None]


def slow_cell(lm, clean, corrupt, site, start, stop, pair):
    """Two plain forwards of the whole model, one with a hook that puts in what the other gave."""
    seen = []

    def put(value):
        new = value.clone()
        new[:, start:stop] = seen[0][:, start:stop]
        return new

    with torch.no_grad():
        with lm.taps.hooked([(lm.write_tap(site), lambda value: seen.append(value.clone()))]):
            lm.model(input_ids=ids_of(lm, clean))
        before = lm.model(input_ids=ids_of(lm, corrupt)).logits[:, -1]
        with lm.taps.hooked([(lm.write_tap(site), put)]):
            after = lm.model(input_ids=ids_of(lm, corrupt)).logits[:, -1]
    return float((metric(after, pair) - metric(before, pair))[0])


def test_every_cell_is_one_forward_with_a_hook(lm):
    kinds = ["resid_post"] if "z" in lm.anatomy.refused else ["resid_post", "attn_out", "mlp_out", "z.*.*", "v.1"]
    found = activation_patching(lm, CLEAN, CORRUPT, metric, kinds, seed=1)
    assert found.effect.shape[0] == 2
    for pair, (good, bad) in enumerate(zip(CLEAN, CORRUPT)):
        scale = abs(found.clean[pair] - found.corrupt[pair])
        for i, site in list(enumerate(found.sites))[:: 1 if len(kinds) == 1 else 5]:
            for t in range(len(found.labels[pair])):
                slow = slow_cell(lm, good, bad, site, t, t + 1, pair)
                assert abs(found.effect[pair, i, t] - slow) <= 1e-5 * scale + 1e-5, (site, t)
    assert np.isnan(found.effect).sum() == np.isnan(found.control).sum()
    assert not np.allclose(np.nan_to_num(found.control), np.nan_to_num(found.effect), atol=1e-3)


def test_patching_the_only_token_that_differs_restores_all(llama):
    ids = llama.tokenizer(CLEAN[0])["input_ids"]
    other = list(ids)
    other[2] = (ids[2] + 5) % 300
    found = activation_patching(llama, [ids], [other], metric, "embed", control=False)
    np.testing.assert_allclose(found.restored[0, 0, 2], 1, atol=1e-4)
    assert not np.delete(found.effect[0, 0], 2).any()


def test_positions_by_name(llama):
    clean = [Prompt.fill("A map of {city} here", city=c) for c in ("Xqzwk", "Kzwqx")]
    corrupt = [Prompt.fill("A map of {city} here", city=c) for c in ("Kzwqx", "Xqzwk")]
    whole = activation_patching(llama, clean, corrupt, metric, "resid_post.1", control=False)
    named = activation_patching(llama, clean, corrupt, metric, "resid_post.1", ["city.last", "last"], control=False)
    for pair in range(2):
        length = len(whole.labels[pair])
        np.testing.assert_allclose(named.effect[pair, 0, 1], whole.effect[pair, 0, length - 1], rtol=1e-5)
        assert np.isclose(whole.effect[pair, 0], named.effect[pair, 0, 0], rtol=1e-4).sum() == 1


def test_integrated_gradients_add_up_to_the_difference(llama):
    found = attribution_patching(llama, CLEAN[:1], CORRUPT[:1], metric, "embed", steps=256)
    np.testing.assert_allclose(np.nansum(found.effect), found.clean[0] - found.corrupt[0], rtol=0.02)
    one = attribution_patching(llama, CLEAN[:1], CORRUPT[:1], metric, "embed")
    assert abs(np.nansum(one.effect) - (found.clean[0] - found.corrupt[0])) > abs(
        np.nansum(found.effect) - (found.clean[0] - found.corrupt[0])
    )


def test_attribution_is_the_slope_towards_the_clean_run(llama):
    found = attribution_patching(llama, CLEAN[:1], CORRUPT[:1], metric, ["resid_post.1", "z.2"])
    for site in found.sites:
        clean, corrupt = (llama.capture(texts[:1], site, "all")[site] for texts in (CLEAN, CORRUPT))
        for t in (7, len(clean) - 1):
            moved = []
            for step in (1e-2, -1e-2):
                with llama.edit(Edit.add(site, (clean - corrupt)[t], scale=step, tokens=t)):
                    moved.append(float(metric(torch.from_numpy(llama.logits(CORRUPT[:1])), 0)[0]))
            slope = (moved[0] - moved[1]) / 2e-2
            effect = found.effect[0, found.sites.index(site), t]
            assert abs(effect - slope) <= 0.02 * abs(slope) + 2e-3, (site, t)


def test_mean_and_zero_ablation_put_the_mean_and_zero_there(llama):
    acts = llama.capture(CLEAN, "mlp_out.1", "all")
    mean = acts["mlp_out.1"][acts.positions > 0].mean(0)
    for by, value in (("mean", mean), ("zero", np.zeros_like(mean))):
        found = ablation(llama, CLEAN, metric, ["mlp_out.1", "mlp_out.2"], by=by)
        with llama.edit(Edit.replace("mlp_out.1", value)):
            edited = torch.from_numpy(llama.logits(CLEAN))
        plain = torch.from_numpy(llama.logits(CLEAN))
        expected = [float((metric(edited, i) - metric(plain, i))[i]) for i in range(2)]
        np.testing.assert_allclose(found.effect[:, 0, 0], expected, atol=1e-4)
        assert found.method == f"{by} ablation"


def test_the_table_has_intervals_over_pairs_and_the_control(llama):
    table = activation_patching(llama, CLEAN, CORRUPT, metric, "resid_post").result().table
    assert set(table["condition"]) == {"estimate", RANDOM}
    both = table[table["n"] == 2]
    assert (both["lo"] <= both["value"]).all()
    assert (both["unit"] == "pair").all()
    single = activation_patching(llama, CLEAN[:1], CORRUPT[:1], metric, "resid_post").result().table
    assert single["lo"].isna().all()


def test_the_same_seed_gives_the_same_control(llama):
    runs = [activation_patching(llama, CLEAN, CORRUPT, metric, "attn_out", seed=s).control for s in (3, 3, 4)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(np.nan_to_num(runs[0]), np.nan_to_num(runs[2]))


def test_the_figure_draws_both_conditions(llama):
    found = activation_patching(llama, CLEAN, CORRUPT, metric, ["embed", "resid_post"])
    spec = found.figure().to_dict()
    records = next(iter(spec["datasets"].values())) if "datasets" in spec else spec["data"]["values"]
    assert {row["condition"] for row in records} == {"estimate", RANDOM}
    assert "effect on the metric" in str(spec)


def test_what_cannot_be_compared_is_refused(llama, tokenizer):
    cases = [
        (["a b"], ["a b c d"], "tokens; patching needs positions"),
        (["a b"], ["a b"], "are the same"),
        (["a b"], ["a c", "a d"], "pair by pair"),
    ]
    for clean, corrupt, says in cases:
        with pytest.raises(UserError, match=says):
            activation_patching(llama, clean, corrupt, metric)
    with pytest.raises(UserError, match="can be read but not changed"):
        activation_patching(llama, CLEAN, CORRUPT, metric, "head_out.1")
    with pytest.raises(UserError, match="no single position"):
        activation_patching(llama, CLEAN, CORRUPT, metric, tokens=["mean"])
    with pytest.raises(UserError, match="one number each"):
        activation_patching(llama, CLEAN, CORRUPT, lambda logits, pair: logits)
    with llama.edit(Edit.add("resid_post.1", np.ones(32))):
        llama.logits(CLEAN)
        with pytest.raises(UserError, match="leave the `edit`"):
            activation_patching(llama, CLEAN, CORRUPT, metric)
    with pytest.raises(UserError, match="needs one"):
        logit_difference(llama, "The place called", " a")
    assert "bert" not in CAUSAL
    bert = LanguageModel(build("bert"), tokenizer, "bert")
    with pytest.raises(UserError):
        activation_patching(bert, CLEAN, CORRUPT, metric)
