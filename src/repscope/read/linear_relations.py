"""Linear relational embeddings (LRE): relations such as "capital of" as affine maps.

Hernandez et al. 2024, arXiv 2308.09124:

    LRE(s) = β W s + b,   W = mean of ∂o/∂s,   b = mean of o - (∂o/∂s) s    over n examples

s is the subject at its last token in some block, o the state from which the answer is decoded. Each example in turn is the query,
the other n - 1 are few-shot demonstrations.

1. All subject layers come from the same passes (`lm.jacobian`): one vector-Jacobian product serves all blocks.
2. β multiplies only W s; β and the layer are selected on other examples than those scored.
3. Faithfulness: the map's most likely token is the beginning of the object, on subjects that the model answers correctly.
4. W of a wide network is of low rank, made from fewer products and kept as factors (`MeanJacobian.low_rank`).
5. Baselines: the subject's own logit lens, a translation, ridge regression on the same and on all examples, the map applied to
   another subject, the map of another relation, the map from the embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from repscope.data.relations import Pair, Relation
from repscope.data.relations.definition import need_pairs
from repscope.errors import UserError, unknown
from repscope.models.linear.jacobian_passes import Prefixes
from repscope.models.linear.low_rank import PART, Certificate, LowRank
from repscope.models.prompts import Prompt, encode
from repscope.models.sites import Site, Tokens
from repscope.read.known_facts import EncodedFacts, distinct, encode_facts, most_likely, starts_with
from repscope.read.token_sums import most_likely_of_each

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

EXAMPLES = 5
READ_AT = {"first": "last", "mean": "answering.mean"}  #: tokens at which an object's state is read
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 7.0)
WIDE = 1024  #: width above which studies take `rank="auto"`
TOLERANCE = 0.25  #: relative error of all W at which `rank="auto"` is content
_DENSE = 1536  #: largest width of a full singular value decomposition
_REST = "from subject"  #: span from the subject's last character to the end


@dataclass(frozen=True, eq=False)
class LRE:
    """One relation as an affine map between two sites.

    site, target: names. weight: (d_target, d_source), W, an array or two factors. bias: (d_target), b. beta: multiplies W s.
    """

    site: str
    target: str
    weight: Float[np.ndarray, "d_target d_source"] | LowRank
    bias: Float[np.ndarray, "d_target"]
    beta: float = 1.0

    def __call__(self, subjects: Float[np.ndarray, "row d_source"], beta: float | None = None) -> Float[np.ndarray, "row d_target"]:
        """βWs + b for each subject vector.

        Raises
        ------
        UserError
            For a β that is not a positive number.
        """
        scale = self.beta if beta is None else beta
        _need_beta(scale)
        out: np.ndarray = scale * (subjects @ self.weight.T) + self.bias
        return out

    @property
    def most_rank(self) -> int:
        """The largest rank of an inverse."""
        return self.weight.rank if isinstance(self.weight, LowRank) else min(self.weight.shape)

    @cached_property
    def _svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if isinstance(self.weight, LowRank):
            return self.weight.svd()
        u, s, v = torch.linalg.svd(torch.from_numpy(self.weight), full_matrices=False)  # twice as fast as numpy's
        return u.numpy(), s.numpy(), v.numpy()

    def triplets(self, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The leading singular triplets (d_target, rank), (rank), (rank, d_source).

        The full decomposition of a small map, or of factors, is cached; of a wide array only the leading triplets are computed.

        Raises
        ------
        UserError
            For a rank that the map does not have.
        """
        if not 1 <= rank <= self.most_rank:
            raise UserError(f"A map of {self.weight.shape} has no rank {rank}; choose 1 to {self.most_rank}.")
        if isinstance(self.weight, LowRank) or self.most_rank <= _DENSE:
            u, s, v = self._svd
            return u[:, :rank], s[:rank], v[:rank]
        from sklearn.utils.extmath import randomized_svd

        u, s, v = randomized_svd(self.weight, rank, n_iter=6, random_state=0)
        return u, s, v

    def pulled_back(self, states: Float[np.ndarray, "row d_target"], rank: int) -> Float[np.ndarray, "row d_source"]:
        """W† of that rank times each state, without W† itself; raises as `triplets`."""
        u, s, v = self.triplets(rank)
        found: np.ndarray = ((states @ u) / s) @ v
        return found

    def inverse(self, rank: int) -> Float[np.ndarray, "d_source d_target"] | LowRank:
        """W† of that rank: V Σ⁻¹ Uᵀ over the leading triplets, which avoids amplified noise from small singular values.

        Two factors where W is; raises as `triplets`.
        """
        u, s, v = self.triplets(rank)
        if isinstance(self.weight, LowRank):
            return LowRank(v.T / s, u.T)
        made: np.ndarray = (v.T / s) @ u.T
        return made


@dataclass(frozen=True, eq=False)
class LREs(Mapping[str, LRE]):
    """The maps of one relation from every subject layer. `fits["resid_post.12"]` is one.

    facts: the tokenized relation. examples: few-shot examples of the fit. held: maps by site. tokens: whether an object's state is
    that before its first token or the mean over the positions of all. certificate: of maps of low rank. each: by site the maps of
    the examples alone (example, d_target, d_source), where they were asked for.
    """

    facts: EncodedFacts
    examples: tuple[Pair, ...]
    held: Mapping[str, LRE]
    template: int = 0
    tokens: Literal["first", "mean"] = "first"
    certificate: Certificate | None = None
    each: Mapping[str, Float[np.ndarray, "example d_target d_source"]] | None = None

    def __getitem__(self, site: str) -> LRE:
        """The map from a site.

        Raises
        ------
        UserError
            For a site without a map.
        """
        if site not in self.held:
            raise unknown("subject layer", site, self.held)
        return self.held[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)

    def __repr__(self) -> str:
        return f"LREs({self.facts.relation.name}, {len(self)} layers from {len(self.examples)} examples)"

    def prompt(self, subject: str) -> Prompt:
        """The question for a subject after all the examples."""
        shots = [pair for pair in self.examples if pair[0] != subject]
        return self.facts.prompt(subject, shots, self.template)

    def subjects(self, lm: "LanguageModel", names: Sequence[str]) -> dict[str, Float[np.ndarray, "subject d_model"]]:
        """Vectors of subjects at every fitted layer and at the target, queried after the examples.

        Raises
        ------
        UserError
            For one text in place of a list, no subject, and a subject that is empty or no text.
        """
        _need_subjects(names)
        return vectors(lm, [self.prompt(name) for name in names], list(self), next(iter(self.held.values())).target)

    def states(self, lm: "LanguageModel", pairs: Sequence[Pair]) -> Float[np.ndarray, "pair d_target"]:
        """Activations at the target for the objects of pairs, at the maps' positions; `concepts` averages them."""
        target = next(iter(self.held.values())).target
        if self.tokens == "first":
            prompts = [self.prompt(subject) for subject, _ in pairs]
        else:
            prompts = [self.facts.answering(lm, s, o, [p for p in self.examples if p[0] != s], self.template) for s, o in pairs]
        found: np.ndarray = lm.capture(prompts, target, READ_AT[self.tokens])[target]
        return found

    def answers(self, lm: "LanguageModel", names: Sequence[str], site: str, beta: float | None = None) -> list[str]:
        """The map's most likely token per subject. beta: in place of the map's own, which is 1 unless it was chosen.

        Raises
        ------
        UserError
            For a site without a map, a β that is not a positive number; as `subjects`.
        """
        fit = self[site]
        _need_beta(beta)
        held = self.subjects(lm, names)
        return [lm.tokenizer.decode([i]) for i in most_likely(lm, fit(held[site], beta))]


def lre(
    lm: "LanguageModel",
    relation: "Relation | EncodedFacts",
    *,
    examples: Sequence[Pair] | None = None,
    n: int = EXAMPLES,
    sites: str | Sequence[str] | None = None,
    target: str | None = None,
    tokens: Literal["first", "mean"] = "first",
    template: int = 0,
    seed: int = 0,
    rank: int | Literal["auto"] | None = None,
    each: bool = False,
    prefixes: Prefixes | None = None,
) -> LREs:
    """Fit the linear relational embedding of a relation from all subject layers at once.

    Parameters
    ----------
    relation
        `rs.relation("country-capital")`, or a file's, or one's own `Relation`.
    examples
        Pairs for the fit; default: n drawn from the relation, with different objects.
    n
        Number of examples to draw.
    sites
        Subject layers, or one; default: the embedding and every block before the target.
    target
        Layer of the object's state; default: the last block.
    tokens
        The object's state: before its first token, or the mean over the positions of all its tokens.
    template
        Index of the relation's template.
    seed
        Of the draw.
    rank
        None: W as it is, from d_target products. A number, or "auto": W of low rank from fewer products, as two factors; "auto"
        takes as many columns as the estimated error asks for, but no more than a third of d_target products give. `certificate`
        of the result has the rank, the products and the errors.
    each
        Keep the maps of the examples alone as well, where W is whole.
    prefixes
        As in `lm.jacobian`.

    Raises
    ------
    UserError
        For more examples than samples, fewer than two, examples that are no pairs of texts, an unknown template, no site, or a rank
        that is neither "auto" nor a whole number of 1 or more; as `encode_facts` and `lm.jacobian`.

    >>> from repscope.worlds.tiny import tiny
    >>> from repscope.data.relations import relation
    >>> fits = lre(tiny(), relation("country-capital"), n=3)
    >>> fits["resid_post.1"].weight.shape, len(fits)
    ((32, 32), 4)
    """
    if rank is not None and rank != "auto" and not _counts(rank):
        raise UserError(f'The rank of a map is a whole number of 1 or more, "auto" or None, not {rank!r}.')
    asked = [sites] if isinstance(sites, str) else ["embed", "resid_post"] if sites is None else list(sites)
    if not asked:
        raise UserError("sites is an empty list; name a layer, such as resid_post.1, or leave it out for all of them.")
    held = relation if isinstance(relation, EncodedFacts) else encode_facts(lm, relation)
    samples = held.relation.samples
    if not 0 <= template < len(held.relation.templates):
        raise UserError(
            f"The relation {held.relation.name!r} has {len(held.relation.templates)} templates; there is no number {template}."
        )
    if examples is None:
        if not _counts(n) or not 2 <= n <= len(samples):
            raise UserError(
                f"{n} examples were asked for; the relation {held.relation.name!r} has {len(samples)} usable samples: give n "
                f"from 2 to {len(samples)}."
            )
        rows = distinct(samples, np.random.default_rng(seed).permutation(len(samples)), n)
        examples = [samples[i] for i in rows]
    if len(examples) < 2:
        raise UserError(f"An LRE takes at least 2 examples, and {len(examples)} were given: each is asked after the others.")
    need_pairs("The list of examples", examples)
    end = target or f"resid_post.{lm.blocks - 1}"
    shots = [[p for p in examples if p[0] != s] for s, _ in examples]
    if tokens == "mean":
        prompts = [held.answering(lm, s, o, given, template) for (s, o), given in zip(examples, shots)]
    else:
        prompts = [held.prompt(s, given, template) for (s, _), given in zip(examples, shots)]
    jac = lm.jacobian(
        prompts,
        asked,
        end,
        source_tokens="subject.last",
        target_tokens=READ_AT[tokens],
        prefixes=prefixes,
        at_once=None if rank is None else max(1, int(PART * len(prompts))),
    )
    found: Mapping[Site, tuple[np.ndarray | LowRank, np.ndarray]]
    certificate: Certificate | None = None
    alone: dict[str, np.ndarray] | None = None
    if rank is not None:
        found, certificate = jac.mean().low_rank(None if rank == "auto" else rank, tolerance=TOLERANCE if rank == "auto" else 0.0)
    elif each:
        found, matrices = jac.mean().affine_of_each()
        alone = {str(site): m for site, m in matrices.items()}
    else:
        found = jac.mean().affine()
    left: dict[int, np.ndarray] = {}  # the factor that all sites share, once
    made = {str(site): LRE(str(site), end, _single(w, left), bias.astype(np.float32)) for site, (w, bias) in found.items()}
    return LREs(held, tuple(examples), made, template, tokens, certificate, alone)


def _counts(number: object) -> bool:
    """Whether it is a whole number of 1 or more."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool) and bool(number >= 1)


def _need_beta(beta: object) -> None:
    if beta is None:
        return
    if isinstance(beta, bool) or not isinstance(beta, (int, float, np.integer, np.floating)) or not 0 < beta < np.inf:
        raise UserError(f"beta is {beta!r}; give a positive number, such as 2, or None for that of the map.")


def _need_subjects(names: Sequence[object]) -> None:
    if isinstance(names, str):
        raise UserError(f"The subjects are one text, {names[:40]!r}; give a list, such as [{names[:40]!r}].")
    if not len(names):
        raise UserError("There is no subject; give at least one.")
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"The subject {name!r} is no text; give names, such as 'France'.")
        if not name.strip():
            raise UserError("A subject is empty; give its name.")


def _single(weight: np.ndarray | LowRank, left: dict[int, np.ndarray]) -> np.ndarray | LowRank:
    """In float32; a left factor that maps share is converted once."""
    if not isinstance(weight, LowRank):
        return weight.astype(np.float32)
    shared = left.setdefault(id(weight.left), weight.left.astype(np.float32))
    return LowRank(shared, weight.right.astype(np.float32))


def vectors(
    lm: "LanguageModel", prompts: Sequence[Prompt], sites: Sequence[str], target: str
) -> dict[str, Float[np.ndarray, "prompt d_model"]]:
    """Subject vectors at sites, and under "target" the activations at the end of the same prompts."""
    at, end = at_subject_and_end(lm, prompts, list(sites), [target])
    return at | {"target": end[target]}


def at_subject_and_end(
    lm: "LanguageModel", prompts: Sequence[Prompt], sites: Sequence[str], ends: Sequence[str]
) -> tuple[dict[str, Float[np.ndarray, "prompt d_model"]], dict[str, Float[np.ndarray, "prompt d_model"]]]:
    """Vectors at the subject's last token (`sites`) and at the prompt's last one (`ends`), from one pass over the prompts."""
    if not lm.causal:  # a token behind the text belongs to no span
        at, end = lm.capture(prompts, list(sites), "subject.last"), lm.capture(prompts, list(ends), "last")
        return {str(s): at[s] for s in at.sites}, {str(s): end[s] for s in end.sites}
    spanned = [replace(p, spans={**p.spans, _REST: (p.spans["subject"][1] - 1, len(p.text))}) for p in prompts]
    named = [str(s) for s in lm.resolve([*sites, *ends])]
    held = lm.capture(spanned, list(dict.fromkeys(named)), f"{_REST}.all")
    first, last = held.offsets[:-1], held.offsets[1:] - 1
    wanted, asked = ([str(s) for s in lm.resolve(list(some))] for some in (sites, ends))
    return {site: held[site][first] for site in wanted}, {site: held[site][last] for site in asked}


def right(lm: "LanguageModel", states: Float[np.ndarray, "row d_model"], objects: Sequence[str]) -> Bool[np.ndarray, "row"]:
    """Whether the most likely token of each state begins its object."""
    return begins(lm, most_likely(lm, states), objects)


def begins(lm: "LanguageModel", tokens: Int[np.ndarray, "row"], objects: Sequence[str]) -> Bool[np.ndarray, "row"]:
    """Whether each token begins its object."""
    return np.array([starts_with(lm.tokenizer.decode([int(i)]), obj) for i, obj in zip(tokens, objects)], dtype=bool)


def best_beta(
    lm: "LanguageModel",
    fit: LRE,
    subjects: Float[np.ndarray, "row d_source"],
    objects: Sequence[str],
    betas: Sequence[float] = BETAS,
) -> tuple[LRE, float]:
    """The map with the most accurate β on these subjects (ties: nearest to 1), and its accuracy."""
    return next(best_betas(lm, [(fit, subjects)], objects, betas))


def best_betas(
    lm: "LanguageModel",
    fits: Sequence[tuple[LRE, Float[np.ndarray, "row d_source"]]],
    objects: Sequence[str],
    betas: Sequence[float] = BETAS,
) -> Iterator[tuple[LRE, float]]:
    """`best_beta` of several maps, each with its subjects' vectors; they share products with the head."""
    asked = ((subjects @ fit.weight.T, fit.bias, [(beta, 1.0) for beta in betas]) for fit, subjects in fits)
    for (fit, _), tokens in zip(fits, most_likely_of_each(lm, asked)):
        hits = np.array([begins(lm, said, objects).mean() for said in tokens])
        best = max(range(len(betas)), key=lambda i: (hits[i], -abs(np.log(betas[i]))))
        yield replace(fit, beta=betas[best]), float(hits[best])


def ridge_map(
    subjects: Float[np.ndarray, "row d_source"], states: Float[np.ndarray, "row d_target"], site: str, target: str
) -> LRE:
    """Affine map by ridge regression with leave-one-out penalty: a baseline without derivatives."""
    from sklearn.linear_model import RidgeCV

    scale = float(np.square(subjects - subjects.mean(0)).sum(1).mean()) or 1.0
    alphas = scale * np.logspace(-5, 2, 8)
    made = RidgeCV(alphas).fit(subjects.astype(np.float64), states.astype(np.float64))
    return LRE(site, target, made.coef_.astype(np.float32), np.asarray(made.intercept_, dtype=np.float32))


def translation(subjects: Float[np.ndarray, "row d"], states: Float[np.ndarray, "row d"], site: str, target: str) -> LRE:
    """Translation by one vector for all subjects: o = s + mean(o - s)."""
    return LRE(site, target, np.eye(subjects.shape[1], dtype=np.float32), (states - subjects).mean(0))


def attribute_lens(lm: "LanguageModel", fits: LREs, text: "str | Prompt", *, top_k: int = 5) -> pd.DataFrame:
    """A relation's maps applied to every token of a text at every block (the attribute lens of arXiv 2308.09124).

    Returns
    -------
    pandas.DataFrame
        One row per block and position: block (-1: embedding), position, token, predicted, probability, top_five.

    Raises
    ------
    UserError
        As `lm.capture`.
    """
    acts = lm.capture([text], list(fits), "all")
    ids = encode(lm.tokenizer, [text], Tokens("all"), causal=lm.causal).ids[0]
    cells = []
    for site, fit in fits.items():
        logits = lm.unembed(fit(acts[site]).astype(np.float32))
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True, dtype=np.float64).astype(np.float32)
        layer = Site.parse(site).layer
        for position, chance in enumerate(chances):
            order = np.argpartition(-chance, min(top_k, len(chance)) - 1)[:top_k]
            order = order[np.argsort(-chance[order])]
            words = [lm.tokenizer.decode([int(i)]) for i in order]
            listed = ", ".join(f"{w.strip()} {chance[i]:.2f}" for w, i in zip(words, order))
            place = {"block": -1 if layer is None else layer, "position": position, "token": lm.tokenizer.decode([ids[position]])}
            cells.append({**place, "predicted": words[0], "probability": float(chance[order[0]]), "top_five": listed})
    return pd.DataFrame(cells)
