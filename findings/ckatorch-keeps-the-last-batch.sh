#!/usr/bin/env bash
# ckatorch 1.0.3: `CKA(...)(dataloader)` is documented as minibatch CKA (Nguyen et al. 2021), and returns the value of the last batch alone.
#
# Expected: HSICs are averaged over all batches of the loader before the ratio, so every batch has an effect.
# Seen: no error, no warning. The loop assigns `cka_epoch[i, j] = cka_batch(x, y)` in every batch and keeps the last. A loader whose
# networks differ in all batches but the last gives 1.0. Its own `cka_batch` of the stacked batches is right.
#
# Ground truth: the formula of HSIC_1 (Song et al. 2012, eq. 5) in numpy, in float64, summed over batches, divided once.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy ckatorch==1.0.3
cd "$home"
export MPLBACKEND=agg
"$home/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import torch
from ckatorch import CKA, cka_batch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Hands out one half of its input; the second network sees noise in place of the first half."""

    def __init__(self, half):
        super().__init__()
        self.half, self.layer, self.weight = half, nn.Identity(), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.layer(x.chunk(2, dim=-1)[self.half])


def hsic(k, el):
    n, one = len(k), np.ones(len(k))
    cross = (one @ k @ one) * (one @ el @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ el @ one
    return (np.trace(k @ el) + cross) / (n * (n - 3))


def truth(x, y):
    sums = np.zeros(3)
    for a, b in zip(x.double().numpy(), y.double().numpy()):
        k, el = a @ a.T, b @ b.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(el, 0)
        sums += hsic(k, el), hsic(k, k), hsic(el, el)
    return sums[0] / np.sqrt(sums[1] * sums[2])


torch.manual_seed(0)
batches, n, d = 8, 32, 16
x, y = torch.randn(batches, n, d), torch.randn(batches, n, d)
y[-1] = x[-1]  # the networks agree in the last batch alone
# the class hands (batch, ...) to bmm, which wants three axes: one more of length 1, so that a batch is one group of n rows
rows = torch.cat([x, y], dim=-1)
loader = DataLoader(TensorDataset(rows), batch_size=1, shuffle=False)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    found = float(CKA(Net(0), Net(1), ["layer"])(loader, epochs=1))
right, stacked, last = truth(x, y), float(cka_batch(x, y)), truth(x[-1:], y[-1:])
print(f"the class {found:.3f}, the last batch alone {last:.3f}; all batches {right:.3f}, its own cka_batch of them {stacked:.3f}")
assert abs(stacked - right) < 1e-6, "the ground truth is another"
assert right < 0.5, "the example is another"
assert abs(found - last) < 1e-6, "all batches count now: this finding is over"
PYTHON
echo "as stated: all batches but the last are ignored"
