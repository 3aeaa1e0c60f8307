"""The rewarded world: documents, stacked networks, the six methods, and matching to a fraction of an update."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import select_runs, unstack
from repscope.worlds.rewarded.descent import Descent
from repscope.worlds.rewarded.evaluation import Evaluator, log_probabilities, of_completions, samples
from repscope.worlds.rewarded.matching import train_to
from repscope.worlds.rewarded.methods import BETA, METHODS, Tuning
from repscope.worlds.rewarded.task import PROMPT, START, TOPICS, RewardedWorlds, generator_of
from repscope.worlds.small_lm import transformer as stacked

WORLDS = RewardedWorlds((3, 4), vocabulary=10, good=3, completion=5)
SHAPE = stacked.Shape(10, WORLDS.length, 8)


@pytest.fixture(scope="module")
def state():
    """Two networks with weights large enough for their tokens to differ."""
    return {
        k: v + 0.2 * torch.randn(v.shape, generator=torch.Generator().manual_seed(7))
        for k, v in stacked.initial(SHAPE, [0, 1]).items()
    }


@pytest.fixture(scope="module")
def data(state):
    pool = samples(SHAPE, state, WORLDS, 64, (0, "pool"))
    return {
        "pairs": pool,
        "best of base": pool,
        "samples of RL": pool,
        "demonstrations": WORLDS.demonstrations(64, generator_of(1)),
    }


def test_documents_follow_the_chains_of_their_topics():
    documents, topics = WORLDS.corpus(6000, generator_of(0))
    assert (documents[..., 0] == START).all()
    assert (documents[..., 1:] != START).all()
    for world in range(2):
        for topic in range(TOPICS):
            mine = documents[world][topics[world] == topic]
            counts = torch.zeros(10, 10)
            for t in range(PROMPT - 1, WORLDS.length - 1):
                counts.index_put_((mine[:, t], mine[:, t + 1]), torch.ones(len(mine)), accumulate=True)
            shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
            often = counts.sum(1) > 800
            assert (shares - WORLDS.chains[world, topic].float())[often].abs().max() < 0.06
    assert not torch.equal(documents[0], documents[1])


def test_the_reward_is_the_share_of_good_tokens_and_demonstrations_have_more():
    documents = torch.tensor([[[0, 1, 1, 2, 9, 9, 9]], [[0, 1, 3, 4, 5, 6, 7]]])
    assert WORLDS.reward(documents).flatten().tolist() == pytest.approx([0.4, 0.2])
    corpus, _ = WORLDS.corpus(2000, generator_of(0))
    assert (WORLDS.reward(WORLDS.demonstrations(2000, generator_of(0))).mean(1) > WORLDS.reward(corpus).mean(1) + 0.1).all()


def test_entropy_is_that_of_the_chains():
    documents, topics = WORLDS.corpus(20_000, generator_of(5))
    scores = WORLDS.chains[0][topics[0, :, None], documents[0, :, 4:-1], documents[0, :, 5:]].log()
    assert -scores.mean().item() == pytest.approx(WORLDS.entropy[0], abs=0.03)


def test_worlds_without_good_or_without_other_tokens_are_refused():
    for sizes in ({"good": 0}, {"good": 23}, {"completion": 0}):
        with pytest.raises(UserError, match="at least 1"):
            RewardedWorlds((0,), **sizes)
    with pytest.raises(UserError, match="heads divide the width"):
        stacked.Shape(10, 7, 9)


def test_stacked_networks_are_hugging_faces(state):
    documents, _ = WORLDS.corpus(9, generator_of(2))
    found = stacked.logits(SHAPE, state, documents)
    for i in range(2):
        twin = GPT2LMHeadModel(GPT2Config(**SHAPE.settings())).eval()
        missing, extra = twin.load_state_dict(unstack(state, i), strict=False)
        assert not extra
        assert set(missing) <= {"lm_head.weight"}
        twin.tie_weights()
        with torch.no_grad():
            made = twin(documents[i], output_hidden_states=True)
        torch.testing.assert_close(found[i], made.logits, atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(stacked.hidden(SHAPE, state, documents)[:-1], made.hidden_states[:-1], strict=True):
            torch.testing.assert_close(ours[i], theirs, atol=1e-5, rtol=1e-5)


def test_generation_with_kept_keys_is_that_without(state):
    prompts = WORLDS.prompts(50, generator_of(3))
    greedy = stacked.generate(SHAPE, state, prompts, 5, None)
    documents = prompts
    for _ in range(5):
        documents = torch.cat([documents, stacked.logits(SHAPE, state, documents)[:, :, -1:].argmax(-1)], -1)
    assert torch.equal(greedy, documents)
    many = stacked.generate(SHAPE, state, prompts[:, :1].expand(-1, 20_000, -1), 1, generator_of(4))
    share = torch.stack([many[i, :, -1].bincount(minlength=10) for i in range(2)]) / 20_000
    expected = stacked.logits(SHAPE, state, prompts[:, :1])[:, 0, -1].softmax(-1)
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_the_expected_reward_and_kl_are_those_of_many_samples(state):
    reference = select_runs(state, [1, 0])
    found = Evaluator(SHAPE, WORLDS, reference, 2000, 0)(state)
    documents = samples(SHAPE, state, WORLDS, 6_000, (9, "other"))
    assert found["reward"] == pytest.approx(WORLDS.reward(documents).mean(1).double().numpy(), abs=0.01)
    ratio = (of_completions(SHAPE, state, documents) - of_completions(SHAPE, reference, documents)).mean((1, 2))
    assert found["KL"] == pytest.approx(ratio.double().numpy(), abs=0.05)
    assert Evaluator(SHAPE, WORLDS, state, 50, 0)(state)["KL"] == pytest.approx([0, 0], abs=1e-6)
    evaluate = Evaluator(SHAPE, WORLDS, reference, 50, 0)
    np.testing.assert_array_equal(evaluate.reward(state), evaluate(state)["reward"])


def test_an_evaluation_has_the_numbers_of_its_samples_on_any_number_of_threads(state):
    reference, before = select_runs(state, [1, 0]), torch.get_num_threads()
    documents = samples(SHAPE, state, WORLDS, 50, (0, "choose"))
    p, q = (log_probabilities(SHAPE, s, documents) for s in (state, reference))
    expected = {"reward": p.exp()[..., 1 : WORLDS.good + 1].sum(-1), "KL": (p.exp() * (p - q)).sum(-1)}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = Evaluator(SHAPE, WORLDS, reference, 50, 0)(state)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value.mean((1, 2)).numpy(), rtol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", list(METHODS))
def test_each_method_raises_the_reward(name, state, data):
    best = _best(data["pairs"])
    tuning = Tuning(SHAPE, state, WORLDS, METHODS[name], data | dict.fromkeys(("best of base", "samples of RL"), best), 0.01, 32)
    evaluate = Evaluator(SHAPE, WORLDS, state, 400, 0)
    before = evaluate(state)["reward"]
    for _ in range(12):
        tuning.update()
    assert (evaluate(tuning.state)["reward"] > before + 0.02).all()
    assert tuning.flops > 0


def _best(pool):
    best = WORLDS.reward(pool).topk(16, 1).indices
    return pool.gather(1, best[..., None].expand(*best.shape, pool.shape[-1]))


@pytest.mark.parametrize("name", list(METHODS))
def test_networks_do_not_touch_each_other_and_batches_follow_from_the_seed(name, state, data):
    both, again = (Tuning(SHAPE, state, WORLDS, METHODS[name], data, 0.01, 16, seed=5) for _ in range(2))
    for _ in range(3):
        both.update()
        again.update()
    for key, value in both.state.items():
        assert torch.equal(value, again.state[key])
    if METHODS[name].loss == "sft":  # of the others the random numbers depend on the number of networks
        first = {k: v[:1] for k, v in data.items()}
        alone = Tuning(SHAPE, select_runs(state, [0]), WORLDS.select([0]), METHODS[name], first, 0.01, 16, seed=5)
        alone.update()
        assert alone.losses[0][0] == pytest.approx(both.losses[0][0], abs=0.5)


def test_dpo_is_its_formula_with_the_network_before_training_as_reference(state, data):
    tuning = Tuning(SHAPE, state, WORLDS, METHODS["DPO"], data, 0.01, 16)
    assert tuning.update() == pytest.approx([math.log(2)] * 2, abs=1e-5)
    moved = tuning.state
    a, b = tuning._drawn(16), tuning._drawn(16, "second")
    found = tuning._loss()
    for i in range(2):
        losses = []
        for first, second in zip(a[i], b[i]):
            x, y = data["pairs"][i, first], data["pairs"][i, second]
            rewards = [WORLDS.reward(d).item() for d in (x, y)]
            if rewards[0] == rewards[1]:
                continue
            chosen, rejected = (x, y) if rewards[0] > rewards[1] else (y, x)
            scores = [
                (of_completions(SHAPE, s, d.expand(2, 1, -1)).sum(-1)[i, 0]).item()
                for s in (moved, state)
                for d in (chosen, rejected)
            ]
            losses.append(math.log1p(math.exp(-BETA * ((scores[0] - scores[2]) - (scores[1] - scores[3])))))
        assert found[i].item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_reinforce_has_the_gradient_of_the_expected_reward():
    """Against the exact gradient on completions of two tokens, which can all be listed."""
    worlds = RewardedWorlds((1,), vocabulary=5, good=1, completion=2)
    shape = stacked.Shape(5, worlds.length, 4)
    state = {
        k: (v + 0.3 * torch.randn(v.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
        for k, v in stacked.initial(shape, [0]).items()
    }
    tuning = Tuning(shape, state, worlds, METHODS["REINFORCE"], {}, 0.01, 20_000)
    name = "transformer.h.1.mlp.c_proj.bias"
    (sampled,) = torch.autograd.grad(tuning._loss().sum(), tuning._weights[name])
    prompts = worlds.prompts(20_000, generator_of(*tuning._key(), "prompts"))
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    total = torch.zeros(())
    for first, count in zip(*prompts[0, :, 1].unique(return_counts=True)):
        documents = torch.cat([torch.tensor([0, int(first)]).expand(25, 2), pairs], 1)[None]
        chance = of_completions(shape, state, documents).sum(-1).exp()
        total = total - count / 20_000 * (chance * worlds.reward(documents)).sum()
    (exact,) = torch.autograd.grad(total, state[name])
    torch.testing.assert_close(sampled, exact, atol=0.15 * float(exact.abs().max()), rtol=0)


def test_grpo_clips_and_repeats_its_batch(state):
    tuning = Tuning(SHAPE, state, WORLDS, METHODS["GRPO"], {}, 0.01, 16)
    tuning.update()
    batch = tuning._batch
    assert batch is not None
    documents, advantage, before = batch
    assert documents[:, :8, :PROMPT].unique(dim=1).shape[1] == 1, "a group has one prompt"
    grouped = advantage.unflatten(1, (-1, 8))
    torch.testing.assert_close(grouped.mean(-1), torch.zeros(2, 2), atol=1e-5, rtol=0)
    tuning.update()
    assert tuning._batch is batch, "two updates per batch"
    ratio = (of_completions(SHAPE, tuning.state, documents) - before).exp()
    gain = torch.where(advantage[..., None] > 0, ratio.clamp_max(1.2), ratio.clamp_min(0.8)) * advantage[..., None]
    third = Tuning(SHAPE, state, WORLDS, METHODS["GRPO"], {}, 0.01, 16)
    third._batch, third.step, third._weights = batch, 1, {k: v.requires_grad_() for k, v in tuning.state.items()}
    torch.testing.assert_close(third._loss(), -gain.mean((1, 2)))


def test_rounded_weights_are_bfloat16(state, data):
    tuning = Tuning(SHAPE, state, WORLDS, METHODS["DPO"], data, 1e-6, 16, rounded=True)
    first = tuning.state
    tuning.update()
    for value in tuning.state.values():
        assert torch.equal(value, value.bfloat16().float())
    same = sum((tuning.state[k] == v).sum().item() for k, v in first.items()) / sum(v.numel() for v in first.values())
    assert same > 0.9


def test_matching_meets_its_targets_and_an_update_at_a_smaller_rate_is_the_same_point(state, data):
    evaluate = Evaluator(SHAPE, WORLDS, state, 400, 0)
    before = evaluate(state)
    target = {"reward": before["reward"] + np.array([0.05, 0.11]), "KL": np.array([0.02, 0.05])}
    tuning = Tuning(SHAPE, state, WORLDS, METHODS["DPO"], data, 0.01, 32)
    course = train_to(tuning, evaluate, target, 60, every=4)
    for name, found in course.matched.items():
        assert found.reached.all(), name
        assert evaluate(found.state)[name] == pytest.approx(target[name], abs=5e-3)
    found = course.matched["reward"]
    for i in range(2):
        whole, share = int(found.updates[i]), found.updates[i] % 1
        again = Tuning(SHAPE, state, WORLDS, METHODS["DPO"], data, 0.01, 32)
        for _ in range(whole):
            again.update()
        again.rate = 0.01 * share
        again.update()
        for key, value in again.state.items():
            torch.testing.assert_close(value[i], found.state[key][i], atol=2e-6, rtol=1e-4)


def test_what_misses_its_target_or_begins_beyond_is_marked(state, data):
    evaluate = Evaluator(SHAPE, WORLDS, state, 100, 0)
    before = evaluate(state)["reward"]
    tuning = Tuning(SHAPE, state, WORLDS, METHODS["DPO"], data, 0.01, 32)
    course = train_to(tuning, evaluate, {"reward": before + np.array([-0.01, 0.9])}, 6, every=4)
    found = course.matched["reward"]
    assert found.reached.tolist() == [False, False]
    assert found.updates.tolist() == [0, 6]
    for key, value in tuning.state.items():
        assert torch.equal(found.state[key][1], value[1])
        assert torch.equal(found.state[key][0], state[key][0])
    assert [int(e["updates"]) for e in course.curve] == [0, 4, 6]


def test_log_probabilities_are_of_completions(state):
    documents, _ = WORLDS.corpus(4, generator_of(2))
    found = log_probabilities(SHAPE, state, documents)
    assert found.shape == (2, 4, WORLDS.completion, 10)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 4, WORLDS.completion))


def test_the_descent_is_torchs_adamw():
    ours = {"a": torch.randn(2, 5, 4, requires_grad=True), "b": torch.randn(2, 4, requires_grad=True)}
    theirs = [v.detach().clone().requires_grad_() for v in ours.values()]
    descent, adam = Descent(ours), torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0)
    for step in range(5):
        losses = [((a * torch.arange(4.0 + step)[:4]).sin().sum() + (b**2).sum()) for a, b in (tuple(ours.values()), tuple(theirs))]
        descent.update(losses[0], 0.01)
        adam.zero_grad()
        losses[1].backward()
        adam.step()
    for mine, other in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(mine, other)
