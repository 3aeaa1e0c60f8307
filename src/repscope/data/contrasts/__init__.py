"""Contrasts: example texts of two poles, built in or from a file of the user's, with choices on which a direction is measured."""

from repscope.data.contrasts.definition import Choice, Contrast
from repscope.data.contrasts.lookup import contrast, contrast_names

__all__ = ["Choice", "Contrast", "contrast", "contrast_names"]
