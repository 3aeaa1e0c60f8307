"""One set of entities: prompts, panels of attributes, and activations at the tokens of each name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from repscope.data.entities import SETS, EntitySet, entity_set, labelled_text
from repscope.errors import UserError
from repscope.models.prompts import Prompt, encode, shortened
from repscope.models.sites import Tokens
from repscope.read.probe_sweep import Panel, panels
from repscope.studies.entities.options import MOST_ATTRIBUTES, EntitiesOptions
from repscope.studies.run.study import Setup

if TYPE_CHECKING:
    from repscope.models.engine.cost_estimate import Forecast
    from repscope.models.language import LanguageModel

SITES = ("embed", "resid_post")
LONGEST_TEXT = 512  #: tokens of a labelled text that are read
_TWIN_IN_MEMORY = 1_000_000_000  #: bytes of weights up to which the network with random weights stays for later steps
_IN_MEMORY = 400_000_000  #: bytes of captured rows beyond which they go to disk
Held = Mapping[str, Sequence[Any]]  #: site → one (entity, feature) array a prompt template


@dataclass
class EntityTask:
    """One set of entities and what its steps share: prompts, panels, activations.

    twins: the network with random weights by its seed, shared with other sets.
    """

    options: EntitiesOptions
    lm: "LanguageModel"
    items: EntitySet
    is_text: bool
    extra: tuple[str, ...] = ()
    twins: "dict[int, LanguageModel]" = field(default_factory=dict, repr=False)
    _last: "tuple[Held, Held] | None" = field(default=None, init=False, repr=False)

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """The prompts in use: the user's templates, else those of the set (only the first in the short form)."""
        few = (self.options.short or self.options.tiny) and not self.options.template
        return self.items.templates[:1] if few else self.items.templates

    @cached_property
    def _panels(self) -> tuple[list[Panel], list[str]]:
        o = self.options
        names = [a.name for a in self.items.attributes if a.name != o.group][: self._most_attributes]
        return panels(self.items, names, k=o.folds, seed=o.seed, min_count=o.min_count, group=o.group)

    @property
    def _most_attributes(self) -> int | None:
        return MOST_ATTRIBUTES if self.options.short and not self.options.attribute and not self.is_text else None

    @property
    def split(self) -> str:
        """How training and test entities are separated."""
        return f"group {self.options.group}" if self.options.group else "entity"

    @property
    def panels(self) -> list[Panel]:
        """Attributes grouped by the entities for which they are known."""
        return self._panels[0]

    @property
    def causal(self) -> bool:
        """Whether attention is causal; controls that shorten a name need that."""
        return bool(self.lm.anatomy and self.lm.anatomy.causal)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, in sentences."""
        cut = (
            "In this network every token attends to the whole name, so the first token alone and shortened contexts "
            "were not tested."
        )
        more = [a.name for a in self.items.attributes if a.name != self.options.group][self._most_attributes or 10**6 :]
        left = f"Left out by --short: {', '.join(more)} of {self.items.name}; name them with --attribute."
        extra = (*self.extra, *([left] if more else []))
        return (*self.items.notes, *self._panels[1], *extra, *([] if self.causal or self.is_text else [cut]))

    def prompts(self, template: str) -> list[Any]:
        """The prompts."""
        if not self.is_text:
            return [Prompt.fill(template, name=name) for name in self.items.frame["name"]]
        longest = min(LONGEST_TEXT, self.lm.context or LONGEST_TEXT)
        return shortened(self.lm.tokenizer, list(self.items.frame["name"]), longest, causal=self.lm.causal)

    @cached_property
    def name_tokens(self) -> list[tuple[int, ...]]:
        """The token ids of each name, as they stand in the prompts."""
        found = encode(
            self.lm.tokenizer, self.prompts(self.templates[0]), Tokens("all", "name"), self.lm.context, causal=self.lm.causal
        )
        return [tuple(int(t) for t in ids[a:b]) for ids, a, b in zip(found.ids, found.start, found.stop)]

    def twin(self) -> "LanguageModel":
        """The same architecture with random weights. A small one is kept: to make and to prove it takes seconds."""
        seed = self.options.seed
        if seed in self.twins:
            return self.twins[seed]
        made = self.lm.twin(seed)
        if sum(p.numel() * p.element_size() for p in made.model.parameters()) <= _TWIN_IN_MEMORY:
            self.twins[seed] = made
        return made

    @cached_property
    def forecasts(self) -> "list[Forecast]":
        """The plan of a capture of each template's prompts, which several steps make."""
        return [self.lm.plan(self.prompts(t), SITES, batch_tokens=self.options.batch_tokens) for t in self.templates]

    def captured(self, lm: "LanguageModel", folder: Path) -> "Captured":
        """Run the network over all prompts; activations are stored in memory or in a temporary folder."""
        o = self.options
        tokens = o.tokens if self.is_text else "name.all"
        width = lm.anatomy.width if lm.anatomy else 0
        count = len(self.items) if self.is_text else sum(len(t) for t in self.name_tokens)
        big = 4.0 * count * width * (lm.blocks + 1) * len(self.templates) > _IN_MEMORY
        acts = [
            lm.capture(self.prompts(t), SITES, tokens, batch_tokens=o.batch_tokens, out=folder / str(i) if big else None)
            for i, t in enumerate(self.templates)
        ]
        rows = {str(s): [a[s] for a in acts] for s in acts[0].sites}
        offsets = [a.offsets for a in acts]
        if self.is_text:
            bags = [lm.capture(self.prompts(t), "embed", "mean", batch_tokens=o.batch_tokens).numpy() for t in self.templates]
        else:
            bags = [np.add.reduceat(x, at[:-1]) / np.diff(at)[:, None] for x, at in zip(rows["embed"], offsets)]
        return Captured(rows, offsets, bags, not big)

    def keep_last(self, held: "Captured") -> None:
        """Keep the trained network's vectors of last tokens, if they are small, for the next step that reads them alone."""
        copied = {site: [x[:] for x in views] for site, views in held.at(-1).items()} if held.in_memory else None
        self._last = None if copied is None else (copied, held.bag())

    def taken_last(self, folder: Path) -> "tuple[Held, Held]":
        """Vectors of the last tokens, and bags; those kept by an earlier step are used once."""
        found, self._last = self._last, None
        if found is not None:
            return found
        held = self.captured(self.lm, folder)
        return held.at(-1), held.bag()


@dataclass(frozen=True)
class Captured:
    """Rows of all sites and templates, one a token.

    offsets: where each entity's rows are. bags: the mean of its token embeddings. in_memory: or on disk.
    """

    rows: Held
    offsets: list[Int[np.ndarray, "entity_plus_1"]]
    bags: list[Float[np.ndarray, "entity feature"]]
    in_memory: bool = True

    def at(self, position: int) -> Held:
        """The vectors of one token of the name: 0 the first, -1 the last. Entities with fewer tokens get their first."""
        index = [np.maximum(o[1:] + position, o[:-1]) if position < 0 else o[:-1] + position for o in self.offsets]
        return {site: [_View(x, i) for x, i in zip(held, index)] for site, held in self.rows.items()}

    def bag(self) -> Held:
        """Each name as the mean of its token embeddings: its tokens without their order, and without the network."""
        return {"": self.bags}


class _View:
    """Rows of an array, loaded when needed: one site at a time is in memory."""

    def __init__(self, rows: Float[np.ndarray, "row feature"], index: Int[np.ndarray, "entity"]) -> None:
        self._rows, self._index = rows, index

    def __getitem__(self, entities: Any) -> Float[np.ndarray, "entity feature"]:
        picked: np.ndarray = np.asarray(self._rows[self._index[entities]])
        return picked


def ngrams(names: Sequence[str]) -> Float[np.ndarray, "entity ngram"]:
    """The letters of each name: TF-IDF of its 1- to 4-grams within words, at most 2,000 of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), max_features=2000).fit_transform(list(names))
    dense: np.ndarray = vectors.toarray()
    return dense


def entity_tasks(setup: Setup[EntitiesOptions]) -> list[EntityTask]:
    """The sets that the options name.

    Raises
    ------
    UserError
        For a set, file, column or attribute that is not there, and for a table with nothing to probe.
    """
    o, lm = setup.options, setup.network
    if o.data is not None:
        assert o.text is not None
        found = labelled_text(o.data, o.text, list(o.label), **o.how())
        longest = min(LONGEST_TEXT, lm.context or LONGEST_TEXT)
        sampled = found.sample(o.max_items, o.seed)
        sizes = [len(t) for t in lm.tokenizer(list(sampled.frame["name"]))["input_ids"]]
        cut = sum(s > longest for s in sizes)
        note = (f"{cut} of {len(sizes)} texts have more than {longest} tokens; only their first {longest} were read.",)
        return [EntityTask(o, lm, sampled, True, note if cut else ())]

    def token_count(text: str) -> int:
        return len(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    wanted = (*o.attribute, *([o.group] if o.group and o.group not in o.attribute else [])) if o.attribute else ()
    made, twins = [], dict[int, "LanguageModel"]()
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
        made.append(EntityTask(o, lm, _within_context(items.sample(o.max_items, o.seed), lm), False, twins=twins))
    names = [subject.items.name for subject in made]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"Two of the sets have the name {twice[0]!r}, which their numbers go by; rename one file.")
    return made


def _within_context(items: EntitySet, lm: "LanguageModel") -> EntitySet:
    """Without the names whose prompts the network could not take.

    Raises
    ------
    UserError
        When it takes none of the prompts.
    """
    limit = lm.context
    if limit is None:
        return items
    each = [[len(ids) for ids in lm.tokenizer(items.prompts(t))["input_ids"]] for t in items.templates]
    sizes = np.array(each).max(0)
    if (sizes <= limit).all():
        return items
    long = items.templates[int(np.argmax(np.array(each).max(1)))]
    if (sizes > limit).all():
        raise UserError(
            f"{lm.name} takes {limit} tokens, but every prompt of {items.name} has more (at least {sizes.min()}, from "
            f"the template {_cut(long)!r}); give a shorter --template or a model with a longer context."
        )
    return items.take(
        np.flatnonzero(sizes <= limit),
        f"{items.name}: {(sizes > limit).sum()} of {len(sizes)} names are dropped, as {lm.name} takes {limit} tokens "
        f"and their prompts have more, up to {sizes.max()}.",
    )


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:40] + " … " + text[-16:]
