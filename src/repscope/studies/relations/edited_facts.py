"""Edits of facts in one split: which succeed, what else they change, and how texts go on.

Facts are edited one by one, all steps of a fact as variants of its prompt; states at the end of prompts then share
products with the head.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from repscope.models.edits import Edit
from repscope.models.prompts import Prompt
from repscope.models.variants.prompt_variants import Beginnings
from repscope.read.concept_directions import class_means
from repscope.read.known_facts import most_likely, starts_with
from repscope.read.linear_relations import begins
from repscope.steer.fact_editing import kl, random_step, states_after_edit
from repscope.studies.relations.split import Half, Hits, Split, Tick

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

DOSES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
_RANDOM_DRAWS = 3
CHOOSING = 8  #: subjects on which an edit's layer and rank are chosen
_TEXTS = 4  #: edits whose texts are shown
_FACTS = 32  #: facts whose side effects share a product with the head
_ON_TEXT = "neutral text"
_NEUTRAL = "The word {subject} stands at the top of the page, and below it"


def edits(
    split: Split, sites: Sequence[str], ranks: Sequence[int], most: int, other: "Callable[[str], Prompt | None]", tick: Tick
) -> tuple[Hits, pd.DataFrame]:
    """Change facts: v_o' - o pulled back through W† and added at the subject; layer and rank chosen on the choosing half."""
    lm, here = split.lm, split.object_site
    ranks = split.usable(ranks)
    places = [(site, r) for site in sites for r in dict.fromkeys(ranks)]
    known = split.shown + split.rest
    names, means = class_means(known.end[here], known.objects)
    rng = np.random.default_rng(split.seed)
    states_of = partial(states_after_edit, lm, beginnings=Beginnings())

    def tried(half: Half, i: int) -> "tuple[str, np.ndarray, dict[tuple[str, int], np.ndarray]] | None":
        own = half.pairs[i][1]
        free = [k for k, name in enumerate(names) if name != own and not starts_with(name, own) and not starts_with(own, name)]
        if not free:
            return None
        k = int(rng.choice(free))
        moved = means[k] - half.end[here][i]
        return names[k], moved, {(site, r): split.early[site].pulled_back(moved[None], r)[0] for site, r in places}

    tested: list[tuple[str, np.ndarray]] = []
    for i in range(min(CHOOSING, len(split.rest.pairs))):
        if (found := tried(split.rest, i)) is not None:
            steps = [(site, step) for (site, _), step in found[2].items()]
            tested.append((found[0], states_of(split.prompt(split.rest.pairs[i][0]), steps)[1:]))
    rates = _works(lm, tested)
    site, rank = places[int(np.mean(rates, 0).argmax())] if rates else places[0]
    tick(0.3)
    count = min(most, len(split.report.pairs))
    hits: dict[str, np.ndarray] = {}

    def put(name: str, i: int, value: float) -> None:
        hits.setdefault(name, np.full(len(split.report.pairs), np.nan))[i] = value

    texts: list[dict[str, str]] = []
    edited: list[int] = []
    variants: list[tuple[str, np.ndarray]] = []
    effects: dict[str, list[tuple[int, np.ndarray]]] = {}
    shown: list[tuple[Prompt, np.ndarray]] = []
    for i in range(count):
        subject, old = split.report.pairs[i]
        found = tried(split.report, i)
        if found is None:
            continue
        new, _, steps_of = found
        step = steps_of[site, rank]
        prompt = split.prompt(subject)
        random = [random_step(step, split.seed + 1000 * d + i) for d in range(_RANDOM_DRAWS)]
        donors = known.at[site][[o == new for o in known.objects]]
        swap = donors.mean(0) - split.report.at[site][i]
        steps = [(at, s) for (at, _), s in steps_of.items()]
        steps += [(site, dose * step) for dose in DOSES] + [(site, r) for r in random] + [(site, swap)]
        edited.append(i)
        variants.append((new, states_of(prompt, steps)[1:]))
        for name, states in _side_effects(split, i, (site, step), random[0], other, states_of).items():
            effects.setdefault(name, []).append((i, states))
        if i < _TEXTS:
            texts.append({"subject": subject, "object": old, "target": new})
            shown.append((prompt, step))
        tick(0.7 / count)
    for i, done in zip(edited, _works(lm, variants)):
        for (at, r), value in zip(places, done):
            put(f"rank {r}|{at}", i, value)
        for dose, value in zip(DOSES, done[len(places) :]):
            put(f"dose {dose:g}|chosen", i, value)
        put("estimate|chosen", i, done[places.index((site, rank))])
        put("random direction|chosen", i, float(done[-1 - _RANDOM_DRAWS : -1].mean()))
        put("mean vector of other subjects|chosen", i, done[-1])
    _put_effects(lm, effects, put)
    texts = [row | said for row, said in zip(texts, _told(lm, site, shown))]
    split.facts |= {"edit site": site, "edit rank": rank}
    return hits, pd.DataFrame(texts)


def _works(lm: "LanguageModel", tested: Sequence[tuple[str, np.ndarray]]) -> list[np.ndarray]:
    """For each new object and the states (variant, d_model) after edits towards it: where the most likely token begins it."""
    if not tested:
        return []
    tokens = most_likely(lm, np.concatenate([states for _, states in tested]), normed=True)
    each = np.split(tokens, np.cumsum([len(states) for _, states in tested])[:-1])
    return [begins(lm, said, [new] * len(said)).astype(float) for (new, _), said in zip(tested, each)]


def _side_effects(
    split: Split,
    i: int,
    step: tuple[str, np.ndarray],
    random: np.ndarray,
    other: "Callable[[str], Prompt | None]",
    states_of: Callable[[Prompt, Sequence[tuple[str, np.ndarray]]], np.ndarray],
) -> dict[str, np.ndarray]:
    """The final norm's output without an edit, with it, and with a random step: at the end of another relation's question about
    its subject, of a neighbouring fact, and of a neutral text.
    """
    subject, old = split.report.pairs[i]
    both = [step, (step[0], random)]
    asked = {"same subject": other(subject)}
    neighbour = split.report.pairs[(i + 1) % len(split.report.pairs)]
    shots = [*split.examples, (subject, old)]
    place = split.spelt.prompt(subject, split.examples).spans["subject"]
    beside = split.spelt.prompt(neighbour[0], shots)
    asked["neighbouring fact"] = Prompt(beside.text, {"subject": place}, beside.special)
    asked[_ON_TEXT] = Prompt.fill(_NEUTRAL, subject=subject)
    return {name: states_of(prompt, both) for name, prompt in asked.items() if prompt is not None}


def _put_effects(
    lm: "LanguageModel", effects: Mapping[str, Sequence[tuple[int, np.ndarray]]], put: Callable[[str, int, float], None]
) -> None:
    """What edits change: whether the most likely token is another one; in neutral texts, the KL divergence."""
    for name, found in effects.items():
        for first in range(0, len(found), _FACTS):
            part = found[first : first + _FACTS]
            states = np.concatenate([states for _, states in part])
            if name == _ON_TEXT:
                logits = lm.unembed(states, normed=True).reshape(len(part), 3, -1)
                for (i, _), rows in zip(part, logits):
                    damage = kl(rows)
                    put("kl|estimate", i, float(damage[0]))
                    put("kl|random direction", i, float(damage[1]))
            else:
                for (i, _), said in zip(part, most_likely(lm, states, normed=True).reshape(len(part), 3)):
                    put(f"unchanged: {name}|estimate", i, float(said[1] == said[0]))
                    put(f"unchanged: {name}|random direction", i, float(said[2] == said[0]))


def _told(lm: "LanguageModel", site: str, shown: Sequence[tuple[Prompt, np.ndarray]]) -> list[dict[str, str]]:
    """How the texts go on, before and after."""
    if not shown:
        return []
    prompts, steps = [prompt for prompt, _ in shown], np.stack([step for _, step in shown])
    before = lm.generate(prompts, 8)
    with lm.edit(Edit.add(site, steps, tokens="subject.last", per_prompt=True)):
        after = lm.generate(prompts, 8)
    return [dict(zip(("before", "after"), (c.text.split("\n")[0].strip() for c in both))) for both in zip(before, after)]
