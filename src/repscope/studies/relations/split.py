"""One split of a relation: half of what the model knows chooses layer, β and rank, the other half is reported.

Each function gives hits: one number a reported subject under the name of what was tried, so that subjects pair across conditions
and pool across splits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from repscope.data.relations import Pair
from repscope.models.linear.low_rank import LowRank
from repscope.models.prompts import Prompt
from repscope.read.concept_directions import Concepts, best, by_means, by_probe, concepts, cross_validated, mean_of_inverses
from repscope.read.concept_directions import right as named
from repscope.read.known_facts import EncodedFacts, distinct, most_likely
from repscope.read.linear_relations import WIDE, LREs, at_subject_and_end, begins, best_betas, lre, ridge_map, translation
from repscope.read.relations_at_two_layers import lre_at_both
from repscope.read.token_sums import Sums, most_likely_of_each

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

Hits = dict[str, np.ndarray]
Tick = Callable[[float], None]
ANOTHER = "map on another subject's vector"


def is_wide(lm: "LanguageModel") -> bool:
    """Whether the model's maps are made of low rank."""
    return lm.anatomy is not None and lm.anatomy.width > WIDE


@dataclass(eq=False)
class Half:
    """Subjects with their objects, and what the network holds for them: by site at the subject, by target at the prompt's end."""

    pairs: Sequence[Pair]
    at: Mapping[str, Float[np.ndarray, "subject d_model"]]
    end: Mapping[str, Float[np.ndarray, "subject d_model"]]

    @property
    def objects(self) -> list[str]:
        """The objects, in order."""
        return [o for _, o in self.pairs]

    def __add__(self, other: "Half") -> "Half":
        return Half(
            [*self.pairs, *other.pairs],
            {k: np.concatenate([v, other.at[k]]) for k, v in self.at.items()},
            {k: np.concatenate([v, other.end[k]]) for k, v in self.end.items()},
        )


@dataclass(eq=False)
class Split:
    """One split: examples, the rest of the choosing half, the reported half.

    spelt: the relation. rows: known samples in random order. n: examples. object_site: where concepts are read.
    """

    lm: "LanguageModel"
    spelt: EncodedFacts
    rows: Sequence[int]
    n: int
    object_site: str
    seed: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def last_site(self) -> str:
        """The last block's output."""
        return f"resid_post.{self.lm.blocks - 1}"

    @property
    def rank(self) -> Literal["auto"] | None:
        """Maps of a wide network are of low rank."""
        return "auto" if is_wide(self.lm) else None

    def usable(self, ranks: Sequence[int]) -> list[int]:
        """The ranks that all maps to the layer of the concepts have; the largest rank, if they have none of them."""
        most = min(fit.most_rank for fit in self.early.values())
        return [r for r in ranks if r <= most] or [most]

    @cached_property
    def _parts(self) -> tuple[list[Pair], list[Pair], list[Pair]]:
        pairs = [self.spelt.relation.samples[i] for i in self.rows]
        half = max(self.n + 2, len(pairs) // 2)
        choosing = pairs[:half]
        taken = distinct(choosing, range(len(choosing)), self.n)
        return [choosing[i] for i in taken], [p for i, p in enumerate(choosing) if i not in taken], pairs[half:]

    @property
    def examples(self) -> list[Pair]:
        """What the maps are made from."""
        return self._parts[0]

    @cached_property
    def fits(self) -> LREs:
        """Maps to the last block."""
        fits, self.early = self._maps()
        return fits

    @cached_property
    def early(self) -> LREs:
        """Maps to the layer of the concepts."""
        self.fits, early = self._maps()
        return early

    def _maps(self) -> tuple[LREs, LREs]:
        if not is_wide(self.lm):
            return lre_at_both(self.lm, self.spelt, self.examples, self.object_site)
        ends = (None, self.object_site)
        to_last, to_concepts = (lre(self.lm, self.spelt, examples=self.examples, target=end, rank="auto") for end in ends)
        return to_last, to_concepts

    @cached_property
    def shown(self) -> Half:
        """The examples."""
        return self._half(self._parts[0])

    @cached_property
    def rest(self) -> Half:
        """The rest of the choosing half."""
        return self._half(self._parts[1])

    @cached_property
    def report(self) -> Half:
        """The reported half."""
        return self._half(self._parts[2])

    def prompt(self, subject: str) -> Prompt:
        """The question after the examples, without the subject's own."""
        return self.spelt.prompt(subject, [p for p in self.examples if p[0] != subject])

    def _half(self, pairs: Sequence[Pair]) -> Half:
        prompts = [self.prompt(s) for s, _ in pairs]
        return Half(pairs, *at_subject_and_end(self.lm, prompts, ["embed", "resid_post"], [self.object_site, self.last_site]))


def faithfulness(split: Split, tick: Tick) -> Hits:
    """The maps from every layer and what else could read the object, on the reported half; "chosen": at the other half's layer."""
    lm, rest, report, target = split.lm, split.rest, split.report, split.last_site
    everything = split.shown + split.rest
    hits: Hits = {}
    chosen: tuple[float, str] = (-1.0, "")
    turned = np.roll(np.arange(len(report.pairs)), 1)
    tuned = dict(split.fits.held)
    at_sites = [(fit, rest.at[site]) for site, fit in split.fits.items()]
    for site, (fit, rate) in zip(split.fits, best_betas(lm, at_sites, rest.objects)):
        tuned[site] = fit
        if rate > chosen[0] + 1e-9:
            chosen = (rate, site)
        tick(0.4 / len(split.fits))

    def asked() -> Iterator[Sums]:
        for site in split.fits:
            s, fit = report.at[site], tuned[site]
            yield s @ fit.weight.T, fit.bias, [(fit.beta, 1.0), (1.0, 1.0)]
            yield s, translation(everything.at[site], everything.end[target], site, target).bias, [(1.0, 0.0), (1.0, 1.0)]
            for half in (split.shown, everything):
                ridge = ridge_map(half.at[site], half.end[target], site, target)
                yield ridge(s), ridge.bias, [(1.0, 0.0)]

    found = most_likely_of_each(lm, asked())
    for site in split.fits:
        read, plain = next(found)
        lens, shifted = next(found)
        said = {
            "estimate": read,
            "beta 1": plain,
            "logit lens": lens,
            "translation": shifted,
            "ridge map, the same examples": next(found)[0],
            "ridge map, whole half": next(found)[0],
            ANOTHER: read[turned],
        }
        for name, tokens in said.items():
            hits[f"{name}|{site}"] = begins(lm, tokens, report.objects)
        tick(0.6 / len(split.fits))
    site = chosen[1]
    for name in list(hits):
        condition, _, at = name.partition("|")
        if at == site:
            hits[f"{condition}|chosen"] = hits[name]
    hits["map from the embedding|chosen"] = hits["estimate|embed"]
    common = _most_common(everything.objects)
    hits["majority object|chosen"] = np.array([o == common for o in report.objects])
    own = most_likely(lm, report.end[target])
    hits["agrees|chosen"] = most_likely(lm, tuned[site](report.at[site])) == own
    split.facts |= {"site": site, "beta": tuned[site].beta, "fits": LREs(split.spelt, tuple(split.examples), tuned)}
    return hits


def _most_common(objects: Sequence[str]) -> str:
    """The most common object; of several, the one that stands first."""
    return max(dict.fromkeys(objects), key=objects.count)


def classification(split: Split, ranks: Sequence[int], tick: Tick) -> tuple[Hits, "Concepts | None", str]:
    """Concepts against probes, on reported subjects whose object is among the choosing half's; or why not."""
    rest, everything = split.rest, split.shown + split.rest
    seen = set(everything.objects)
    repeated = {o for o in seen if everything.objects.count(o) > 1}
    keep = np.array([o in seen for o in split.report.objects], dtype=bool)
    if len(repeated) < 2 or keep.sum() < 8 or len(rest.pairs) < 8:
        return {}, None, f"too few subjects share an object ({len(repeated)} objects twice in the choosing half)"
    here = split.object_site
    ranks = split.usable(ranks)
    fits = {site: split.early[site] for site in split.early}
    table = cross_validated(fits, rest.at, rest.end[here], rest.objects, ranks=ranks, seed=split.seed)
    tick(0.4)
    i, j = best(table)
    site, rank = list(fits)[i], ranks[j]
    truth = [o for o, k in zip(split.report.objects, keep) if k]
    hits: Hits = {}

    def scored(said: Sequence[str]) -> np.ndarray:
        full = np.full(len(keep), np.nan)
        full[keep] = named(said, truth)
        return full

    made = None
    probes: dict[str, float] = {}
    fold = np.random.default_rng(split.seed).permutation(len(rest.pairs)) % 2
    for at, fit in fits.items():
        test = split.report.at[at][keep]
        for r in ranks:
            found = concepts(fit, everything.end[here], everything.objects, r)
            hits[f"rank {r}|{at}"] = scored(found.classify(test))
            if at == site and r == rank:
                made = found
                hits["estimate|chosen"] = hits[f"rank {r}|{at}"]
        hits[f"ridge probe|{at}"] = scored(by_probe(everything.at[at], everything.objects, test, kind="ridge"))
        for name, others in (("class means", False), ("difference of means", True)):
            hits[f"{name}|{at}"] = scored(by_means(everything.at[at], everything.objects, test, others=others))
        inner = []
        for k in (0, 1):
            a, b = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            names = [rest.objects[x] for x in a]
            if len(set(names)) > 1:
                said = by_probe(rest.at[at][a], names, rest.at[at][b], kind="ridge")
                inner += list(named(said, [rest.objects[x] for x in b]))
        probes[at] = float(np.mean(inner)) if inner else 0.0
        tick(0.5 / len(fits))
    surest = max(probes, key=lambda at: probes[at])
    test = split.report.at[site][keep]
    hits["ridge probe|chosen"] = hits[f"ridge probe|{surest}"]
    hits["logistic probe|chosen"] = scored(by_probe(everything.at[site], everything.objects, test, kind="logistic"))
    for name in ("class means", "difference of means"):
        hits[f"{name}|chosen"] = hits[f"{name}|{site}"]
    common = _most_common(everything.objects)
    hits["majority object|chosen"] = scored([common] * len(truth))
    shuffled = np.random.default_rng(split.seed).permutation(len(everything.pairs))
    mixed = concepts(fits[site], everything.end[here], [everything.objects[x] for x in shuffled], rank)
    hits["shuffled objects|chosen"] = scored(mixed.classify(test))
    inverse = mean_of_inverses(_of_each_example(split, site), rank)
    after = concepts(fits[site], everything.end[here], everything.objects, rank, inverse=inverse)
    hits["mean of the inverses|chosen"] = scored(after.classify(test))
    whole = lre(split.lm, split.spelt, examples=split.examples, sites=[site], target=here, tokens="mean", rank=split.rank)
    states = whole.states(split.lm, everything.pairs)
    hits["mean of the object's tokens|chosen"] = scored(concepts(whole[site], states, everything.objects, rank).classify(test))
    split.facts |= {"concept site": site, "rank": rank, "probe site": surest}
    return hits, made, ""


def _of_each_example(split: Split, site: str) -> Float[np.ndarray, "example d_target d_source"] | list[LowRank]:
    """The examples' own maps from a site to the layer of the concepts, which are not kept after that."""
    early = split.early
    if early.each is not None:
        split.early = replace(early, each=None)
        return early.each[site]
    prompts = [split.prompt(s) for s, _ in split.examples]
    jac, weight = split.lm.jacobian(prompts, site, split.object_site, source_tokens="subject.last"), early[site].weight
    return [LowRank(weight.left, rows) for rows in jac.vjp(weight.left.T)] if isinstance(weight, LowRank) else jac.matrix()
