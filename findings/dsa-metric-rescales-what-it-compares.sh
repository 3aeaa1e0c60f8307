#!/usr/bin/env bash
# dsa-metric 2.0.2 (CPU): comparing two dynamics matrices by angle, its default, rescales the matrices themselves to norm 1.
#
# Expected: `SimilarityTransformDist().fit_score(A, B)` returns a distance and leaves A and B, the arguments, as they were.
# Seen: no error, no warning, and nothing of it in the docstring. The optimiser divides both by their Frobenius norms in place. In the
# README's way of many comparisons, A and B are the matrices that fitted models hold (`Ai = dmd.A_v`). Afterwards their eigenvalues, and
# so all time constants, are others, and a distance between spectra depends on what was computed before it: that of A and 2 A is 0
# after the angle between them has been asked for.
#
# Ground truth: a copy made before; the mean squared distance of matched eigenvalues in numpy and scipy, which the package's Wasserstein
# score gives when it comes first. Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 scipy==1.17.1 scikit-learn==1.8.0 \
  dsa-metric==2.0.2
cd "$home"
export MPLBACKEND=agg
"$home/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

torch.set_num_threads(1)
from DSA import SimilarityTransformDist

torch.manual_seed(0)
before = torch.randn(6, 6)
before = 0.45 * before / torch.linalg.eigvals(before).abs().max()  # a stable system: spectral radius .45


def spectra(a, b):
    a, b = (np.linalg.eigvals(m.double().numpy()) for m in (a, b))
    cost = abs(a[:, None] - b[None]) ** 2
    return float(cost[linear_sum_assignment(cost)].mean())


def wasserstein(a, b):
    return float(SimilarityTransformDist(score_method="wasserstein").fit_score(a, b))


a, b = before.clone(), 2 * before
truth, first = spectra(a, b), wasserstein(a, b)
assert torch.equal(a, before), "the Wasserstein score changes its arguments too"
angle = float(SimilarityTransformDist(score_method="angular", iters=50).fit_score(a, b))
later = wasserstein(a, b)
radius = [float(torch.linalg.eigvals(m).abs().max()) for m in (before, a)]
print(f"distance of the spectra of A and 2 A: {truth:.4f}; the package's {first:.4f}, and {later:.1e} after an angle ({angle:.3f})")
print(f"A before and after the angle: norm {before.norm():.3f} and {a.norm():.3f}, spectral radius {radius[0]:.3f} and {radius[1]:.3f}")
assert abs(first - truth) < 1e-4 and truth > 0.01, "the ground truth is another"
assert abs(a.norm() - 1) < 1e-5 and abs(b.norm() - 1) < 1e-5 and later < 1e-6, "arguments are left alone: this finding is over"
PYTHON
echo "as stated: the comparison rescales what it compares"
