"""The bayes study: whole in seconds on tiny networks, with its ceilings and controls; a killed run goes on; mistakes are told."""

import numpy as np
import pytest

from repscope.cli import run as command
from repscope.conditions import ESTIMATE
from repscope.models.loading.stacked_weights import state_of
from repscope.results import select
from repscope.studies.bayes import names
from repscope.studies.bayes.measures import Asked, changes, rows, shown
from repscope.studies.bayes.options import BayesOptions
from repscope.studies.bayes.page import floor_table, risen
from repscope.studies.bayes.task import SINGLE, TRANSFORMER, BayesTask
from repscope.studies.catalogue import study
from repscope.studies.run.runner import Run
from repscope.trace import bayes


@pytest.fixture(scope="module")
def done(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("bayes", tmp_path_factory.mktemp("runs"))


def test_every_curve_has_its_ceilings_and_its_control(done):
    table = done.table
    task = BayesTask(done.setup.options)
    for length in done.setup.options.lengths:
        for k in shown(task.examples(length) + 1):
            rows = select(table, metric=names.ACCURACY, item=names.item(names.UNIFORM, length, k))
            assert set(rows["condition"]) == {ESTIMATE, names.RECURRENT, names.MIXTURE, names.AWARE, names.UNTRAINED}
            assert set(rows["unit"]) == {"prompt"}
            assert (rows["lo"] <= rows["value"]).all()
            assert (rows["hi"] >= rows["value"]).all()
    for title in (names.PUBLISHED, names.UNSEEN):
        assert len(select(table, metric=names.KL, item=names.item(title, 3, 0), condition=ESTIMATE)) == 1
    assert set(select(table, metric=names.ACCURACY, item=names.item(names.OWN, 3, 0))["condition"]) >= {names.ONE, names.MIXTURE}
    assert set(table[table["metric"] == names.ORDER]["condition"]) == {ESTIMATE, names.MIXTURE}
    truth = select(table, metric=names.TRUTH, item=names.item(names.UNSEEN, 3, 0))
    assert (truth["value"] == 0).all(), "no predictor knows an unseen concept"


def test_the_distance_is_that_of_the_saved_weights_by_hand(done):
    """Weights from the run, prompts drawn again, KL summed by a plain loop."""
    task = BayesTask(done.setup.options)
    state = state_of(done.results["train transformers"].arrays)
    held = task.prompts(names.UNIFORM, 3, "asked")
    logits = task.logits(TRANSFORMER)
    expected = bayes.pretraining(task.world(names.UNIFORM), held, names.FLOOR).answers
    import torch

    ids = torch.from_numpy(held.tokens).expand(task.options.networks, -1, -1)
    q = logits(state, ids)[:, :, held.positions[1]].double().softmax(-1).numpy()
    total = 0.0
    for network in range(len(q)):
        for prompt in range(len(held.tokens)):
            p = expected[prompt, 1]
            total += sum(a * np.log(a / b) for a, b in zip(p, q[network, prompt]) if a > 0)
    row = select(done.table, metric=names.KL, item=names.item(names.UNIFORM, 3, 1), condition=ESTIMATE)
    assert row["value"].iloc[0] == pytest.approx(total / len(q) / len(held.tokens), rel=1e-6)


def test_trainings_have_equal_updates_and_no_place_is_asked_that_none_of_them_saw(done):
    trainings = [r for name, r in done.results.items() if name.startswith("train ")]
    assert len(trainings) == 4
    assert {len(r.side["losses"]) for r in trainings} == {12 * 2}
    task = BayesTask(done.setup.options)
    tokens, expected = task.held_out(TRANSFORMER)
    assert expected.shape[1] == tokens.shape[1] - 1 == 23, "after the last symbol of a document nothing was trained"


def test_where_all_prompts_agree_the_interval_has_a_width():
    prompts, symbols = 30, 3
    answers = np.full((2, prompts, 2, symbols), 0.1)
    answers[..., 0] = 0.8
    exact = bayes.PromptForecast(answers[0], np.ones((prompts, 2)))
    asked = Asked("p", 3, (0, 1), np.zeros((prompts, 2), int), np.ones((prompts, 2)), exact)
    table = {(r.metric, r.item): r for r in rows(asked, {ESTIMATE: answers}, 0) if r.condition == ESTIMATE}
    for metric in (names.ACCURACY, names.CLEAR):
        row = table[metric, "p, L = 3, k = 1"]
        assert (row.value, row.hi, row.interval_method) == (1, 1, "wilson")
        assert row.lo == pytest.approx(0.886, abs=1e-3)
    rise = next(r for r in changes(asked, {ESTIMATE: answers}, 0) if r.metric == names.RISE and r.condition == ESTIMATE)
    assert rise.value == 0
    assert rise.lo == -rise.hi < -0.1, "thirty prompts cannot exclude a small change"


def test_floors_stand_in_the_order_of_numbers(done):
    found = [(n, names.floor_of(title), k) for title, n, k in map(names.parts, floor_table(done.table)["item"])]
    assert {floor for _, floor, _ in found} == {1e-6, 1e-4, 1e-2}
    assert found == sorted(found)


def test_changes_in_words():
    assert risen({"value": 0.25, "lo": 0.1, "hi": 0.4}) == "rises by 0.25 [0.10, 0.40]"
    assert risen({"value": -0.33, "lo": -0.5, "hi": -0.2}) == "falls by 0.33 [0.20, 0.50]"


def test_documents_of_one_concept_and_of_all(done):
    task = BayesTask(done.setup.options)
    one, every = task.documents(SINGLE, 0), task.documents(TRANSFORMER, 0)
    assert one.shape == every.shape == (2, 8, 24)
    assert not bool((one == every).all())
    assert bool((task.documents(SINGLE, 0) == one).all()), "documents depend on the seed and the step alone"


def test_a_killed_run_goes_on(done, tmp_path, monkeypatch):
    found = study("bayes")
    run = Run(found, found.options(tiny=True), out=tmp_path)
    before = run.study.steps(run.setup)

    def killed(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(BayesTask, "documents", killed)
    with pytest.raises(KeyboardInterrupt):
        run.answer()
    monkeypatch.undo()
    again = Run(found, found.options(tiny=True), out=tmp_path)
    again.answer()
    assert len(again.results) == len(before)
    for name, result in done.results.items():
        for column in ("value", "lo", "hi"):
            np.testing.assert_array_equal(again.results[name].table[column], result.table[column])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lengths", "40"], "leaves no room"),
        (["--slots", "2"], "greater than or equal to 3"),
        (["--symbols", "3", "--values", "1"], "greater than or equal to 2"),
        (["--rate", "nan"], "rate"),
        (["--lengths", "1"], "every length is at least 2"),
        (["--floors", "0"], "between 0 and 1"),
        (["--floors", "nan"], "between 0 and 1"),
        (["--width", "7"], "must be even"),
    ],
)
def test_mistakes_are_one_sentence(words, said, tmp_path, capsys):
    assert command(["study", "bayes", "--tiny", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_regression_is_beside_its_exact_predictors(done):
    rows = select(done.table, metric="regression error", item="2 tasks, unseen tasks")
    assert set(rows["condition"]) == {ESTIMATE, "dMMSE", "ridge", names.UNTRAINED}
    assert len(select(done.table, metric="nearer to ridge", condition=ESTIMATE)) == 2


def test_the_plan_and_the_page(done, tmp_path, capsys):
    page = (done.folder / "report.html").read_text()
    for said in (
        "In-context linear regression",
        "Distance from Bayes",
        "Where examples do not help",
        "floor",
        "Worlds that were looked at",
        "untrained network",
    ):
        assert said in page
    assert command(["study", "bayes", "--plan", "--short", "--out", str(tmp_path)]) == 0
    shown_plan = capsys.readouterr().out
    assert "train transformers" in shown_plan
    assert "LSTM" not in shown_plan, "the short form trains transformers alone"
    assert BayesOptions(short=True).sized().steps < BayesOptions().steps
