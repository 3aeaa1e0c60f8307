"""Directions in a network, sets of directions, and their file formats."""

from repscope.directions.direction import Direction
from repscope.directions.sets import DirectionSet

__all__ = ["Direction", "DirectionSet"]
