"""Weight matching: a permuted copy is found again, brute force agrees, and barriers fall where they should."""

import itertools
from copy import deepcopy as copy_of

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from repscope.errors import UserError
from repscope.trace.weight_matching import match, permute, symmetries
from repscope.worlds.hans import classifier


def mlp(*widths, norm=lambda width: nn.Identity(), act=nn.ReLU):
    layers = []
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o), norm(o), act(), nn.Dropout(0.0)]
    return nn.Sequential(nn.Flatten(), *layers[:-3])


class Residual(nn.Module):
    def __init__(self, channels, out=None):
        super().__init__()
        out = out or channels
        self.one, self.norm = nn.Conv2d(channels, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.two = nn.Conv2d(5, out, 3, padding=1)
        self.shortcut = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def forward(self, x):
        return functional.relu(self.two(self.norm(self.one(x)).relu()) + self.shortcut(x))


class ResidualNet(nn.Module):
    """Two streams; the second is read as a mean over positions."""

    def __init__(self):
        super().__init__()
        self.stem, self.blocks = (
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Sequential(Residual(6), Residual(6), Residual(6, 8), Residual(8)),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Reshaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 9, 3)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.head(x.view(x.size(0), -1))


class SelfLoop(nn.Module):
    """A stream through one layer: its weight has the same group on both axes."""

    def __init__(self):
        super().__init__()
        self.into, self.loop, self.out = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.into(torch.flatten(x, 1))
        for _ in range(2):
            x = x + torch.tanh(self.loop(x))
        return self.out(x)


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)


class SmallTransformer(nn.Module):
    def __init__(self, vocab=11, tokens=7, d=12, heads=3, layers=2, classes=4):
        super().__init__()
        self.heads = heads
        self.embed, self.position = nn.Embedding(vocab, d), nn.Embedding(tokens, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(layers))
        self.ln_final, self.head = nn.LayerNorm(d), nn.Linear(d, classes)
        self.unembed = nn.Linear(d, vocab, bias=False)

    def forward(self, ids):
        x = self.embed(ids) + self.position.weight[: ids.shape[1]]
        for b in self.blocks:
            h = b.ln1(x)
            q, k, v = (w(h).view(*h.shape[:2], self.heads, -1).transpose(1, 2) for w in (b.q, b.k, b.v))
            z = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + b.o(z.transpose(1, 2).flatten(2))
            x = x + b.down(functional.gelu(b.up(b.ln2(x))))
        x = self.ln_final(x)
        return torch.cat([self.head(x), self.unembed(x)], -1)


def cnn():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(6, 5, 3, bias=False), nn.Sequential(nn.BatchNorm2d(5), nn.GELU())),
        nn.Flatten(),
        nn.LayerNorm(20),
        nn.Linear(20, 7),
        nn.Tanh(),
        nn.Linear(7, 3),
    )


def pooled():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), nn.LogSoftmax(1))


NETWORKS = {
    "mlp": lambda: mlp(64, 9, 8, 3),
    "mlp, batch norm": lambda: mlp(64, 9, 8, 3, norm=nn.BatchNorm1d),
    "mlp, layer norm": lambda: mlp(64, 9, 8, 3, norm=nn.LayerNorm, act=nn.Tanh),
    "cnn": cnn,
    "pooled": pooled,
    "reshaped": Reshaped,
    "residual": ResidualNet,
    "self-loop": SelfLoop,
    "transformer": SmallTransformer,
    "transformer of models.small": lambda: classifier.SmallTransformer(classifier.Shape(11, 7, 12, heads=3, classes=4)),
}


def made(name, seed=0):
    """A network in float64 whose every tensor differs from unit to unit, running statistics too; and an input."""
    torch.manual_seed(seed)
    net = NETWORKS[name]().double().eval()
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) if key.endswith("_var") else torch.randn_like(tensor) / 10)
    ids = torch.randint(0, 11, (5, 7)) if name.startswith("transformer") else torch.randn(5, 1, 8, 8).double()
    return net, ids


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_copy_computes_the_same_and_is_found_again(name):
    net, x = made(name)
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    sym = symmetries(net)
    copy = permute(state, sym, 3)
    # every hidden tensor has moved, and the function has not
    moved = {key for key in state if not torch.equal(copy[key], state[key])}
    assert moved == {axis.tensor for axis in sym.axes}
    assert (functional_call(net, copy, (x,)) - net(x)).abs().max() <= 1e-10
    found = match(state, copy, sym)
    assert found.converged
    assert found.after == pytest.approx(1, abs=1e-12)
    assert found.before < 0.999
    back = found.apply(copy)
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())


def cosine(one, other, names):
    a, b = (torch.cat([state[name].ravel() for name in names]) for state in (one, other))
    return float(functional.cosine_similarity(a, b, 0))


@pytest.mark.parametrize("name", NETWORKS)
def test_similarity_is_that_of_the_weights_and_never_falls(name):
    (one, _), (other, x) = made(name, 1), made(name, 2)
    sym = symmetries(one)
    found = match(one.state_dict(), other.state_dict(), sym, seed=4, restarts=4)
    assert found.converged
    assert (np.diff(found.path) >= 0).all()
    assert found.after > found.before
    fitted = found.apply(other.state_dict())
    assert (functional_call(other, fitted, (x,)) - other(x)).abs().max() <= 1e-10
    names = sorted({axis.tensor for axis in sym.axes if axis.weighed})
    assert found.after == pytest.approx(cosine(one.state_dict(), fitted, names), abs=1e-12)
    for seed in range(20):
        control = permute(other.state_dict(), sym, seed)
        assert cosine(one.state_dict(), control, names) <= found.after + 1e-12
    # an optimum: matched once more, nothing moves
    assert match(one.state_dict(), fitted, sym).moved == 0


def test_a_permuted_copy_is_found_from_outside_in_where_the_plain_search_is_lost():
    torch.manual_seed(0)
    net, plain = SmallTransformer(vocab=20, d=24), []
    with torch.no_grad():  # words say little beside the inner weights
        (net.embed.weight.mul_(0.1), net.position.weight.mul_(0.1), net.unembed.weight.mul_(0.1), net.head.weight.mul_(0.1))
    state, sym = net.state_dict(), symmetries(net)
    for seed in range(5):
        copy = permute(state, sym, seed)
        found = match(state, copy, sym, seed)
        assert all(torch.equal(tensor, state[key]) for key, tensor in found.apply(copy).items())
        plain.append(match(state, copy, sym, seed, restarts=1).after)
    assert min(plain) < 0.9


def test_every_tensor_of_a_residual_stream_has_one_order():
    sym = symmetries(ResidualNet())
    stream = [axis.tensor for axis in sym.axes if axis.group == "stem"]
    assert stream == [
        "stem.weight",
        "stem.bias",
        "blocks.0.one.weight",
        "blocks.0.two.weight",
        "blocks.0.two.bias",
        "blocks.1.one.weight",
        "blocks.1.two.weight",
        "blocks.1.two.bias",
        "blocks.2.one.weight",
        "blocks.2.shortcut.weight",
    ]
    assert sorted(sym.sizes.values()) == [5, 5, 5, 5, 6, 8]
    assert {axis.tensor for axis in sym.axes if not axis.weighed} == {
        f"blocks.{i}.norm.running_{what}" for i in range(4) for what in ("mean", "var")
    }


def test_brute_force_agrees():
    for seed in range(5):
        torch.manual_seed(seed)
        a, b = mlp(3, 4, 2).state_dict(), mlp(3, 4, 2).state_dict()
        best = max(
            itertools.permutations(range(4)),
            key=lambda p: (
                sum((a[n].double() * b[n].double()[list(p)]).sum() for n in ("1.weight", "1.bias"))
                + (a["5.weight"].double() * b["5.weight"].double()[:, list(p)]).sum()
            ),
        )
        found = match(a, b, symmetries(mlp(3, 4, 2)))
        assert list(found.permutations["1"]) == list(best)


def test_brute_force_agrees_inside_heads():
    class Tiny(SmallTransformer):
        pass

    torch.manual_seed(0)
    one, other = (Tiny(d=4, heads=2, layers=1).state_dict() for _ in range(2))
    sym = symmetries(Tiny(d=4, heads=2, layers=1))
    # the residual stream stays: its weights tower over all else
    for state in (one, other):
        state["embed.weight"] = torch.arange(44.0).view(11, 4) * 100
    found = match(one, other, sym)
    assert list(found.permutations["residual"]) == [0, 1, 2, 3]

    def orders():
        inner = [(0, 1), (1, 0)]
        for heads in inner:
            for within in itertools.product(inner, repeat=2):
                yield [2 * h + i for h, w in zip(heads, within) for i in w]

    def fit(qk, vo):
        at = "blocks.0."
        rows = sum((one[at + n] * other[at + n][p]).sum() for n, p in (("q.weight", qk), ("k.weight", qk), ("v.weight", vo)))
        return float(rows + (one[at + "o.weight"] * other[at + "o.weight"][:, vo]).sum())

    best = max(fit(qk, vo) for qk in orders() for vo in orders() if [i // 2 for i in qk] == [i // 2 for i in vo])
    assert fit(*(list(found.permutations[f"blocks.0.{g}"]) for g in ("qk", "vo"))) == pytest.approx(best, rel=1e-6)


def digits():
    data = load_digits()
    x, y = torch.tensor(data.data / 16 - 0.3, dtype=torch.float32), torch.tensor(data.target)
    return (x[:1200], y[:1200]), (x[1200:], y[1200:])


def trained(net, data, seed, steps=200, lr=3e-3):
    x, y = data
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (128,))
        optimiser.zero_grad()
        functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def at_midpoint(net, a, b, data):
    """Loss halfway, and the mean of both ends'."""
    x, y = data

    def loss(state):
        return float(functional.cross_entropy(functional_call(net, state, (x,)), y))

    with torch.no_grad():
        return loss({n: (a[n] + b[n]) / 2 for n in a}), (loss(a) + loss(b)) / 2


@pytest.fixture(scope="module", params=(64, 256))
def runs(request):
    train, test = digits()
    nets = []
    for seed in range(2):
        torch.manual_seed(100 + seed)
        nets.append(mlp(64, request.param, request.param, 10))
    return nets[0], [trained(net, train, seed) for seed, net in enumerate(nets)], test


def test_a_barrier_to_a_permuted_copy_is_undone(runs):
    net, (a, _), test = runs
    sym = symmetries(net)
    copy = permute(a, sym, 0)
    midpoint, ends = at_midpoint(net, a, copy, test)
    assert midpoint > ends + 0.1
    fitted = match(a, copy, sym).apply(copy)
    assert all(torch.equal(fitted[n], a[n]) for n in a)
    assert at_midpoint(net, a, fitted, test)[0] == pytest.approx(ends, abs=1e-6)


def test_matching_lowers_the_barrier_between_independent_runs(runs):
    net, (a, b), test = runs
    sym = symmetries(net)
    found = match(a, b, sym)
    matched, _ = at_midpoint(net, a, found.apply(b), test)
    unmatched, _ = at_midpoint(net, a, b, test)
    random = [at_midpoint(net, a, permute(b, sym, seed), test)[0] for seed in range(20)]
    assert matched < unmatched
    assert matched < min(random)


def test_a_fine_tuned_copy_needs_no_permutation(runs):
    net, (a, _), _ = runs
    (x, y), _ = digits()
    tuned = mlp(64, len(a["1.bias"]), len(a["1.bias"]), 10)
    tuned.load_state_dict(a)
    b = trained(tuned, (x, (y + 1) % 10), 7, steps=50, lr=1e-3)
    assert any(not torch.equal(a[n], b[n]) for n in a)
    found = match(a, b, symmetries(net))
    assert found.moved == 0
    assert found.after == found.before
    assert found.sweeps == 1


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LSTM(4, 4)), r"Layer 2 \(LSTM\) has no known symmetry"),
        (Attends(), r"Layer attention \(MultiheadAttention\) has no known symmetry"),
        (Branches(), "Branches has no known symmetry"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4)), r"Layer 1 \(Conv2d\) .*in groups"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(6, 6)), r"Layer 1 \(Linear\) .*last axis"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(38, 6)), "takes 38 features where 4 units come"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(8, 6)), "takes 8 features where 4 units come"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.LayerNorm([4, 6, 6])), "normalises over positions"),
    ],
)
def test_what_has_no_known_symmetry_is_refused(module, says):
    with pytest.raises(UserError, match=says) as told:
        symmetries(module)
    assert "interpolated without matching" in str(told.value)


def test_errors_name_the_tensor():
    net = mlp(3, 4, 2)
    sym, a = symmetries(net), net.state_dict()
    with pytest.raises(UserError, match="no hidden units"):
        symmetries(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(UserError, match=r"no 1\.bias"):
        match(a, {n: t for n, t in a.items() if n != "1.bias"}, sym)
    with pytest.raises(UserError, match=r"5\.bias is of shape \(2,\) in one network and not there in the other"):
        match(a, {n: t for n, t in a.items() if n != "5.bias"}, sym)
    with pytest.raises(UserError, match=r"1\.weight is of shape \(4, 3\) in one network and of shape \(4, 5\)"):
        match(a, mlp(5, 4, 2).state_dict(), sym)
    with pytest.raises(UserError, match=r"1\.weight is of shape \(6, 3\), and its symmetry has 4"):
        match(a, mlp(3, 6, 2).state_dict(), sym)
    with pytest.raises(UserError, match=r"5\.weight holds weights that are not finite"):
        match(a, {**a, "5.weight": a["5.weight"] * torch.nan}, sym)
    with pytest.raises(UserError, match="at least one of each"):
        match(a, a, sym, sweeps=0)


def test_tied_weights_tie_their_groups():
    shared = nn.Linear(5, 5)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(5, 2)).double()
    sym = symmetries(net)
    assert dict(sym.sizes) == {"0": 5}
    copy, x = copy_of(net), torch.randn(4, 3).double()
    copy.load_state_dict(permute(net.state_dict(), sym, 1))
    assert not torch.equal(copy[2].weight, shared.weight)
    assert (copy(x) - net(x)).abs().max() <= 1e-12
    # an output that is also hidden stays where it is
    loop = nn.Linear(5, 5)
    with pytest.raises(UserError, match="no hidden units"):
        symmetries(nn.Sequential(loop, nn.ReLU(), loop))
