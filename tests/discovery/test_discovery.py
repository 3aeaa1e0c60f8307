"""Discovery: objectives against independent statements, the engine against itself in other chunks, solvers against known maps."""

import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from families import build
from repscope.discovery import (
    OBJECTIVES,
    SOLVERS,
    Fluency,
    FunctionSubject,
    LanguageSubject,
    SolverOptions,
    calibrate,
    contrastive,
    discover,
    l2,
    magnitude,
    objective,
    soft_orthogonal,
)
from repscope.discovery.objectives import Seen
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.worlds.planted.functions import planted
from repscope.worlds.tiny import tiny

PROMPTS = ["The place called Lagos", "A map that shows Paris, Lagos and more", "Zürich has an umlaut", "The place called Paris"]
SKIPPED = [contrastive(subtract_skip=True), soft_orthogonal(subtract_skip=True), l2(subtract_skip=True)]
ALL = [
    l2(),
    l2(4, 1),
    magnitude(),
    magnitude(per_spread=True),
    contrastive(),
    contrastive(0.2, "same_prompt"),
    contrastive(sign_blind=True),
    soft_orthogonal(),
    magnitude() + 0.5 * contrastive(),
    *SKIPPED,
]


def _drawn(k=5, width=32, seed=0):
    return torch.randn(k, width, generator=torch.Generator().manual_seed(seed))


def _seen(rows=(0, 0, 1, 1, 1, 2), k=4, width=6):
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(k, len(rows), width, generator=generator)
    return Seen(delta, torch.randn(k, width, generator=generator), torch.tensor(rows), 3, delta.flatten(0, 1).std(0))


@pytest.fixture(scope="module")
def subject():
    lm = tiny()
    with torch.no_grad():
        for p in lm.model.parameters():
            p.mul_(4 if p.dim() > 1 else 1)
    return LanguageSubject(lm, "resid_post.0", "resid_post.2")


@pytest.mark.parametrize(("p", "q"), [(2, 2), (2, 1), (4, 4), (4, 1)])
def test_melbo_is_the_norm_over_features_in_float64(subject, p, q):
    """Norm, loss and gradient of the published formula, from the network itself by edits and torch's own derivative."""
    lm, vectors = subject.lm, 2 * _drawn(2)
    context = subject.context(PROMPTS)
    terms, grad = subject.loss_and_grad(context, vectors, l2(p, q))
    for vector, term, slope in zip(vectors, terms, grad):
        model = lm.model.double()
        v = vector.double().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for prompt in PROMPTS:
            ids = torch.tensor([lm.tokenizer(prompt)["input_ids"]])
            plain = model(ids, output_hidden_states=True).hidden_states[3].detach()
            handle = model.model.layers[0].register_forward_hook(lambda m, a, o, v=v: o + v)
            moved = model(ids, output_hidden_states=True).hidden_states[3]
            handle.remove()
            total = total + (moved - plain)[0].square().sum(1).sqrt().pow(p).sum().pow(1 / q)
        (expected,) = torch.autograd.grad(-total, v)
        model.float()
        assert np.isclose(float(term), -float(total.detach()), rtol=1e-4)
        assert torch.allclose(slope.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_norm_over_tokens_is_another_number():
    seen = _seen(rows=(0, 0, 0), width=8)
    over_tokens = -seen.delta.norm(dim=1).pow(4).sum(1).pow(1 / 4)
    assert not torch.allclose(l2(4).terms(seen), over_tokens, rtol=1e-2)
    assert torch.allclose(l2(2).terms(seen), -seen.delta.norm(dim=1).pow(2).sum(1).sqrt())


def test_contrastive_is_the_published_form_written_out():
    seen = _seen(rows=(0, 1, 2))
    hat = functional.normalize(seen.delta.double(), dim=-1)
    for tau, everywhere in ((0.5, True), (0.2, False)):
        found = contrastive(tau, "all" if everywhere else "same_prompt").terms(seen)
        for k in range(4):
            each = []
            for i in range(3):
                e = lambda a, b, tau=tau: float(torch.exp(a @ b / tau))  # noqa: E731
                positive = sum(e(hat[k, i], hat[k, j]) for j in range(3) if j != i)
                negative = sum(
                    e(hat[k, i], hat[other, j]) for other in range(4) for j in range(3) if other != k and (everywhere or j == i)
                )
                each.append(-np.log(positive / (positive + negative)))
            assert np.isclose(float(found[k]), np.mean(each), rtol=1e-4)


@pytest.mark.parametrize("goal", [magnitude(), l2(2, 1), soft_orthogonal(), contrastive()], ids=str)
def test_tokens_of_a_prompt_count_as_their_objective_says(goal):
    """Rows in another order, and prompts one by one for what is a sum over prompts, give the same."""
    seen = _seen()
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    other = Seen(seen.delta[:, order], seen.vectors, seen.rows[order], 3, seen.spread)
    assert torch.allclose(goal.terms(seen), goal.terms(other), atol=1e-5)
    if not goal.coupled:
        parts = [seen.rows == i for i in range(3)]
        apart = sum(goal.terms(Seen(seen.delta[:, p], seen.vectors, seen.rows[p], 3, seen.spread)) for p in parts)
        assert torch.allclose(goal.terms(seen), apart, atol=1e-5)


@pytest.mark.parametrize("goal", ALL, ids=str)
def test_losses_and_gradients_do_not_depend_on_chunks(subject, goal):
    vectors = 2 * _drawn()
    whole = subject.context(PROMPTS)
    whole.pass_tokens = 1 << 20
    small = subject.context(PROMPTS)
    small.pass_tokens = 40
    terms, grad = subject.loss_and_grad(whole, vectors, goal)
    for memory in (0.0, 1e12):
        again, chunked = subject.loss_and_grad(small, vectors, goal, memory)
        assert torch.allclose(again, terms, rtol=1e-4, atol=1e-5)
        assert torch.allclose(chunked, grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


@pytest.mark.parametrize("goal", ALL, ids=str)
def test_losses_and_gradients_are_those_without_shared_beginnings(subject, goal):
    vectors = 2 * _drawn()
    found = []
    for share in (True, False):
        other = LanguageSubject(subject.lm, subject.source, subject.target, share=share)
        found.append(other.loss_and_grad(other.context(PROMPTS), vectors, goal))
    (terms, grad), (slow_terms, slow_grad) = found
    assert torch.allclose(terms, slow_terms, rtol=1e-4, atol=1e-5)
    assert torch.allclose(grad, slow_grad, rtol=1e-3, atol=1e-4 * float(slow_grad.abs().max()))


def test_gradients_at_zero_are_those_of_a_forward_pass_for_each(subject):
    """One forward pass for all cotangents; the same number of forward equivalents is counted."""
    context = subject.context(PROMPTS)
    cotangent = torch.randn(5, len(context.rows), 32, generator=torch.Generator().manual_seed(2))
    fast = subject.vjp_at_zero(context, cotangent)
    counted = context.cost
    _, slow = subject.effect_and_vjp(context, torch.zeros(5, 32), cotangent)
    assert torch.allclose(fast, slow, rtol=1e-3, atol=1e-4 * float(slow.abs().max()))
    assert context.cost == 2 * counted
    net = planted("exp", 3)
    function = FunctionSubject(net)
    states = function.context(net.states())
    other = torch.randn(4, len(states.rows), states.features, generator=torch.Generator().manual_seed(2))
    zero = torch.zeros(4, states.width)
    assert torch.equal(function.vjp_at_zero(states, other), function.effect_and_vjp(states, zero, other)[1])


def test_losses_are_in_the_order_of_directions(subject):
    """A batch of directions of rising length: each loss is that of its own direction alone."""
    vectors = functional.normalize(_drawn(4), dim=1) * torch.tensor([[0.5], [1.0], [2.0], [4.0]])
    context = subject.context(PROMPTS)
    together, _ = subject.loss_and_grad(context, vectors, l2(2, 1))
    alone = torch.cat([subject.loss_and_grad(context, vectors[k : k + 1], l2(2, 1))[0] for k in range(4)])
    assert torch.allclose(together, alone, rtol=1e-4)
    assert bool((together.diff() < 0).all())


def test_prompts_of_other_lengths_change_nothing(subject):
    """There is no padding, so no pad is steered or counted: a prompt's effect is the same beside a longer one."""
    vectors = 2 * _drawn(2)
    together = subject.effect(mixed := subject.context(PROMPTS), vectors)
    for i, prompt in enumerate(PROMPTS):
        assert torch.allclose(together[:, mixed.rows == i], subject.effect(subject.context([prompt]), vectors), atol=1e-4)


def test_graphs_do_not_grow_with_directions(subject):
    """Bytes saved for the backward pass at their highest: as flat for 256 directions as for 8."""

    def peak(count):
        context = subject.context(PROMPTS[:2])
        context.pass_tokens = 128
        held = {"now": 0, "most": 0}

        class Saved:
            def __init__(self, tensor):
                self.tensor = tensor
                size = tensor.numel() * tensor.element_size()
                held["now"] += size
                held["most"] = max(held["most"], held["now"])
                weakref.finalize(self, lambda: held.__setitem__("now", held["now"] - size))

        # The objective's own graph is over delta, K × N × F, and not the network's.
        def watched(go, vectors):
            with torch.autograd.graph.saved_tensors_hooks(Saved, lambda s: s.tensor):
                return go(vectors)

        context.parts = [replace(part, run=partial(watched, part.run)) for part in context.parts]
        subject.loss_and_grad(context, _drawn(count), magnitude() + soft_orthogonal(), 0.0)
        return held["most"]

    assert 0 < peak(256) <= 1.5 * peak(8)


def test_the_jacobian_is_the_engines_own(subject):
    lm = subject.lm
    aimed = LanguageSubject(lm, "resid_post.0", "resid_post.2", target_tokens="last")
    found = discover(aimed, PROMPTS, solver="jacobian", n=4, scale=1.0, steps=30)
    jac = lm.jacobian(PROMPTS, "resid_post.0", "resid_post.2", source_tokens="all", target_tokens="last")
    _, s, vh = np.linalg.svd(jac.mean().matrix())
    assert np.allclose(found.values["sigma"], s[:4], rtol=5e-3)
    assert np.abs((found.vectors * vh[:4]).sum(1)).min() > 0.98
    assert np.allclose(found.vectors @ found.vectors.T, np.eye(4), atol=1e-4)


def test_sequential_directions_are_orthogonal_and_each_its_own_optimum():
    net = planted("exp", 3)
    found = discover(FunctionSubject(net), net.states(), l2(), "sequential", 6, scale=3.0, steps=40)
    assert np.allclose(found.vectors @ found.vectors.T, np.eye(6), atol=1e-4)
    assert found.losses.shape == (40, 6)
    assert (found.losses[-1] < found.losses[0]).all()


def test_dct_on_a_linear_map_is_its_singular_vectors_and_alpha_solves_its_own_model():
    weight = torch.linalg.qr(_drawn(8, 8))[0] @ torch.diag(torch.linspace(4, 1, 8)) @ torch.linalg.qr(_drawn(8, 8, 1))[0]
    found = discover(FunctionSubject(lambda h: h @ weight.T), torch.zeros(1, 8), solver="dct", n=8, scale=1.0, steps=400)
    _, _, vh = np.linalg.svd(weight.numpy())
    assert np.allclose(np.abs(found.vectors @ vh.T).max(0), 1, atol=1e-2)
    u, v = functional.normalize(_drawn(3, 8), dim=1), functional.normalize(_drawn(3, 8, 2), dim=1)
    alpha = torch.tensor([2.0, 1.0, 0.5])
    effects = torch.expm1(v @ v.T) @ (alpha[:, None] * u)
    from repscope.discovery.solvers import alphas

    assert torch.allclose(alphas(u, v, effects), alpha, atol=1e-4)


def test_no_quadratic_dct_is_offered():
    with pytest.raises(UserError, match="no solver 'quadratic_dct'"):
        discover(tiny(), PROMPTS, solver="quadratic_dct")
    assert not [name for name in SOLVERS if "quadratic" in name]


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_every_solver_gives_unit_vectors_the_same_for_a_seed(subject, solver):
    def once(seed):
        options = SolverOptions(weight=_drawn(6))
        return discover(subject, PROMPTS, "l2", solver, 3, scale=2.0, steps=3, seed=seed, options=options)

    a, b = once(0), once(0)
    assert np.array_equal(a.vectors, b.vectors)
    assert np.allclose(np.linalg.norm(a.vectors, axis=1), 1, atol=1e-4)
    assert a.losses.shape[1] == 3
    if SOLVERS[solver].descends or solver == "random":
        assert not np.allclose(a.vectors, once(1).vectors)
    kept = a.directions()
    assert len(kept) == 3
    assert kept.directions[0].site == "resid_post.0"
    assert kept.directions[0].scale == 2.0
    assert kept.model == subject.lm.fingerprint


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_is_read_by_name_and_descended(subject, name):
    assert str(objective(f"0.5 * {name}")).startswith(f"0.5 * {name}")
    found = discover(subject, PROMPTS, name, "sphere", 4, scale=3.0, steps=30)
    assert found.losses[-1].sum() < found.losses[0].sum()


def test_a_direction_works_as_an_edit(subject):
    found = discover(subject, PROMPTS, "l2", n=2, scale=2.0, steps=2)
    with subject.lm.edit(Edit.add("resid_post.0", found.directions().directions[0], tokens="all")):
        steered = subject.lm.capture(PROMPTS, "resid_post.2", "last").numpy()
    plain = subject.lm.capture(PROMPTS, "resid_post.2", "last").numpy()
    aimed = LanguageSubject(subject.lm, "resid_post.0", "resid_post.2", target_tokens="last")
    delta = aimed.effect(aimed.context(PROMPTS), 2.0 * torch.from_numpy(found.vectors))
    assert np.allclose(delta[0], steered - plain, atol=1e-4)


def test_target_tokens(subject):
    lm, vectors = subject.lm, 2 * _drawn(2)
    every = subject.effect(context := subject.context(PROMPTS), vectors)

    def at(tokens):
        aimed = LanguageSubject(lm, "resid_post.0", "resid_post.2", target_tokens=tokens)
        return aimed.effect(aimed.context(PROMPTS), vectors)

    for i in range(len(PROMPTS)):
        mine = every[:, context.rows == i]
        assert torch.allclose(at("last")[:, i], mine[:, -1], atol=1e-4)
        assert torch.allclose(at("last 3")[:, i], mine[:, -3:].mean(1), atol=1e-4)
        assert torch.allclose(at("mean")[:, i], mine.mean(1), atol=1e-4)


def test_calibration_finds_the_half_linear_scale_and_stops_at_damage(subject):
    context = subject.context(PROMPTS)
    free = calibrate(subject, context, draws=8)
    assert np.isclose(free.linear, 0.5, atol=0.02)
    assert free.damage is None
    assert np.isclose(free.relative, free.scale / context.norm)
    fluency = Fluency(subject.lm, subject.source, PROMPTS)
    capped = calibrate(subject, context, draws=8, fluency=fluency, damage=1e-3)
    assert capped.scale < free.scale
    assert capped.damage == pytest.approx(1e-3, rel=0.05)
    assert "damage" in capped.why
    straight = FunctionSubject(lambda h: 2 * h)
    still = calibrate(straight, kept := straight.context(_drawn()))
    assert still.scale == kept.norm
    assert "linear" in still.why


def test_a_model_and_prompts_are_enough(tokenizer):
    """The scale is calibrated; a model without a next token is calibrated by linearity alone."""
    found = discover(tiny(), PROMPTS, n=3, steps=2)
    assert found.calibration is not None
    assert found.calibration.damage is not None
    assert found.scale == found.calibration.scale
    assert found.losses.shape == (2, 3)
    assert found.cost == 2 * 2 * 3 * len(PROMPTS)
    silent = discover(LanguageModel(build("bert"), tokenizer, "bert"), PROMPTS, n=3, steps=2)
    assert silent.calibration.damage is None


def test_damage_is_the_divergence_of_the_edited_model(subject):
    lm, vector = subject.lm, 2 * _drawn(1)
    found = Fluency(lm, subject.source, PROMPTS).kl(vector)[0]
    plain = torch.from_numpy(lm.logits(PROMPTS)).double().log_softmax(-1)
    with lm.edit(Edit.add(subject.source, vector[0], tokens="all")):
        steered = torch.from_numpy(lm.logits(PROMPTS)).double().log_softmax(-1)
    assert torch.allclose(found, (plain.exp() * (plain - steered)).sum(-1), rtol=1e-2, atol=1e-6)


def test_effects_and_damage_come_from_one_run(subject):
    lm, vectors = subject.lm, 2 * _drawn(20)
    fluency = Fluency(lm, subject.source, PROMPTS, target=subject.target, target_tokens="last 3")
    effects, kl = fluency.effect_and_kl(vectors)
    aimed = LanguageSubject(lm, subject.source, subject.target, target_tokens="last 3")
    slow = aimed.effect(aimed.context(PROMPTS), vectors)
    assert torch.allclose(effects, slow, atol=1e-5 * float(slow.abs().max()))
    assert torch.allclose(kl, Fluency(lm, subject.source, PROMPTS).kl(vectors), rtol=1e-4)


def test_defaults_are_sites_that_exist(tokenizer):
    shallow = LanguageSubject(tiny())
    assert (shallow.source, shallow.target) == ("resid_post.1", "resid_post.3")
    assert LanguageSubject(LanguageModel(build("gpt2"), tokenizer, "gpt2")).target == "resid_post.2"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": 0}, "at least 1"),
        ({"scale": 0.0}, "above 0"),
        ({"scale": float("nan")}, "above 0"),
        ({"steps": 0}, "at least 1"),
        ({"prompts": []}, "no prompt"),
        ({"solver": "jacobian", "n": 33}, "at most 32"),
        ({"solver": "sequential", "objective": "contrastive"}, "use sphere"),
        ({"solver": "weights"}, "weight="),
        ({"objective": "l3"}, "no objective"),
        ({"objective": "contrastive", "prompts": PROMPTS[:1]}, "two or more"),
        ({"objective": "contrastive", "n": 1}, "two or more"),
        ({"objective": "l2", "scale": 1e38}, "not a number"),
    ],
)
def test_mistakes_are_told_in_one_sentence(subject, change, says):
    arguments = {"prompts": PROMPTS, "objective": "l2", "solver": "sphere", "n": 2, "scale": 1.0, "steps": 2} | change
    with pytest.raises(UserError, match=says):
        discover(subject, **arguments)


def test_a_source_at_or_above_the_target_is_refused():
    for source, target in (("resid_post.2", "resid_post.2"), ("resid_post.3", "resid_post.1")):
        with pytest.raises(UserError, match="not below"):
            discover(LanguageSubject(tiny(), source, target), PROMPTS)


@pytest.mark.parametrize("weight", [-1.0, 0.0, float("nan"), float("inf"), np.float64(-0.5)])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(UserError, match=r"The weight of an objective is .* finite and above 0"):
        magnitude() + weight * contrastive()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: objective("magnitude + -1 * contrastive"), "weight of an objective is -1.0"),
        (lambda: objective("1e- * l2"), "weight of an objective is nan"),
        (lambda: objective(2), "An objective is a text"),
        (lambda: l2(0), "exponent p is 0"),
        (lambda: l2(2, 0), "exponent q is 0"),
        (lambda: l2(float("nan")), "exponent p is nan"),
        (lambda: contrastive(float("inf")), "temperature tau is inf"),
    ],
)
def test_numbers_of_an_objective_that_mean_nothing(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_states_and_vectors_may_be_arrays():
    f, states, vectors = torch.tanh, _drawn(4, 3), _drawn(2, 3, seed=1)
    subject = FunctionSubject(f)
    ours, theirs = subject.context(states), subject.context(states.numpy())
    torch.testing.assert_close(subject.effect(theirs, vectors.numpy()), subject.effect(ours, vectors))
    with pytest.raises(UserError, match="states are of"):
        subject.context(["a text"])
    with pytest.raises(UserError, match="states are not finite"):
        subject.context([[1.0, float("nan")]])
    lm = tiny()
    fluency = Fluency(lm, "resid_post.1", PROMPTS[:1])
    added = _drawn(2, lm.anatomy.width)
    torch.testing.assert_close(fluency.kl(added.numpy()), fluency.kl(added))
    with pytest.raises(UserError, match="give \\(direction, width\\)"):
        fluency.kl(added[0].tolist())
