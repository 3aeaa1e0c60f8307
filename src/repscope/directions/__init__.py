"""Directions in a network, their sets, and the files in which they travel. Knows arrays and names, never a network."""

from repscope.directions.direction import Direction
from repscope.directions.sets import DirectionSet

__all__ = ["Direction", "DirectionSet"]
