"""The context study: both answers with their controls in seconds, a killed run goes on, and mistakes are one sentence."""

import json
from importlib import import_module

import numpy as np
import pytest

from repscope.cli import run as command
from repscope.conditions import (
    ESTIMATE,
    FEW_SHOT,
    OTHER_SHOTS,
    OTHER_TASK,
    PERMUTED_TASKS,
    RANDOM_HEADS,
    SHUFFLED_SHOTS,
    TASK_VECTOR,
    TUNED_PERMUTED,
    ZERO_SHOT,
    over,
)
from repscope.data.tasks import task as task_named
from repscope.errors import UserError
from repscope.results import Result, Row, select
from repscope.studies.catalogue import study
from repscope.studies.context import names, summary
from repscope.studies.context.choice import Chosen
from repscope.studies.context.options import TASKS, ContextOptions
from repscope.studies.context.task import ContextTask
from repscope.studies.run.runner import Run
from repscope.studies.run.study import Context, Setup
from repscope.trace.task_shift import FewShotTuning, task_match
from repscope.worlds.tiny import tiny

context_steps = import_module("repscope.studies.context.steps")  # the package has a function of that name
WAYS = ("LoRA", "full fine-tuning")


@pytest.fixture(scope="module")
def done(tiny_runs, tmp_path_factory):
    return tiny_runs.copied("context", tmp_path_factory.mktemp("runs"))


def test_each_task_has_every_condition_with_intervals_over_queries(done):
    for name in done.setup.options.tasks:
        rows = select(done.results["vectors 1"].table, metric=names.ACCURACY, item=name)
        assert {ZERO_SHOT, ESTIMATE, TASK_VECTOR, FEW_SHOT, SHUFFLED_SHOTS, RANDOM_HEADS, OTHER_TASK} <= set(rows["condition"])
        assert set(rows["unit"]) == {"query"}
        assert (rows["n"] == done.setup.options.queries).all()
        assert rows[["lo", "hi"]].notna().all(axis=None)


def test_the_match_has_its_controls_at_each_block_and_at_the_chosen_one(done):
    table = done.results["summary"].table
    for way in WAYS:
        for site in ("resid_post.3", "attn_out.1", names.CHOSEN):
            rows = select(table, metric=names.MATCH, item=way, site=site)
            assert {ESTIMATE, PERMUTED_TASKS, SHUFFLED_SHOTS, OTHER_SHOTS, TUNED_PERMUTED} <= set(rows["condition"]), site
        gains = select(table, metric=names.GAIN, item=way, site=names.CHOSEN)
        assert set(gains["condition"]) == {over(c) for c in (SHUFFLED_SHOTS, OTHER_SHOTS, TUNED_PERMUTED)}
        assert set(gains["unit"]) == {"task"}
        assert len(select(table, metric=names.GAIN, item=FEW_SHOT, condition=over(way))) == 1
        steps = select(done.results["shifts capitalize"].table, metric=names.ACCURACY, item="capitalize")["condition"]
        assert {f"{way}, step 1", f"{way}, step 2"} <= set(steps)
    assert (done.results["summary"].arrays["means few-shot"].shape[:2]) == (3, 2)


def test_a_share_is_that_of_the_outcomes_by_hand():
    """Two tasks with known answers of four queries; and one that examples do not help."""
    conditions = [ZERO_SHOT, FEW_SHOT, ESTIMATE, TASK_VECTOR, RANDOM_HEADS]
    hits = {
        "a": [[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]],
        "b": [[0, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1]],
        "c": [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
    }
    rows = [Row(metric=names.ACCURACY, item=t, condition=c, value=0.0) for t in hits for c in conditions]
    arrays = {t: np.array(x, dtype=float)[:, None, :].repeat(3, axis=1) for t, x in hits.items()}
    made, notes = summary.vector_rows([Result.of(rows, arrays=arrays)], list(hits), 0)
    value = {(r.metric, r.item, r.condition): r for r in made}
    assert value[names.SHARE, "a", ESTIMATE].value == pytest.approx(0.25)
    assert value[names.SHARE, "b", TASK_VECTOR].value == pytest.approx(0.5)
    assert (names.SHARE, "c", ESTIMATE) not in value
    assert len(notes) == 1
    assert notes[0].startswith("c: examples do not raise")
    assert value[names.SHARE, names.ALL, TASK_VECTOR].value == pytest.approx((0.75 + 0.25) / (1 + 0.5))
    assert value[names.SHARE, names.ALL, RANDOM_HEADS].value == 0
    gain = value[names.GAIN, f"{names.ALL}: task vector", over(RANDOM_HEADS)]
    assert (gain.value, gain.n, gain.unit) == (pytest.approx((0.75 + 0.25 + 1.0) / 3), 3, "task")
    assert value[names.GAIN, "a", over(ZERO_SHOT)].n == 4


def planted(signal, *, tasks=6, blocks=4, width=200, seed=0):
    """Shifts of tasks that share a large common part; fine-tuning follows the examples at the last two blocks, by `signal`."""
    rng = np.random.default_rng(seed)
    common = 10 * rng.normal(size=(1, 1, blocks, width))
    own = rng.normal(size=(tasks, 1, blocks, width))
    means = {}
    for way in (FEW_SHOT, SHUFFLED_SHOTS, OTHER_SHOTS, "LoRA", "LoRA, permuted outputs"):
        base = own if way == FEW_SHOT else rng.normal(size=own.shape)
        if way == "LoRA":
            base = base + signal * own * (np.arange(blocks) >= 2)[:, None]
        means[f"means {way}"] = common + base + 0.1 * rng.normal(size=(tasks, 2, blocks, width))
    import pandas as pd

    sites = pd.DataFrame({"site": [f"resid_post.{i}" for i in range(blocks)]})
    return Result.of([], arrays=means, side={"sites": sites})


def test_a_planted_match_is_found_at_its_blocks():
    rows = summary.chosen_rows(planted(3.0), (FewShotTuning(),), 0)
    value = {(r.metric, r.condition): r for r in rows}
    assert all(r.site == names.CHOSEN for r in rows)
    assert value[names.MATCH, ESTIMATE].layer in (2, 3)
    assert value[names.MATCH, ESTIMATE].value > 0.9
    assert value[names.P, ESTIMATE].value < 0.01
    assert abs(value[names.MATCH, SHUFFLED_SHOTS].value) < 0.2
    gain = value[names.GAIN, over(SHUFFLED_SHOTS)]
    assert gain.value == pytest.approx(value[names.MATCH, ESTIMATE].value - value[names.MATCH, SHUFFLED_SHOTS].value)
    assert gain.lo > 0.5
    assert value[names.RAW, ESTIMATE].value > 0.9, "what tasks share makes the raw cosine high"


def test_without_a_match_the_choice_of_a_block_makes_none():
    """Over many draws of six tasks and four blocks: the largest match over blocks is above 0, that of the choice is not."""
    chosen, largest, p = [], [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a, b = (rng.normal(size=(5, 4, 20)) for _ in range(2))
        found = task_match(a, b, permutations=1)
        one = Chosen(found.centred)
        chosen.append(one.match.mean())
        largest.append((found.same - found.others).mean(0).max())
        p.append(one.p)
    error = np.std(chosen) / np.sqrt(len(chosen))
    assert abs(np.mean(chosen)) < 3 * error
    assert np.mean(largest) > 4 * error, "the test would see a choice that leaks"
    assert 0.35 < np.mean(p) < 0.65


def test_the_choice_equals_loops():
    rng = np.random.default_rng(3)
    centred = rng.normal(size=(3, 5, 5))
    match, sites = [], []
    for i in range(5):
        rest = [j for j in range(5) if j != i]
        over_rest = [np.mean([c[j, j] for j in rest]) - np.mean([c[j, k] for j in rest for k in rest if j != k]) for c in centred]
        sites.append(int(np.argmax(over_rest)))
        c = centred[sites[-1]]
        match.append(c[i, i] - (np.mean([c[i, j] for j in rest]) + np.mean([c[j, i] for j in rest])) / 2)
    found = Chosen(centred)
    assert found.sites.tolist() == sites
    np.testing.assert_allclose(found.match, match)
    order = [0, 1, 2, 4, 3]  # the second of all orders
    assert found.drawn[0] == pytest.approx(Chosen(centred[:, :, order]).match.mean())
    assert len(found.drawn) == 119


def test_a_task_that_did_not_move_is_left_out_of_the_choice():
    held = planted(3.0)
    for way in ("LoRA", "LoRA, permuted outputs"):
        held.arrays[f"means {way}"][:, :, 3] = 0
    rows = summary.chosen_rows(held, (FewShotTuning(),), 0)
    assert {r.layer for r in rows if (r.metric, r.condition) == (names.MATCH, ESTIMATE)} == {2}
    assert 3 not in {r.layer for r in rows}
    for way in ("LoRA", "LoRA, permuted outputs"):
        held.arrays[f"means {way}"][:] = 0
    assert summary.chosen_rows(held, (FewShotTuning(),), 0) == []


def test_a_killed_run_goes_on_at_its_task(done, tmp_path, monkeypatch):
    found = study("context")
    run = Run(found, found.options(tiny=True), out=tmp_path)
    measured, real = [], context_steps.measure_task

    def killed(lm, task, *args, **kwargs):
        measured.append(task.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return real(lm, task, *args, **kwargs)

    monkeypatch.setattr(context_steps, "measure_task", killed)
    with pytest.raises(KeyboardInterrupt):
        run.answer()
    again = Run(found, found.options(tiny=True), out=tmp_path)
    again.answer()
    assert measured == ["singular-plural", "capitalize", "capitalize", "first-letter"]
    for name, result in done.results.items():
        for column in ("value", "lo", "hi"):
            np.testing.assert_array_equal(again.results[name].table[column], result.table[column])


def test_the_page_has_both_answers_and_the_plan_is_short(done, tmp_path, capsys):
    page = (done.folder / "report.html").read_text()
    for said in (
        "How much of k examples does one vector give?",
        "Do examples move the network where fine-tuning does?",
        "Is an adaptation one vector?",
        "Accuracy at equal k",
        "Attention outputs (SimAOU), full fine-tuning",
        "permuted tasks",
        "vector of another task",
    ):
        assert said in page, said
    assert (done.folder / "artifacts" / "function-vectors-1.safetensors").is_file()
    assert command(["study", "context", "--tiny", "--plan", "--out", str(tmp_path)]) == 0
    assert "shifts capitalize" in capsys.readouterr().out
    short = ContextOptions(short=True).sized()
    assert (len(short.tasks), short.methods) == (4, ("LoRA",))
    assert len(ContextOptions().sized().tasks) == len(TASKS) >= 8


def test_files_are_tasks(tmp_path, capsys):
    """JSON of the function-vectors repository and a table with columns of other names, beside a built-in task."""
    words = [word for word, _ in task_named("adjective-superlative").pairs[:16]]
    (tmp_path / "upper.json").write_text(json.dumps([{"input": w, "output": w.upper()} for w in words]))
    (tmp_path / "last.csv").write_text("word,letter,other\n" + "".join(f"{w},{w[-1]},x\n" for w in words))
    options = ContextOptions(
        tiny=True, tasks=(str(tmp_path / "upper.json"), str(tmp_path / "last.csv"), "capitalize"), columns=("word", "letter")
    )
    with pytest.raises(UserError, match="word"):
        _ = ContextTask(Setup(options.sized(), tiny)).tasks  # the JSON has no such columns
    (tmp_path / "upper.csv").write_text("word,letter\n" + "".join(f"{w},{w.upper()}\n" for w in words))
    options = ContextOptions(
        tiny=True, tasks=(str(tmp_path / "upper.csv"), str(tmp_path / "last.csv"), "capitalize"), columns=("word", "letter")
    )
    task = ContextTask(Setup(options.sized(), tiny))
    assert [one.name for one in task.tasks] == ["upper", "last", "capitalize"]
    assert [p.name for p in options.files()] == ["upper.csv", "last.csv"]


def test_a_constant_prompt_beside_its_control(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Answer in one word.\n")
    options = ContextOptions(tasks=TASKS[:3], k=2, tuned="x", prompt_file=str(prompt), answers=3, new_tokens=4)
    task = ContextTask(Setup(options, tiny))
    task.__dict__["tuned"] = tiny(1)
    found = context_steps._constant_prompt(task, Context({}, tmp_path, tmp_path, tmp_path))
    rows = select(found.table, metric=names.PROMPT, item="")
    assert {ESTIMATE, "prompt about something else"} <= set(rows["condition"])
    assert (rows["n"] == 3).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "capitalize", "uppercase"], "cannot be matched"),
        (["--tasks", "capitalize", "capitalize", "uppercase"], "named twice"),
        (["--tasks", "capitalize", "upercase", "first-letter"], "uppercase"),
        (["--tasks", "capitalize", "uppercase", "no.csv"], "no.csv"),
        (["--k", "1"], "greater than or equal to 2"),
        (["--k", "500"], "ask for fewer examples"),
        (["--steps", "4", "2"], "increasing"),
        (["--methods", "LoRA", "LoRA"], "each way of fine-tuning once"),
        (["--methods", "LoRA", "--full-rate", "0.1"], "--full-rate is of the method full"),
        (["--columns", "a", "b"], "names none"),
        (["--dtype", "bfloat16"], "float32"),
        (["--queries", "2"], "greater than or equal to 4"),
        (["--heads", "9"], "has 16 heads"),
        (["--upper-blocks", "9"], "4 blocks"),
        (["--tuned", "x"], "give both"),
        (["--chat"], "give --tuned and --prompt-file"),
        (["--lora-rate", "nan"], "lora-rate"),
    ],
)
def test_mistakes_are_one_sentence(words, said, tmp_path, capsys):
    assert command(["study", "context", "--tiny", *words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
