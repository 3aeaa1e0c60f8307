#!/usr/bin/env bash
# hmmlearn 0.3.3: `decode(..., algorithm="map")` returns a sum of probabilities as the log probability of its states.
#
# Expected: "log_prob: Log probability of the produced state sequence" (docstring), as with algorithm="viterbi": never above 0, and
# comparable with it and with `score`.
# Seen: no error, no warning. `_decode_map` returns the sum over symbols of the largest posterior probabilities: between 0 and the number
# of symbols, so that longer texts look more probable, and above the log probability of Viterbi's states, which is the largest there is.
# The states themselves may be a sequence that is impossible (individually most probable states need not follow each other), and its
# "log probability" is then a positive number in place of −∞.
#
# Ground truth: enumeration of all state sequences in float64.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check hmmlearn==0.3.3 numpy==2.3.5 scipy==1.17.1 scikit-learn==1.8.0
cd "$home"
"$home/venv/bin/python" - <<'PYTHON'
from itertools import product

import numpy as np
from hmmlearn.hmm import CategoricalHMM

start = np.array([0.4, 0.3, 0.3])
transition = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
emission = np.array([[0.6, 0.4], [0.5, 0.5], [0.3, 0.7]])
model = CategoricalHMM(n_components=3, n_features=2)
model.startprob_, model.transmat_, model.emissionprob_ = start, transition, emission


def log_joint(states, text):
    with np.errstate(divide="ignore"):
        found = np.log(start[states[0]]) + np.log(emission[states[0], text[0]])
        for before, state, symbol in zip(states, states[1:], text[1:]):
            found += np.log(transition[before, state]) + np.log(emission[state, symbol])
    return found


impossible = 0
for seed in range(10):
    text = np.random.default_rng(seed).integers(2, size=6)
    every = list(product(range(3), repeat=len(text)))
    logs = np.array([log_joint(s, text) for s in every])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    posteriors = np.array([[weights[[s[t] == i for s in every]].sum() for i in range(3)] for t in range(len(text))])
    best, states = model.decode(text[:, None], algorithm="viterbi")
    assert abs(best - logs.max()) < 1e-9, "Viterbi is another"
    assert abs(model.score(text[:, None]) - np.log(np.exp(logs).sum())) < 1e-9, "the likelihood is another"
    given, states = model.decode(text[:, None], algorithm="map")
    assert (posteriors[range(len(text)), states] > posteriors.max(1) - 1e-9).all(), "the states are others"
    assert abs(given - posteriors.max(1).sum()) < 1e-9, "no longer the sum of posteriors: this finding is over"
    assert given > 0 >= best >= log_joint(states, text)
    impossible += np.isneginf(log_joint(states, text))
print(f"last text: decode(map) {given:.3f}; true log probability {log_joint(states, text):.3f}; Viterbi's, the largest {best:.3f}")
print(f"texts whose states by map are impossible: {impossible} of 10, each with a positive log probability")
assert impossible, "the example is another"
PYTHON
echo "as stated: a sum of posterior probabilities as a log probability"
