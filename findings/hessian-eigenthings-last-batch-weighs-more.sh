#!/usr/bin/env bash
# hessian-eigenthings 1.0.0a5: its matrices of a data set depend on how the rows were cut into batches.
#
# Expected: "Empirical Fisher F = (1/N) Σ_i g_i g_i^T" (docstring): over N rows, each with the same weight, in any batches.
# Seen: no error, no warning. `EmpiricalFisherOperator` takes the mean over batches of the means within them, so that the rows of a short
# last batch, which a DataLoader gives by default, weigh more: a single left-over row has the weight of a whole batch.
#
# Ground truth: the sum of outer products of gradients written out in numpy, in float64.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 scipy==1.17.1 hessian-eigenthings==1.0.0a5
cd "$home"
"$home/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("error")
from hessian_eigenthings.operators.fisher import EmpiricalFisherOperator

torch.manual_seed(0)
rows, size = 33, 5
x, y = torch.randn(rows, size, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)
x[-1] *= 5  # a row that can be told from the others
model = torch.nn.Linear(size, 1, bias=False, dtype=torch.float64)


def loss(network, row):
    return (network(row[0]).squeeze(-1) - row[1]).square()


def fisher(batch):
    found = EmpiricalFisherOperator(model, DataLoader(TensorDataset(x, y), batch_size=batch), loss)
    return np.stack([found.matvec(unit).detach().numpy() for unit in torch.eye(size, dtype=torch.float64)])


w = model.weight.detach().numpy()[0]
g = 2 * (x.numpy() @ w - y.numpy())[:, None] * x.numpy()
truth = g.T @ g / rows


def off(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


errors = {batch: off(fisher(batch), truth) for batch in (1, 11, 33, 16, 32)}
print("relative error by batch size:", {batch: f"{error:.1e}" for batch, error in errors.items()})
largest = [np.linalg.eigvalsh(m)[-1] for m in (truth, fisher(32))]
print(f"largest eigenvalue: {largest[0]:.2f}; in batches of 32 and 1: {largest[1]:.2f}")
assert max(errors[1], errors[11], errors[33]) < 1e-12, "the ground truth is another"
by_batch = (g[:32].T @ g[:32] / 32 + g[32:].T @ g[32:]) / 2  # the last row has weight 1/2
assert off(fisher(32), by_batch) < 1e-12 and errors[32] > 1, "rows weigh the same: this finding is over"
PYTHON
echo "as stated: the one row of the last batch weighs as much as the 32 before it"
