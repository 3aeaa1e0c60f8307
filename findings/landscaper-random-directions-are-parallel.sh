#!/usr/bin/env bash
# landscaper 1.3.1: `generate_random_orthogonal_directions` gives directions that are parallel.
#
# Expected: "n random orthogonal directions in the parameter space of the model" (docstring), along which a loss landscape has n
# dimensions.
# Seen: no error, no warning. The projection on an earlier direction is taken off without dividing by its squared length, which is about
# the number of weights, so that as many times too much is taken off: the second direction is the first, forwards or backwards, and so
# is the third. A landscape along them is one curve, drawn as a surface: the point (i, j) has the loss of (i + 1, j - 1) or (i + 1, j + 1).
#
# Ground truth: cosines, and Gram and Schmidt's procedure, in numpy in float64; the loss of the landscape's points from a formula.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 landscaper==1.3.1
cd "$home"
export MPLBACKEND=agg TQDM_DISABLE=1
"$home/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch
from landscaper.compute import compute_loss_landscape
from landscaper.utils import generate_random_orthogonal_directions

torch.set_num_threads(1)


def flat(direction):
    return torch.cat([part.flatten() for part in direction]).double().numpy()


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def gram_schmidt(vectors):
    found = []
    for v in vectors:
        for u in found:
            v = v - (v @ u) / (u @ u) * u
        found.append(v)
    return found


for width in (16, 64, 256):
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, 10))
    theirs, right = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        vectors = [flat(d) for d in generate_random_orthogonal_directions(model, n=3)]
        theirs.append([abs(cosine(vectors[i], vectors[j])) for i, j in ((0, 1), (0, 2), (1, 2))])
        torch.manual_seed(seed)
        drawn = [flat([torch.randn_like(p) for p in model.parameters()]) for _ in range(3)]
        assert np.allclose(drawn[0], vectors[0]), "the random numbers are others"
        vectors = gram_schmidt(drawn)
        right.append([abs(cosine(vectors[i], vectors[j])) for i, j in ((0, 1), (0, 2), (1, 2))])
    print(f"{sum(p.numel() for p in model.parameters())} weights: median |cosine| {np.median(theirs):.4f}; "
          f"Gram and Schmidt at most {np.max(right):.0e}")
    assert np.max(right) < 1e-12 and np.median(theirs) > 0.99, "they are orthogonal: this finding is over"

steps, distance = 9, 0.5
torch.manual_seed(0)
directions = generate_random_orthogonal_directions(model, n=2)
centre = [p.detach().clone() for p in model.parameters()]
target = [p + 0.02 * torch.randn_like(p) for p in centre]


def loss(network, _):
    return float(sum(((p - t) ** 2).sum() for p, t in zip(network.parameters(), target)))


surface, _ = compute_loss_landscape(model, None, directions, loss, steps=steps, distance=distance, dim=2, device="cpu")
sign = np.sign(cosine(flat(directions[0]), flat(directions[1])))
half, gaps = steps // 2, []
for k in range(-half, half + 1):  # from corner to corner, where the two directions cancel
    gaps.append(abs(surface[half + k, half - int(sign) * k] - surface[half, half]))
across = abs(surface[half + half, half + int(sign) * half] - surface[half, half])
print(f"loss along one diagonal changes by {max(gaps):.3f}, along the other by {across:.1f}")
assert max(gaps) < 0.02 * across, "the landscape has two dimensions: this finding is over"
PYTHON
echo "as stated: the directions are parallel, and the landscape along them has one dimension"
