"""Discovery in image generators: published losses against float64 loops, all seeds in one batch, planted factors, clear errors."""

import numpy as np
import pytest
import torch
from torch import nn

from repscope.discovery import contrastive, discover, l2, magnitude
from repscope.discovery.generators import (
    DiffusionBed,
    DiffusionSubject,
    LatentBed,
    LatentDirections,
    factor_changes,
    ganspace,
    latent_clr,
    latent_subject,
    noise_clr,
    noisy_images,
    orthogonalised,
    regressed,
    sefa,
    train_latent_clr,
    train_noise_clr,
)
from repscope.discovery.generators.comparison import IMAGE_METRICS, Found, judged, search
from repscope.discovery.generators.factor_changes import DOSES
from repscope.discovery.generators.judge_ceiling import judge_ceiling
from repscope.discovery.generators.judges import SpriteJudge
from repscope.discovery.generators.published_training import _seen
from repscope.discovery.objectives import Seen
from repscope.discovery.stacked_seeds import discover_seeds
from repscope.errors import UserError
from repscope.models.generators import DiffusionGenerator, LatentGenerator
from repscope.worlds.sprites import drawn_factors, sprites
from repscope.worlds.sprites.diffusion import DiffusionSizes, from_patches, patches, train_diffusion
from repscope.worlds.sprites.gan import FEATURES, SpriteGenerator

TINY = DiffusionSizes(channels=(8, 8), words=8, timesteps=20, batch=4, steps=2)


@pytest.fixture(scope="module")
def gan():
    torch.manual_seed(0)
    return LatentGenerator(SpriteGenerator(5, 12).eval().requires_grad_(False), 5, FEATURES)


@pytest.fixture(scope="module")
def diffusion():
    trained = train_diffusion(TINY)
    network = trained.network.requires_grad_(False)
    return DiffusionGenerator(network.unet, trained.scheduler, network.words.weight[:1].detach())


def effects(k=3, n=4, f=5, seed=0):
    return torch.randn(k, n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops_latent_clr(delta, temperature, absolute):
    """The formula of the module's docstring, term by term."""
    k, n, _ = delta.shape
    unit = [[delta[a, i] / delta[a, i].norm() for i in range(n)] for a in range(k)]

    def heat(a, i, b, j):
        cos = (unit[a][i] * unit[b][j]).sum()
        return torch.exp(temperature * (cos.abs() if absolute else cos))

    terms = []
    for a in range(k):
        each = []
        for i in range(n):
            near = sum(heat(a, i, a, j) for j in range(n) if j != i) / (n - 1)
            far = sum(heat(a, i, b, j) for b in range(k) if b != a for j in range(n)) / ((k - 1) * n)
            each.append(torch.log(near / far))
        terms.append(-sum(each) / n)
    return torch.stack(terms)


def by_loops_noise_clr(delta, tau):
    k, n, _ = delta.shape
    unit = [[delta[a, i] / delta[a, i].norm() for i in range(n)] for a in range(k)]
    terms = []
    for a in range(k):
        near = [torch.exp((unit[a][i] * unit[a][j]).sum() / tau) for i in range(n) for j in range(i + 1, n)]
        far = [torch.exp((unit[a][i] * unit[b][i]).sum() / tau) for i in range(n) for b in range(k) if b != a]
        terms.append(-torch.log(sum(near) / len(near) / (sum(far) / len(far))))
    return torch.stack(terms)


@pytest.mark.parametrize(
    ("objective", "loops"),
    [
        (latent_clr(), lambda d: by_loops_latent_clr(d, 0.5, True)),
        (latent_clr(0.3, divide=True, sign_blind=False), lambda d: by_loops_latent_clr(d, 1 / 0.3, False)),
        (noise_clr(), lambda d: by_loops_noise_clr(d, 0.5)),
        (noise_clr(0.2), lambda d: by_loops_noise_clr(d, 0.2)),
    ],
)
def test_published_losses_and_gradients_equal_their_formulas(objective, loops):
    fast, slow = effects().requires_grad_(), effects().requires_grad_()
    a, b = objective.terms(_seen(fast)), loops(slow)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (ga,) = torch.autograd.grad((weights * a).sum(), fast)
    (gb,) = torch.autograd.grad((weights * b).sum(), slow)
    torch.testing.assert_close(ga, gb, rtol=1e-10, atol=1e-12)
    assert float(ga.abs().max()) > 1e-3


def test_published_losses_ignore_the_size_of_effects():
    for objective in (latent_clr(), noise_clr()):
        torch.testing.assert_close(objective.terms(_seen(effects())), objective.terms(_seen(7 * effects())))


def test_published_losses_refuse_what_they_cannot_compare():
    for wrong in (effects(k=1), effects(n=1)):
        for objective in (latent_clr(), noise_clr()):
            with pytest.raises(UserError, match="two or more of each"):
                objective.terms(_seen(wrong))
    for make in (latent_clr, noise_clr):
        with pytest.raises(UserError, match="above 0"):
            make(0)


@pytest.mark.parametrize("goal", [l2(), magnitude() + contrastive(0.2), latent_clr()])
def test_all_seeds_in_one_batch_end_where_each_ends_alone(gan, goal):
    subject = latent_subject(gan)
    z = gan.latents(4, 0)
    together = discover_seeds(subject, z, goal, 3, (4, 9), scale=1.0, steps=5)
    for found in together:
        alone = discover(subject, z, goal, n=3, scale=1.0, steps=5, seed=found.seed)
        np.testing.assert_allclose(found.vectors, alone.vectors, atol=2e-5)
        np.testing.assert_allclose(found.losses, alone.losses, atol=1e-4)
        assert found.cost == alone.cost
    assert np.abs(together[0].vectors - together[1].vectors).max() > 0.1


def test_a_coupled_objective_does_not_mix_seeds(gan):
    """With a second seed whose directions repeat those of the first, an objective over all would push them apart."""
    from repscope.discovery.stacked_seeds import grouped

    goal = contrastive(0.2)
    delta = effects().float()
    seen = Seen(torch.cat([delta, delta]), torch.zeros(6, 0), torch.arange(4), 4, torch.ones(5))
    torch.testing.assert_close(grouped(goal, 2).terms(seen), goal.terms(_seen(delta)).repeat(2))
    assert not torch.allclose(goal.terms(seen)[:3], goal.terms(_seen(delta)))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"seeds": ()}, "give one or more"),
        ({"seeds": (1, 1)}, "each once"),
        ({"n": 0}, "at least 1"),
        ({"scale": 0.0}, "above 0"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_mistakes_of_stacked_searches(gan, more, says):
    given = {"n": 2, "seeds": (0,), "scale": 1.0, "steps": 2} | more
    with pytest.raises(UserError, match=says):
        discover_seeds(
            latent_subject(gan), gan.latents(3, 0), "l2", given["n"], given["seeds"], scale=given["scale"], steps=given["steps"]
        )


@pytest.mark.parametrize("kind", ["fixed", "linear", "mlp"])
def test_latent_clr_trains_each_seed_as_if_alone(gan, kind):
    how = {"alpha": 1.0, "steps": 4, "batch": 3, "kind": kind, "rate": 0.05}
    both, second = train_latent_clr(gan, 3, (0, 5), **how), train_latent_clr(gan, 3, (5,), **how)
    np.testing.assert_allclose(both.directions[1], second.directions[0], atol=1e-5)
    np.testing.assert_allclose(both.losses[:, 1], second.losses[:, 0], atol=1e-5)
    start = LatentDirections.drawn(kind, 5, 3, (0, 5)).mean().numpy()
    assert np.abs(both.directions - start).max() > 1e-3


def test_directions_that_depend_on_z_by_hand_and_from_a_file(tmp_path):
    held = LatentDirections.drawn("mlp", 4, 2, (3,))
    z = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(1))
    x = z[0, 2]
    for i in range(3):
        x = held.weights[f"weight.{i}"][0, 1].T @ x + held.weights[f"bias.{i}"][0, 1]
        x = x.relu() if i < 2 else x
    torch.testing.assert_close(held.at(z)[0, 1, 2], x / x.norm())
    held.save(tmp_path / "of-z.safetensors")
    again = LatentDirections.load(tmp_path / "of-z.safetensors")
    torch.testing.assert_close(again.at(z), held.at(z), rtol=0, atol=0)
    (tmp_path / "of-z.safetensors").write_bytes((tmp_path / "of-z.safetensors").read_bytes()[:-1] + b"x")
    with pytest.raises(UserError):
        LatentDirections.load(tmp_path / "of-z.safetensors")


def test_sefa_and_ganspace_find_what_a_linear_generator_holds():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 9, bias=False))
    with torch.no_grad():  # z enters along three known axes, most strongly along the first
        axes = torch.linalg.qr(torch.randn(4, 4))[0]
        out = torch.linalg.qr(torch.randn(9, 9))[0][:, :4]
        module[0].weight.copy_(out @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5])) @ axes.T)
    made = LatentGenerator(module, 4)
    found = ganspace(made, 3, samples=20_000)
    assert float((found @ axes[:, :3]).abs().diagonal().min()) > 0.98
    rows = module[0].weight / module[0].weight.norm(dim=1, keepdim=True)
    expected = torch.linalg.eigh((rows.T @ rows).double())[1].flip(1).T
    torch.testing.assert_close(
        (sefa(made, 4).double() * expected).sum(1).abs(), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-5
    )
    with pytest.raises(UserError, match="has 4 singular vectors"):
        sefa(made, 5)


def test_regression_on_labels_finds_the_planted_factor():
    z = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    truth = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    found = regressed(z, z @ truth.T + 5)
    torch.testing.assert_close(found, truth / truth.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="do not determine"):
        regressed(z[:6], z[:6, :2])


def test_each_orthogonal_direction_moves_its_own_factor_alone():
    labelled = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    alone = orthogonalised(labelled)
    read = alone @ labelled.T
    torch.testing.assert_close(read - torch.diag(read.diagonal()), torch.zeros(3, 3), rtol=0, atol=1e-6)
    assert float(read.diagonal().min()) > 0.1
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(3))
    span = labelled.T @ torch.linalg.pinv(labelled.T)
    torch.testing.assert_close(alone @ span, alone, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="depend on each other"):
        orthogonalised(torch.cat([labelled, labelled[:1] + labelled[1:2]]))


def test_the_ceiling_of_the_judge():
    """With an exact judge one factor changes alone; a judge that mixes two factors says so."""
    factors = drawn_factors(40, torch.Generator().manual_seed(0))
    moved = []

    def redraw(f):
        moved.append(f)
        return f

    exact = judge_ceiling(lambda f: f, redraw, factors, DOSES)
    np.testing.assert_allclose(exact.selectivity, 1, rtol=1e-5)
    np.testing.assert_allclose(exact.change, 1, rtol=1e-5)
    np.testing.assert_allclose(exact.monotonicity, 1, rtol=1e-6)
    assert exact.top.tolist() == list(range(6))
    assert exact.distinct == exact.reached == 6
    assert float(moved[0].abs().max()) <= 1, "sprites stay within the data"
    mixed = judge_ceiling(lambda f: torch.stack([f[:, 0] + f[:, 1], f[:, 1], *f.T[2:]], 1), redraw, factors, DOSES)
    np.testing.assert_allclose(mixed.selectivity, [1, 0.5, 1, 1, 1, 1], rtol=1e-5)
    for amount in (0.0, 2.0):
        with pytest.raises(UserError, match="less than 1"):
            judge_ceiling(lambda f: f, redraw, factors, DOSES, amount)


class Planted(nn.Module):
    """A generator whose first six latents are the factors of a sprite."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, z):
        return sprites((0.4 * self.scale * z[:, :6]).clamp(-1, 1))


def test_judging_finds_planted_factors_and_only_those():
    bed = LatentBed(LatentGenerator(Planted(), 8), samples=4, held=200, scale=2.0, seed=1)
    z = bed.z
    directions = np.eye(8)[[0, 3, 7]]
    factors = torch.stack(
        [(0.4 * (z + a * bed.scale * torch.from_numpy(directions).float()[:, None])[..., :6]).clamp(-1, 1) for a in DOSES]
    )
    changes = factor_changes(factors.numpy(), np.asarray(DOSES))
    assert changes.top[:2].tolist() == [0, 3]
    assert changes.distinct == changes.reached == 2
    np.testing.assert_allclose(changes.selectivity[:2], 1)
    assert changes.selectivity[2] == changes.change[2] == changes.monotonicity[2] == 0
    assert (changes.monotonicity[:2] > 0.9).all()
    step = (factors[-1, 0, 100:, 0] - factors[0, 0, 100:, 0]).mean() / 2 * 3**0.5
    assert changes.change[0] == pytest.approx(float(step), rel=1e-5)
    calls = iter([factors.flatten(0, 2), torch.cat([factors[0].flatten(0, 1), factors[-1].flatten(0, 1)])])

    class Told(SpriteJudge):
        def read(self, images):
            return next(calls)

    numbers, again = judged(bed, Found(directions), Told(None, None))
    assert again.distinct == 2
    assert set(numbers) == set(IMAGE_METRICS) - {"stability", "digits explained"}
    assert numbers["sprites explained"] == pytest.approx(1, abs=1e-6), "drawn again from their true factors"


def test_a_direction_of_two_factors_reaches_one_and_finds_none_alone():
    read = np.zeros((2, 2, 8, 3))
    read[1, 0, :, 0], read[1, 0, :, 1] = 1, -1.001  # both, the second by a little more
    read[1, 1, :, 2] = 0.1  # alone, and too small
    found = factor_changes(read, np.array([0.0, 1.0]))
    assert found.top.tolist() == [1, 2]
    np.testing.assert_allclose(found.selectivity, [1.001 / 2.001, 1])
    read[1, 0, :, 2] = 0.5
    found = factor_changes(read, np.array([0.0, 1.0]))
    assert (found.distinct, found.reached) == (0, 1)


def test_the_top_factor_is_chosen_on_the_other_half():
    """On the first half factor 0 changes, on the second factor 1: the report is about factor 0, which does not change there."""
    read = np.zeros((2, 1, 8, 3))
    read[1, 0, :4, 0] = read[1, 0, 4:, 1] = 1
    found = factor_changes(read, np.array([0.0, 1.0]))
    assert found.top[0] == 0
    assert found.change[0] == found.selectivity[0] == found.distinct == 0


@pytest.mark.parametrize(
    ("read", "doses", "says"),
    [
        (np.zeros((1, 1, 8, 3)), [0.0], "two or more"),
        (np.zeros((2, 1, 8, 3)), [1.0, 0.0], "ascending"),
        (np.zeros((2, 1, 3, 3)), [0.0, 1.0], "four or more"),
        (np.full((2, 1, 8, 3), np.nan), [0.0, 1.0], "not finite"),
    ],
)
def test_factors_that_cannot_be_judged(read, doses, says):
    with pytest.raises(UserError, match=says):
        factor_changes(read, np.array(doses))


@pytest.mark.parametrize("site", ["conditioning", "h", "x_t"])
def test_effects_on_noise_equal_two_passes(diffusion, site):
    subject = DiffusionSubject(diffusion, site)
    noisy = noisy_images(diffusion, patches(sprites(torch.zeros(2, 6))), (0.2, 0.8), 0)
    context = subject.context(noisy)
    assert context.prompts == 4
    vectors = torch.randn(3, context.width, generator=torch.Generator().manual_seed(0))
    delta = subject.effect(context, vectors)
    for k in range(3):
        for i in range(4):
            x, t = noisy.x[i : i + 1], noisy.t[i : i + 1]
            slow = diffusion.predicted(x, t, site, vectors[k : k + 1]) - diffusion.predicted(x, t)
            torch.testing.assert_close(delta[k, i], slow[0], atol=2e-5, rtol=1e-4)
    assert float(delta.abs().max()) > 1e-4


def test_the_pullback_is_the_singular_vector_of_the_jacobian(diffusion):
    """x_t → h at one noisy image, against autograd's Jacobian."""
    subject = DiffusionSubject(diffusion, "x_t", "h")
    noisy = noisy_images(diffusion, torch.zeros(1, diffusion.pixels), (0.5,), 0)
    found = discover(subject, noisy, solver="jacobian", n=2, scale=1.0, steps=30)
    exact = torch.autograd.functional.jacobian(lambda x: diffusion.bottleneck(x, noisy.t)[0], noisy.x)[:, 0]
    _, sizes, right = torch.linalg.svd(exact, full_matrices=False)
    assert float(found.values["sigma"][0]) == pytest.approx(float(sizes[0]), rel=0.02)
    assert abs(float(found.vectors[0] @ right[0].numpy())) > 0.98
    with pytest.raises(UserError, match="moves h by itself"):
        DiffusionSubject(diffusion, "h", "h")


def test_noise_clr_trains_each_seed_as_if_alone(diffusion):
    images = patches(sprites(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)))
    how = {"norm": 2.0, "steps": 3, "batch": 2, "rate": 0.05}
    both, second = train_noise_clr(diffusion, images, 3, (0, 5), **how), train_noise_clr(diffusion, images, 3, (5,), **how)
    np.testing.assert_allclose(both.directions[1], second.directions[0], atol=1e-4)
    np.testing.assert_allclose(both.losses[:, 1], second.losses[:, 0], atol=1e-4)
    assert np.abs(both.norms - 2.0).max() > 1e-4, "embeddings are free of norm"
    with pytest.raises(UserError, match="two or more"):
        train_noise_clr(diffusion, images[:1], 3, (0,), **how)


def test_a_bed_of_a_diffusion_model_samples_with_the_vector(diffusion):
    bed = DiffusionBed(diffusion, patches(sprites(torch.zeros(2, 6))), from_patches, held=4, steps=3, scale=3.0)
    unit = bed.every(search(bed, "random directions", 2, (0,), 1)[0].unit)
    images = bed.dosed(unit, (-1.0, 0.0, 1.0))
    assert images.shape == (3, 2, 4, 256)
    alone = diffusion.sample(bed.start[2:3], 3, "conditioning", 3.0 * unit[1, 2:3])
    torch.testing.assert_close(images[2, 1, 2], from_patches(alone)[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(images[1, 0], images[1, 1])


def test_methods_that_do_not_fit(diffusion, gan):
    bed = LatentBed(gan, samples=3, held=4)
    for name, says in (("NoiseCLR", "does not run on a GAN"), ("L3", "no method"), ("factor regression", "need labels")):
        with pytest.raises(UserError, match=says):
            search(bed, name, 2, (0,), 1)
    with pytest.raises(UserError, match="shares from 0 to 1"):
        noisy_images(diffusion, torch.zeros(1, diffusion.pixels), (2.0,), 0)
    with pytest.raises(UserError, match="no image"):
        noisy_images(diffusion, torch.zeros(0, diffusion.pixels), (0.5,), 0)
    with pytest.raises(UserError, match="no target"):
        DiffusionSubject(diffusion, "h", "pixels")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": torch.full((2, 256), float("nan"))}, "other values than the model draws|none of the model|not numbers"),
        ({"source": torch.full((2, 256), 200.0)}, "mostly from -1 to 1"),
        ({"source": torch.zeros(2, 4, 8, 8)}, r"\(2, 4, 8, 8\)"),
        ({"source": [[0.0]]}, "have the shape"),
        ({"held": 0}, "at least 1"),
        ({"steps": 99}, "steps of sampling"),
    ],
)
def test_mistakes_in_a_bed_are_one_sentence(diffusion, change, says):
    given = {"source": patches(sprites(torch.zeros(2, 6)))} | change
    with pytest.raises(UserError, match=says):
        DiffusionBed(diffusion, **given)


def test_arrays_and_lists_are_as_good_as_tensors(diffusion, gan):
    z = gan.latents(4, 0)
    for given in (z.numpy(), z.tolist()):
        torch.testing.assert_close(gan.images(given), gan.images(z))
    x, noise = diffusion.noise(2, 0), diffusion.noise(2, 1)
    vectors, times = torch.randn(2, diffusion.width("conditioning")), torch.tensor([3, 7])
    same = [
        (diffusion.noised(x, noise, times), diffusion.noised(x.numpy(), noise.tolist(), times.numpy())),
        (
            diffusion.predicted(x, times, "conditioning", vectors),
            diffusion.predicted(x.numpy(), [3, 7], "conditioning", vectors.numpy()),
        ),
        (diffusion.bottleneck(x, times), diffusion.bottleneck(x.numpy(), times.numpy())),
        (diffusion.sample(x, 2), diffusion.sample(x.numpy(), 2)),
        (diffusion.invert(x, 2), diffusion.invert(x.tolist(), 2)),
        (noisy_images(diffusion, x, (0.5,), 0).x, noisy_images(diffusion, x.numpy(), np.array([0.5]), 0).x),
    ]
    for ours, theirs in same:
        torch.testing.assert_close(theirs, ours)
    again = DiffusionGenerator(diffusion.unet, diffusion.scheduler, diffusion.empty.numpy())
    torch.testing.assert_close(again.predicted(x, times), diffusion.predicted(x, times))
    bed = DiffusionBed(diffusion, patches(sprites(torch.zeros(2, 6))).numpy(), held=2, steps=2)
    unit = bed.every(vectors)
    torch.testing.assert_close(bed.dosed(unit.numpy(), (0.0, 1.0)), bed.dosed(unit, (0.0, 1.0)))
    found = LatentDirections.drawn("linear", 5, 2, (0,))
    torch.testing.assert_close(found.at(z[None].numpy()), found.at(z[None]))
    many = gan.latents(9, 0)
    torch.testing.assert_close(regressed(many.numpy(), many[:, :2].tolist()), regressed(many, many[:, :2]))
    torch.testing.assert_close(orthogonalised(many[:3].numpy()), orthogonalised(many[:3]))
    read = np.random.default_rng(0).normal(size=(3, 2, 8, 4))
    assert (
        factor_changes(torch.from_numpy(read), [-1, 0, 1]).change.tolist()
        == factor_changes(read, np.array([-1, 0, 1])).change.tolist()
    )


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda d, g: g.images("a cat"), "latents are of"),
        (lambda d, g: g.images(None), "latents are of NoneType"),
        (lambda d, g: d.predicted(d.noise(2, 0), [0, 20]), "2 whole numbers from 0 to 19"),
        (lambda d, g: d.predicted(d.noise(2, 0), [0, -1]), "2 whole numbers from 0 to 19"),
        (lambda d, g: d.bottleneck(d.noise(2, 0), [0.5, 1.5]), "2 whole numbers"),
        (lambda d, g: d.bottleneck(d.noise(2, 0), [True, False]), "2 whole numbers"),
        (lambda d, g: d.bottleneck(d.noise(2, 0), ["now", "then"]), "times are of"),
        (lambda d, g: d.noised(d.noise(2, 0), d.noise(3, 0), [0, 1]), "give equal ones"),
        (lambda d, g: d.predicted(d.noise(1, 0), [0], "conditioning", ["a"]), "vectors are of"),
        (lambda d, g: DiffusionGenerator(nn.Linear(2, 2), d.scheduler), "U-Net is of Linear"),
        (lambda d, g: DiffusionSubject(d).context(d.noise(2, 0)), "make noisy_images"),
        (lambda d, g: noisy_images(d, [[0.0, 1.0]], (0.5,), 0), "2 pixels"),
        (lambda d, g: LatentBed(g, held=0), "at least 1"),
        (lambda d, g: LatentBed(g, scale=float("nan")), "scale is nan"),
        (lambda d, g: LatentBed(g, scale=-1.0), "scale is -1.0"),
        (lambda d, g: LatentBed(g, held=3).images(torch.zeros(2, 2, 5)), r"give \(direction, 3, 5\)"),
        (lambda d, g: sefa(g, 0), "0 directions"),
        (lambda d, g: LatentDirections.drawn("fixed", 5, 2, (0, 1)).of_seed(-1), "no seed -1"),
        (lambda d, g: LatentDirections.drawn("fixed", 5, 2, (0, 1)).of_seed(2), "directions of 2"),
        (lambda d, g: ganspace(g, 0, samples=16), "0 directions"),
        (lambda d, g: regressed(g.latents(9, 0), np.zeros((8, 2))), "one row of each"),
        (lambda d, g: regressed(g.latents(9, 0), np.full((9, 2), np.nan)), "not finite"),
        (lambda d, g: orthogonalised([[np.nan, 1.0]]), "not finite"),
        (lambda d, g: factor_changes(np.zeros((3, 1, 4, 2)), [0, 1, 2], 0.0), "spread"),
        (lambda d, g: latent_clr(float("inf")), "finite"),
    ],
)
def test_what_is_no_number_is_one_sentence(diffusion, gan, ask, says):
    with pytest.raises(UserError, match=says) as error:
        ask(diffusion, gan)
    assert "\n" not in str(error.value)
