"""Task shifts on a tiny network against bare Hugging Face passes, one prompt at a time, and planted cases."""

import copy

import numpy as np
import pytest
import torch

from families import build
from repscope.conditions import FEW_SHOT, NEUTRAL, OTHER_SHOTS, SHUFFLED_SHOTS
from repscope.data.tasks import Task, Template, encode_task
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.sites import Site
from repscope.results import Result, select
from repscope.trace.task_shift import FewShotTuning, task_shifts
from repscope.trace.task_shift.contexts import contexts
from repscope.trace.task_shift.outcomes import AFTER_NEUTRAL, ALONE, DEV
from repscope.trace.task_shift.recovery import recovered_kl
from repscope.trace.task_shift.shifts import shift_rows, size_rows
from repscope.trace.task_shift.states import scores, states

WORDS = [
    "big",
    "tall",
    "slow",
    "warm",
    "loud",
    "cold",
    "deep",
    "dark",
    "hard",
    "kind",
    "long",
    "mild",
    "neat",
    "old",
    "poor",
    "quick",
    "rare",
    "safe",
    "thin",
    "wide",
]
MAPS = {"past": lambda word: f"{word[::-1]}ed", "capital": str.capitalize, "last": lambda word: word[-1], "upper": str.upper}
TUNINGS = (FewShotTuning("LoRA", (1, 2), 2e-2), FewShotTuning("full", (1, 2), 1e-3))


def larger(tokenizer):
    model = build("llama")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight *= 2
    return LanguageModel(model, tokenizer, "llama")


@pytest.fixture(scope="module")
def lm(tokenizer):
    return larger(tokenizer)


def encoded(tokenizer, **how):
    return [encode_task(tokenizer, Task(n, tuple((w, f(w)) for w in WORDS), "here"), **{"shots": 3} | how) for n, f in MAPS.items()]


@pytest.fixture(scope="module")
def tasks(tokenizer):
    return encoded(tokenizer)


@pytest.fixture(scope="module")
def result(lm, tasks):
    return task_shifts(lm, tasks, tunings=TUNINGS, queries=6, dev_items=3, permutations=200)


def test_contexts_are_the_same_query_at_the_same_position(lm, tasks):
    queries = tasks[0].queries("test", 6)
    found = contexts(lm, tasks[0], tasks[1], queries)
    lengths = {c: len(p) for c, p in found.prefixes.items()}
    assert lengths[FEW_SHOT] == lengths[SHUFFLED_SHOTS]
    assert set(map(len, found.neutral.values())) == set(found.neutral) == set(lengths.values())
    for i, (x, _) in enumerate(queries):
        for condition in found.prefixes:
            row = found.prompts(condition)[i]
            assert lm.tokenizer.decode(row).endswith(f"\n\nQ: {x}\nA:{tasks[0].blank}")
            assert len(row) == len(found.base(condition)[i])
            np.testing.assert_array_equal(row[-len(found.tails[i]) :], found.base(condition)[i][-len(found.tails[i]) :])
    assert [x for x, _ in found.examples] == [x for x, _ in found.permuted]
    assert sorted(y for _, y in found.examples) == sorted(y for _, y in found.permuted)
    assert all(a != b for a, b in zip(found.examples, found.permuted))
    assert not {x for x, _ in found.examples} & {x for x, _ in queries}
    again = contexts(lm, tasks[0], tasks[1], queries)
    assert all(np.array_equal(p, again.prefixes[c]) for c, p in found.prefixes.items())


def test_states_and_scores_are_bare_passes(lm, tasks):
    queries = tasks[0].queries("test", 3)
    found = contexts(lm, tasks[0], tasks[1], queries)
    answers = [tasks[0].answers[y] for _, y in queries]
    sites = lm.resolve(("resid_post", "attn_out"))
    own, scored = states(lm, found.prompts(FEW_SHOT), sites), scores(lm, found.prompts(FEW_SHOT), answers)
    blocks = lm.model.model.layers
    for i, (row, answer) in enumerate(zip(found.prompts(FEW_SHOT), answers)):
        seen = []
        modules = [*blocks, *(b.self_attn for b in blocks)]
        hooks = [m.register_forward_hook(lambda _, __, o, seen=seen: seen.append(o)) for m in modules]
        with torch.no_grad():
            logits = lm.model(torch.from_numpy(np.append(row, answer))[None].long()).logits[0]
        for hook in hooks:
            hook.remove()
        outs = [o[0] if isinstance(o, tuple) else o for o in seen]  # attention, block, attention, block, …
        for k in range(len(blocks)):
            rows = [own.rows[sites.index(Site(kind, k)), i] for kind in ("attn_out", "resid_post")]
            np.testing.assert_allclose(rows[0], outs[2 * k][0, len(row) - 1], atol=1e-4)
            np.testing.assert_allclose(rows[1], outs[2 * k + 1][0, len(row) - 1], atol=1e-4)
        np.testing.assert_allclose(own.logits[i], logits[len(row) - 1], atol=1e-3)
        logp = logits.log_softmax(-1)[len(row) - 1 : -1]
        target = torch.tensor(answer)
        assert scored.logprob[i] == pytest.approx(float(logp.gather(1, target[:, None]).sum()), abs=1e-3)
        assert scored.first[i] == float(logp[0].argmax() == answer[0])
        assert scored.whole[i] == float(bool((logp.argmax(-1) == target).all()))


def test_rows_of_all_conditions_once(result, lm):
    table = result.table
    assert table.row_id.is_unique
    assert np.isfinite(table.value).all()
    split = f"{AFTER_NEUTRAL}, 3 examples"
    rows = select(table, metric="first-token accuracy", item="past", split=split)
    tuned = {f"{m}{c}" for m in ("LoRA", "full fine-tuning") for c in ("", ", permuted outputs")}
    assert set(rows.condition) == {NEUTRAL, *tuned}
    assert set(result.arrays) == {f"means {w}" for w in (FEW_SHOT, SHUFFLED_SHOTS, OTHER_SHOTS, *tuned)}
    assert result.arrays["means LoRA"].shape == (4, 2, 8, 32)
    over = select(table, metric="first-token accuracy", item="all tasks", split=split, condition="LoRA").iloc[0]
    each = table[(table.metric == "first-token accuracy") & (table.condition == "LoRA") & (table.split == split)]
    assert over.n == 4
    assert over.value == pytest.approx(each[each["item"] != "all tasks"].value.mean())
    simaou = table[(table.metric == "cosine per query") & table.site.str.startswith("attn_out") & (table.condition == "estimate")]
    assert len(simaou) == 2 * 4 * 5


def test_the_step_curve_is_whole_and_the_best_held_out_step_is_taken(result):
    table = result.table
    for way in ("LoRA", "full fine-tuning"):
        curve = {}
        for step in (1, 2):
            on = {"metric": "answer log-probability", "item": "last", "condition": f"{way}, step {step}"}
            curve[step] = [select(table, split=f"{place}, 3 examples", **on).value.item() for place in (DEV, ALONE)]
        best = max(curve, key=lambda s: curve[s][0])
        taken = select(table, metric="steps", item="last", condition=way).value.item()
        alone = select(table, metric="answer log-probability", item="last", condition=way, split=f"{ALONE}, 3 examples")
        assert taken == best
        assert alone.value.item() == pytest.approx(curve[best][1])


def test_the_network_is_left_as_it_was_and_a_seed_repeats(result, tasks, tokenizer):
    lm = larger(tokenizer)
    before = copy.deepcopy(lm.model.state_dict())
    again = task_shifts(lm, tasks, tunings=TUNINGS, queries=6, dev_items=3, permutations=200)
    assert all(torch.equal(before[k], v) for k, v in lm.model.state_dict().items())
    np.testing.assert_array_equal(again.table.value, result.table.value)


def test_one_vector_recovers_what_one_vector_made(lm, tasks):
    """Planted: the adapted network is the base plus a constant vector at block 1."""
    queries = tasks[0].queries("test", 6)
    found = contexts(lm, tasks[0], tasks[1], queries)
    site = Site("resid_post", 1)
    vector = np.random.default_rng(0).normal(size=32).astype(np.float32)
    base, moved = states(lm, found.base(), [site]), []
    for row in found.base():
        with torch.no_grad():
            hook = lm.model.model.layers[1].register_forward_hook(lambda _, __, o: _shifted(o, vector))
            moved.append(lm.model(torch.from_numpy(row)[None].long()).logits[0, -1].numpy())
            hook.remove()
    halves = np.arange(3), np.arange(3, 6)
    other = np.random.default_rng(5).normal(size=(1, 32))
    args = (found.base(), halves, base.logits, {"way": np.stack(moved)}, {"way": vector[None]}, {"way": other}, [site])
    table = Result.of(recovered_kl(lm, *args, item="task")).table
    value = select(table, metric="recovered KL").set_index("condition").value
    assert value["estimate"] > 0.999
    assert select(table, metric="scale", condition="estimate").value.item() == 1
    assert value["random direction"] < 0.8
    assert value["vector of another task"] < 0.8


def _shifted(output, vector):
    out = (output[0] if isinstance(output, tuple) else output).clone()
    out[:, -1] += torch.from_numpy(vector)
    return (out, *output[1:]) if isinstance(output, tuple) else out


def test_share_of_rank_1_is_of_the_other_half():
    rng = np.random.default_rng(0)
    common, noise = 5 * rng.normal(size=(1, 1, 16)), rng.normal(size=(1, 40, 16))
    halves = np.arange(20), np.arange(20, 40)
    shifts = {FEW_SHOT: common + noise, SHUFFLED_SHOTS: noise}
    table = Result.of(size_rows(shifts, dict.fromkeys(shifts, np.ones((1, 40, 16))), halves, [Site("resid_post", 0)], seed=0)).table
    share = select(table, metric="share of rank 1").set_index("condition").value
    x, mean = shifts[FEW_SHOT][0, 20:], shifts[FEW_SHOT][0, :20].mean(0)
    assert share[FEW_SHOT] == pytest.approx(1 - ((x - mean) ** 2).sum() / (x**2).sum())
    assert share[FEW_SHOT] > 0.9
    assert share[SHUFFLED_SHOTS] < 0  # a mean of noise misleads on the other half


def test_cosines_of_planted_shifts():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(1, 30, 64))
    pairs = [("x", "estimate", a, 2 * a), ("x", SHUFFLED_SHOTS, a, -a)]
    table = Result.of(shift_rows(pairs, [Site("attn_out", 0)], seed=0)).table
    value = select(table, metric="cosine per query").set_index("condition").value
    assert value["estimate"] == pytest.approx(1)
    assert value[SHUFFLED_SHOTS] == pytest.approx(-1)
    assert abs(value["random direction"]) < 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {"tasks": t[:2]}, "at least 3"),
        (lambda t: {"tasks": [*t[:3], t[0]]}, "each once"),
        (lambda t: {"tasks": t, "tunings": (TUNINGS[0], TUNINGS[0])}, "one method"),
        (lambda t: {"tasks": t, "queries": 3}, "3 test queries"),
        (lambda t: {"tasks": t, "dev_items": 0}, "held-out"),
        (lambda t: {"tasks": t, "scales": (0.0,)}, "above 0"),
        (lambda t: {"tasks": t, "at": "z"}, "residual stream"),
        (lambda t: {"tasks": t, "at": "attn_out", "vectors_at": "resid_post.1"}, "not measured"),
    ],
)
def test_what_cannot_be_compared_is_refused(lm, tasks, change, words):
    with pytest.raises(UserError, match=words):
        task_shifts(lm, **change(tasks))


def test_unlike_tasks_are_refused(lm, tasks, tokenizer):
    other = encoded(tokenizer, template=Template("{input} -> {output}\n"))
    with pytest.raises(UserError, match="templates"):
        task_shifts(lm, [*tasks[:2], other[2]])
    with pytest.raises(UserError, match="among its examples"):
        contexts(lm, tasks[0], tasks[1], tasks[0].split.train)
    one = encoded(tokenizer, shots=1)
    with pytest.raises(UserError, match="cannot be permuted"):
        contexts(lm, one[0], one[1], one[0].split.test)
