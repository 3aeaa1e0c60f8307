#!/usr/bin/env bash
# devinterp 2.0.1: `SGMCMC.sgnht`, which its SGNHT says to use instead, has no momentum and samples at another temperature.
#
# Expected: "This allows SGMCMC to be used as a drop-in replacement for SGNHT" (docstring): at small steps draws from
# exp(-nbeta loss), so that of a quadratic loss nbeta (mean loss - least loss) is half the number of weights, whatever the
# `diffusion_factor`.
# Seen: no error; the only warning is the one of SGNHT that recommends it. The momentum is drawn once and never moved, the friction is
# computed and never used: what is left is Langevin dynamics whose noise is too small by sqrt(2 diffusion_factor). At the default
# diffusion_factor of .01 the weights have a fiftieth of the variance, and the learning coefficient is a fiftieth.
#
# Ground truth: the normal distribution exp(-nbeta |w|^2 / 2), whose mean energy is known; the SGLD of the same class and the SGNHT of
# the same package, which agree with it. Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
"$home/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps devinterp==2.0.1  # its optimisers need no more than torch
cd "$home"
"$home/venv/bin/python" - <<'PYTHON'
import warnings

import torch

torch.set_num_threads(1)
from devinterp.optim import SGMCMC, SGNHT

weights, nbeta, rate, steps, burn_in = 200, 1000.0, 5e-5, 6000, 2000


def coefficient(make, **options):
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.zeros(weights))
    optimiser = make([w], lr=rate, nbeta=nbeta, **options)
    total = 0.0
    for step in range(steps):
        loss = 0.5 * w.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item() * (step >= burn_in)
    return nbeta * total / (steps - burn_in)


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    old = coefficient(SGNHT)
assert any("use SGMCMC.sgnht" in str(w.message) for w in said), "it recommends another"
langevin = coefficient(SGMCMC.sgld)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    found = {factor: coefficient(SGMCMC.sgnht, diffusion_factor=factor) for factor in (0.01, 0.1, 0.5)}
print(f"{weights / 2:.0f} is right; SGMCMC.sgld {langevin:.1f}, SGNHT {old:.1f}")
print("SGMCMC.sgnht by diffusion_factor:", {factor: round(value, 2) for factor, value in found.items()})
for right in (langevin, old):
    assert abs(right - weights / 2) < 0.1 * weights / 2, "the ground truth is another"
for factor, value in found.items():
    expected = 2 * factor * weights / 2 / (1 - rate * nbeta / 4)  # of Langevin's Euler steps with that noise
    assert abs(value - expected) < 0.1 * expected, "it samples at another temperature: this finding is over"
PYTHON
echo "as stated: at the default diffusion_factor the learning coefficient is a fiftieth of the right one"
