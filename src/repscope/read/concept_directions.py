"""Linear relational concepts: directions such as "in Italy" from inverted linear relations.

Chanin, Hunter & Camburu 2024, arXiv 2311.08968:

    v_o = W† (E[o] - b)

W and b are a relation's LRE to an intermediate layer, E[o] the mean state there over subjects with object o, W† the low-rank
pseudo-inverse. A subject is classified by its largest projection onto unit vectors; adding v_o' - v_o to a subject edits the fact.

1. The rank is selected on other subjects than those scored: at full rank, noise along small singular values dominates.
2. The inverse is that of the mean Jacobian of the examples, or the mean of their inverses.
3. Baselines: ridge and logistic regression on the same subjects, class means, differences of means.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.linear.low_rank import LowRank
from repscope.read.linear_relations import LRE
from repscope.read.probes import ridge_classes

RANKS = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, eq=False)
class Concepts:
    """Directions of a relation's objects at one layer.

    site: the layer. rank: of the inverse. names: objects. vectors: (object, d_source), v_o in the site's own units.
    """

    site: str
    rank: int
    names: tuple[str, ...]
    vectors: Float[np.ndarray, "object d_source"]

    def scores(self, subjects: Float[np.ndarray, "row d_source"]) -> Float[np.ndarray, "row object"]:
        """Projection of each subject onto each concept's unit vector."""
        lengths = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        out: np.ndarray = subjects @ (self.vectors / np.maximum(lengths, 1e-30)).T
        return out

    def classify(self, subjects: Float[np.ndarray, "row d_source"]) -> list[str]:
        """Object with the largest projection, per subject."""
        return [self.names[i] for i in self.scores(subjects).argmax(1)]

    def change(self, old: str, new: str) -> Float[np.ndarray, "d_source"]:
        """v_new - v_old: the step that moves a subject from one object to the other.

        Raises
        ------
        UserError
            For an unknown object.
        """
        at = {name: i for i, name in enumerate(self.names)}
        for name in (old, new):
            if name not in at:
                raise UserError(f"{name!r} is no concept here; there are {', '.join(self.names[:8])}.")
        moved: np.ndarray = self.vectors[at[new]] - self.vectors[at[old]]
        return moved

    def directions(self, model: str = "", relation: str = "") -> DirectionSet:
        """As a `DirectionSet`; the scale of each is the norm of v_o."""
        found_by = f"LRC of {relation or 'a relation'}, rank {self.rank}"
        made = [Direction.of(v, self.site, name, found_by=found_by) for name, v in zip(self.names, self.vectors)]
        return DirectionSet(made, model, found_by)


def concepts(
    fit: LRE,
    states: Float[np.ndarray, "row d_target"],
    objects: Sequence[str],
    rank: int,
    *,
    inverse: Float[np.ndarray, "d_source d_target"] | LowRank | None = None,
) -> Concepts:
    """Concepts from a relation's map and states of subjects whose objects are known.

    Parameters
    ----------
    fit
        The map from the concepts' layer to the states' layer.
    states
        Activations of subjects at the map's target.
    objects
        Their objects.
    rank
        Of W†; selected by cross-validation in the `relations` study.
    inverse
        Another W† (`mean_of_inverses`).

    Raises
    ------
    UserError
        For lists of different lengths, a map or states that are not finite, and as `LRE.triplets`.
    """
    if len(states) != len(objects):
        raise UserError(f"There are {len(states)} states and {len(objects)} objects; give one for each.")
    checked: dict[str, np.ndarray | LowRank] = {
        "array of states": states,
        "bias of the map": fit.bias,
        "weight of the map": fit.weight if inverse is None else inverse,
    }
    for what, numbers in checked.items():
        parts = (numbers.left, numbers.right) if isinstance(numbers, LowRank) else (numbers,)
        if not all(np.isfinite(part).all() for part in parts):
            raise UserError(f"The {what} from {fit.site} to {fit.target} has values that are not finite; make it again.")
    names, means = class_means(states, objects)
    moved = means - fit.bias
    found = fit.pulled_back(moved, rank) if inverse is None else moved @ inverse.T
    return Concepts(fit.site, rank, names, found.astype(np.float32))


def mean_of_inverses(
    matrices: Float[np.ndarray, "example d_target d_source"] | Sequence[LowRank], rank: int
) -> Float[np.ndarray, "d_source d_target"] | LowRank:
    """The mean of the examples' own pseudo-inverses ("post-mean"); the default inverts their mean ("pre-mean").

    Two factors for matrices that are.
    """
    if not isinstance(matrices, np.ndarray):
        parts = [(u[:, :rank], s[:rank], v[:rank]) for u, s, v in (m.svd() for m in matrices)]
        return LowRank(np.concatenate([v.T / s / len(parts) for _, s, v in parts], 1), np.concatenate([u.T for u, _, _ in parts]))
    total = np.zeros(matrices.shape[:0:-1])
    for matrix in matrices:
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        total += (v[:rank].T / s[:rank]) @ u[:, :rank].T / len(matrices)
    return total


def class_means(
    rows: Float[np.ndarray, "row feature"], objects: Sequence[str]
) -> tuple[tuple[str, ...], Float[np.ndarray, "object feature"]]:
    """Mean row per object, in alphabetic order of objects."""
    names, inverse = np.unique(np.asarray(objects, dtype=object).astype(str), return_inverse=True)
    means = np.stack([rows[inverse == i].mean(0) for i in range(len(names))])
    return tuple(str(n) for n in names), means


def by_means(
    train: Float[np.ndarray, "row d"], objects: Sequence[str], test: Float[np.ndarray, "row d"], *, others: bool
) -> list[str]:
    """Classify by unit class means, or with `others` by each mean minus the mean of all other rows ("difference of means").

    The two differ only by the mean of all rows.
    """
    names, means = class_means(train, objects)
    held = np.asarray(objects).astype(str)
    directions, rows = means, test
    if others:
        directions = np.stack([m - train[held != name].mean(0) for name, m in zip(names, means)])
        rows = test - train.mean(0)
    directions = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-30)
    return [names[i] for i in (rows @ directions.T).argmax(1)]


def by_probe(
    train: Float[np.ndarray, "row d"], objects: Sequence[str], test: Float[np.ndarray, "row d"], *, kind: str
) -> list[str]:
    """Classify by ridge (penalty by leave-one-out) or logistic regression, on standardised features."""
    if kind == "ridge":
        return ridge_classes(train, objects, test, np.logspace(0, 5, 11))
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    probe = LogisticRegression(C=0.01, max_iter=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # many classes with few rows are expected here
        probe.fit(scaler.transform(train).astype(np.float64), list(objects))
    return [str(name) for name in probe.predict(scaler.transform(test).astype(np.float64))]


def cross_validated(
    fits: Mapping[str, LRE],
    subjects: Mapping[str, Float[np.ndarray, "row d_source"]],
    states: Float[np.ndarray, "row d_target"],
    objects: Sequence[str],
    *,
    ranks: Sequence[int] = RANKS,
    folds: int = 2,
    seed: int = 0,
) -> Float[np.ndarray, "site rank"]:
    """Accuracy of concepts per site and rank, cross-validated: class means from training subjects, tested on the others."""
    fold = np.random.default_rng(seed).permutation(len(objects)) % folds
    held = np.asarray(objects).astype(str)
    hits = np.zeros((len(fits), len(ranks)))
    for k in range(folds):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        names, means = class_means(states[train], held[train].tolist())
        truth = np.array(names)[:, None] == held[test]  # (object, row)
        for i, (site, fit) in enumerate(fits.items()):
            for j, rank in enumerate(ranks):
                if rank <= fit.most_rank:
                    made = Concepts(site, rank, names, fit.pulled_back(means - fit.bias, rank).astype(np.float32))
                    said = made.scores(subjects[site][test]).argmax(1)
                    hits[i, j] += float(truth[said, np.arange(len(test))].sum())
    out: np.ndarray = hits / len(held)
    return out


def right(said: Sequence[str], objects: Sequence[str]) -> Bool[np.ndarray, "row"]:
    """Where the predicted object is correct."""
    return np.array([a == b for a, b in zip(said, objects)], dtype=bool)


def best(table: Float[np.ndarray, "site rank"]) -> tuple[int, int]:
    """Index of the largest entry; ties: the lower rank, then the earlier site."""
    order: Int[np.ndarray, "site rank"] = np.argwhere(table >= table.max() - 1e-12)
    site, rank = min(order.tolist(), key=lambda place: (place[1], place[0]))
    return int(site), int(rank)
