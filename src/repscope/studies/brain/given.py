"""The user's recording compared with families of networks: those trained in the study, or the user's activations.

Networks trained here see the recording's images as 8 × 8 grey pixels, brighter than their background: a demonstration, and no model
of vision. Activations come as one file per network, FAMILY-SEED.npz or .safetensors, with an array (condition, feature) per layer,
rows in the order of the recording's conditions; FAMILY may be "untrained". Pixels of images are a baseline in both cases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from repscope.align import Comparison, compare
from repscope.conditions import ESTIMATE, LOWER_CEILING, OTHER_FAMILY, PIXELS, UNTRAINED, UPPER_CEILING, over
from repscope.data.recordings import Recording, recording
from repscope.data.recordings.files import read_arrays
from repscope.errors import UserError, no_file
from repscope.results import Result, Row
from repscope.stats import Estimate
from repscope.studies.brain import names
from repscope.studies.brain.task import BrainTask, stacked
from repscope.studies.run.study import Context
from repscope.worlds.brain import FAMILIES, LAYERS, digits
from repscope.worlds.brain.images import SIDE


@dataclass(frozen=True)
class GivenTask:
    """The user's recording and networks, beside the task of the study."""

    task: BrainTask

    @cached_property
    def recording(self) -> Recording:
        """The recording; refuses one without images where no activations are given."""
        o = self.task.options
        assert o.recording is not None
        found = recording(o.recording)
        for region in o.regions:
            found.region(region)
        if found.images is None and not o.activations:
            raise UserError(
                f"{o.recording} has no images for the networks trained here; give activations of your networks with --activations."
            )
        return found

    @cached_property
    def files(self) -> dict[str, Path]:
        """The user's networks by name."""
        found = {}
        for name in self.task.options.activations:
            path = Path(name).expanduser()
            if path.suffix not in (".npz", ".safetensors"):
                raise UserError(f"{path} has no activations that can be read; give .npz or .safetensors files.")
            if not path.is_file():
                raise no_file(path, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
            if path.stem in found:
                raise UserError(f"Two files of activations are named {path.stem}; give each network a name of its own.")
            found[path.stem] = path
        return found

    def networks(self, inputs: Mapping[str, Result]) -> dict[str, dict[str, np.ndarray]]:
        """Layers of all networks by name, FAMILY-SEED."""
        if self.files:
            return {name: read_arrays(path) for name, path in self.files.items()}
        assert self.recording.images is not None
        layers = stacked(self.task.candidates(self.task.states(inputs)), as_digits(self.recording.images))
        named = [f"{family}-{i}" for family in FAMILIES for i in range(self.task.options.networks)]
        return {name: {title: layer[i] for title, layer in zip(LAYERS, layers)} for i, name in enumerate(named)}


def as_digits(images: Float[np.ndarray, "condition height width colour"]) -> Float[np.ndarray, "condition pixel"]:
    """Images as the networks' inputs: grey, 8 × 8 means, 0 at the background (the corners' median) and at most 1."""
    grey = images.mean(-1)
    grey = np.abs(grey - np.median(grey[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=1)[:, None, None])
    for axis in (1, 2):
        edges = np.linspace(0, grey.shape[axis], SIDE + 1).astype(int)
        if (np.diff(edges) < 1).any():
            raise UserError(f"The images of the recording have {images.shape[1:3]} pixels; the networks here need {SIDE} × {SIDE}.")
        grey = np.stack([part.mean(axis) for part in np.split(grey, edges[1:-1], axis)], axis)
    top = grey.max((1, 2), keepdims=True)
    scaled = np.divide(grey, top, out=np.zeros_like(grey), where=top > 0)
    return np.asarray(scaled.reshape(len(images), -1) - digits().mean)


def given_result(given: GivenTask, context: Context) -> Result:
    """Rows of the user's recording: similarity of families, gains over controls, noise ceilings."""
    o, held = given.task.options, given.recording
    networks = given.networks(context.inputs)
    groups: dict[str, list[str]] = {}
    for name in networks:
        groups.setdefault(name.rpartition("-")[0] or name, []).append(name)
    rows, notes = list[Row](), list[str]()
    for method in given.task.methods:
        regions = [r for r in (o.regions or held.regions) if method == names.RSA or r in held.responses]
        if not regions:
            notes.append("The recording has RDMs and no responses, so encoding models were left out.")
            continue
        how: Any = {"method": method, "regions": regions, "measure": o.measure, "seed": o.seed}
        found = compare(networks, held, **how)
        notes += found.result.notes
        for region in regions:
            if region in found.scores:
                rows += _rows(found, groups, method, region, o.seed)
    if not given.files:
        notes.append("Networks trained here see the recording's images as 8 × 8 grey pixels.")
    return Result.of(rows, notes=tuple(dict.fromkeys(notes)))


def _rows(found: Comparison, groups: Mapping[str, Sequence[str]], method: str, region: str, seed: int) -> list[Row]:
    scores = found.scores[region]
    known: dict[str, Sequence[str]] = dict(groups) | {c: (c,) for c in (PIXELS,) if c in found.networks}
    several = all(len(members) > 1 for members in groups.values()) and len(known) > 1
    families = found.families(known, region) if several else None

    def similarity(name: str) -> Estimate:
        return families.similarity[name] if families else scores.estimate(found.networks.index(known[name][0]))

    def difference(first: str, second: str) -> Estimate:
        at = [found.networks.index(known[name][0]) for name in (first, second)]
        return families.difference(first, second) if families else scores.difference(*at)

    split = "halves of the conditions"
    rows = []
    trained = [name for name in groups if name != names.CONTROL]
    for name in known:
        condition = {PIXELS: PIXELS, names.CONTROL: UNTRAINED}.get(name, ESTIMATE)
        item = names.item(method, region, name)
        where: dict[str, Any] = {"item": item, "split": split, "seed": seed}
        rows.append(Row.of(similarity(name), metric=names.SIMILARITY, definition=scores.what, condition=condition, **where))
        if condition != ESTIMATE:
            continue
        others = [n for n in trained if n != name]
        best = max(others, key=lambda n: similarity(n).value) if others else None
        for control, other in ((UNTRAINED, names.CONTROL), (PIXELS, PIXELS), (OTHER_FAMILY, best)):
            if other in known:
                gain = difference(name, other)
                rows.append(Row.of(gain, metric=names.GAIN, definition=names.SIMILARITY, condition=over(control), **where))
    for condition, value in ((LOWER_CEILING, scores.lower), (UPPER_CEILING, scores.upper)):
        if np.isfinite(value):
            at: dict[str, Any] = {"item": names.item(method, region), "condition": condition, "split": split, "seed": seed}
            rows.append(Row(value=value, metric=names.SIMILARITY, definition=scores.what, **at))
    return rows
