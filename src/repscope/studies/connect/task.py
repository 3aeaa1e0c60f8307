"""The models that `connect` compares, and the data: our own small transformers, stacked, or Hugging Face checkpoints, streamed.

1. The folder of a checkpoint set, or models one by one, named as for `--model`. Of a set, the last checkpoint of each run.
2. Refused: networks of other sizes or configurations, tokenizers that disagree on the data, weights that are not finite.
3. Small transformers are evaluated on examples of their world, ambiguous (ID) and permuted (OOD); others on the user's examples.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from repscope.data.evaluation import LABEL, Texts, read_texts, resolved
from repscope.errors import UserError
from repscope.models.checkpoints import TABLE, CheckpointSet
from repscope.models.loading.checkpoint_files import Weights, config_of
from repscope.models.loading.sources import folder_of, tokenizer_of, with_head
from repscope.models.loading.stacked_weights import stack
from repscope.studies.connect.options import ConnectOptions
from repscope.studies.run.study import Cost
from repscope.trace import checkpoint_losses
from repscope.trace.interpolation import Curves, curves
from repscope.trace.streaming import End, Random, check_slots, release, slots_of, stream_losses
from repscope.worlds.hans import fine_tuning
from repscope.worlds.hans.examples import HansExamples

Pairs = Int[np.ndarray, "pair end"]
_SAME = 64  #: examples on which tokenizers must agree
_WORLD_EXAMPLES = 512 + 256
#: Fields of a configuration that do not decide what the network computes in evaluation.
_IDLE: tuple[str, ...] = ("_", "transformers_version", "dtype", "torch_dtype", "use_cache", "label2id", "bos_token_id")
_IDLE += ("eos_token_id", "problem_type", "initializer_range", "task_specific_params", "finetuning_task", "pretraining_tp")
_DROPPED = ("dropout", "pdrop")


@dataclass(frozen=True)
class ConnectTask:
    """Runs and the examples on which they are evaluated.

    names: of the runs. kind: of network. fingerprint: of all weights. data: a description of the examples. digest: of
    the examples. notes: what was dropped. walk: lines (ends of each), the number of controls, a file that stores finished points →
    losses along the lines and then along the controls. distances: lines → Euclidean distances. unit: of a loss. groups: of each
    run, if the set's table has them. tokens: of the data. parameters: of one network. folders: of networks with a configuration.
    """

    names: tuple[str, ...]
    kind: str
    fingerprint: str
    data: str
    digest: str
    notes: tuple[str, ...]
    walk: Callable[[Pairs, int, Path], Curves]
    distances: Callable[[Pairs], Float[np.ndarray, "pair"]]
    unit: str
    groups: Shaped[np.ndarray, "run"] | None = None
    tokens: int = 0
    parameters: int = 0
    folders: tuple[Path, ...] = ()

    def cost(self, points: int) -> Cost:
        """Forecast for all lines: one forward pass over the data per point."""
        lines = len(self.names) * (len(self.names) - 1) // 2
        tokens = self.tokens * points * lines
        return Cost(tokens, 2.0 * self.parameters * tokens, memory_bytes=4.0 * self.parameters)


def connect_task(o: ConnectOptions) -> ConnectTask:
    """Find the networks and the data.

    Raises
    ------
    UserError
        See the module.
    """
    checkpoints = _set(o.models)
    if len(checkpoints) < 2:
        raise UserError(f"{checkpoints.table['run'].iloc[0]} is one network, and a path needs two; give two or more.")
    if checkpoints.shape is not None:
        return _small(checkpoints, o)
    if o.data is None:
        raise UserError("There are no examples to evaluate the networks on; give --data FILE with one text per row.")
    return _hub(checkpoints, o)


def _set(models: Sequence[str]) -> CheckpointSet:
    if not models:
        raise UserError("No network was given; give two models, or the folder of a checkpoint set.")
    first = Path(models[0]).expanduser()
    if len(models) > 1:
        if lost := [m for m in models if (Path(m).expanduser() / TABLE).is_file()]:
            raise UserError(f"{lost[0]} is a checkpoint set; give only this folder, or models one by one.")
        return CheckpointSet.of(p if p.suffix == ".safetensors" else folder_of(m) for m in models for p in [Path(m)])
    if first.is_dir() and not (first / "config.json").is_file():
        return CheckpointSet.open(first).select(step="last")
    raise UserError(f"{models[0]} is one network, and a path needs two; give a second one, or the folder of a checkpoint set.")


# ------------------------------------------------------------------------------------------------ small transformers


def _small(checkpoints: CheckpointSet, o: ConnectOptions) -> ConnectTask:
    shape = checkpoints.shape
    assert shape is not None
    if o.data is not None:
        raise UserError("Small transformers are evaluated on examples of the built-in world; omit --data.")
    try:
        world = fine_tuning.World(HansExamples(shape.vocabulary - 3, (shape.tokens - 2) // 2), shape.width, shape.blocks)
    except UserError as error:
        raise UserError(f"{checkpoints.folder} contains networks of an unknown task ({error})") from error
    if world.shape() != shape:
        raise UserError(f"{checkpoints.folder} contains networks of {shape}, but the built-in task needs {world.shape()}.")
    states = [checkpoints.state(i) for i in range(len(checkpoints))]
    _finite(checkpoints.runs, states)

    def walk(pairs: Pairs, controls: int, kept: Path) -> Curves:
        lines, ends = _with_controls(pairs, controls, states, o.seed)
        state = stack({name: end[name] for name in states[0]} for end in ends)
        return curves(state, fine_tuning.evaluator(world, o.seed, by_example=True), lines, o.points)

    data = f"512 ambiguous examples of the built-in world, and 256 permuted ones (ood); seed {o.seed}"
    return ConnectTask(
        checkpoints.runs,
        f"small transformers, {shape.blocks} blocks × {shape.width}",
        str(checkpoints.fingerprint()),
        data,
        data,
        (),
        walk,
        lambda pairs: _distances(states, pairs),
        "nats",
        _groups(checkpoints),
        tokens=_WORLD_EXAMPLES * shape.tokens,
        parameters=sum(v.numel() for v in states[0].values()),
    )


def _groups(checkpoints: CheckpointSet) -> Shaped[np.ndarray, "run"] | None:
    return checkpoints.table["group"].to_numpy().astype(str) if "group" in checkpoints.table.columns else None


# -------------------------------------------------------------------------------------------- Hugging Face checkpoints


def _hub(checkpoints: CheckpointSet, o: ConnectOptions) -> ConnectTask:
    folders = [Path(p) for p in checkpoints.table["path"]]
    if bare := [p for p in folders if not p.is_dir()]:
        raise UserError(f"{bare[0]} has weights but no configuration; give the folder that contains it and config.json.")
    _same_configuration(checkpoints.runs, [_config(folder) for folder in folders])
    file = Path(str(o.data)).expanduser()
    module = with_head(folders[0])
    kind, config = type(module).__name__, module.config
    classifier = kind.endswith("ForSequenceClassification")
    if not classifier and not module.can_generate():
        raise UserError(
            f"{checkpoints.runs[0]} is a {kind}; connect takes language models that predict the next token, and classifiers."
        )
    if not classifier and (o.label or o.pair):
        raise UserError(f"{checkpoints.runs[0]} is a language model and needs only texts; omit --label and --pair.")
    label = (o.label or LABEL) if classifier else None
    texts = read_texts(file, text=o.text, pair=o.pair, label=label, split=o.split, **o.how()).first(o.examples, o.seed)
    labels = resolved(texts, _classes(config, checkpoints.runs[0])) if classifier else None
    tokenizer = _tokenizer(folders, checkpoints.runs, texts)
    data = checkpoint_losses.encode_examples(tokenizer, config, texts, labels, o.length)
    ends = [Weights(folder) for folder in folders]
    _finite(checkpoints.runs, ends)
    check_slots(module, ends[0])
    for end in ends[1:]:
        slots_of(module, end)  # each is seen to fit
    names = slots_of(module, ends[0])
    ends = [Weights(folder, names) for folder in folders]
    config.use_cache = False  # one pass a text: keys and values of earlier tokens are of no use

    def walk(pairs: Pairs, controls: int, kept: Path) -> Curves:
        lines, every = _with_controls(pairs, controls, ends, o.seed)
        losses = checkpoint_losses.losses_by_example(data, texts.loss)
        return stream_losses(lambda: module, every, losses, lines, o.points, kept=kept)

    counts = ", ".join(f"{len(rows)} {name}".strip() for name, rows in data.splits.items())
    digest = hashlib.sha256(json.dumps([texts.digest, [f["input_ids"] for f in data.fields]]).encode()).hexdigest()
    return ConnectTask(
        checkpoints.runs,
        kind,
        str(checkpoints.fingerprint()),
        f"{texts.name}: {counts} texts",
        digest,
        data.notes,
        walk,
        lambda pairs: _distances(ends, pairs),
        "nats per example" if classifier else "nats per token",
        _groups(checkpoints),
        tokens=sum(len(f["input_ids"]) for f in data.fields),
        parameters=sum(p.numel() for p in module.parameters()),
        folders=tuple(folders),
    )


def _config(folder: Path) -> dict[str, Any]:
    config = config_of(folder)
    if all(str(name).startswith("LABEL_") for name in config.get("id2label", {}).values()):
        config.pop("id2label", None)  # default names of classes
    return {k: v for k, v in config.items() if not k.startswith(_IDLE) and not any(d in k for d in _DROPPED)}


def _same_configuration(runs: Sequence[str], configs: Sequence[dict[str, Any]]) -> None:
    for run, config in zip(runs[1:], configs[1:]):
        for key in {**configs[0], **config}:
            a, b = configs[0].get(key), config.get(key)
            if a != b and not (key == "id2label" and None in (a, b)):
                raise UserError(f"{run} has {key} {b} in its config.json and {runs[0]} has {a}; give networks of one architecture.")


def _classes(config: Any, run: str) -> dict[int, str]:
    if config.num_labels < 2:
        raise UserError(f"{run} has one output and no classes; connect takes classifiers of two classes or more.")
    return {int(k): str(v) for k, v in config.id2label.items()}


def _tokenizer(folders: Sequence[Path], runs: Sequence[str], texts: Texts) -> Any:
    """The tokenizer of the first folder that has one; all others must agree on the first texts."""
    found: list[tuple[str, Any]] = []
    first: UserError | None = None
    for run, folder in zip(runs, folders):
        if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
            continue
        try:
            found.append((run, tokenizer_of(folder)))
        except UserError as error:
            first = first or error
    if not found:
        raise first or UserError(f"None of {', '.join(runs[:3])} has a tokenizer in its folder; copy it there.")
    seen = list(texts.texts[:_SAME])
    ids = found[0][1](seen)["input_ids"]
    for run, tokenizer in found[1:]:
        if tokenizer(seen)["input_ids"] != ids:
            raise UserError(f"{run} and {found[0][0]} tokenize the texts differently; give networks with the same tokenizer.")
    return found[0][1]


# --------------------------------------------------------------------------------------------------------------- both


def _finite(runs: Sequence[str], ends: Sequence[End]) -> None:
    for run, end in zip(runs, ends):
        for name in end:
            if not torch.isfinite(end[name]).all():
                raise UserError(f"{name} of {run} contains values that are not finite; its training diverged.")
        release([end])


def _with_controls(pairs: Pairs, controls: int, ends: Sequence[End], seed: int) -> tuple[Pairs, list[End]]:
    """Lines and ends, followed by the controls of the first lines: an equal distance from the same start, to a random end."""
    more = [(int(a), len(ends) + i) for i, (a, _) in enumerate(pairs[:controls])]
    every = [*ends, *(Random(ends[a], ends[b], 1 + seed + i) for i, (a, b) in enumerate(pairs[:controls].tolist()))]
    return np.concatenate([pairs, np.array(more, dtype=np.int64).reshape(-1, 2)]), every


def _distances(ends: Sequence[End], pairs: Pairs) -> Float[np.ndarray, "pair"]:
    squares = np.zeros(len(pairs))
    for i, (a, b) in enumerate(pairs.tolist()):
        for name in ends[a]:
            if (x := ends[a][name]).is_floating_point():
                squares[i] += float(torch.linalg.vector_norm(ends[b][name].float() - x.float())) ** 2
        release(end for end in ends if end is not ends[a])
    found: Float[np.ndarray, pair] = np.sqrt(squares)
    return found
