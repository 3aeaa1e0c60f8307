#!/usr/bin/env bash
# pylandscape 0.1.3: `Surface.random_surface` and `Surface.hessian_surface` return one number at every point: the loss of the
# network as it is.
#
# Expected: "the loss plot of model perturbed on a random direction and its orthogonal", or "along the top-2 eigenvectors"
# (docstrings).
# Seen: no error, no warning. The loop over (parameter, copy, directions) unpacks the zipped tuple one level too high, so that the
# directions take the names of the parameters: the second direction is overwritten by the first, an empty sum is added, and the copy
# of the network stays as it was. Any network seems to lie on a plateau. (With one direction the same loop ends in a ValueError.)
#
# Ground truth: the losses of a linear network under squared error at the same points, in numpy in float64, and the second
# derivatives along the eigenvectors. It runs with torch 2.13.0; the package asks for 2.10, and the loop knows nothing of torch.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5
"$home/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps pyhessian==0.1 pylandscape==0.1.3  # without brevitas
cd "$home"
"$home/venv/bin/python" -W ignore - <<'PYTHON'
import copy
import sys
import types
from importlib.util import find_spec

import numpy as np
import torch

torch.set_num_threads(1)
package = types.ModuleType("pylandscape")  # its own __init__ imports brevitas, which surfaces do not need
package.__path__ = list(find_spec("pylandscape").submodule_search_locations)
sys.modules["pylandscape"] = package
import pyhessian
from pylandscape.surface import Surface

torch.manual_seed(0)
inputs, outputs, rows, steps = 6, 3, 64, 7
model = torch.nn.Linear(inputs, outputs).double()
x = torch.randn(rows, inputs, dtype=torch.float64)
y = torch.randn(rows, outputs, dtype=torch.float64)
loader = [(x, y)]
surface = Surface(model, torch.nn.MSELoss(), loader, device=torch.device("cpu"))


def loss(weight, bias):
    return float(((x.numpy() @ weight.T + bias - y.numpy()) ** 2).mean())


def truth(first, second, places):
    weight, bias = (p.detach().numpy() for p in model.parameters())
    (w1, b1), (w2, b2) = ([d.double().numpy() for d in direction] for direction in (first, second))
    return np.array([[loss(weight + a * w1 + b * w2, bias + a * b1 + b * b2) for b in places] for a in places])


def drawn():
    first = pyhessian.utils.normalization(Surface._rand_like(model.parameters()))
    return first, pyhessian.utils.normalization(Surface.orthogonalize_vectors(Surface._rand_like(first), first))


here = loss(*(p.detach().numpy() for p in model.parameters()))
for seed in range(3):
    torch.manual_seed(seed)
    directions = drawn()
    torch.manual_seed(seed)
    places, _, found = surface.random_surface((-2, 2), steps)
    right = truth(*directions, places)
    print(f"random surface, seed {seed}: {found.min():.4f} to {found.max():.4f}; truth {right.min():.4f} to {right.max():.4f}")
    assert abs(right[steps // 2, steps // 2] - here) < 1e-12, "the ground truth is none"
    assert np.ptp(right) > 0.3, "the example is another"
    assert np.abs(found - here).max() < 1e-12, "the surface is not flat: this finding is over"

z = np.c_[x.numpy(), np.ones(rows)]
top = np.linalg.eigvalsh(2 / outputs * z.T @ z / rows)[-1]  # of the Hessian, once per output
single = copy.deepcopy(model).float()  # pyhessian wants float32
torch.manual_seed(0)
surface = Surface(single, torch.nn.MSELoss(), [(x.float(), y.float())], device=torch.device("cpu"))
_, _, found = surface.hessian_surface((-2, 2), steps)
print(f"along the top eigenvectors: {found.min():.4f} to {found.max():.4f}; truth at +2 and -2 on average {here + 2 * top:.4f}")
assert top > 0.3 and np.abs(found - here).max() < 1e-6, "the surface is not flat: this finding is over"
PYTHON
echo "as stated: every point of the surface has the loss of its centre"
