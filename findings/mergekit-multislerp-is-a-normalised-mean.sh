#!/usr/bin/env bash
# mergekit 0.1.5: `multislerp` does not interpolate on the sphere; it gives the weighted mean, rescaled.
#
# Expected: "barycentric interpolation on a hypersphere" (docstring; "Barycentric SLERP for multiple models" in the README), by
# three steps: project on the tangent space at the weighted mean, interpolate there, project back. So two models of equal norm give
# SLERP, as the package's own `slerp` does, and several give the point from which the weighted directions to them cancel.
# Seen: no error, no warning. The tangent space stands at the mean that has the same weights, and tensors that are only projected on
# it sum to zero there: the second and the third step add nothing. Two orthogonal tensors with weights 3/4 and 1/4 give 18.4 degrees
# where SLERP gives 22.5; only with equal weights do the two coincide.
#
# Ground truth: the closed form of SLERP, and the barycentre on the sphere by its definition, in numpy, in float64. Exits with an
# error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 pydantic==2.14.3 typing-extensions tqdm
"$home/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps mergekit==0.1.5  # without model loading
cd "$home"
"$home/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch
from mergekit.merge_methods.api import merge_tensors

torch.set_num_threads(1)
rng = np.random.default_rng(0)
shape = (32, 48)


def merged(method, tensors, weights):
    given = [torch.from_numpy(t.reshape(shape)) for t in tensors]
    parameters, base = ({"t": weights[1]}, 0) if method == "slerp" else ({"weight": list(weights)}, None)
    return merge_tensors(given, method, parameters=parameters, base_index=base).numpy().ravel()


def degrees(a, b):
    return float(np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def slerp(a, b, t):
    angle = np.radians(degrees(a, b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def logarithms(m, units):
    """Tangent vectors at m whose norms are the arcs to the units."""
    along = units - (units @ m)[:, None] * m
    return np.arccos(units @ m)[:, None] * along / np.linalg.norm(along, axis=1)[:, None]


def barycentre(units, weights):
    """The point from which the weighted arcs cancel."""
    m = weights @ units
    for _ in range(200):
        m /= np.linalg.norm(m)
        step = weights @ logarithms(m, units)
        if (size := np.linalg.norm(step)) < 1e-14:
            break
        m = np.cos(size) * m + np.sin(size) * step / size
    return m / np.linalg.norm(m)


size = 3.0
first, second = (size * q for q in np.linalg.qr(rng.normal(size=(int(np.prod(shape)), 2)))[0].T)
for t in (0.1, 0.25, 0.5):
    weights = np.array([1 - t, t])
    right, pair = slerp(first, second, t), [first, second]
    theirs, own = merged("multislerp", pair, weights), merged("slerp", pair, weights)
    mean = weights @ np.stack([first, second])
    mean *= size / np.linalg.norm(mean)
    compared = (("multislerp", theirs), ("slerp", own), ("closed form", right), ("mean", mean))
    found = {name: degrees(first, v) for name, v in compared}
    print(f"weight {t} on the second of two orthogonal tensors, degrees:", {k: round(v, 2) for k, v in found.items()})
    assert np.abs(own - right).max() < 1e-6, "the ground truth is another"
    assert np.abs(theirs - mean).max() < 1e-6, "it is no longer the rescaled mean: this finding is over"
    off = abs(found["multislerp"] - found["closed form"])
    assert off < 1e-4 if t == 0.5 else off > 2.5, "the example is another"

# three differences from a base, nearly orthogonal as those of fine-tuned models, of one norm
units = rng.normal(size=(3, int(np.prod(shape))))
units /= np.linalg.norm(units, axis=1)[:, None]
weights = np.array([0.7, 0.2, 0.1])
right = barycentre(units, weights)
assert np.linalg.norm(weights @ logarithms(right, units)) < 1e-12, "the ground truth is none"
theirs = merged("multislerp", list(units), weights)
theirs /= np.linalg.norm(theirs)
left = np.linalg.norm(weights @ logarithms(theirs, units))
print(f"three tensors, {weights}: {degrees(theirs, right):.2f} degrees from the barycentre; weighted arcs sum to {left:.3f}")
print(f"  degrees to the first: {degrees(theirs, units[0]):.2f}, and of the barycentre {degrees(right, units[0]):.2f}")
mean = weights @ units
assert np.abs(theirs - mean / np.linalg.norm(mean)).max() < 1e-6, "it is no longer the mean: this finding is over"
assert degrees(theirs, right) > 3 and left > 0.05, "it is the barycentre: this finding is over"
PYTHON
echo "as stated: multislerp is the weighted mean, rescaled"
