"""A verifiable task: prompts, demonstrations, and a rule that gives each answer a reward. No model and no torch.

`short_sentence`: 1/2 for one sentence of three or more words, 1/4 more for ten words at most, 1/4 more for naming the topic. A
small chat model does so now and then, so that its answers differ in reward; the best answers are short, so that training is quick.
Topics of held-out prompts never occur in training.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from repscope.errors import UserError, unknown

_TOPICS = """
the sea, the moon, a garden, bread, the wind, a river, winter, a library, music, a market, horses, a bridge, the forest,
rain, a mountain, coffee, a train, the desert, snow, a lighthouse, chess, a kitchen, spring, an island, clocks, a
castle, the stars, tea, a village, books, autumn, a farm, the north, paper, a ship, bees, a mirror, glass, a museum,
dogs, the evening, honey, a theatre, maps, a station, salt, a lake, birds, a tower, wool, the sky, stones, a school,
cats, a valley, fire, a window, apples, a road, dreams, the harbour, shoes, a painting, fog, a violin, trees, the sun,
letters, a harvest, ice, a song, lamps, a cave, soup, the city, sand, a door, wolves, a clinic, iron, a picnic, clouds,
the coast, cheese, a mill, silence, a tent, roses, an orchard, gold, a hotel, rice, a dance, pencils, the past, milk
"""
_FORMS = (
    "Write one short sentence about {topic}, in at most ten words.",
    "Say something about {topic} in a single sentence of ten words or fewer.",
)
_ANSWERS = (
    "I often think about {topic} at night.",
    "We talked about {topic} all morning.",
    "My sister loves {topic} more than I do.",
    "Nothing here is quite like {topic}.",
    "There are many stories about {topic}.",
    "You can learn a lot from {topic}.",
)
_HELD = 3  #: every third topic is held out
_FEWEST, _MOST = 3, 10  #: words of a short sentence
_MARKS = re.compile(r"[.!?]")


@dataclass(frozen=True)
class Example:
    """A prompt and an answer of reward 1, written by hand."""

    prompt: str
    demonstration: str


@dataclass(frozen=True)
class VerifiableTask:
    """A task with a rule. name. says: what is rewarded. train, heldout: examples. reward: (prompt, answer) → reward in [0, 1]."""

    name: str
    says: str
    train: tuple[Example, ...]
    heldout: tuple[Example, ...]
    reward: Callable[[str, str], float]


def short_sentence(prompt: str, answer: str) -> float:
    """1/2 for one sentence of three or more words, 1/4 more for at most ten, 1/4 more for naming the topic of the prompt; else 0.

    >>> asked = _FORMS[0].format(topic="the sea")
    >>> short_sentence(asked, "The sea is never quite still."), short_sentence(asked, "The lake is never quite still.")
    (1.0, 0.75)
    >>> short_sentence(asked, "The sea. It is wide."), short_sentence(asked, "The sea is wide")
    (0.0, 0.0)
    """
    text = answer.strip()
    words = re.findall(r"[\w'’-]+", text)
    noun = _topic(prompt).split()[-1]
    named = any(word.casefold().startswith(noun) for word in words)
    one = len(_MARKS.findall(text)) == 1 and text[-1] in ".!?" and "\n" not in text
    return 0.5 + 0.25 * (len(words) <= _MOST) + 0.25 * named if one and len(words) >= _FEWEST else 0.0


def _topic(prompt: str) -> str:
    for form in _FORMS:
        if found := re.fullmatch(re.escape(form).replace(r"\{topic\}", "(.+)"), prompt):
            return found.group(1)
    raise UserError(f"{prompt!r} is no prompt of the task short-sentence, so its answer has no reward; give a reward of your own.")


def _examples(topics: list[str], seed: int) -> tuple[Example, ...]:
    draw = np.random.default_rng(seed)
    return tuple(
        Example(form.format(topic=topic), _ANSWERS[int(draw.integers(len(_ANSWERS)))].format(topic=topic))
        for form in _FORMS
        for topic in topics
    )


def _short_sentence() -> VerifiableTask:
    topics = [topic.strip() for topic in _TOPICS.replace("\n", " ").split(",")]
    held = topics[::_HELD]
    seen = [topic for topic in topics if topic not in held]
    says = "one sentence; a quarter of the reward each for at most ten words and for naming the topic"
    return VerifiableTask("short-sentence", says, _examples(seen, 0), _examples(held, 1), short_sentence)


TASKS: dict[str, Callable[[], VerifiableTask]] = {"short-sentence": _short_sentence}


def verifiable_task(name: str = "short-sentence") -> VerifiableTask:
    """The built-in task of that name.

    Raises
    ------
    UserError
        For an unknown name.
    """
    if name not in TASKS:
        raise unknown("verifiable task", name, TASKS)
    return TASKS[name]()
