"""Self and other: does a network code another's outcomes as it codes its own? Patterns and a table of trials in, results out."""

from repscope.align.self_other.cross_decoding import SelfOther, Trials, cross_decode, trials
from repscope.align.self_other.shared_units import SharedUnits, shared_units

__all__ = ["SelfOther", "SharedUnits", "Trials", "cross_decode", "shared_units", "trials"]
