"""The verifiable task: its demonstrations have reward 1, and the rule takes apart what it should."""

import pytest

from repscope.data.verifiable import short_sentence, verifiable_task
from repscope.errors import UserError

TASK = verifiable_task()
ASKED = next(e.prompt for e in (*TASK.train, *TASK.heldout) if "the moon" in e.prompt)


def test_demonstrations_have_reward_1_and_topics_are_held_out():
    assert all(TASK.reward(e.prompt, e.demonstration) == 1 for e in (*TASK.train, *TASK.heldout))
    assert not {e.prompt for e in TASK.train} & {e.prompt for e in TASK.heldout}
    assert len(TASK.heldout) >= 32
    # the answer to another topic's prompt names another topic
    assert sum(TASK.reward(a.prompt, b.demonstration) == 0.75 for a, b in zip(TASK.train, TASK.train[5:])) > 100


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("The moon is far away.", 1),
        ("Moons are far away!", 1),
        ("The sun is far away.", 0.75),
        ("The moon is very far away from all of us down here.", 0.75),
        ("The sun is very far away from all of us down here.", 0.5),
        ("The moon", 0),
        ("Moon.", 0),
        ("The moon. It is far.", 0),
        ("The moon is\nfar away.", 0),
        ("", 0),
    ],
)
def test_the_rule(answer, reward):
    assert short_sentence(ASKED, answer) == reward


def test_other_prompts_have_no_reward():
    with pytest.raises(UserError, match="is no prompt of the task"):
        short_sentence("What is the moon?", "The moon is far away.")
    with pytest.raises(UserError, match="did you mean 'short-sentence'"):
        verifiable_task("short-sentences")
