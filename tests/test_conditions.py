"""The closed list of conditions: every name in use is on it, and a table refuses any other."""

import pytest

from repscope.conditions import CONDITIONS, ESTIMATE, condition, over, shuffled
from repscope.results import Row


@pytest.mark.parametrize(
    "name", ["over rank 8", "context: last 2 tokens", "dose 0.25", "map of my relation", "over best of 16 random directions"]
)
def test_conditions_with_parameters_are_known(name):
    assert Row(condition=name, value=0.0).condition == name
    assert condition(name).name == name


def test_a_gain_and_shuffled_groups_look_like_what_they_are_made_from():
    assert condition(over("random direction")).style == CONDITIONS["random direction"].style
    assert shuffled(ESTIMATE) == "shuffled groups"
    assert condition(shuffled("no early bias")).role == "control"


@pytest.mark.parametrize(
    "name", ["random directions", "over randm direction", "rank x", "over over", "my control", "", "a, shuffled groups"]
)
def test_a_row_refuses_any_other_condition(name):
    with pytest.raises(ValueError, match="There is no condition"):
        Row(condition=name, value=0.0)


def test_the_error_names_the_nearest_condition():
    with pytest.raises(ValueError, match="did you mean 'random direction'"):
        Row(condition="random directoin", value=0.0)


def test_every_condition_has_a_sentence():
    assert all(c.meaning.endswith(".") and c.meaning[0].isupper() for c in CONDITIONS.values())
