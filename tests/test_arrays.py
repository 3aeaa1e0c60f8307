"""Numbers as users have them: arrays, tensors and lists are one; what is none is refused in one sentence."""

import numpy as np
import pytest
import torch

from repscope.arrays import as_array, as_tensor
from repscope.errors import UserError

ROWS = [[1.0, 2.0], [3.0, 4.0]]
AS = [
    ROWS,
    np.array(ROWS),
    torch.tensor(ROWS),
    torch.tensor(ROWS, requires_grad=True),
    torch.tensor(ROWS).bfloat16(),
    np.array([[1, 2], [3, 4]]),
]


@pytest.mark.parametrize("given", AS)
def test_all_kinds_hold_the_same_numbers(given):
    np.testing.assert_array_equal(as_array(given, "rows", "row feature"), ROWS)
    torch.testing.assert_close(as_tensor(given, "rows", "row feature").float().detach(), torch.tensor(ROWS))


def test_a_tensor_stays_in_its_graph_and_its_precision_and_an_array_is_copied():
    given = torch.tensor(ROWS, dtype=torch.float64, requires_grad=True)
    assert as_tensor(given, "rows") is given
    array = np.array(ROWS)
    as_tensor(array, "rows")[0, 0] = 9
    assert array[0, 0] == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        ([["a", "b"]], "are of <U1"),
        (np.array([[1.0]], dtype=object), "are of ndarray"),
        (None, "are of NoneType"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex"),
        ([1.0, 2.0], r"have the shape \(2,\); give \(row, feature\)"),
    ],
)
@pytest.mark.parametrize("read", [as_array, as_tensor])
def test_what_is_no_array_of_numbers(read, given, says):
    with pytest.raises(UserError, match=says) as error:
        read(given, "rows", "row feature")
    assert "\n" not in str(error.value)
