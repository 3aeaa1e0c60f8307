"""A small grammar of English with thirteen phenomena that differ in frequency and in the distance that they span.

Sentences: declaratives with modified subjects, coordinated subjects, reflexives, auxiliaries, negative subjects with "ever",
questions with and without a gap. Nouns agree with determiners, verbs and reflexives; some verbs take no object; irregular
participles are rare.
"""

from dataclasses import dataclass

import numpy as np

from repscope.worlds.grammar.sentences import END, Grammar, Phenomenon, Words

_ANIMALS = {n: n + "s" for n in ("dog", "cat", "bird", "horse", "cow", "goat")}
_MEN = {"king": "kings", "boy": "boys", "uncle": "uncles", "actor": "actors"}
_WOMEN = {"queen": "queens", "girl": "girls", "aunt": "aunts", "nurse": "nurses"}
_NOUNS = _ANIMALS | _MEN | _WOMEN
_INTRANSITIVE = ("sleep", "run", "jump", "swim", "sing", "fall")
_TRANSITIVE = ("see", "chase", "help", "like", "kick", "follow")
_REGULAR = {v: {"see": "noticed", "chase": "chased", "like": "liked"}.get(v, v + "ed") for v in _TRANSITIVE}
_IRREGULAR = {"take": ("took", "taken"), "write": ("wrote", "written"), "break": ("broke", "broken"), "draw": ("drew", "drawn")}
_ADJECTIVES = ("big", "old", "young", "happy", "small")
_NEAR = ("near", "behind", "beside")
_DETERMINERS = ({"the": 0.6, "this": 0.2, "that": 0.2}, {"the": 0.6, "these": 0.2, "those": 0.2})
_OTHER = {"this": "these", "these": "this", "that": "those", "those": "that"}


@dataclass(frozen=True)
class _Subject:
    words: Words
    plural: bool
    gender: str  #: m, f or "" for an animal
    shows: frozenset[str] = frozenset()


def _pick(rng: np.random.Generator, options: object) -> str:
    held = list(options)  # type: ignore[call-overload]
    weights = list(options.values()) if isinstance(options, dict) and not isinstance(next(iter(options.values())), str) else None
    return str(held[rng.choice(len(held), p=weights)])


def _noun_phrase(
    rng: np.random.Generator, plural: bool | None = None, nouns: dict[str, str] | None = None, det: str = ""
) -> _Subject:
    """Determiner, sometimes an adjective, and a noun."""
    many = bool(rng.random() < 0.5) if plural is None else plural
    noun = _pick(rng, list(nouns or _NOUNS))
    article = det or _pick(rng, _DETERMINERS[many])
    words = [article, *([_pick(rng, _ADJECTIVES)] if rng.random() < 0.15 else []), _NOUNS[noun] if many else noun]
    shows = frozenset({"determiner–noun"} if article in _OTHER else ())
    return _Subject(words, many, "m" if noun in _MEN else "f" if noun in _WOMEN else "", shows)


def _modified(rng: np.random.Generator, kind: str) -> tuple[_Subject, str]:
    """A subject with a modifier of a kind, and the phenomenon that its verb shows."""
    head = _noun_phrase(rng)
    if kind == "phrase":
        inner = _noun_phrase(rng)
        words = [*head.words, _pick(rng, _NEAR), *inner.words]
        name = "subject–verb, across a phrase" if inner.plural == head.plural else "subject–verb, attractor"
        return _Subject(words, head.plural, head.gender, head.shows | inner.shows), name
    if kind == "relative":
        inner = _noun_phrase(rng)
        verb = _verb(_pick(rng, _TRANSITIVE), head.plural)
        words = [*head.words, "that", verb, *inner.words]
        return _Subject(words, head.plural, head.gender, head.shows | inner.shows), "subject–verb, relative clause"
    if kind == "coordination":
        other = _noun_phrase(rng)
        return _Subject([*head.words, "and", *other.words], True, "", head.shows | other.shows), "coordinated subject"
    return head, "subject–verb, adjacent"


def _verb(base: str, plural: bool) -> str:
    return base if plural else base + "s"


def _predicate(rng: np.random.Generator, subject: _Subject) -> tuple[Words, frozenset[str]]:
    """What follows a subject whose verb agrees, and the phenomena that it shows beside the agreement."""
    draw = rng.random()
    if draw < 0.35:
        return [_verb(_pick(rng, _INTRANSITIVE), subject.plural)], frozenset({"no object"})
    if draw < 0.45 and (subject.gender or subject.plural):
        word = "themselves" if subject.plural else "himself" if subject.gender == "m" else "herself"
        shows = {"reflexive number", *(["reflexive gender"] if not subject.plural else [])}
        return [_verb(_pick(rng, _TRANSITIVE), subject.plural), word], frozenset(shows)
    inner = _noun_phrase(rng)
    return [_verb(_pick(rng, _TRANSITIVE), subject.plural), *inner.words], inner.shows


def _past(rng: np.random.Generator, subject: _Subject) -> tuple[Words, frozenset[str]]:
    """Auxiliary with a base form, "has" or "have" with a participle, or a past form."""
    inner = _noun_phrase(rng)
    draw = rng.random()
    if draw < 0.5:
        return ["can", _pick(rng, _TRANSITIVE), *inner.words], inner.shows | {"auxiliary–verb"}
    has = "have" if subject.plural else "has"
    if draw < 0.75:
        return [has, _REGULAR[_pick(rng, _TRANSITIVE)], *inner.words], inner.shows
    past, participle = _IRREGULAR[_pick(rng, list(_IRREGULAR))]
    if draw < 0.87:
        return [has, participle, *inner.words], inner.shows | {"irregular participle"}
    return [past, *inner.words], inner.shows


def _sentence(rng: np.random.Generator) -> tuple[Words, frozenset[str]]:
    draw = rng.random()
    if draw < 0.06:
        subject = _noun_phrase(rng, det="no")
        return [*subject.words, "ever", _verb(_pick(rng, _INTRANSITIVE), subject.plural)], frozenset({"no and ever"})
    if draw < 0.12:  # the determiner without "ever"
        subject = _noun_phrase(rng, det="no")
        rest, shows = _predicate(rng, subject)
        return [*subject.words, *rest], shows
    if draw < 0.2:
        subject = _noun_phrase(rng)
        return ["who", "do" if subject.plural else "does", *subject.words, _pick(rng, _TRANSITIVE)], subject.shows | {"filled gap"}
    if draw < 0.26:
        subject, inner = _noun_phrase(rng), _noun_phrase(rng)
        do = "do" if subject.plural else "does"
        return [do, *subject.words, _pick(rng, _TRANSITIVE), *inner.words], subject.shows | inner.shows
    if draw < 0.42:
        subject = _noun_phrase(rng)
        rest, shows = _past(rng, subject)
        return [*subject.words, *rest], subject.shows | shows
    kinds = {"none": 0.62, "phrase": 0.2, "relative": 0.09, "coordination": 0.09}
    subject, name = _modified(rng, _pick(rng, kinds))
    rest, shows = _predicate(rng, subject)
    return [*subject.words, *rest], subject.shows | shows | {name}


def _agreement(kind: str, name: str, rng: np.random.Generator) -> tuple[Words, Words]:
    while True:
        subject, found = _modified(rng, kind)
        if found == name:
            break
    base = _pick(rng, _INTRANSITIVE)
    return [*subject.words, _verb(base, subject.plural)], [*subject.words, _verb(base, not subject.plural)]


def _determiner(rng: np.random.Generator) -> tuple[Words, Words]:
    many = bool(rng.random() < 0.5)
    head = _noun_phrase(rng, many, det=_pick(rng, ("these", "those") if many else ("this", "that")))
    verb = _verb(_pick(rng, _INTRANSITIVE), many)
    return [*head.words, verb], [_OTHER[head.words[0]], *head.words[1:], verb]


def _auxiliary(rng: np.random.Generator) -> tuple[Words, Words]:
    head, inner, base = _noun_phrase(rng), _noun_phrase(rng), _pick(rng, _TRANSITIVE)
    return [*head.words, "can", base, *inner.words], [*head.words, "can", base + "s", *inner.words]


def _no_object(rng: np.random.Generator) -> tuple[Words, Words]:
    head, inner, verb = _noun_phrase(rng), _noun_phrase(rng), _pick(rng, _INTRANSITIVE)
    start = [*head.words, _verb(verb, head.plural)]
    return start, [*start, *inner.words]


def _reflexive_number(rng: np.random.Generator) -> tuple[Words, Words]:
    nouns, one = (_MEN, "himself") if rng.random() < 0.5 else (_WOMEN, "herself")
    head = _noun_phrase(rng, nouns=nouns)
    start = [*head.words, _verb(_pick(rng, _TRANSITIVE), head.plural)]
    good, bad = ("themselves", one) if head.plural else (one, "themselves")
    return [*start, good], [*start, bad]


def _reflexive_gender(rng: np.random.Generator) -> tuple[Words, Words]:
    both = [(_MEN, "himself"), (_WOMEN, "herself")]
    (nouns, good), (_, bad) = both if rng.random() < 0.5 else both[::-1]
    start = [*_noun_phrase(rng, False, nouns).words, _verb(_pick(rng, _TRANSITIVE), False)]
    return [*start, good], [*start, bad]


def _ever(rng: np.random.Generator) -> tuple[Words, Words]:
    head = _noun_phrase(rng, det="no")
    rest = [*head.words[1:], "ever", _verb(_pick(rng, _INTRANSITIVE), head.plural)]
    return ["no", *rest], ["the", *rest]


def _gap(rng: np.random.Generator) -> tuple[Words, Words]:
    head, inner = _noun_phrase(rng), _noun_phrase(rng)
    good = ["who", "do" if head.plural else "does", *head.words, _pick(rng, _TRANSITIVE)]
    return good, [*good, *inner.words]


def _irregular(rng: np.random.Generator) -> tuple[Words, Words]:
    head, inner = _noun_phrase(rng), _noun_phrase(rng)
    past, participle = _IRREGULAR[_pick(rng, list(_IRREGULAR))]
    start = [*head.words, "have" if head.plural else "has"]
    return [*start, participle, *inner.words], [*start, past, *inner.words]


def _agreeing(kind: str, name: str, distance: float, meaning: str) -> Phenomenon:
    return Phenomenon(lambda rng: _agreement(kind, name, rng), distance, meaning)


_PHENOMENA = {
    "determiner–noun": Phenomenon(_determiner, 0.15, "this dog sleeps / these dog sleeps"),
    "auxiliary–verb": Phenomenon(_auxiliary, 0, "the dog can see … / can sees …"),
    "subject–verb, adjacent": _agreeing("none", "subject–verb, adjacent", 0, "the dog sleeps / sleep"),
    "subject–verb, across a phrase": _agreeing("phrase", "subject–verb, across a phrase", 3, "the dog near the cat sleeps / sleep"),
    "subject–verb, attractor": _agreeing("phrase", "subject–verb, attractor", 3, "the dog near the cats sleeps / sleep"),
    "subject–verb, relative clause": _agreeing(
        "relative", "subject–verb, relative clause", 4, "the dog that sees cats sleeps / sleep"
    ),
    "coordinated subject": _agreeing("coordination", "coordinated subject", 0, "the dog and the cat sleep / sleeps"),
    "no object": Phenomenon(_no_object, 0, "the dog sleeps / sleeps the cat"),
    "reflexive number": Phenomenon(_reflexive_number, 1, "the king sees himself / themselves"),
    "reflexive gender": Phenomenon(_reflexive_gender, 1, "the king sees himself / herself"),
    "no and ever": Phenomenon(_ever, 1, "no dog ever sleeps / the dog ever sleeps"),
    "filled gap": Phenomenon(_gap, 4, "who does the dog see / see the cat"),
    "irregular participle": Phenomenon(_irregular, 0, "the dog has taken … / has took …"),
}

_VERBS = [form for base in (*_INTRANSITIVE, *_TRANSITIVE) for form in (base, base + "s")]
_WORDS = [END, *_NOUNS, *_NOUNS.values(), *_VERBS, *_REGULAR.values(), *(form for forms in _IRREGULAR.values() for form in forms)]
_WORDS += [*_ADJECTIVES, *_NEAR, "the", "no", *_OTHER, "and", "can", "has", "have", "do", "does", "who", "ever"]
_WORDS += ["himself", "herself", "themselves"]
ENGLISH = Grammar("English", tuple(dict.fromkeys(_WORDS)), _sentence, _PHENOMENA)
