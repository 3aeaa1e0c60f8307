"""The drift study: whole on tiny networks, with its controls; measures against slow twins; verdicts of every claim by rule."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from repscope.cli import run as command
from repscope.conditions import (
    ANOTHER_HALF,
    ANOTHER_SEED,
    BFLOAT16,
    ESTIMATE,
    FITTED_VECTORS,
    PERMUTED_GAPS,
    PERMUTED_METHODS,
    RANDOM,
)
from repscope.models.loading.stacked_weights import unstack
from repscope.report.verdict import MOST_WORDS
from repscope.results import Row, select, table_of
from repscope.studies.catalogue import study
from repscope.studies.drift import measures, names
from repscope.studies.drift.drifts import folders
from repscope.studies.drift.networks import Lab, state_of
from repscope.studies.drift.options import DriftOptions
from repscope.studies.drift.page import _left_out, page
from repscope.studies.drift.statistics import over_seeds, rank_correlation, slope
from repscope.studies.drift.steering import added, steering
from repscope.studies.drift.verdict import ARTEFACT, BARELY, FEWER, SMALLER, STEERS
from repscope.studies.drift.verdict import verdict as verdict_of
from repscope.studies.run.study import Context
from repscope.trace.drift.pair import Pair
from repscope.trace.drift.weights import weight_drift
from repscope.worlds.rewarded.evaluation import samples
from repscope.worlds.rewarded.methods import METHODS
from repscope.worlds.rewarded.task import RewardedWorlds, generator_of
from repscope.worlds.small_lm import transformer as stacked

WORLDS = RewardedWorlds((3, 4), vocabulary=10, good=3, completion=5)
SHAPE = stacked.Shape(10, WORLDS.length, 8)


@pytest.fixture(scope="module")
def done(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("drift", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def start():
    generator = torch.Generator().manual_seed(0)
    return {k: v + 0.2 * torch.randn(v.shape, generator=generator) for k, v in stacked.initial(SHAPE, [0, 1]).items()}


@pytest.fixture(scope="module")
def tuned(start):
    generator = torch.Generator().manual_seed(1)
    return {k: v + 0.05 * torch.randn(v.shape, generator=generator) for k, v in start.items()}


def test_the_page_has_figures_controls_and_no_verdict(done):
    page = (done.folder / "report.html").read_text()
    for said in (
        "Drift by the reward gap",
        "Weight drift and functional drift",
        "Is it only steering?",
        "Which tokens shift",
        "Survival",
    ):
        assert said in page
    assert "Verdict per claim" not in page


def test_every_number_has_its_control(done):
    table = done.table
    assert set(table[table["metric"] == names.SLOPE]["condition"]) == {ESTIMATE, PERMUTED_GAPS}
    assert set(table[table["metric"] == names.CORRELATION]["condition"]) == {ESTIMATE, PERMUTED_METHODS}
    assert set(table[table["metric"] == names.RECOVERED]["condition"]) == {ESTIMATE, FITTED_VECTORS, RANDOM, names.OTHER_METHOD}
    for name in METHODS:
        rows = table[(table["metric"] == names.KL) & (table["item"] == name) & (table["split"] == names.AT_REWARD)]
        assert {ESTIMATE, ANOTHER_SEED, ANOTHER_HALF} <= set(rows["condition"]), name
    assert set(select(table, metric=names.READS)["condition"]) == {ESTIMATE, names.REFITTED, names.BEFORE, RANDOM}
    assert set(table["unit"]) <= {"seed", "permutation"}


def test_matched_runs_are_at_their_target_on_other_samples_and_others_are_named(done):
    for name in METHODS:
        runs = done.results[f"train {name}"].side[f"runs-{name}"]
        here = runs[(runs["match"] == names.AT_REWARD) & runs["matched"]]
        assert (np.abs(here["reward"] - here["target"]) < 0.01).all()
        missed = runs[~runs["matched"]]
        notes = " ".join(done.results[f"train {name}"].notes)
        for row in missed.itertuples():
            assert row.match in notes
            assert f"seed {row.seed} run {row.repeat}" in notes


def test_the_same_seed_gives_the_same_numbers_and_a_killed_run_goes_on(done, tmp_path):
    from repscope.studies.run.runner import Run

    again = Run(done.study, done.options, out=tmp_path)
    kept = again.run_folder.path / ".steps"
    kept.mkdir(parents=True)
    for part in (done.folder / ".steps").iterdir():
        if not part.name.startswith(("summary", "gap", "imitation")):
            (kept / part.name).symlink_to(part)
    again.answer()
    assert set(again.took) == {"imitation", "gap REINFORCE", "gap DPO", "gap SFT, expert", "summary"}
    pd.testing.assert_frame_equal(again.table, done.table)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--levels", "0", "--levels", "3"], "at least three different"),
        (["--width", "9"], "odd"),
        (["--seeds", "1"], "greater than or equal to 2"),
        (["--gain", "1.5"], "less than 1"),
        (["--rates=-1"], "positive learning rates"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, says, tmp_path, capsys):
    assert command(["study", "drift", "--tiny", *words, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_the_short_form_says_what_it_leaves_out(done):
    said = _left_out(DriftOptions(short=True).sized())
    assert "worlds (3 of 5)" in said
    assert "learning rates (1 of 3)" in said
    assert not _left_out(DriftOptions())
    given = _left_out(DriftOptions(short=True, pretraining=900).sized())
    assert "pretraining" not in given, "an option that was given is not fewer"
    tested = page(done.record).tested
    assert tested
    assert "`" not in tested


def test_a_plan_names_every_step(tmp_path, capsys):
    assert command(["study", "drift", "--tiny", "--plan", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for name in ("pretraining", "train GRPO", "gap DPO", "summary"):
        assert name in told


def test_networks_are_folders_that_compare_opens(done, tmp_path):
    lab = Lab(done.options.sized())
    context = Context(done.results, tmp_path, tmp_path, tmp_path)
    folders(lab, context)
    found = sorted(p.name for p in (tmp_path / "networks").iterdir())
    assert {"base", "dpo", "reinforce"} <= set(found)
    drift = done.results["drift"].side["drift"]
    row = drift[
        (drift["method"] == "DPO") & (drift["match"] == names.AT_REWARD) & (drift["seed"] == 0) & (drift["repeat"] == 0)
    ].iloc[0]
    table = weight_drift(Pair.open(tmp_path / "networks" / "base", tmp_path / "networks" / "dpo"), spectra=False).table
    whole = table[(table["item"] == "all weights") & (table["condition"] == ESTIMATE) & (table["metric"] == names.NORM)]
    assert whole["value"].iloc[0] == pytest.approx(row[names.NORM], rel=1e-5)


# ---- measures, beside slow twins


def test_weight_measures_are_those_of_two_checkpoints(start, tuned):
    some = dict(tuned)
    some["transformer.wte.weight"] = start["transformer.wte.weight"].clone()
    found = measures.weights(start, some)
    for i in range(2):
        ours = found[(found["network"] == i) & (found["module"] == "all")].iloc[0]
        theirs = weight_drift(unstack(start, i), unstack(some, i), spectra=False).table
        whole = theirs[(theirs["item"] == "all weights") & (theirs["condition"] == ESTIMATE)].set_index("metric")["value"]
        for metric in (names.NORM, names.SAME32, names.SAME16):
            assert ours[metric] == pytest.approx(whole[metric], rel=1e-6), metric
    assert measures.relative_norm(start, some) == pytest.approx(found[found["module"] == "all"][names.NORM].to_numpy())


def test_effective_rank_of_a_rank_r_update_with_equal_singular_values_is_r():
    q = torch.linalg.qr(torch.randn(2, 12, 12, dtype=torch.float64))[0]
    assert measures.effective_rank(q[..., :3] @ q[..., :3].mT) == pytest.approx([3 / 12] * 2)


def test_a_network_beside_itself_has_no_drift(start):
    documents, _ = WORLDS.corpus(16, generator_of(0))
    whole = measures.weights(start, start)
    assert (whole[whole["module"] == "all"][names.NORM] == 0).all()
    assert (whole[names.SAME32] == 1).all()
    assert (measures.next_tokens(SHAPE, start, start, documents)[names.KL] == 0).all()
    shift = measures.token_shift(SHAPE, start, start, WORLDS.prompts(8, generator_of(0)), 5)
    assert (shift[:, 0] == 1).all()
    sites = measures.representations(SHAPE, start, start, documents)
    assert sites[names.CKA].to_numpy() == pytest.approx(np.ones(len(sites)))


def test_token_shift_and_divergences_by_hand(start, tuned):
    prompts = WORLDS.prompts(6, generator_of(0))
    shift = measures.token_shift(SHAPE, start, tuned, prompts, 5)
    counts = np.zeros((2, 3, 5))
    for i in range(2):
        for prompt in prompts[i]:
            ids = prompt.tolist()
            for position in range(5):
                asked = torch.tensor(ids).expand(2, 1, -1)
                answer = int(stacked.logits(SHAPE, tuned, asked)[i, 0, -1].argmax())
                order = stacked.logits(SHAPE, start, asked)[i, 0, -1].argsort(descending=True).tolist()
                rank = order.index(answer) + 1
                counts[i, 0 if rank == 1 else 1 if rank <= 3 else 2, position] += 1 / 6
                ids.append(answer)
    np.testing.assert_allclose(shift, counts)
    documents, _ = WORLDS.corpus(8, generator_of(1))
    found = measures.next_tokens(SHAPE, start, tuned, documents)
    p, q = (stacked.logits(SHAPE, s, documents[..., :-1])[:, :, 1:].double().softmax(-1) for s in (tuned, start))
    m = (p + q) / 2
    kl = (p * (p / q).log()).sum(-1).mean((1, 2))
    js = ((p * (p / m).log()).sum(-1) / 2 + (q * (q / m).log()).sum(-1) / 2).mean((1, 2))
    assert found[names.KL].mean(1) == pytest.approx(kl.numpy(), rel=1e-4)
    assert found[names.JS].mean(1) == pytest.approx(js.numpy(), rel=1e-4)


def test_a_constant_shift_is_all_of_the_change_and_vectors_recover_it(start):
    moved = added(start, {0: 0.4 * torch.randn(2, 8, generator=torch.Generator().manual_seed(2))})
    documents, _ = WORLDS.corpus(32, generator_of(0))
    sites = measures.representations(SHAPE, start, moved, documents)
    assert sites[sites["site"] == "resid_post.0"][names.SHIFT].to_numpy() == pytest.approx([1, 1], abs=1e-4)
    sampled = samples(SHAPE, moved, WORLDS, 128, (0, "steering"))
    found = steering(SHAPE, start, moved, sampled, 120, 0)
    assert (found.one > 0.999).all()
    assert (found.site == 1).all()
    assert (found.scale == 1).all()
    assert (found.fitted > 0.8).all()
    assert (found.random < 0.5).all()


def test_slopes_and_orders_have_a_control_that_loses_the_effect():
    x = np.linspace(0, 1, 6)
    pairs = [(x, 2 * x + 0.01 * np.random.default_rng(i).standard_normal(6)) for i in range(5)]
    found, null = over_seeds(slope, pairs)
    assert found is not None
    assert null is not None
    assert found.lo > 1.9 > null.hi
    assert null.lo < 0 < null.hi
    for x_, y in pairs:
        a, b = slope(x_, y)
        assert a @ b == pytest.approx(np.polyfit(x_, y, 1)[0])
        a, b = rank_correlation(x_, -y)
        assert a @ b == pytest.approx(spearmanr(x_, -y)[0])
    order, _ = over_seeds(rank_correlation, pairs)
    assert order is not None
    assert order.value > 0.9
    assert over_seeds(slope, [(np.ones(3), x[:3])] * 3) == (None, None)


def test_worlds_and_starts_of_gaps_are_in_one_order(done):
    """The start of seed s at level l is the network that imitation left there."""
    lab = Lab(done.options.sized())
    stages = [state_of(done.results["imitation"].arrays, f"{level}/") for level in sorted(set(lab.options.levels))]
    from repscope.studies.drift.gaps import _interleaved

    found = _interleaved(stages)
    for key, value in found.items():
        for s in range(lab.options.seeds):
            for level, stage in enumerate(stages):
                assert torch.equal(value[s * len(stages) + level], stage[key][s])


# ---- verdicts


def row(value, half=0.01, **where):
    return Row(value=value, lo=value - half, hi=value + half, level=0.95, n=5, unit="seed", **where)


def fewer(exact, rounded):
    at = {"metric": names.DIFFERENCE, "split": names.AT_REWARD}
    return [row(v, item=f"{m}: RL − SFT", **at) for m, v in ((names.SAME32, exact), (names.SAME16, rounded))]


def artefact(*shares):
    rows = []
    for i, (sparse, exact) in enumerate(shares):
        at = {"item": f"method {i}", "split": "rate 1e-06"}
        rows += [row(sparse, metric=names.SAME16, condition=BFLOAT16, **at), row(exact, metric=names.SAME32, **at)]
    return rows


def barely(ratio, half=0.01):
    return [row(ratio, half, metric=names.RATIO, item=f"{names.NORM}: DPO / others", split=names.AT_REWARD)]


def steers(*shares):
    rows = []
    for i, share in enumerate(shares):
        at = {"metric": names.RECOVERED, "item": f"method {i}", "split": names.AT_REWARD}
        rows += [row(share, condition=FITTED_VECTORS, **at), row(-0.1, condition=RANDOM, **at)]
    return rows


def slopes(*values, null=0.1):
    rows = []
    for value, m in zip(values, (names.NORM, f"1 − {names.CKA}", names.KL)):
        at = {"metric": names.SLOPE, "item": f"REINFORCE: {m}", "split": "gap"}
        rows += [row(value, **at), row(0.0, null, condition=PERMUTED_GAPS, **at)]
    return rows


@pytest.mark.parametrize(
    ("claim", "rows", "reply", "words"),
    [
        (FEWER, fewer(0.2, 0.3), "Yes", "more weights exactly"),
        (FEWER, fewer(0.0, 0.3), "Partly", "in bfloat16"),
        (FEWER, fewer(0.0, 0.0), "No", "nearly the same share"),
        (FEWER, fewer(0.0, 0.05), "Cannot tell", "do not show"),
        (FEWER, [], "Cannot tell", "do not show"),
        (ARTEFACT, artefact((0.9, 0.01), (0.8, 0.0)), "Yes", "float32 do not"),
        (ARTEFACT, artefact((0.9, 0.4)), "No", "leave many"),
        (ARTEFACT, artefact((0.9, 0.01), (0.9, 0.4)), "Partly", "1 of 2"),
        (ARTEFACT, artefact((0.2, 0.0)), "Cannot tell", "No run"),
        (BARELY, barely(0.3), "Yes", "less than half"),
        (BARELY, barely(0.7), "Partly", "but not less"),
        (BARELY, barely(1.2), "No", "about as much"),
        (BARELY, barely(0.5, half=0.3), "Cannot tell", "interval"),
        (STEERS, steers(0.9, 0.95), "Yes", "every method"),
        (STEERS, steers(0.9, 0.6), "Partly", "1 of 2"),
        (STEERS, steers(0.1, 0.2), "No", "less than half"),
        (STEERS, [], "Cannot tell", "intervals"),
        (SMALLER, slopes(1.0, 1.0, 1.0), "Yes", "weights, representations and next tokens"),
        (SMALLER, slopes(1.0, 0.0, 1.0), "Partly", "weights and next tokens only"),
        (SMALLER, slopes(-1.0, -1.0, -1.0), "No", "does not go with"),
        (SMALLER, slopes(1.0, 1.0, 1.0, null=2.0), "Cannot tell", "do not show"),
        (SMALLER, [], "Cannot tell", "do not show"),
    ],
)
def test_each_claim_has_its_outcomes(claim, rows, reply, words):
    whole = verdict_of(table_of(rows))
    for part in (whole, *whole.parts.values()):
        assert len(part.sentence.split()) <= MOST_WORDS, part.sentence
    assert (whole.parts[claim].reply, words in whole.parts[claim].why) == (reply, True), whole.parts[claim].sentence
    assert whole.reply == whole.parts[SMALLER].reply


def test_short_and_tiny_are_smaller():
    full, short, tiny = (DriftOptions(**how).sized() for how in ({}, {"short": True}, {"tiny": True}))
    assert full.seeds == 5
    assert tiny.width < short.width
    assert short.documents < full.documents
    assert study("drift").options is DriftOptions
