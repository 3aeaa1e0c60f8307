"""Do early blocks turn the tokens of a name into one vector from which its attributes read out linearly?

For each set of entities (or labelled texts):
1. Put each name into prompts, and capture every block at the tokens of the name (`embed`, `resid_post`).
2. Probe each attribute at each block, at the last token of the name, on entities held out of training.
3. Ask what else could explain the score: shuffled labels; a bag of the name's token embeddings (is it more than a sum of its
   tokens?); the first token alone; the name's letters; the commonest class; the same network with random weights.
4. Test again with no token shared between a tested name and any name trained on (San Francisco, San Diego).
5. Cut the context to the last 1, 2, 3 … tokens, keeping the prompt's first token, where attention rests when it needs nothing
   (without it the cut would also move the sink).
6. Report the block chosen on one half of the entities from the other half, and its paired gain over each control.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field, model_validator

from repscope import stats
from repscope.data.entities import SETS, EntitySet, entity_set, labelled_text
from repscope.data.splits import purged_folds
from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.prompts import encode
from repscope.models.sites import Site, Tokens
from repscope.read.probe_sweep import Panel, chosen_rows, rows_of, sweep_probes
from repscope.read.probes import ProbeScores, ProbeTask, logistic, majority, probe_directions
from repscope.results import ESTIMATE, Result, Row
from repscope.studies.entities.page import headline, page
from repscope.studies.entities.task import LONGEST_TEXT, SITES, Captured, EntityTask, ngrams
from repscope.studies.run.study import Cost, ModelOptions, Run, Step, Study, TableOptions

Tick = Callable[[float], None]


class EntitiesOptions(ModelOptions, TableOptions):
    """What the `entities` study takes."""

    entities: tuple[str, ...] = Field(
        ("cities", "countries", "elements"),
        description="Sets of entities: cities, countries, elements, or a table (CSV, TSV, Parquet, JSON, JSONL).",
    )
    name: str | None = Field(None, description="Your file's column of names.")
    attribute: tuple[str, ...] = Field((), description="Attributes to probe; all of them where none is named.")
    template: tuple[str, ...] = Field((), description="Prompts with {} for the name; the set's own where none is given.")
    data: Path | None = Field(None, description="A table of labelled texts instead of entities.")
    text: str | None = Field(None, description="Its column of texts.")
    label: tuple[str, ...] = Field((), description="Its columns of labels.")
    tokens: Literal["last", "mean"] = Field("last", description="Where labelled texts are read: last token, or mean over tokens.")
    group: str | None = Field(None, description="Attribute whose values stay on one side of every split: country, say.")
    per_class: int = Field(60, ge=2, description="Cities of each continent.")
    min_count: int = Field(6, ge=2, description="Classes with fewer members are left out.")
    max_items: int = Field(20_000, ge=20, description="Entities or texts at most; more are drawn at random.")
    folds: int = Field(5, ge=2, description="Folds over entities.")
    shuffles: int = Field(20, ge=2, description="Label shuffles for the control.")
    context: int = Field(4, ge=0, description="Cut the context to the last 1 … this many tokens; 0 leaves that out.")

    @model_validator(mode="after")
    def _belongs(self) -> "EntitiesOptions":
        if self.data is not None and (self.text is None or not self.label):
            raise ValueError("--data needs --text COLUMN and --label COLUMN")
        if self.data is None and (self.text is not None or self.label):
            raise ValueError("--text and --label go with --data FILE")
        idle: tuple[str, ...] = ("entities", "name", "attribute", "template", "per_class", "context")
        why = "a set of entities, and --data is texts"
        if self.data is None:
            idle, why = ("tokens",), "--data FILE, and names are read at each of their tokens"
        if given := self.named(*idle):
            raise ValueError(f"{given[0]} goes with {why}")
        own = [name for name in self.entities if name not in SETS]
        if self.data is None and self.name is not None and not own:
            raise ValueError("--name goes with a file of yours; the built-in sets have their own names")
        if self.named("per_class") and "cities" not in self.entities:
            raise ValueError("--per-class goes with --entities cities")
        if not self.entities:
            raise ValueError("No set of entities was named; give one, such as --entities cities")
        return self

    def sized(self) -> "EntitiesOptions":
        """With the smaller numbers that `tiny` stands for, where none were given."""
        if not self.tiny:
            return self
        few: dict[str, Any] = {"entities": self.entities[:1], "folds": 3, "shuffles": 3, "context": 2, "max_items": 60}
        if self.data is None and set(self.with_sizes(few).entities) <= {"cities", "countries"}:
            few["attribute"] = ("continent", "latitude")
        return self.with_sizes(few)

    def files(self) -> list[Path]:
        """The user's own tables."""
        named = [Path(e) for e in self.entities if Path(e).is_file()] if self.data is None else []
        return named + ([self.data] if self.data is not None else [])


def subjects(run: Run[EntitiesOptions]) -> list[EntityTask]:
    """The sets that the options name.

    Raises
    ------
    UserError
        For a set, file, column or attribute that is not there, and for a table with nothing to probe.
    """
    o = run.options.sized()
    if o.data is not None:
        assert o.text is not None
        found = labelled_text(o.data, o.text, list(o.label), **o.how())
        longest = min(LONGEST_TEXT, run.network.context or LONGEST_TEXT)
        sampled = found.sample(o.max_items, o.seed)
        sizes = [len(t) for t in run.network.tokenizer(list(sampled.frame["name"]))["input_ids"]]
        cut = sum(s > longest for s in sizes)
        note = (f"{cut} of {len(sizes)} texts have more than {longest} tokens; only their first {longest} were read.",)
        return [EntityTask(run, sampled, True, note if cut else ())]

    def token_count(text: str) -> int:
        return len(run.network.tokenizer(text, add_special_tokens=False)["input_ids"])

    wanted = (*o.attribute, *([o.group] if o.group and o.group not in o.attribute else [])) if o.attribute else ()
    made = []
    for name in dict.fromkeys(o.entities):
        items = entity_set(
            name,
            name_column=None if name in SETS else o.name,
            attributes=wanted,
            templates=o.template or None,
            per_class=o.per_class,
            token_count=token_count,
            **o.how(),
        )
        made.append(EntityTask(run, _within(items.sample(o.max_items, o.seed), run), False))
    names = [subject.items.name for subject in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two of the sets have the name {twice[0]!r}, which their numbers go by; rename one file.")
    return made


def _within(items: EntitySet, run: Run[EntitiesOptions]) -> EntitySet:
    """Without the names whose prompts the network could not take.

    Raises
    ------
    UserError
        When it takes none of the prompts.
    """
    limit = run.network.context
    if limit is None:
        return items
    each = [[len(ids) for ids in run.network.tokenizer(items.prompts(t))["input_ids"]] for t in items.templates]
    sizes = np.array(each).max(0)
    if (sizes <= limit).all():
        return items
    long = items.templates[int(np.argmax(np.array(each).max(1)))]
    if (sizes > limit).all():
        raise UserError(
            f"{run.network.name} takes {limit} tokens, and every prompt of {items.name} has more ({sizes.min()} or more, "
            f"from the template {_cut(long)!r}); give a shorter --template or a model with a longer context."
        )
    return items.take(
        np.flatnonzero(sizes <= limit),
        f"{items.name}: {(sizes > limit).sum()} of {len(sizes)} names are dropped, as {run.network.name} takes {limit} tokens "
        f"and their prompts have more, up to {sizes.max()}.",
    )


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:40] + " … " + text[-16:]


def steps(run: Run[EntitiesOptions]) -> list[Step]:
    """Four or five steps a set; each set's last one puts the others together."""
    made = []
    for subject in subjects(run):
        name = subject.items.name
        _probed(subject)  # what cannot be probed is refused now, before anything runs
        parts = [(f"{name}", _trained, 3.0), (f"{name} random weights", _twin, 1.5)]
        if not subject.is_text:
            parts.append((f"{name} shared tokens", _shared, 1.0))
            if run.options.sized().context and subject.causal:
                parts.append((f"{name} context", _context, 0.7 * run.options.context))
        for step, compute, weight in parts:
            made.append(Step(step, _bound(compute, subject), _cost(subject, weight), version=1))
        needs = (parts[0][0], parts[1][0])
        made.append(Step(f"{name} summary", _bound(_summary, subject), lambda: Cost(fit_flops=1e8), needs=needs))
    return made


def _probed(subject: EntityTask) -> None:
    """Refuse a set of which nothing can be probed; where the network's context took names away, that is said first."""
    try:
        _ = subject.panels
    except UserError as error:
        if dropped := [note for note in subject.items.notes if "and their prompts have more" in note]:
            raise UserError(f"{dropped[0].rstrip('.')}; of the others: {error}") from error
        raise


def _bound(compute: Callable[[EntityTask, Tick], Result], subject: EntityTask) -> Callable[[Run[Any], Tick], Result]:
    return lambda run, tick: compute(subject, tick)


def _cost(subject: EntityTask, weight: float) -> Callable[[], Cost]:
    def cost() -> Cost:
        lm, o = subject.lm, subject.options
        runs = [lm.plan(subject.prompts(t), SITES, batch_tokens=o.batch_tokens) for t in subject.templates]
        n, sites = len(subject.items), lm.blocks + 1
        d = lm.anatomy.width if lm.anatomy else 1
        columns = sum(max(1, len(t.classes)) for p in subject.panels for t in p.tasks) * (1 + o.shuffles)
        a_fold = min(n, d) ** 3 * 10 + 2.0 * n * d * min(n, d) + 12 * 2.0 * n * min(n, d) * columns
        fits = a_fold * o.folds * sites * len(subject.panels) * len(subject.templates) * weight / 3
        return Cost(
            sum(r.tokens for r in runs),
            sum(r.flops for r in runs),
            fits,
            16.0 * n * sites,
            max(r.blocks for r in runs),
            max(r.working for r in runs),
        )

    return cost


def _trained(subject: EntityTask, tick: Tick) -> Result:
    """The trained network: estimate, shuffled labels, other tokens, and the controls that need no network."""
    o, name, rows = subject.options, subject.items.name, list[Row]()
    arrays: dict[str, np.ndarray] = {}
    side: dict[str, pd.DataFrame] = {}
    directions: list[Direction] = []
    where: dict[str, Any] = {"split": subject.split, "seed": o.seed}
    letters = {"": [ngrams(list(subject.items.frame["name"]))]}
    with TemporaryDirectory(dir=subject.run.scratch) as folder:
        held = subject.captured(subject.lm, Path(folder))
        tick(0.2)
        one = _share(tick, 0.8, len(held.rows) * (len(subject.panels) if subject.is_text else 2 * len(subject.panels) + 2))
        for panel in subject.panels:
            last = sweep_probes(held.at(-1), panel, shuffles=o.shuffles, choose=True, seed=o.seed, tick=one)
            rows += rows_of(last, name, ESTIMATE, shuffled=True, token=o.tokens if subject.is_text else "last", **where)
            layered = {ESTIMATE: last}
            if not subject.is_text and subject.causal:
                layered["first token alone"] = sweep_probes(held.at(0), panel, choose=True, seed=o.seed, tick=one)
                rows += rows_of(layered["first token alone"], name, "first token alone", token="first", **where)
                if panel is subject.panels[0]:
                    rows += _earlier_tokens(subject, held, panel, one, where)
            flat = {
                "bag of token embeddings": sweep_probes(held.bag(), panel, seed=o.seed),
                "character n-grams": sweep_probes(letters, panel, seed=o.seed),
            }
            for condition, swept in flat.items():
                rows += rows_of(swept, name, condition, **where)
            for t, task in enumerate(panel.tasks):
                tops = {condition: swept.chosen(t)[0] for condition, swept in layered.items()}
                tops |= {condition: _tops(swept.scores[""][t]) for condition, swept in flat.items()}
                tops["shuffled labels"] = last.shuffled(t)
                if task.kind == "class":
                    right = majority(task, panel.folds)
                    tops["majority class"] = np.stack([right, np.ones(len(right))])
                    score = stats.proportion(right, unit="entity")
                    rows.append(Row.of(score, metric=task.metric, item=f"{name}.{task.name}", condition="majority class", **where))
                rows += _at_chosen(subject, panel, task, last.chosen(t)[1], held)
                arrays |= {f"{task.name}|{condition}": top for condition, top in tops.items()}
                site = last.chosen(t)[1][0]
                directions += probe_directions(held.at(-1)[site][0][panel.rows], task, site)
                if task.kind == "number":
                    side[f"predicted-{task.name}"] = _predicted(subject, panel, last.scores[site][t])
    note = f"ridge probes of {name}"
    DirectionSet(directions, subject.lm.fingerprint, note).save(
        subject.run.artifact(f"{name.replace(' ', '-')}-probes.safetensors")
    )
    return Result.of(rows, arrays=arrays, side=side, notes=subject.notes)


def _earlier_tokens(
    subject: EntityTask, held: Captured, panel: Panel, one: Callable[[], None], where: Mapping[str, Any]
) -> list[Row]:
    """The second and third token from the end, among names that have as many."""
    rows = list[Row]()
    counts = np.diff(held.offsets[0])[panel.rows]
    for back in (2, 3):
        if (counts >= back).sum() >= 40 and not subject.options.tiny:
            other = sweep_probes(held.at(-back), panel.keep(counts >= back), seed=subject.options.seed, tick=one)
            rows += rows_of(other, subject.items.name, ESTIMATE, token=f"-{back}", **where)
    return rows


def _at_chosen(subject: EntityTask, panel: Panel, task: ProbeTask, picked: tuple[str, str], held: Captured) -> list[Row]:
    """Which blocks the halves chose, and what a logistic probe makes of them."""
    shared: dict[str, Any] = {
        "item": f"{subject.items.name}.{task.name}",
        "site": "chosen on the other half",
        "seed": subject.options.seed,
    }
    rows = list[Row]()
    for half, site in zip(("first half", "second half"), picked):
        layer = Site.parse(site).layer
        block = -1 if layer is None else layer
        rows.append(Row(metric="block", definition="-1 is the embedding", split=half, value=block, n=len(panel.rows), **shared))
    if task.kind != "class" or subject.options.tiny:
        return rows
    hits = np.full(len(panel.rows), np.nan)
    for side, site in zip((True, False), picked):
        train, test = np.flatnonzero(panel.half == side), np.flatnonzero(panel.half != side)
        hits[test] = logistic(held.at(-1)[site][0][panel.rows], task, train, test)
    definition = "logistic probe, first prompt, trained on the half of the entities that chose the block, tested on the other"
    rows.append(Row.of(stats.proportion(hits, unit="entity"), metric=task.metric, definition=definition, split="half", **shared))
    return rows


def _share(tick: Tick, whole: float, parts: int) -> Callable[[], None]:
    return lambda: tick(whole / parts)


def _twin(subject: EntityTask, tick: Tick) -> Result:
    """The same sweep over the same architecture with random weights."""
    o = subject.options
    twin = subject.lm.twin(o.seed)
    rows, arrays = list[Row](), dict[str, np.ndarray]()
    with TemporaryDirectory(dir=subject.run.scratch) as folder:
        held = subject.captured(twin, Path(folder))
        tick(0.3)
        for panel in subject.panels:
            one = _share(tick, 0.7, len(subject.panels) * len(held.rows))
            found = sweep_probes(held.at(-1), panel, choose=True, seed=o.seed, tick=one)
            rows += rows_of(found, subject.items.name, "random weights", token="last", split=subject.split, seed=o.seed)
            for t, task in enumerate(panel.tasks):
                arrays[f"{task.name}|random weights"] = found.chosen(t)[0]
    return Result.of(rows, arrays=arrays)


def _shared(subject: EntityTask, tick: Tick) -> Result:
    """The same probes where no name in training shares a token with a tested name."""
    o, rows, notes = subject.options, list[Row](), list[str]()
    decoded = {t: subject.lm.tokenizer.decode([t]).strip().casefold() for t in {t for ts in subject.name_tokens for t in ts}}
    with TemporaryDirectory(dir=subject.run.scratch) as folder:
        held = subject.captured(subject.lm, Path(folder))
        for panel in subject.panels:
            classes = next((t.values for t in panel.tasks if t.kind == "class"), None)
            names = [[decoded[t] for t in subject.name_tokens[i]] for i in panel.rows]
            try:
                pairs = purged_folds(names, k=2 * o.folds, seed=o.seed, stratify=classes)
            except UserError as error:
                listed = ", ".join(t.name for t in panel.tasks)
                notes.append(f"{subject.items.name} ({listed}) was not tested without shared tokens: {error}")
                continue
            one = _share(tick, 1.0, len(subject.panels) * len(held.rows))
            purged = panel.with_folds(pairs)
            found = sweep_probes(held.at(-1), purged, seed=o.seed, tick=one)
            rows += rows_of(found, subject.items.name, ESTIMATE, token="last", split="shared token", seed=o.seed)
            bag = sweep_probes(held.bag(), purged, seed=o.seed)
            rows += rows_of(bag, subject.items.name, "bag of token embeddings", split="shared token", seed=o.seed)
    return Result.of(rows, notes=tuple(notes))


def _context(subject: EntityTask, tick: Tick) -> Result:
    """The same probes where the network reads the prompt's first token and its last k tokens only."""
    o, rows = subject.options, list[Row]()
    template = subject.templates[0]
    ids = list(encode(subject.lm.tokenizer, subject.prompts(template), Tokens("all"), causal=subject.lm.causal).ids)
    for k in range(1, o.context + 1):
        cut = [row if len(row) <= k + 1 else np.concatenate([row[:1], row[-k:]]) for row in ids]
        acts = subject.lm.capture(cut, SITES, "last", batch_tokens=o.batch_tokens)
        held = {str(s): [acts[s]] for s in acts.sites}
        for panel in subject.panels[:1]:  # the attributes known of the most entities; the others would tell the same
            found = sweep_probes(held, panel, seed=o.seed)
            condition = f"context: last {k} tokens"
            rows += rows_of(found, subject.items.name, condition, token="last", split=subject.split, seed=o.seed)
        tick(1 / o.context)
    return Result.of(rows)


def _summary(subject: EntityTask, tick: Tick) -> Result:
    """At the block chosen on the other half: the estimate, each control, and the paired gain over it."""
    name = subject.items.name
    results = subject.run.results
    arrays = dict(results[name].arrays) | dict(results[f"{name} random weights"].arrays)
    rows = []
    for panel in subject.panels:
        for task in panel.tasks:
            tops = {key.partition("|")[2]: a for key, a in arrays.items() if key.partition("|")[0] == task.name}
            definition = "ridge probe at the block chosen on the other half of the entities"
            rows += chosen_rows(
                task,
                {ESTIMATE: tops.pop(ESTIMATE)} | dict(sorted(tops.items())),
                item=f"{name}.{task.name}",
                split=subject.split,
                token="last",
                definition=definition,
                seed=subject.options.seed,
            )
    return Result.of(rows)


def _tops(scores: ProbeScores) -> Float[np.ndarray, "top_bottom entity"]:
    return np.stack([scores.top[0], scores.bottom[0]])[:, scores.tested]


def _predicted(subject: EntityTask, panel: Panel, scores: ProbeScores) -> pd.DataFrame:
    """True and predicted numbers of the held-out entities, for the map and the scatter."""
    frame = subject.items.frame.iloc[panel.rows]
    group = next((a.name for a in subject.items.attributes if a.name == "continent"), None)
    return pd.DataFrame(
        {
            "name": frame["name"].to_numpy(),
            "true": scores.task.values,
            "predicted": scores.predicted,
            "group": frame[group].fillna("").to_numpy() if group else "",
        }
    )


ENTITIES = Study(
    name="entities",
    question="Do early MLPs turn the last few tokens of a name into one vector from which its attributes read out linearly?",
    options=EntitiesOptions,
    steps=steps,
    page=page,
    headline=headline,
)
