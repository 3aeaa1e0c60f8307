"""Rewarded corpus: small language models, a reward that can be computed, and six ways of training towards it.

`task` has the corpora, demonstrations and the reward; `evaluation` the reward of a network and its distance to another one in next
tokens; `methods` the six ways; `matching` trains until a network has a given reward or divergence.
"""
