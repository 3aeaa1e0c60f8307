"""GINC (Xie et al. 2022, arXiv 2111.02080): documents and prompts of mixtures of hidden Markov models, for in-context learning."""

from repscope.worlds.ginc.prompts import GincPrompts, prompts
from repscope.worlds.ginc.scan import scan
from repscope.worlds.ginc.world import PUBLISHED, UNIFORM, GincSizes, GincWorld

__all__ = ["PUBLISHED", "UNIFORM", "GincPrompts", "GincSizes", "GincWorld", "prompts", "scan"]
