"""Numbers as users have them (arrays, tensors, lists) as one kind of array; what is none is refused in one sentence."""

from typing import TYPE_CHECKING, Any

import numpy as np

from repscope.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def as_array(given: Any, what: str, axes: str = "") -> np.ndarray:
    """Numbers as a numpy array of their own precision; tensors are taken off their device and graph.

    Parameters
    ----------
    given
        An array, a tensor, or nested lists of numbers.
    what
        Their name in messages, in the plural.
    axes
        Names of the axes, as "direction prompt feature"; empty for any number of axes.

    Raises
    ------
    UserError
        If they are no numbers, their lists differ in length, or they have another number of axes.
    """
    plain = given.detach().cpu() if hasattr(given, "detach") else given
    if str(getattr(plain, "dtype", "")) == "torch.bfloat16":
        plain = plain.float()
    try:
        found = np.asarray(plain)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of several lengths, tensors in lists that need a gradient
        raise UserError(f"The {what} are no array of numbers; give an array, a tensor or lists of one length.") from error
    if found.dtype.kind not in "biuf":
        raise UserError(f"The {what} are of {_described(given, found)}; give an array, a tensor or lists of numbers.")
    if axes and found.ndim != len(axes.split()):
        raise UserError(f"The {what} have the shape {found.shape}; give ({axes.replace(' ', ', ')}).")
    return found


def as_tensor(given: Any, what: str, axes: str = "") -> "Tensor":
    """Numbers as a tensor: a tensor of decimals as it is, with its device and gradient, all else as float32.

    Raises
    ------
    UserError
        As `as_array`.
    """
    import torch

    if not isinstance(given, torch.Tensor):
        return torch.tensor(as_array(given, what, axes), dtype=torch.float32)
    if given.is_complex():
        raise UserError(f"The {what} are complex numbers; give real ones.")
    if axes and given.dim() != len(axes.split()):
        raise UserError(f"The {what} have the shape {tuple(given.shape)}; give ({axes.replace(' ', ', ')}).")
    return given if given.is_floating_point() else given.float()


def _described(given: Any, found: np.ndarray) -> str:
    return type(given).__name__ if found.dtype == object else str(found.dtype)
