"""What the steps of `features` share: the network, its random twin, the site, the corpus in two parts, and autoencoders by name."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from repscope.data.contrasts.lookup import contrast
from repscope.data.corpus import Corpus, corpus
from repscope.errors import UserError
from repscope.models.prompts import Ragged
from repscope.models.sites import Site
from repscope.read import sae
from repscope.read.sae import SparseAutoencoder
from repscope.store import ActivationStore, Sequences, cut
from repscope.studies.features.names import WEIGHTS, trained
from repscope.studies.features.options import TINY_CORPUS, FeaturesOptions
from repscope.studies.run.study import Context, Setup

if TYPE_CHECKING:
    from repscope.models.language import LanguageModel

HELD_OUT = 10  #: one document in so many is for evaluation, never for training
SECOND_SEED = "second seed"
_LEAST = 2  #: held-out documents


@dataclass(frozen=True)
class Training:
    """One autoencoder to train. name: its item in tables, and its folder. twin: whether the network has random weights."""

    name: str
    k: int
    seed: int = 0
    twin: bool = False

    @property
    def step(self) -> str:
        """The name of its step."""
        return f"train {self.name}"


@dataclass
class FeaturesTask:
    """The options of a run and what its steps make of them once."""

    setup: Setup[FeaturesOptions]

    @property
    def options(self) -> FeaturesOptions:
        """The options as they run."""
        return self.setup.options

    @property
    def lm(self) -> "LanguageModel":
        """The network."""
        return self.setup.network

    @cached_property
    def twin(self) -> "LanguageModel":
        """The same network with random weights."""
        return self.lm.twin(self.options.seed + self.options.tiny)  # the tiny model is drawn from the seed itself

    def network(self, twin: bool) -> "LanguageModel":
        """The network, or its twin."""
        return self.twin if twin else self.lm

    @cached_property
    def published(self) -> SparseAutoencoder | None:
        """The published autoencoder that --sae names.

        Raises
        ------
        UserError
            If it reads another site than --site, names none, is a transcoder, or has another width.
        """
        if self.options.sae is None:
            return None
        found = sae.open(self.options.sae)
        if found.site is None and self.options.site is not None:
            found = sae.open(self.options.sae, site=self.options.site)
        elif self.options.site is not None and str(found.site) != self.options.site:
            raise UserError(f"{self.options.sae} was trained at {found.site}, not at {self.options.site}; omit --site.")
        if found.transcoder:
            raise UserError(
                f"{self.options.sae} is a transcoder; the study replaces a site by its own reconstruction: give an autoencoder."
            )
        if found.site is None:
            raise UserError(f"{self.options.sae} does not say which site it reads; name it with --site, such as resid_post.8.")
        return found

    @cached_property
    def site(self) -> Site:
        """The site.

        Raises
        ------
        UserError
            For an unknown site, or one without a single vector per token.
        """
        o, lm = self.options, self.lm
        if o.site is not None or self.published is None:
            named: str | Site = o.site or f"resid_post.{lm.blocks // 3}"
        else:
            assert self.published.site is not None
            named = self.published.site
        sites = lm.resolve(named)
        if len(sites) != 1:
            raise UserError(f"{named} names {len(sites)} sites; name one, such as resid_post.{lm.blocks // 3}.")
        return sites[0]

    @cached_property
    def width(self) -> int:
        """Features of the site."""
        return int(self.lm.capture(Ragged.of([np.zeros(2)]), self.site).numpy().shape[-1])

    @cached_property
    def trainings(self) -> tuple[Training, ...]:
        """All autoencoders: one per k, a second seed, and one of the twin."""
        if self.published is not None:
            return ()
        o = self.options
        each = tuple(Training(trained(k), k, o.seed) for k in sorted(o.k))
        return (*each, Training(SECOND_SEED, o.main, o.seed + 1), Training(WEIGHTS, o.main, o.seed, twin=True))

    @property
    def names(self) -> tuple[str, ...]:
        """The autoencoders of the network, by their item in tables."""
        return ("published",) if self.published is not None else tuple(trained(k) for k in sorted(self.options.k))

    @property
    def main(self) -> str:
        """The autoencoder of cards and names."""
        return "published" if self.published is not None else trained(self.options.main)

    def opened(self, name: str, context: Context) -> SparseAutoencoder:
        """An autoencoder by name, from its step's artifact."""
        if name == "published":
            assert self.published is not None
            return self.published
        return sae.open(folder_of(context, name))

    def store(self, context: Context, twin: bool = False) -> ActivationStore:
        """The stored activations."""
        return ActivationStore(store_folder(context, twin))

    @cached_property
    def corpus(self) -> Corpus:
        """All documents; the texts of a built-in contrast in a tiny run, which takes seconds."""
        o = self.options
        if o.corpus == TINY_CORPUS:
            held = contrast("sentiment")
            return Corpus(TINY_CORPUS, (*held.yes, *held.no))
        found = corpus(o.corpus, text=o.text)
        if len(found) < HELD_OUT * _LEAST:
            raise UserError(
                f"The corpus {o.corpus} has {len(found)} documents, and every {HELD_OUT}th is held out; give "
                f"{HELD_OUT * _LEAST} or more."
            )
        return found

    def documents(self, held_out: bool) -> Corpus:
        """The documents for training, or those for evaluation."""
        number = np.arange(len(self.corpus))
        return self.corpus.take(np.flatnonzero((number % HELD_OUT == HELD_OUT - 1) == held_out).tolist())

    @cached_property
    def evaluated(self) -> Sequences:
        """Held-out texts: whole sequences, one per document, drawn from the seed."""
        pieces = cut(self.lm, self.documents(True), self.options.context)
        long = np.flatnonzero(pieces.rows() >= min(self.options.context // 4, int(pieces.rows().max())))
        order = np.random.default_rng(self.options.seed).permutation(long)
        first = order[np.unique(pieces.document[order], return_index=True)[1]]  # one of each document
        chosen: Int[np.ndarray, sequence] = np.sort(
            np.random.default_rng(self.options.seed).permutation(first)[: self.options.evaluated]
        )
        return pieces.take(chosen)


def folder_of(context: Context, name: str) -> Path:
    """Where an autoencoder of this run is, in SAELens' format."""
    return context.artifacts / "sae" / name.replace(" = ", "-").replace(" ", "-")


def store_folder(context: Context, twin: bool) -> Path:
    """Where the activations are."""
    return context.artifacts / ("activations-random-weights" if twin else "activations")
