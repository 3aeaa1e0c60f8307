"""Exact Bayes predictors: what an observer who knows the hidden Markov models would predict, by the forward algorithm."""

from repscope.trace.bayes.counts import pair_counts
from repscope.trace.bayes.distances import kl, total_variation
from repscope.trace.bayes.files import read_models
from repscope.trace.bayes.hmm import HiddenMarkovModel
from repscope.trace.bayes.mixture import Forecast, Mixture
from repscope.trace.bayes.prompted import PromptForecast, format_aware, oracle, pretraining
from repscope.trace.bayes.regression import RegressionOptions, regression_result
from repscope.trace.bayes.token_map import TokenMap

__all__ = [
    "Forecast",
    "HiddenMarkovModel",
    "Mixture",
    "PromptForecast",
    "RegressionOptions",
    "TokenMap",
    "format_aware",
    "kl",
    "oracle",
    "pair_counts",
    "pretraining",
    "read_models",
    "regression_result",
    "total_variation",
]
