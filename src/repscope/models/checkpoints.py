"""Sets of training checkpoints from several runs, with a metadata table and lazily loaded weights.

1. A set is a folder with `checkpoints.csv`: one row per checkpoint with the columns run, step and path (a safetensors file or a
   Hugging Face folder inside the set's folder), and optional metadata: init, head_seed, data_seed, recipe, group. For built-in
   networks, `network.json` has the sizes. In a folder of Hugging Face checkpoints without a table, every subfolder is one run.
2. Opening reads headers only, and refuses what cannot be interpolated: weights that differ in names or sizes, duplicate rows,
   missing files. A LoRA adapter (PEFT's folder) is a checkpoint where its base is a folder of the set, as `../base`: weights are
   merged as they are read. Tensors that networks compute themselves (rotary frequencies, masks) are ignored, and so are copies of
   tied weights that only some checkpoints store, once their values are verified.
3. Paths in a table must stay inside its folder; pickled files are never read.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from repscope import manifest, notebook
from repscope.disk import whole_folder
from repscope.errors import UserError, unknown
from repscope.models.engine.fingerprint import Fingerprint, digests_of, of_digests
from repscope.models.loading.adapters import WEIGHTS, Adapter, is_adapter
from repscope.models.loading.checkpoint_files import Sizes, Weights, files_of, need_sound, save, sizes_of
from repscope.models.loading.fetch import snapshot
from repscope.models.loading.stacked_weights import Shape, State, stack, unstack
from repscope.names import file_name
from repscope.untrusted import inside, parse_json

if TYPE_CHECKING:
    import altair as alt

TABLE, NETWORK = "checkpoints.csv", "network.json"
_NEEDED = ("run", "step", "path")
_OUTPUTS = ("lm_head.weight", "embed_out.weight", "decoder.weight")  #: matrices that are often tied to the embedding
_STEP = re.compile(r"(?:checkpoint|step)[-_]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class CheckpointSet:
    """Training runs and their checkpoints. Make one with `open`, `of`, `of_revisions` or `written`.

    folder: location of the table, or the working directory for a set of paths. table: one row per checkpoint with run (text),
    step (int), path (Path) and metadata. shape: sizes of built-in small networks, None for others.
    """

    folder: Path
    table: pd.DataFrame
    shape: Shape | None = None
    sizes: Sizes = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> "CheckpointSet":
        """Open the set in a folder: with a table, or with one run per subfolder.

        Raises
        ------
        UserError
            When there is no set, the table is broken, a file is missing or damaged, or weights differ in names or sizes.
        """
        home = Path(folder).expanduser()
        if not home.is_dir():
            raise UserError(f"There is no folder {home}; a set of checkpoints is a folder with {TABLE}.")
        if not (home / TABLE).is_file():
            inside = sorted(p for p in home.iterdir() if p.is_dir() and not p.name.startswith("."))
            found = [p for p in inside if list(p.glob("*.safetensors"))]
            if len(found) < 2 and list(home.glob("*.safetensors")):
                raise UserError(f"{home} is one model and no set; give a folder of two checkpoints or more.")
            if len(found) < 2:
                raise UserError(f"{home} has neither {TABLE} nor two folders with safetensors, so it is no set of checkpoints.")
            steps = re.compile(r".*\d")
            if steps.fullmatch(found[-1].name) and (broken := [p for p in set(inside) - set(found) if steps.fullmatch(p.name)]):
                raise UserError(f"{min(broken)} has no safetensors; complete this checkpoint, or remove its folder.")
            return cls.of(found)
        for file in (home / TABLE, home / NETWORK):
            if file.is_file():
                manifest.need_sound(file)
        return cls._checked(home, _read(home / TABLE, home), _shape(home / NETWORK))

    @classmethod
    def of(cls, paths: Iterable[str | Path]) -> "CheckpointSet":
        """A set of single checkpoints, each its own run: safetensors files or Hugging Face folders.

        Raises
        ------
        UserError
            As `open`.
        """
        held = [Path(p).expanduser() for p in paths]
        if twice := [str(p) for i, p in enumerate(held) if p in held[:i]]:
            raise UserError(f"{twice[0]} is given twice; a path from a network to itself says nothing.")
        names = [p.stem if p.is_file() else p.name for p in held]
        if len(set(names)) < len(names):
            names = [f"{p.parent.name}/{name}" for p, name in zip(held, names)]
        if len(set(names)) < len(names):
            names = [str(p) for p in held]
        steps = [int(m.group(1)) if (m := _STEP.search(p.name)) else 0 for p in held]
        return cls._checked(Path(), pd.DataFrame({"run": names, "step": steps, "path": held}), None)

    @classmethod
    def of_revisions(cls, model: str | Path, revisions: Iterable[str]) -> "CheckpointSet":
        """One run, whose checkpoints are revisions of a model on the hub, or the subfolders of a folder that have these names.

        Parameters
        ----------
        model
            A hub id "org/name", or a folder.
        revisions
            Names with their steps in them (step1000, stage1-step2000-tokens5B, checkpoint-10), or numbers, in the order of steps.

        Raises
        ------
        UserError
            For a revision that is missing or has no step in its name, steps that do not ascend, and as `open`.
        """
        names, home = list(revisions), Path(model).expanduser()
        steps = [_step_of(name) for name in names]
        for i, (name, step) in enumerate(zip(names, steps)):
            if step is None:
                raise UserError(f"The revision {name!r} of {model} has no step in its name; give those named as step1000.")
            if i and step <= (steps[i - 1] or 0):
                raise UserError(
                    f"The revisions {names[i - 1]} and {name} are not in the order of their steps; give the earlier first."
                )
        if home.is_dir():
            held = sorted((p.name for p in home.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda n: (len(n), n))
            paths = []
            for name in names:
                if name not in held:
                    raise UserError(f"{home} has no revision {name!r}; it holds {', '.join(held[:8]) or 'no folder'}.")
                paths.append(home / name)
        else:
            paths = [snapshot(str(model), name, code=False, known=list)[0] for name in names]
        run = home.name if home.is_dir() else str(model)
        return cls._checked(Path(), pd.DataFrame({"run": run, "step": steps, "path": paths}), None)

    @classmethod
    def written(
        cls, folder: Path, shape: Shape, table: pd.DataFrame, states: Mapping[int, State], files: Mapping[str, str] | None = None
    ) -> "CheckpointSet":
        """Write trained small networks as a set, atomically.

        Parameters
        ----------
        folder
            Target folder; its contents are replaced.
        shape
            Sizes of the networks.
        table
            One row per run, in the order of the stack: the column run, and metadata.
        states
            Step → stacked weights.
        files
            Name → text of further files.
        """
        rows: list[dict[str, Any]] = []
        with whole_folder(folder) as partial:
            for step, state in states.items():
                for i, known in enumerate(table.to_dict("records")):
                    name = f"{file_name(str(known['run']))}/step-{step:06d}.safetensors"
                    save(partial / name, unstack(state, i), sync=False)  # the whole folder is
                    rows.append({"run": known["run"], "step": step, "path": name} | {str(k): v for k, v in known.items()})
            (partial / NETWORK).write_text(json.dumps({"kind": "small transformer", **asdict(shape)}, indent=2))
            pd.DataFrame(rows).to_csv(partial / TABLE, index=False)
            for file, text in (files or {}).items():
                (partial / file).write_text(text, encoding="utf-8")
        return cls.open(folder)

    @classmethod
    def _checked(cls, folder: Path, table: pd.DataFrame, shape: Shape | None) -> "CheckpointSet":
        if table.empty:
            raise UserError("There are no checkpoints; give at least one.")
        held: list[tuple[str, Path, Sizes]] = []
        for row in table.to_dict("records"):
            held.append((f"{row['run']} at step {row['step']}", row["path"], sizes_of(row["path"])))
        common = set.intersection(*(set(sizes) for _, _, sizes in held))
        first: tuple[str, Sizes] | None = None
        for name, path, sizes in held:
            extra = set(sizes) - common
            own = {n: size for n, size in sizes.items() if n not in extra or not _copy(path, n, sizes, common)}
            if first is not None and own != first[1]:
                raise UserError(f"{name} and {first[0]} are not networks of one kind: {_difference(own, first[1])}.")
            first = first or (name, own)
        return cls(folder, table.reset_index(drop=True), shape, first[1] if first else {})

    @cached_property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in the order of the table."""
        return tuple(dict.fromkeys(self.table["run"]))

    def select(self, **equal: object) -> "CheckpointSet":
        """The checkpoints whose row has these values; `step="last"` selects the last step of each run.

        Raises
        ------
        UserError
            For an unknown column, or when no checkpoint matches.
        """
        table = self.table
        for column, value in equal.items():
            if column not in table.columns:
                raise unknown("column", column, table.columns)
            if (column, value) == ("step", "last"):
                table = table[table["step"] == table.groupby("run")["step"].transform("max")]
            else:
                table = table[table[column] == value]
        if table.empty:
            said = ", ".join(f"{k}={v!r}" for k, v in equal.items())
            raise UserError(f"No checkpoint has {said}; the table has {len(self.table)} of {len(self.runs)} runs.")
        return CheckpointSet(self.folder, table.reset_index(drop=True), self.shape, self.sizes)

    def state(self, index: int) -> dict[str, Tensor]:
        """Read the weights of one row from its file.

        Raises
        ------
        UserError
            When the file has been removed or damaged.
        """
        return dict(Weights(self.table["path"].iloc[index], self.sizes))

    def stacked(self) -> State:
        """The weights of all rows with a leading run axis; for small networks, as all must fit in memory."""
        return stack(self.state(i) for i in range(len(self)))

    def fingerprint(self) -> Fingerprint:
        """Fingerprint of all rows in order."""
        digests = []
        for path in self.table["path"]:
            need_sound(path)
            lines = {name: line for name, line in digests_of(files_of(path)).items() if name in self.sizes}
            if is_adapter(path):
                lines |= digests_of([path / WEIGHTS]) | {"scale": str(Adapter.open(path).scale)}
            digests.append(of_digests(lines).digest)
        return Fingerprint(hashlib.sha256("\n".join(digests).encode()).hexdigest(), False)

    def figure(self) -> "alt.TopLevelMixin":
        """Runs by training step: one point per checkpoint, coloured by group if the table has groups."""
        return notebook.figure(self)

    def _repr_html_(self) -> str:
        return notebook.html(self)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        known = [str(c) for c in self.table.columns if c not in _NEEDED]
        return (
            f"CheckpointSet of {len(self.runs)} runs, {len(self)} checkpoints, {sum(map(prod, self.sizes.values())):,} "
            f"weights each{'; known: ' + ', '.join(known) if known else ''}"
        )


def _step_of(name: str) -> int | None:
    """The step in the name of a revision."""
    found = _STEP.search(name)
    return int(found.group(1)) if found else int(name) if name.isdecimal() else None


def _copy(path: Path, name: str, sizes: Sizes, of: Collection[str]) -> bool:
    """Whether a checkpoint stores a tensor twice: tied weights under both names."""
    held = Weights(path)
    return any(sizes[other] == sizes[name] and torch.equal(held[other], held[name]) for other in of if len(sizes[name]) > 1)


def _difference(a: Sizes, b: Sizes) -> str:
    for name in [*a, *b]:
        if a.get(name) != b.get(name):
            said = [f"{list(sizes[name])}" if name in sizes else "absent" for sizes in (a, b)]
            alone = ", and no copy of another tensor there" if "absent" in said and name.endswith(_OUTPUTS) else ""
            return f"{name} is {said[0]} in the one and {said[1]} in the other{alone}"
    return "their weights differ"


def _read(file: Path, home: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, dtype={"run": str, "path": str})
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"{file} cannot be read as a table ({str(error).splitlines()[0]}).") from error
    if lacking := [c for c in _NEEDED if c not in table.columns]:
        raise UserError(f"{file} lacks the column {lacking[0]}; a table of checkpoints has run, step and path.")
    if table[list(_NEEDED)].isna().any().any() or not pd.api.types.is_integer_dtype(table["step"]):
        raise UserError(f"{file} has a row without run, step or path, or a step that is not an integer.")
    if (twice := table[table.duplicated(["run", "step"])]).size:
        row = twice.iloc[0]
        raise UserError(f"{file} has run {row['run']} at step {row['step']} twice; give each checkpoint one row.")
    paths = [inside(home, given) for given in table["path"]]
    for given, path in zip(table["path"], paths):
        if path is None:
            raise UserError(f"{file} names {given[:200]!r}, which is outside its folder or no file; put the checkpoint inside.")
    return table.assign(path=pd.Series(paths, table.index, dtype=object))


def _shape(file: Path) -> Shape | None:
    if not file.is_file():
        return None
    try:
        known = parse_json(file.read_text(encoding="utf-8"))
        if known.pop("kind") != "small transformer":
            return None
        return Shape(**{str(k): int(v) for k, v in known.items()})
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} does not contain the sizes of a small transformer ({error}).") from error
