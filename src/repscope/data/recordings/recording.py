"""Recording: what regions of subjects' brains responded to conditions, by names of conditions. Knows no file and no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from repscope.errors import UserError, unknown

Responses = Float[np.ndarray, "repeat condition channel"]
LEAST = 3  #: conditions


@dataclass(frozen=True, eq=False)
class Recording:
    """Responses of regions, or their RDMs where responses were not published.

    conditions: names, all different. responses: region → subject → array (repeat, condition, channel). rdms: region → matrices
    (subject, condition, condition). images: (condition, height, width, colour) or none. texts: of the conditions, or none. table:
    what else is known of each condition. notes: what is missing or was left out, counted, in sentences.

    Raises a `UserError` for fewer than 3 conditions, names that occur twice, arrays of other conditions, values that are not
    finite, a region whose responses do not vary, or RDMs that are not symmetric with a diagonal of 0.
    """

    conditions: tuple[str, ...]
    responses: Mapping[str, Mapping[str, Responses]] = field(default_factory=dict)
    rdms: Mapping[str, Float[np.ndarray, "subject condition condition"]] = field(default_factory=dict)
    images: Float[np.ndarray, "condition height width colour"] | None = None
    texts: tuple[str, ...] | None = None
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be compared with anything."""
        n = len(self.conditions)
        if n < LEAST:
            raise UserError(
                f"The recording has {n} condition{'' if n == 1 else 's'}; at least {LEAST} are needed to compare any two."
            )
        twice = sorted({c for c in self.conditions if self.conditions.count(c) > 1}) if len(set(self.conditions)) < n else []
        if twice:
            raise UserError(f"Condition {twice[0]!r} occurs twice in the recording; give each condition a name of its own.")
        if not self.regions:
            raise UserError("The recording has no region; give responses or RDMs of at least one.")
        for region, subjects in self.responses.items():
            for subject, x in subjects.items():
                _check_responses(x, n, f"{subject}, {region}")
        for region, rdms in self.rdms.items():
            for i, matrix in enumerate(rdms):
                _check_rdm(matrix, n, f"RDM {i + 1} of {region}")
        for what, count in (
            ("images", None if self.images is None else len(np.asarray(self.images))),
            ("texts", None if self.texts is None else len(list(self.texts))),
        ):
            if count is not None and count != n:
                raise UserError(f"The recording has {count} {what} for {n} conditions; give one per condition.")

    def __repr__(self) -> str:
        subjects = max([*map(len, self.responses.values()), *map(len, self.rdms.values())], default=0)
        return f"Recording({len(self.conditions)} conditions, {subjects} subjects, regions {', '.join(self.regions)})"

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of all regions."""
        return (*self.responses, *(r for r in self.rdms if r not in self.responses))

    def region(self, name: str) -> str:
        """The name of a region, checked.

        Raises
        ------
        UserError
            For a region that is not there.
        """
        if name not in self.regions:
            raise unknown("region", name, self.regions)
        return name

    def select(self, conditions: Sequence[str]) -> "Recording":
        """The recording of some of its conditions, in this order.

        Raises
        ------
        UserError
            For a condition that is not there, and as `Recording`.
        """
        place = {name: i for i, name in enumerate(self.conditions)}
        for name in conditions:
            if name not in place:
                raise unknown("condition", name, self.conditions)
        at = np.array([place[name] for name in conditions], dtype=int)
        return replace(
            self,
            conditions=tuple(conditions),
            responses={r: {s: x[:, at] for s, x in subjects.items()} for r, subjects in self.responses.items()},
            rdms={r: x[:, at[:, None], at] for r, x in self.rdms.items()},
            images=None if self.images is None else self.images[at],
            texts=None if self.texts is None else tuple(self.texts[i] for i in at),
            table=self.table.iloc[at].reset_index(drop=True) if len(self.table) else self.table,
        )

    def matched(self, names: Sequence[str]) -> "tuple[Recording, list[int], tuple[str, ...]]":
        """The conditions that both have: the recording of them, their places in `names`, and what was left out, counted.

        Raises
        ------
        UserError
            For a name that occurs twice, or fewer than 3 names in common.
        """
        given = list(names)
        if len(set(given)) < len(given):
            twice = next(name for name in given if given.count(name) > 1)
            raise UserError(f"Condition {twice!r} occurs twice among the network's; give each input a name of its own.")
        common = [name for name in self.conditions if name in set(given)]
        if len(common) < LEAST:
            raise UserError(
                f"{len(common)} of the recording's {len(self.conditions)} conditions are among the network's {len(given)} "
                f"(such as {self.conditions[0]!r} and {given[0]!r}); name the network's inputs as the recording does."
                if given
                else "The network was given no condition; name its inputs as the recording does."
            )
        notes = []
        for count, whose in ((len(self.conditions) - len(common), "the recording"), (len(given) - len(common), "the network")):
            if count:
                notes.append(f"{count} conditions of {whose} have no counterpart and were left out; {len(common)} are compared.")
        return self.select(common), [given.index(name) for name in common], tuple(notes)


def _check_responses(x: Responses, conditions: int, what: str) -> None:
    if x.ndim != 3 or x.shape[1] != conditions or not x.shape[0] or not x.shape[2]:
        raise UserError(
            f"The responses of {what} have shape {x.shape}; give (repeat, condition, channel) of {conditions} conditions."
        )
    if not np.isfinite(x).all():
        count = int((~np.isfinite(x)).sum())
        raise UserError(f"{count} responses of {what} are not finite; leave those channels or conditions out.")
    if (np.ptp(x, axis=1) == 0).all():
        raise UserError(f"The responses of {what} are the same for every condition; check how they were cut into trials.")


def _check_rdm(matrix: Float[np.ndarray, "condition condition"], conditions: int, what: str) -> None:
    if matrix.shape != (conditions, conditions):
        raise UserError(f"{what} has shape {matrix.shape}; give one row and column per condition, {conditions}.")
    if not np.isfinite(matrix).all():
        raise UserError(f"{what} has {int((~np.isfinite(matrix)).sum())} values that are not finite; leave those conditions out.")
    size = float(np.abs(matrix).max())
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-6 * size):
        i, j = np.unravel_index(int(np.abs(matrix - matrix.T).argmax()), matrix.shape)
        raise UserError(f"{what} is not symmetric: ({i}, {j}) is {matrix[i, j]:.4g} and ({j}, {i}) is {matrix[j, i]:.4g}.")
    if np.abs(np.diag(matrix)).max() > 1e-6 * size:
        raise UserError(f"{what} has a diagonal other than 0; give dissimilarities, not similarities.")
