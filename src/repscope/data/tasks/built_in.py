"""Tasks that are built in: word forms from LemmInflect's tables, letters and lengths of words, the next item of a sequence.

Named as in Todd et al. (2024, arXiv 2310.15213) where they have the task. Every relation of `data.relations` is a task as well.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from repscope.data.relations.built_in import ADJECTIVES, VERBS
from repscope.data.tasks.definition import Pair, Task, of_pairs

NOUNS = """
apple baby bag ball bank bean bear bed bell berry bird boat body bone book box boy branch bridge brush bus bush cake
camp car card cat chair cherry child church city class cloud coat coin country cow cup day desk dish dog door dress
duck ear egg eye face family farm field fish flag floor flower foot fox friend frog game garden gift girl glass goat
goose hand hat hill horse house key king kite knife lady lake lamp leaf letter lion man map match mouse mountain nest
night nose nurse ocean party pencil person picture plane plant plate pony potato queen river road rock roof room rose
school shelf ship shoe shop sister song star stone story street tail thief tomato tooth tower toy train tree wall
watch wife window wish wolf woman word worm
"""
_CYCLES = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
)
_LINES = (
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty",
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth",
)


def _inflected(name: str, words: str, tag: str) -> Task:
    from lemminflect import getInflection

    pairs = [(word, forms[0]) for word in words.split() if (forms := getInflection(word, tag))]
    return of_pairs(name, pairs, "LemmInflect")


def _spelled(name: str, of: Callable[[str], str]) -> Task:
    words = dict.fromkeys(f"{NOUNS} {VERBS} {ADJECTIVES}".split())
    return of_pairs(name, [(word, of(word)) for word in words], "generated")


def _neighbours() -> Iterator[Pair]:
    for cycle in _CYCLES:
        items = cycle.split()
        yield from zip(items, items[1:] + items[:1])
    for line in _LINES:
        items = line.split()
        yield from pairwise(items)


TASKS: dict[str, Callable[[], Task]] = {
    "singular-plural": lambda: _inflected("singular-plural", NOUNS, "NNS"),
    "present-past": lambda: _inflected("present-past", VERBS, "VBD"),
    "present-gerund": lambda: _inflected("present-gerund", VERBS, "VBG"),
    "present-third-person": lambda: _inflected("present-third-person", VERBS, "VBZ"),
    "adjective-superlative": lambda: _inflected("adjective-superlative", ADJECTIVES, "JJS"),
    "capitalize": lambda: _spelled("capitalize", str.capitalize),
    "uppercase": lambda: _spelled("uppercase", str.upper),
    "first-letter": lambda: _spelled("first-letter", lambda word: word[0]),
    "capitalize-first-letter": lambda: _spelled("capitalize-first-letter", lambda word: word[0].upper()),
    "word-length": lambda: _spelled("word-length", lambda word: str(len(word))),
    "next-item": lambda: of_pairs("next-item", _neighbours(), "generated"),
    "previous-item": lambda: of_pairs("previous-item", [(y, x) for x, y in _neighbours()], "generated"),
}
