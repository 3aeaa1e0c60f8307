#!/usr/bin/env bash
# mne-rsa 1.0: `compute_rdm_cv`, which `rsa_array` and `rdm_array` call for several folds, compares the test fold with a mean in which
# it has twice its share.
#
# Expected: "The distance computation is performed from the average of all-but-one training folds to the remaining test fold" (docstring).
# Seen: no error, no warning. The mean of the other folds is computed as mean - (mean - test) / (n - 1), where it is + : the test fold
# has the weight 2 / n in place of 0. With two folds the "training" data are the test data themselves, and the result is the RDM without
# any cross-validation: what the items of one fold share (a slow drift, a session) makes them alike.
#
# Ground truth: the mean of the other folds and the correlation distance in numpy, in float64, fold by fold.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check mne==1.13.2 nibabel==5.4.2 scikit-learn==1.8.0 numpy==2.3.5 scipy==1.17.1
"$home/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps mne-rsa==1.0  # without the windows that draw brains
cd "$home"
export MPLBACKEND=agg MNE_HOME="$home"
"$home/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np

warnings.simplefilter("error")
from mne_rsa import compute_rdm, compute_rdm_cv

items, features = 6, 40


def truth(folds, weight):
    """Mean RDM over test folds; the training mean gives the test fold `weight` and the others equal shares of the rest."""
    n, found = len(folds), []
    for f in range(n):
        train = sum((weight if g == f else (1 - weight) / (n - 1)) * folds[g] for g in range(n))
        found.append([1 - np.corrcoef(train[i], folds[f][j])[0, 1] for i, j in zip(*np.triu_indices(items, 1))])
    return np.mean(found, 0)


for n in (2, 4, 8):
    rng = np.random.default_rng(n)
    signal, session = rng.normal(size=(items, features)), rng.normal(size=(n, 1, features))
    folds = signal + 2 * session + rng.normal(size=(n, items, features))
    found, documented, doubled = compute_rdm_cv(folds), truth(folds, 0), truth(folds, 2 / n)
    print(f"{n} folds: mean distance {found.mean():.3f}, of the documented formula {documented.mean():.3f}; "
          f"largest difference {np.abs(found - documented).max():.3f}, to a test fold of weight 2/{n} {np.abs(found - doubled).max():.0e}")
    assert np.abs(documented - doubled).max() > 0.05, "the example is another"
    assert np.abs(found - doubled).max() < 1e-9, "the test fold has another weight: this finding is over"
    if n == 2:
        plain = np.mean([compute_rdm(fold) for fold in folds], 0)
        print(f"  to the RDM of each fold with itself: {np.abs(found - plain).max():.0e}")
        assert np.abs(found - plain).max() < 1e-9
PYTHON
echo "as stated: the test fold is in the mean that it is compared with"
