#!/usr/bin/env bash
# hoi 0.0.7: with method="gauss" measures of interaction depend on the zero of the data, with method="knn" on their unit.
#
# Expected: total correlation, mutual information and O-information of continuous variables, which do not change when a variable is
# shifted or scaled: of membrane voltages about -65 mV as of the same without their mean, in volts as in millivolts.
# Seen: no error, no warning. "gauss" takes second moments for the covariance: only method="gc" takes off the mean. What all neurons
# have in common is then their resting potential: independent neurons share bits, and a synergy becomes a redundancy. "knn" sets
# negative differential entropies to zero, so that all measures of data whose numbers are small are zero. No docstring says so.
#
# Ground truth: closed forms of the covariance, and Kozachenko and Leonenko's entropies by brute force, in numpy, in float64. Exits
# with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 hoi==0.0.7 \
  numpy==2.4.6 scipy==1.17.1
cd "$home"
export JAX_PLATFORMS=cpu TQDM_DISABLE=1
"$home/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
from scipy.special import digamma, gammaln

warnings.simplefilter("error")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from hoi.metrics import TC, Oinfo
samples, rest, spread = 600, -65.0, 3.0  # millivolts
rng = np.random.default_rng(0)
noise = rng.normal(size=(samples, 3))
independent = spread * noise[:, :2]
synergy = spread * np.c_[noise[:, 0], noise[:, 1], (noise[:, 0] + noise[:, 1] + 0.5 * noise[:, 2]) / 1.5]
coupled = spread * np.c_[noise[:, 0], 0.9 * noise[:, 0] + 0.4 * noise[:, 1]]


def hoi(measure, x, method):
    size = x.shape[1]
    return float(measure(x, verbose=False).fit(minsize=size, maxsize=size, method=method).item())


def gauss(x, centred=True):
    c = np.cov(x.T) if centred else x.T @ x / (len(x) - 1)
    return 0.5 * np.log2(np.linalg.det(2 * np.pi * np.e * np.atleast_2d(c)))


def nearest(x, k=3, floor=-np.inf):
    n, d = x.shape
    r = np.stack([np.sort(np.sqrt(((x - row) ** 2).sum(1)))[k] for row in x])
    ball = d / 2 * np.log(np.pi) - gammaln(1 + d / 2)
    return max(floor, digamma(n) - digamma(k) + ball + d * np.log(r).mean()) / np.log(2)


def total_correlation(x, entropy):
    return sum(entropy(x[:, [i]]) for i in range(x.shape[1])) - entropy(x)


def o_information(x, entropy):
    n = x.shape[1]
    return (n - 2) * entropy(x) + sum(entropy(x[:, [i]]) - entropy(np.delete(x, i, 1)) for i in range(n))


for name, measure, truth, x in (
    ("total correlation of independent neurons", TC, total_correlation, independent),
    ("O-information of a sum", Oinfo, o_information, synergy),
):
    right, moments = truth(x, gauss), truth(x + rest, lambda v: gauss(v, centred=False))
    centred, voltages = hoi(measure, x - x.mean(0), "gauss"), hoi(measure, x + rest, "gauss")
    print(f"{name}, gauss: {voltages:.2f} bits about {rest} mV, {centred:.3f} without the mean; truth {right:.3f}, "
          f"of raw moments {moments:.2f}")
    assert abs(centred - right) < 1e-3, "the ground truth is another"
    assert abs(truth(x + rest, gauss) - right) < 1e-9
    assert abs(voltages - moments) < 0.05, "the mean is no longer left in: this finding is over"
    assert voltages > 1 and right < 0.01, "the example is another"

in_volts = {}
for unit, factor in (("mV", 1.0), ("V", 1e-3)):
    x = coupled * factor
    found = hoi(TC, x, "knn")
    right, floored = total_correlation(x, nearest), total_correlation(x, lambda v: nearest(v, floor=0.0))
    in_volts[unit] = found, right
    print(f"total correlation of coupled neurons, knn: {found:.3f} bits in {unit}; truth {right:.3f}, "
          f"entropies at least zero {floored:.3f}")
    assert abs(found - floored) < 1e-2, "entropies below zero count now: this finding is over"
assert abs(in_volts["mV"][1] - in_volts["V"][1]) < 1e-9, "the ground truth is none"
assert abs(in_volts["mV"][0] - in_volts["mV"][1]) < 1e-2, "the example is another"
assert in_volts["V"][0] == 0 and in_volts["V"][1] > 0.5, "the unit does not matter: this finding is over"
PYTHON
echo "as stated: gauss depends on the zero of the data, knn on their unit"
