"""Steps of `emergence` on two-hop facts: training with all that is measured along the way, and the transitions of its curves."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from repscope.conditions import ESTIMATE
from repscope.disk import whole_file
from repscope.models.loading.stacked_weights import State
from repscope.results import Result, Row
from repscope.studies.emergence import names
from repscope.studies.emergence.options import EmergenceOptions
from repscope.studies.run.study import Context, Cost
from repscope.trace.emergence.transitions import Curve, lag, transition
from repscope.trace.stacked_coefficients import ChainSettings, stacked_coefficients
from repscope.worlds.small_lm import Training, train_by, transformer
from repscope.worlds.small_lm.transformer import Shape
from repscope.worlds.two_hop import KINDS, Evaluated, FactWorlds, evaluate, loss
from repscope.worlds.two_hop.facts import HELD_OUT, TRAINED

HOPS = 4  #: queries per fact of an update
_CHECKPOINTS = 18
_QUERIES = 300  #: of each kind and network
_RATE, _DECAY = 1e-3, 0.1
_DRAWS, _BURN_IN, _CHAIN_RATE, _LOCALISATION = 60, 40, 5e-5, 1000.0  #: of the learning coefficients
_CHAIN_FACTS = 16  #: per update of their chains
_WIDE = 64  #: width from which on the rate is that; narrower networks learn at a higher one


@dataclass(frozen=True)
class TwoHop:
    """The worlds, networks and checkpoints of a run."""

    options: EmergenceOptions

    @cached_property
    def worlds(self) -> FactWorlds:
        """One graph per seed, one network per phi and graph."""
        o = self.options
        seeds = tuple(1009 * o.seed + i for i in range(o.seeds))
        return FactWorlds(seeds, o.ratios, o.entities, o.relations, held_out=min(_QUERIES, o.entities * o.relations // 2))

    @property
    def shape(self) -> Shape:
        """Three tokens: entity, relation, relation."""
        return Shape(self.worlds.vocabulary, 3, self.options.width, self.options.layers, 4)

    @property
    def checkpoints(self) -> list[int]:
        """Steps on a log axis, with the first and the last."""
        last = self.options.steps
        return sorted({0, *np.geomspace(max(4, last // 60), last, _CHECKPOINTS - 1).round().astype(int).tolist()})

    @property
    def sampled(self) -> list[int]:
        """The checkpoints at which learning coefficients are estimated: every fourth, with the first and the last."""
        return sorted({0, self.options.steps, *self.checkpoints[1::4]})

    @property
    def chains(self) -> ChainSettings:
        """Of the learning coefficients: the same at every checkpoint, so that these can be compared."""
        draws, burn_in = (4, 2) if self.options.tiny else (_DRAWS // 2, _BURN_IN // 2) if self.options.short else (_DRAWS, _BURN_IN)
        return ChainSettings(_CHAIN_RATE, _LOCALISATION, draws=draws, burn_in=burn_in, seed=self.options.seed)

    @property
    def schedule(self) -> Training:
        """A constant rate, as in the paper, so that no schedule makes a transition."""
        rate = _RATE if self.options.width >= _WIDE else 2 * _RATE
        return Training(self.options.steps, rate, warm_up=min(20, self.options.steps), final=1.0, decay=_DECAY)

    def loss(self, state: State, step: int) -> torch.Tensor:
        """Mean loss of each network on the batch of a step."""
        return self._loss(state, self.options.facts, 1_000_003 * self.options.seed + step)

    def batch_loss(self, state: State, batch: int) -> torch.Tensor:
        """The same on smaller batches of their own, for the chains of the learning coefficients."""
        return self._loss(state, _CHAIN_FACTS, 1_000_003 * self.options.seed + 500_000 + batch)

    def _loss(self, state: State, facts: int, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        facts = min(facts, self.worlds.facts)
        return loss(self.shape, self.worlds.entities, state, self.worlds.batch(facts, HOPS, generator))


def train(task: TwoHop, context: Context) -> Result:
    """Train all networks at once, and measure them at every checkpoint."""
    worlds, o = task.worlds, task.options
    start = transformer.initial(task.shape, [seed for _, seed in worlds.networks])
    asked = {kind: worlds.queries(kind, _QUERIES) for kind in KINDS}

    def visit(step: int, state: State) -> None:
        _save(context.partial / f"step-{step:06d}.npz", evaluate(task.shape, worlds, state, asked, o.seed))
        if step in task.sampled:
            examples = np.array([worlds.facts * (1 + phi) for phi, _ in worlds.networks])
            found = stacked_coefficients(task.batch_loss, state, examples, task.chains)
            _write(context.partial / f"chains-{step:06d}.npz", {"coefficients": found.values, "drift": found.drift})

    found = train_by(
        task.loss,
        start,
        task.schedule,
        saved=context.partial / "training.safetensors",
        title="two-hop facts",
        visit=visit,
        at=frozenset(task.checkpoints),
    )
    arrays = _gathered(context.partial, "step", task.checkpoints) | _gathered(context.partial, "chains", task.sampled)
    arrays["losses"] = found.losses.astype(np.float32)
    rows = [*_curve_rows(task, arrays), *_bridge_rows(task, arrays), *_coefficient_rows(task, arrays)]
    lost = int((~np.isfinite(arrays["coefficients"])).sum())
    note = f"{lost} of {arrays['coefficients'].size} chains of learning coefficients left for an infinite loss and do not count."
    return Result.of(rows, arrays=arrays, notes=(note,) if lost else ())


def transitions(task: TwoHop, context: Context) -> Result:
    """Steps, sharpness and lags of the curves of every phi."""
    o, arrays, rows = task.options, context.inputs["two-hop"].arrays, list[Row]()
    for phi in o.ratios:
        curves = {kind: curve_of(task, arrays, phi, kind) for kind in (names.FACTS, *KINDS)}
        for kind, condition in (names.QUERIES | {names.FACTS: names.FACTS}).items():
            found = transition(curves[kind], draws=o.draws, seed=o.seed)
            where: dict[str, Any] = {"item": names.item(phi), "condition": condition, "seed": o.seed}
            for metric, estimate in (
                (names.STEP, found.step),
                (names.STEEPEST, found.steepest),
                (names.SHARPNESS, found.sharpness),
            ):
                rows.append(Row.of(estimate, metric=metric, **where))
            rows.append(Row(metric=names.REACHED, value=found.reached, n=o.seeds, unit="run", **where))
            if kind == HELD_OUT:
                where["condition"] = names.EVEN
                rows.append(Row.of(found.sharpness_null, metric=names.SHARPNESS, **where))
        late, early = curves[HELD_OUT], curves[TRAINED]
        estimate = lag(late, early, draws=o.draws, seed=o.seed)
        rows.append(Row.of(estimate, metric=names.LAG, definition=f"{HELD_OUT} over {TRAINED}", item=names.item(phi), seed=o.seed))
    return Result.of(rows)


def curve_of(task: TwoHop, arrays: Mapping[str, np.ndarray], phi: float, kind: str) -> Curve:
    """Hits of the networks of one phi on one kind of examples."""
    return Curve(np.array(task.checkpoints), arrays[f"hits/{kind}"][:, _places(task, phi)].swapaxes(0, 1))


def train_cost(task: TwoHop) -> Cost:
    """Forecast of the training."""
    o, worlds = task.options, task.worlds
    rows = (o.entities + o.facts * (1 + HOPS)) * o.steps + len(task.checkpoints) * (o.entities * o.relations * 2 + 18 * _QUERIES)
    chains = task.chains
    sampled = len(task.sampled) * (chains.chains * (chains.draws + chains.burn_in) + chains.draws // 3)
    rows += sampled * (o.entities + _CHAIN_FACTS * (1 + HOPS))
    tokens = rows * len(worlds.networks)
    return Cost(tokens, 6.0 * tokens * task.shape.parameters, memory_bytes=6e8)


def _places(task: TwoHop, phi: float) -> list[int]:
    return [i for i, (ratio, _) in enumerate(task.worlds.networks) if ratio == phi]


def _save(path: Path, found: Evaluated) -> None:
    arrays: dict[str, np.ndarray] = {}
    for part in ("hits", "nats"):
        kind = np.uint8 if part == "hits" else np.float32
        arrays |= {f"{part}/{name}": value.astype(kind) for name, value in getattr(found, part).items()}
    for part in ("probes", "controls", "patches", "unpatched"):
        arrays |= {f"{part}/{site}/{token}": value for (site, token), value in getattr(found, part).items()}
    _write(path, arrays)


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        kept: dict[str, Any] = {name.replace("/", "|"): value for name, value in arrays.items()}
        np.savez(file, **kept)


def _gathered(folder: Path, name: str, steps: list[int]) -> dict[str, Float[np.ndarray, "checkpoint ..."]]:
    held = []
    for step in steps:
        with np.load(folder / f"{name}-{step:06d}.npz", allow_pickle=False) as file:
            held.append({name.replace("|", "/"): file[name] for name in file.files})
    return {name: np.stack([one[name] for one in held]) for name in held[0]}


def _curve_rows(task: TwoHop, arrays: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """Accuracy and log-probability at every checkpoint; the untrained networks are the first one."""
    conditions = names.QUERIES | {names.FACTS: names.FACTS, names.FACTS_OOD: names.FACTS_OOD}
    for phi in task.options.ratios:
        places = _places(task, phi)
        for i, step in enumerate(task.checkpoints):
            for kind, condition in conditions.items():
                if not step:
                    if kind != HELD_OUT:
                        continue
                    condition = names.UNTRAINED
                where: dict[str, Any] = {"item": names.item(phi), "condition": condition, "split": names.at(step)}
                hits = arrays[f"hits/{kind}"][i, places].astype(np.float64).mean(1)
                nats = -arrays[f"nats/{kind}"][i, places].astype(np.float64).mean(1)
                for metric, values in ((names.ACCURACY, hits), (names.LOG_PROBABILITY, nats)):
                    yield Row.over(values, "run", metric=metric, seed=task.options.seed, **where)


def _coefficient_rows(task: TwoHop, arrays: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """Local learning coefficients, means over chains, at the checkpoints at which they are estimated."""
    for phi in task.options.ratios:
        for i, step in enumerate(task.sampled):
            values = arrays["coefficients"][i, _places(task, phi)].mean(1)
            if np.isfinite(values).all():
                where: dict[str, Any] = {"item": names.item(phi), "split": names.at(step), "seed": task.options.seed}
                condition = ESTIMATE if step else names.UNTRAINED
                yield Row.over(values, "run", metric=names.COEFFICIENT, condition=condition, **where)


def _bridge_rows(task: TwoHop, arrays: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """Probes and patches of the bridge at every checkpoint, by site and token."""
    pairs = ((names.BRIDGE, "probes", "controls", names.PERMUTED), (names.PATCHED, "patches", "unpatched", names.UNPATCHED))
    for metric, part, control, condition in pairs:
        for name in (n for n in arrays if n.startswith(f"{part}/")):
            _, site, token = name.split("/")
            layer = int(site.rpartition(".")[2]) if "." in site else None
            for phi in task.options.ratios:
                places = _places(task, phi)
                for i, step in enumerate(task.checkpoints):
                    for label, source in ((ESTIMATE, part), (condition, control)):
                        if label != ESTIMATE and step != task.checkpoints[-1]:
                            continue
                        where: dict[str, Any] = {"site": site, "layer": layer, "token": token, "split": names.at(step)}
                        values: Int[np.ndarray, run] = arrays[f"{source}/{site}/{token}"][i, places]
                        where |= {"item": names.item(phi), "condition": label, "seed": task.options.seed}
                        yield Row.over(values.astype(np.float64), "run", metric=metric, **where)
