"""Task shifts on a tiny network against bare Hugging Face passes, one prompt at a time, and planted cases."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from families import build
from repscope.conditions import FEW_SHOT, NEUTRAL, OTHER_SHOTS, SHUFFLED_SHOTS
from repscope.data.tasks import Task, Template, encode_task
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.sites import Site
from repscope.results import Result, select
from repscope.trace.task_shift import FewShotTuning, measure_task, over_tasks
from repscope.trace.task_shift.contexts import alone_ids, contexts
from repscope.trace.task_shift.fine_tuning import fine_tuned, working_copy
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


def shifted(lm, tasks, permutations=200, **how):
    """All tasks, each with the next one as another task, and what they have in common."""
    done = []
    for i, task in enumerate(tasks):
        done.append(measure_task(lm, task, tasks[(i + 1) % len(tasks)], other_vectors=done[-1] if done else None, **how))
    found = over_tasks([task.name for task in tasks], done, permutations=permutations)
    return replace(found, table=pd.concat([*(one.table for one in done), found.table], ignore_index=True))


@pytest.fixture(scope="module")
def result(lm, tasks):
    return shifted(lm, tasks, tunings=TUNINGS, queries=6, dev_items=3)


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


def test_scores_with_known_logits_are_those_without(lm, tasks):
    queries = [*tasks[0].queries("test", 2), *tasks[2].queries("test", 3)]  # answers of several tokens, and of one
    answers = [*(tasks[0].answers[y] for _, y in queries[:2]), *(tasks[2].answers[y] for _, y in queries[2:])]
    assert {len(answer) > 1 for answer in answers} == {True, False}
    prompts = [alone_ids(lm, tasks[0], query) for query in queries]
    likely = [int(row.argmax()) for row in states(lm, prompts, [Site("resid_post", 1)]).logits]
    answers[-1] = (likely[-1],)  # one that is right
    own, known = scores(lm, prompts, answers), scores(lm, prompts, answers, states(lm, prompts, [Site("resid_post", 1)]).logits)
    assert known.first[-1] == known.whole[-1] == 1
    for field in ("first", "whole", "logprob"):
        np.testing.assert_allclose(getattr(known, field), getattr(own, field), atol=1e-4)


def test_rows_of_all_conditions_once(result, lm):
    table = result.table
    assert table.row_id.is_unique
    assert np.isfinite(table.value).all()
    split = f"{AFTER_NEUTRAL}, 3 examples"
    rows = select(table, metric="first-token accuracy", item="past", split=split)
    tuned = {f"{m}{c}" for m in ("LoRA", "full fine-tuning") for c in ("", ", permuted outputs")}
    assert set(rows.condition) == {NEUTRAL, *tuned}
    ways = ("few-shot", "LoRA", "full fine-tuning")
    assert set(result.arrays) == {f"match {w}" for w in ways} | {
        f"means {w}" for w in (FEW_SHOT, SHUFFLED_SHOTS, OTHER_SHOTS, *tuned)
    }
    assert result.arrays["means LoRA"].shape == (4, 2, 8, 32)
    over = select(table, metric="first-token accuracy", item="all tasks", split=split, condition="LoRA").iloc[0]
    each = table[(table.metric == "first-token accuracy") & (table.condition == "LoRA") & (table.split == split)]
    assert over.n == 4
    assert over.value == pytest.approx(each[each["item"] != "all tasks"].value.mean())
    over_all = select(table, metric="recovered KL", condition="vector of another task", item="all tasks, LoRA")
    assert set(over_all.n) == {3}  # the first task has no vector of a task before it
    assert list(result.side["tasks"]["task"]) == list(MAPS)
    assert result.arrays["match LoRA"].shape == (8, 4, 4)
    match = select(table, metric="match", condition="estimate", site="resid_post.3").set_index("item").value
    assert match["few-shot"] > 0.5  # few-shot on the other half of the queries: the ceiling
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


def test_the_network_is_left_as_it_was_and_a_seed_repeats(tasks, tokenizer):
    lm = larger(tokenizer)
    before, found = copy.deepcopy(lm.model.state_dict()), []
    for _ in range(2):
        found.append(measure_task(lm, tasks[0], tasks[1], tunings=TUNINGS, queries=4, dev_items=2, at="resid_post.1"))
    assert all(torch.equal(before[k], v) for k, v in lm.model.state_dict().items())
    np.testing.assert_array_equal(found[0].table.value, found[1].table.value)


def test_examples_of_a_task_that_the_network_cannot_do_match_like_permuted_ones(result):
    """An untrained network: what it does after examples does not depend on which output belongs to which input."""
    match = select(result.table, metric="match", item="LoRA", site="resid_post.3").set_index("condition").value
    assert abs(match["estimate"] - match["permuted shots"]) < 0.15


def test_blocks_that_are_not_fine_tuned_are_named_and_left_out(lm, tasks):
    how = FewShotTuning("full", (1,), 1e-3, first_block=2)
    found = shifted(lm, tasks, tunings=(how,), queries=4, dev_items=2, at="resid_post", vectors_at="resid_post.3")
    table = found.table
    assert np.isfinite(table.value).all()
    for metric in ("match", "cosine per query", "cosine of means", "common share", "share of rank 1"):
        rows = table[(table.metric == metric) & (table["item"].str.contains("full") | (table.condition == "full fine-tuning"))]
        assert set(rows.layer) == {2, 3}, metric
    assert set(table[(table.metric == "match") & (table["item"] == "few-shot")].layer) == {0, 1, 2, 3}
    assert any("full fine-tuning does not change 2 of 4 sites (resid_post.0, resid_post.1)" in note for note in found.notes)
    assert np.isnan(found.arrays["match full fine-tuning"][:2]).all()


def test_states_of_the_fine_tuned_copy_are_those_of_a_network_with_its_weights(lm, tasks):
    task, copied = tasks[0], working_copy(lm)
    found = contexts(lm, task, tasks[1], task.queries("test", 4))
    examples = [(alone_ids(lm, task, pair), np.asarray(task.answers[pair[1]])) for pair in found.examples]
    for _ in fine_tuned(lm, copied, examples, FewShotTuning("full", (1, 3), 1e-2)):
        own = states(copied, found.base(), copied.resolve("resid_post"))
        fresh = LanguageModel(copy.deepcopy(copied.model), lm.tokenizer, "fresh")
        np.testing.assert_allclose(own.rows, states(fresh, found.base(), fresh.resolve("resid_post")).rows, atol=1e-5)


def test_recovered_kl_is_that_of_hooks_one_query_at_a_time(lm, tasks):
    """Vector, control and target are arbitrary; scale by one half, report on the other."""
    found = contexts(lm, tasks[0], tasks[1], tasks[0].queries("test", 6))
    site, scales, rng = Site("resid_post", 1), (0.5, 2.0), np.random.default_rng(2)
    base, adapted = (states(lm, found.base(), [site]), states(lm, found.prompts(FEW_SHOT), [site]))
    vector, halves = rng.normal(size=(1, 32)) + (adapted.rows - base.rows)[0, :3].mean(0), (np.arange(3), np.arange(3, 6))
    args = (found.base(), halves, base.logits, {"way": adapted.logits}, {"way": vector}, {}, [site])
    table = Result.of(recovered_kl(lm, *args, scales=scales, item="task")).table

    def kl(query, scale):
        with torch.no_grad():
            hook = lm.model.model.layers[1].register_forward_hook(
                lambda _, __, o: _shifted(o, (scale * vector[0]).astype(np.float32))
            )
            q = lm.model(torch.from_numpy(found.base()[query])[None].long()).logits[0, -1].double().log_softmax(-1)
            hook.remove()
        p = torch.from_numpy(adapted.logits[query]).double().log_softmax(-1)
        return float((p.exp() * (p - q)).sum())

    chosen = min((0.0, *scales), key=lambda s: sum(kl(q, s) for q in halves[0]))
    expected = 1 - sum(kl(q, chosen) for q in halves[1]) / sum(kl(q, 0.0) for q in halves[1])
    assert select(table, metric="scale", condition="estimate").value.item() == chosen
    assert select(table, metric="recovered KL", condition="estimate").value.item() == pytest.approx(expected, abs=1e-4)
    assert "vector of another task" not in set(table.condition)


def test_queries_whose_tokens_merge_with_the_examples_are_left_out_and_named():
    """The tokenizer joins d and b, so that "big" after an output in -ed is other tokens than alone."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "db"])}, merges=[("d", "b")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    own = LanguageModel(build("llama"), PreTrainedTokenizerFast(tokenizer_object=core), "merging")
    made = encoded(own.tokenizer, template=Template("{input}:{output}"))
    free = [pair for pair in made[0].task.pairs if pair not in made[0].split.train]
    queries = [("big", "gibed"), *(pair for pair in free if pair[0] != "big")]
    trained = [pair for pair in made[0].split.train if pair[0] != "big"]
    task = replace(made[0], split=replace(made[0].split, train=tuple(trained)))
    assert any("big" in note for note in task.notes)
    found = contexts(own, task, made[1], queries)
    assert [x for x, _ in found.queries] == [x for x, _ in queries[1:]]
    assert any("1 queries are left out" in note and "(big)" in note for note in found.notes)
    with pytest.raises(UserError, match="All 1 queries"):
        contexts(own, task, made[1], queries[:1])


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
        ({"tunings": (TUNINGS[0], TUNINGS[0])}, "one method"),
        ({"queries": 3}, "3 queries"),
        ({"dev_items": 0}, "held-out"),
        ({"scales": (0.0,)}, "above 0"),
        ({"at": "z"}, "residual stream"),
        ({"at": "attn_out", "vectors_at": "resid_post.1"}, "not measured"),
        ({"at": "resid_post.99"}, "99"),
    ],
)
def test_what_cannot_be_compared_is_refused(lm, tasks, change, words):
    with pytest.raises(UserError, match=words):
        measure_task(lm, *tasks[:2], **change)


def test_unlike_tasks_are_refused(lm, tasks, tokenizer):
    with pytest.raises(UserError, match="among its examples"):
        contexts(lm, tasks[0], tasks[1], tasks[0].split.train)
    one = encoded(tokenizer, shots=1)
    with pytest.raises(UserError, match="cannot be permuted"):
        contexts(lm, one[0], one[1], one[0].split.test)


def test_what_a_tokenizer_or_a_task_cannot_give_is_one_sentence(tokenizer):
    with pytest.raises(UserError, match="one label"):
        Task("one", tuple((word, "yes") for word in WORDS), "here")
    with pytest.raises(UserError, match="cannot separate"):
        encode_task(tokenizer, Task("same", tuple((word, f"x{word}") for word in WORDS), "here"), shots=3)
    with pytest.raises(UserError, match="ask for fewer examples"):
        encoded(tokenizer, shots=19)


def test_measurements_that_are_not_alike_are_not_combined(lm, tasks):
    few = {"tunings": (), "queries": 4, "dev_items": 1, "vectors_at": "resid_post.1"}
    found = [measure_task(lm, tasks[i], tasks[i + 1], at=["resid_post.0", "resid_post.1"], **few) for i in range(3)]
    names = [task.name for task in tasks[:3]]
    assert select(over_tasks(names, found).table, metric="match", item="few-shot", condition="estimate").shape[0] == 2
    other = measure_task(lm, tasks[3], tasks[0], at="resid_post.1", **few)
    with pytest.raises(UserError, match="measure all alike"):
        over_tasks([*names, "upper"], [*found, other])
    with pytest.raises(UserError, match="3 or more"):
        over_tasks(names[:2], found[:2])
    with pytest.raises(UserError, match="measure both alike"):
        measure_task(lm, tasks[3], tasks[0], at="resid_post.1", other_vectors=found[0], **few)
