"""Grammars whose sentences a generator writes, minimal pairs for each of their phenomena, and learners of their corpora."""

from repscope.worlds.grammar.english import ENGLISH
from repscope.worlds.grammar.learners import KINDS, Curves, learn
from repscope.worlds.grammar.matched import MATCHED
from repscope.worlds.grammar.sentences import Grammar, Pairs, make_pairs

__all__ = ["ENGLISH", "KINDS", "MATCHED", "Curves", "Grammar", "Pairs", "learn", "make_pairs"]
