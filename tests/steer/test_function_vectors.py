"""Function vectors against the same steps with bare hooks on the Hugging Face model, one prompt and one head at a time."""

import numpy as np
import pytest
import torch
import transformers

from families import build
from repscope.data.tasks import Task, encode_task
from repscope.directions import DirectionSet
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.sites import Site
from repscope.steer import evaluate_vectors, function_vector, task_vector
from repscope.steer.function_vectors import direction_set, indirect_effects, mean_head_activations, top_heads
from repscope.steer.function_vectors.answers import answered
from repscope.steer.function_vectors.evaluation import random_heads
from repscope.steer.function_vectors.indirect_effects import EFFECTS, MEANS
from repscope.steer.function_vectors.vectors import summed_heads
from repscope.worlds.tiny import tiny

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
TASK = Task("past", tuple((word, f"{word[::-1]}ed") for word in WORDS), "here")
OTHER = Task("capital", tuple((word, word.capitalize()) for word in WORDS), "here")
SIZES = {"prompts": 3}


def _wide_heads():
    """A Llama whose heads are wider than width / heads."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


#: blocks, attention's output projection in block i, its (in, out) matrix, size of a head
PARTS = {
    "gpt2": (lambda m: [b.attn.c_proj for b in m.transformer.h], lambda w: w, 8),
    "llama": (lambda m: [b.self_attn.o_proj for b in m.model.layers], lambda w: w.T, 8),
    "gpt-neox": (lambda m: [b.attention.dense for b in m.gpt_neox.layers], lambda w: w.T, 8),
    "wide heads": (lambda m: [b.self_attn.o_proj for b in m.model.layers], lambda w: w.T, 20),
}
BLOCKS = {
    "gpt2": lambda m: m.transformer.h,
    "llama": lambda m: m.model.layers,
    "gpt-neox": lambda m: m.gpt_neox.layers,
    "wide heads": lambda m: m.model.layers,
}


@pytest.fixture(scope="module", params=list(PARTS))
def subject(request, tokenizer):
    model = _wide_heads() if request.param == "wide heads" else build(request.param)
    return request.param, LanguageModel(model, tokenizer, request.param), encode_task(tokenizer, TASK, shots=3)


def _ids(lm, shots):
    return torch.tensor([lm.tokenizer(shots.prompt().text)["input_ids"]])


def _last_inputs(lm, name, shots):
    """The output projections' inputs at the last token, (block, head, d_head), by bare hooks."""
    projections, _, size = PARTS[name]
    seen = []
    handles = [p.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1].clone())) for p in projections(lm.model)]
    with torch.no_grad():
        lm.model(_ids(lm, shots))
    for handle in handles:
        handle.remove()
    return torch.stack(seen).unflatten(-1, (4, size))


def _probability(lm, shots, token, module=None, change=None, *, inputs=False):
    """Next-token probability with a change of a module's last-token input or output, in a whole pass of batch 1."""

    def before(_, args):
        new = args[0].clone()
        new[0, -1] = change(new[0, -1])
        return (new, *args[1:])

    def after(_, args, output):
        value = output[0] if isinstance(output, tuple) else output
        new = value.clone()
        new[0, -1] = change(new[0, -1])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handles = []
    if module is not None:
        handles = [module.register_forward_pre_hook(before) if inputs else module.register_forward_hook(after)]
    with torch.no_grad():
        logits = lm.model(_ids(lm, shots)).logits[0, -1]
    for handle in handles:
        handle.remove()
    return float(logits.softmax(-1)[token]), int(logits.argmax())


def _put(size, head, value):
    def change(row):
        new = row.clone()
        new[head * size : (head + 1) * size] = value
        return new

    return change


def test_means_and_indirect_effects_are_those_of_bare_hooks(subject):
    name, lm, task = subject
    projections, _, size = PARTS[name]
    prompts = task.few_shot(task.queries("train", 5), stream=MEANS)
    assert len({_ids(lm, shots).shape[1] for shots in prompts}) > 1, "prompts of unequal lengths"
    means = mean_head_activations(lm, [shots.prompt() for shots in prompts])
    expected = torch.stack([_last_inputs(lm, name, shots) for shots in prompts]).mean(0)
    assert len(means) == expected.shape[0] * 4
    for site, mean in means.items():
        assert np.allclose(mean, expected[site.layer, site.head], atol=1e-5)

    found = indirect_effects(lm, task, means, **SIZES)
    queries = task.queries("dev", SIZES["prompts"])
    for i, shots in enumerate(task.few_shot(queries, shuffled=True, stream=EFFECTS)):
        token = lm.tokenizer(shots.prompt(shots.query[1]).text)["input_ids"][_ids(lm, shots).shape[1]]
        base, _ = _probability(lm, shots, token)
        assert np.isclose(found.base[i], base, rtol=1e-4)
        effects = [
            _probability(
                lm,
                shots,
                token,
                projections(lm.model)[site.layer],
                _put(size, site.head, torch.from_numpy(means[site]).float()),
                inputs=True,
            )[0]
            - base
            for site in found.heads
        ]
        assert np.abs(effects).max() > 1e-5
        assert np.allclose(found.effects[i], effects, atol=2e-5 * np.abs(effects).max() + 1e-5 * base)
    table = found.result().table
    assert len(table) == len(means)
    assert set(table["unit"]) == {"prompt"}
    best = table.loc[table["value"].idxmax(), "site"]
    assert str(top_heads([found], 3)[0]) == best


def test_the_vector_is_the_sum_through_the_output_projection(subject):
    name, lm, task = subject
    projections, matrix, size = PARTS[name]
    made = function_vector(lm, task, heads=3, mean_prompts=4, effect_prompts=2)
    expected = sum(
        torch.from_numpy(made.means[h]).double()
        @ matrix(projections(lm.model)[h.layer].weight.detach()).double()[h.head * size : (h.head + 1) * size]
        for h in made.heads
    )
    assert np.allclose(made.direction.scale * made.direction.vector, expected, rtol=1e-6, atol=1e-9)
    assert made.direction.site == str(made.sweep.best)
    given = function_vector(lm, task, heads=[str(h) for h in made.heads], mean_prompts=4)
    assert given.effects is None
    assert np.allclose(given.direction.weights, made.direction.weights)
    # the sweep over blocks, by bare hooks
    queries = task.queries("dev", 50)
    add = torch.from_numpy(made.direction.weights)
    for layer, block in enumerate(BLOCKS[name](lm.model)):
        logps, hits = [], []
        for shots in task.zero_shot(queries):
            token = task.first(shots.query[1])
            p, said = _probability(lm, shots, token, block, lambda row: row + add)
            logps.append(np.log(p))
            hits.append(said == token)
        assert np.isclose(made.sweep.logprob[layer], np.mean(logps), rtol=1e-4)
        assert np.isclose(made.sweep.accuracy[layer], np.mean(hits))


def _answer_by_force(lm, shots, answer, block, change):
    """Log-probability of an answer, token by token, each a whole pass, the change always at the question's last token."""
    ids, at, total, greedy = _ids(lm, shots), _ids(lm, shots).shape[1] - 1, 0.0, True

    def after(_, args, output):
        value = output[0] if isinstance(output, tuple) else output
        new = value.clone()
        new[0, at] = change(new[0, at])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = block.register_forward_hook(after)
    for token in answer:
        with torch.no_grad():
            logits = lm.model(ids).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    handle.remove()
    return total, greedy


def test_answers_of_several_tokens_are_those_of_brute_force(subject):
    name, lm, task = subject
    made = function_vector(lm, task, heads=3, mean_prompts=4, effect_prompts=2)
    moved = task_vector(lm, task, prompts=3)
    queries = task.queries("test", 4)
    for vector, few in ((made, True), (made, False), (moved, False)):
        prompts = task.few_shot(queries, stream=9) if few else task.zero_shot(queries)
        found = answered(lm, task, prompts, vector.edit())
        there = torch.from_numpy(vector.direction.weights)
        block = BLOCKS[name](lm.model)[Site.parse(vector.direction.site).layer]
        change = (lambda row, v=there: v) if vector is moved else (lambda row, v=there: row + v)
        for i, shots in enumerate(prompts):
            answer = task.answers[shots.query[1]]
            assert len(answer) > 1
            logprob, greedy = _answer_by_force(lm, shots, answer, block, change)
            assert np.isclose(found.logprob[i], logprob, rtol=1e-4)
            assert bool(found.whole[i]) == greedy


def test_a_task_vector_is_the_mean_residual_stream_of_dummy_queries(llama, tokenizer):
    task = encode_task(tokenizer, TASK, shots=3)
    made = task_vector(llama, task, prompts=len(task.split.train) + 2)
    prompts = task.few_shot([*task.queries("train", 99), *task.queries("train", 2)], stream=3)
    states = llama.capture([shots.prompt() for shots in prompts], made.direction.site, "last")[made.direction.site]
    assert np.allclose(made.direction.weights, states.mean(0), atol=1e-5)


def test_the_table_has_every_condition_with_its_interval(llama, tokenizer):
    tasks = [encode_task(tokenizer, one, shots=3) for one in (TASK, OTHER)]
    vectors = [function_vector(llama, task, heads=3, mean_prompts=4, effect_prompts=2) for task in tasks]
    result = evaluate_vectors(llama, vectors, [task_vector(llama, tasks[0], prompts=3)], queries=4)
    table = result.table
    conditions = ["zero-shot", "few-shot", "permuted shots", "estimate", "vector after permuted shots", "random heads"]
    for task, extra in zip(tasks, (["task vector", "vector of another task"], ["vector of another task"])):
        mine = table[table["item"] == task.name]
        assert sorted(set(mine["condition"])) == sorted([*conditions, *extra])
        assert len(mine) == 3 * len(set(mine["condition"]))
        assert set(mine["unit"]) == {"query"}
        assert set(mine["n"]) == {4}
    plain = result.select(item="past", condition="zero-shot", metric="answer log-probability")["value"].item()
    texts = [shots.prompt() for shots in tasks[0].zero_shot(tasks[0].queries("test", 4))]
    scores = llama.score(texts, [tasks[0].task.pairs[tasks[0].task.inputs.index(x)][1] for x, _ in tasks[0].queries("test", 4)])
    assert np.isclose(plain, scores.logprob.mean(), rtol=1e-4)
    again = evaluate_vectors(llama, vectors, queries=4).table
    same = table[table["condition"] == "random heads"]["value"].to_numpy()
    assert np.array_equal(again[again["condition"] == "random heads"]["value"].to_numpy(), same)


def test_random_heads_are_others_and_of_equal_norm(llama, tokenizer):
    made = function_vector(llama, encode_task(tokenizer, TASK, shots=3), heads=3, mean_prompts=4, effect_prompts=2)
    control = random_heads(llama, made, 0)
    assert np.isclose(control.scale, made.direction.scale)
    assert abs(control.cosine(made.direction)) < 0.99
    rest = [head for head in made.means if head not in made.heads]
    drawn = np.random.default_rng(0).choice(len(rest), 3, replace=False)
    weights = summed_heads(llama, made.means, [rest[i] for i in drawn])
    assert np.allclose(control.vector, weights / np.linalg.norm(weights))


def test_vectors_are_a_set_of_directions(llama, tokenizer, tmp_path):
    made = function_vector(llama, encode_task(tokenizer, TASK, shots=3), heads=3, mean_prompts=4, effect_prompts=2)
    kept = DirectionSet.load(direction_set(llama, [made]).save(tmp_path / "fv.safetensors"))
    assert np.array_equal(kept["past"].weights, made.direction.weights)
    assert kept["past"].tokens == "last"


def test_a_network_whose_heads_nobody_reads_is_refused(tokenizer):
    model = build("llama")
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
    lm = LanguageModel(model, tokenizer, "deaf")
    task = encode_task(tokenizer, TASK, shots=3)
    means = {Site("z", layer, head): np.ones(8) for layer in range(4) for head in range(4)}
    with pytest.raises(UserError, match="change no logit"):
        indirect_effects(lm, task, means, prompts=2)


def test_heads_behind_a_norm_are_refused(tokenizer):
    lm = LanguageModel(build("gemma2"), tokenizer, "gemma2")
    with pytest.raises(UserError, match="norm"):
        function_vector(lm, encode_task(tokenizer, TASK, shots=3))


def test_a_bare_task_is_encoded_with_ten_examples():
    lm = tiny()
    longer = Task("past", tuple((a + b, f"{a}{b}ed") for a in WORDS[:6] for b in WORDS[6:14]), "here")
    made = task_vector(lm, longer, prompts=1)
    assert made.task.shots == 10
    assert np.allclose(made.direction.weights, task_vector(lm, encode_task(lm.tokenizer, longer), prompts=1).direction.weights)


def test_what_is_asked_for_wrongly(llama, tokenizer):
    task = encode_task(tokenizer, TASK, shots=3)
    made = function_vector(llama, task, heads=["z.1.0"], mean_prompts=2)
    for heads, says in ((99, "there are 16"), (["z.1"], "z.1 is not one head")):
        with pytest.raises(UserError, match=says):
            function_vector(llama, task, heads=heads, mean_prompts=2, effect_prompts=1)
    with pytest.raises(UserError, match="one at least"):
        task_vector(llama, task, prompts=0)
    with pytest.raises(UserError, match="one function vector per task"):
        evaluate_vectors(llama, [made, made])
    with pytest.raises(UserError, match="no function vector"):
        evaluate_vectors(llama, [])
