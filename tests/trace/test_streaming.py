"""Lines between networks that are never held together: equal to brute force, repaired, resumed, within memory."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from checkpointed import TEXTS, network, saved, tokenizer
from repscope.data.evaluation import Texts
from repscope.errors import UserError
from repscope.manifest import unstamped
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.checkpoint_files import Weights
from repscope.models.loading.sources import with_head
from repscope.models.loading.stacked_weights import stack
from repscope.trace import checkpoint_losses
from repscope.trace.interpolation import curves
from repscope.trace.streaming import Random, check_slots, stream_losses
from repscope.worlds.hans import classifier as small
from repscope.worlds.hans import fine_tuning

LABELS = ("0", "1", "2", "1", "0", "2", "2")


def texts(kind):
    labels = LABELS if kind in ("bert", "llama-classifier") else ()
    return Texts("toy", tuple(TEXTS), labels=labels, splits=("id",) * 4 + ("ood",) * 3)


def held(kind, module, length=32):
    given = texts(kind)
    labels = np.array([int(x) for x in given.labels]) if given.labels else None
    return checkpoint_losses.encode_examples(tokenizer(kind), module.config, given, labels, length), given


def by_hand(module, kind, rows):
    """Loss and error, one text at a time, in plain torch."""
    nats, wrong, count, reads = 0.0, 0.0, 0, tokenizer(kind)
    for i in rows:
        batch = reads(TEXTS[i], return_tensors="pt")
        with torch.no_grad():
            logits = module(**batch).logits
        if texts(kind).labels:
            scores, answers = logits, torch.tensor([int(LABELS[i])])
        else:
            scores, answers = logits[0, :-1], batch["input_ids"][0, 1:]
        nats += float(functional.cross_entropy(scores.double(), answers, reduction="sum"))
        wrong += float((scores.argmax(-1) != answers).sum())
        count += len(answers)
    return nats / count, wrong / count


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "llama-classifier"])
def test_streamed_is_two_models_in_memory(tmp_path, kind):
    folders = saved(tmp_path, kind, [0, 1, 2])
    module = with_head(folders[0])
    data, given = held(kind, module)
    ends = [Weights(folder) for folder in folders]
    check_slots(module, ends[0])
    found = stream_losses(lambda: module, ends, checkpoint_losses.losses_by_example(data, given.loss), points=4)
    assert set(found.losses) == {"loss", "error", "ood loss", "ood error"}
    assert len(found.pairs) == 3
    for row, (a, b) in enumerate(found.pairs):
        x, y = network(kind, int(a)).state_dict(), network(kind, int(b)).state_dict()
        for col, alpha in enumerate(found.alphas):
            middle = network(kind, 9)
            middle.load_state_dict({k: (1 - alpha) * x[k] + alpha * y[k] for k in x})
            for split, rows in (("", range(4)), ("ood ", range(4, 7))):
                loss, error = by_hand(middle, kind, rows)
                assert found.losses[f"{split}loss"][row, col] == pytest.approx(loss, abs=1e-6)
                assert found.losses[f"{split}error"][row, col] == pytest.approx(error, abs=1e-9)


def test_small_transformers_streamed_are_those_in_a_batch():
    world = fine_tuning.World(width=16)
    states = [small.random_weights(world.shape(), seed) for seed in range(3)]
    evaluate = fine_tuning.evaluator(world, 0, 40, 20)

    def one(module):
        return {k: float(v[0]) for k, v in evaluate({n: v[None] for n, v in module.state_dict().items()}).items()}

    batched = curves(stack(states), evaluate, points=5)
    single = stream_losses(lambda: small.SmallTransformer(world.shape()), states, one, points=5)
    for name in batched.losses:
        np.testing.assert_allclose(batched.losses[name], single.losses[name], atol=1e-6)
    summed = curves(stack(states), fine_tuning.evaluator(world, 0, 40, 20, by_example=True), points=5)
    for name in batched.losses:
        np.testing.assert_allclose(summed.losses[name], batched.losses[name], atol=1e-9)
        assert summed.each[name].shape == (3, 5, 20 if "ood" in name else 40, 2)


def test_precisions_that_differ_meet_in_float32(tmp_path):
    a, b = saved(tmp_path, "gpt2", [0, 1], [torch.bfloat16, torch.float32])
    module = with_head(a)
    seen = []

    def look(module):
        seen.append({k: v.clone() for k, v in module.state_dict().items()})
        return {"loss": 0.0}

    stream_losses(lambda: module, [Weights(a), Weights(b)], look, points=3)
    for name, value in seen[-1].items():
        x, y = with_head(a).state_dict()[name], with_head(b).state_dict()[name]
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value, (x + y) / 2, atol=1e-7)


def test_padding_is_never_counted():
    for kind in ("gpt2", "bert", "llama-classifier"):
        module = network(kind, 0)
        data, given = held(kind, module)
        whole = checkpoint_losses.losses_by_example(data, given.loss)(module)
        for i, field in enumerate(data.fields):
            labels = None if data.labels is None else data.labels[[i]]
            alone = checkpoint_losses.EncodedExamples((field,), data.pad, {"": np.array([0])}, labels)
            one = checkpoint_losses.losses_by_example(alone, lambda split, kind: kind)(module)
            row, name = (i, "loss") if i < 4 else (i - 4, "ood loss")
            np.testing.assert_allclose(whole[name][row], one["loss"][0], atol=1e-5)


def test_a_random_end_is_as_far_and_the_same_whenever_it_is_read():
    a, b = ({"w": torch.randn(5, 3) * s, "n": torch.tensor(3), "same": torch.ones(2)} for s in (1, 2))
    end = Random(a, b, 1)
    assert torch.linalg.vector_norm(end["w"] - a["w"]) == pytest.approx(float((b["w"] - a["w"]).norm()), rel=1e-5)
    assert torch.equal(end["w"], Random(a, b, 1)["w"])
    assert not torch.equal(end["w"], Random(a, b, 2)["w"])
    assert torch.equal(end["same"], a["same"])
    assert end["n"] is a["n"]


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("scale", torch.rand(1) + 0.5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.scale * self.head(torch.relu(self.last(self.second(x))).mean((2, 3)))


def trained(seed):
    torch.manual_seed(seed)
    net = Cnn()
    for _ in range(seed + 2):  # the counters of batch norms differ
        net(torch.randn(8, 1, 8, 8))
    return net.eval()


def test_statistics_of_batch_norms_are_those_of_a_pass():
    x, a, b = torch.randn(32, 1, 8, 8), trained(0), trained(1)
    seen = []

    def look(net):
        assert not any(m.training for m in net.modules())
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        with torch.no_grad():
            return {"loss": float(net(x).square().mean())}

    ends = [a.state_dict(), b.state_dict()]
    found = stream_losses(Cnn, ends, look, points=3, passes=lambda net: net(x))
    middle = Cnn()
    middle.load_state_dict(seen[-1])
    with torch.no_grad():
        first = middle.first(x)
        second = middle.second(torch.relu(functional.batch_norm(first, None, None, middle.norm.weight, middle.norm.bias, True)))
    for norm, values in (("norm", first), ("last", second)):
        np.testing.assert_allclose(seen[-1][f"{norm}.running_mean"], values.mean((0, 2, 3)), atol=1e-6)
        np.testing.assert_allclose(seen[-1][f"{norm}.running_var"], values.var((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(seen[-1]["scale"], (ends[0]["scale"] + ends[1]["scale"]) / 2, atol=1e-7)
    plain = stream_losses(Cnn, ends, look, points=3, repair=False)
    np.testing.assert_allclose(
        seen[-1]["norm.running_var"], (ends[0]["norm.running_var"] + ends[1]["norm.running_var"]) / 2, atol=1e-6
    )
    assert plain.losses["loss"][0, 1] != found.losses["loss"][0, 1]
    with torch.no_grad():
        assert plain.losses["loss"][0, 0] == pytest.approx(float(a(x).square().mean()), abs=1e-7)
    with pytest.raises(UserError, match="2 batch norms"):
        stream_losses(Cnn, ends, look)


def test_a_walk_goes_on_where_it_was_killed(tmp_path):
    states = [{"weight": torch.randn(2, 3)} for _ in range(3)]
    calls = []

    def measure(net, stop=99):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return {"loss": float(net.weight.square().sum()), "each": net.weight.T.numpy().copy()}

    def make():
        return nn.Linear(3, 2, bias=False)

    whole = stream_losses(make, states, measure, points=5)
    assert len(calls) == 3 + 3 * 3, "each end once"
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        stream_losses(make, states, lambda net: measure(net, 7), points=5, kept=tmp_path / "cells")
    with (tmp_path / "cells").open("a") as file:
        file.write('\n{"at": [0, 1')
    calls.clear()
    again = stream_losses(make, states, measure, points=5, kept=tmp_path / "cells")
    assert len(calls) == 12 - 7
    for name in ("loss", "each"):
        np.testing.assert_array_equal(again.losses[name], whole.losses[name])
    lines = [unstamped(line) for line in (tmp_path / "cells").read_text().split("\n") if line and line[-1] == "}"]
    assert sum(json.loads(line) is not None for line in lines if line) >= 12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s | {"ids": torch.arange(1, 4)}, "ids holds whole numbers that differ"),
        (lambda s: s | {"w": torch.full((2,), float("nan"))}, "w holds values that are not finite"),
        (lambda s: s | {"w": torch.zeros(3)}, r"w is \[2\] in one checkpoint and \[3\] in another|w is \[3\]"),
        (lambda s: {"w": s["w"]}, "lacks ids"),
    ],
)
def test_ends_that_do_not_fit_are_told(change, says):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))
            self.register_buffer("ids", torch.arange(3))

    good = Net().state_dict()
    for ends in ([good, change(good)], [change(good), good]):
        with pytest.raises(UserError, match=says):
            stream_losses(Net, ends, lambda net: {"loss": 0.0}, points=3)


def test_a_checkpoint_that_loads_as_something_else_is_told():
    module = nn.Linear(2, 2)
    check_slots(module, module.state_dict())
    with pytest.raises(UserError, match="weight is not in the file as it is in the network"):
        check_slots(module, {**module.state_dict(), "weight": module.weight.T})


def test_no_more_than_one_network_is_allocated(tmp_path):
    for i in range(4):  # here, as memory that was freed would be allocated again unseen
        save_file({f"{k}.weight": torch.randn(1000, 1000) for k in range(16)}, tmp_path / f"{i}.safetensors")
    code = """
import sys, torch, psutil
from torch import nn
from pathlib import Path
from repscope.models.loading.checkpoint_files import Weights
from repscope.trace.streaming import stream_losses
def make():
    return nn.Sequential(*[nn.Linear(1000, 1000, bias=False) for _ in range(16)])  # 64 MB
home = Path(sys.argv[1])
def held(what):
    return int(next(l for l in open("/proc/self/status") if l.startswith(what)).split()[1]) / 1024
def layer():  # of the same size: what a tensor takes on its way, and threads, are there before it is counted
    return nn.Linear(1000, 1000, bias=False)
stream_losses(layer, [layer().state_dict(), layer().state_dict()], lambda net: {"loss": 0.0}, points=3)
before, anonymous, mapped = {k: held(k) for k in ("RssAnon", "RssFile")}, [], []
def measure(net):
    anonymous.append(held("RssAnon") - before["RssAnon"])
    mapped.append(held("RssFile") - before["RssFile"])
    return {"loss": 0.0}
stream_losses(make, [Weights(home / f"{i}.safetensors") for i in range(4)], measure, points=3)
print(max(anonymous), max(mapped))
"""
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # threads keep memory of their own
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    anonymous, mapped = map(float, done.stdout.split())
    assert 50 < anonymous < 1.3 * 64
    assert 100 < mapped < 2.3 * 64, "of four files no more than two are mapped"


def test_a_set_streams_as_its_weights_are(tmp_path):
    shape = small.Shape(9, 6, width=8, heads=2)
    import pandas as pd

    states = stack(small.random_weights(shape, i) for i in range(2))
    held = CheckpointSet.written(tmp_path / "set", shape, pd.DataFrame({"run": ["a", "b"]}), {0: states})
    for i, path in enumerate(held.table["path"]):
        weights = Weights(path)
        assert set(weights) == set(states)
        assert len(weights) == len(states)
        assert all(torch.equal(weights[k], v[i]) for k, v in states.items())
    assert str(held.fingerprint()) == str(CheckpointSet.open(tmp_path / "set").fingerprint())
