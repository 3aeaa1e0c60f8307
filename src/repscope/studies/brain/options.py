"""Options of the `brain` study."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from repscope.align.rdm_comparison import Measure
from repscope.studies.brain.parts import PARTS, REPRESENTATION, SELF_OTHER, TWIN, WIRING, WORM
from repscope.studies.run.options import Sizes, StudyOptions, files_in

_OF_RECORDING = ("regions", "activations")
_OF_WIRING = ("functional", "signals", "exposure")
#: part → options that only it reads
_OF_PART = {
    REPRESENTATION: ("recording", "methods", "measure", "networks", "recordings", "encoded", "conditions", "subjects", "channels"),
    TWIN: ("sensorium", "neurons", "images"),
    WIRING: ("connectome", "microns", "cells"),
    SELF_OTHER: ("trials",),
}


class BrainOptions(StudyOptions):
    """Options of the `brain` study.

    Small families of networks are trained in the study and compared with simulated recordings that one of them generates: would the
    method have found it? With `recording` the same comparison is made with the user's recording. Then digital twins, wiring and
    function, self and other: on simulated data of known truth, and on the user's data where they are given.
    """

    SHORT: ClassVar[Sizes] = {"networks": 5, "recordings": 10, "encoded": 2, "neurons": 30, "images": 1200, "draws": 40}
    SHORT |= {"permutations": 500}
    TINY: ClassVar[Sizes] = {"networks": 2, "recordings": 2, "encoded": 2, "conditions": 20, "subjects": 2, "channels": 8}
    TINY |= {"repeats": 2, "steps": 10, "batch": 16, "neurons": 5, "images": 100, "cells": 16, "draws": 2, "permutations": 20}

    parts: tuple[Literal["representation", "twin", "wiring", "self-other"], ...] = Field(
        ("representation", "twin", "wiring", "self-other"),
        description="Parts to answer: representation (RSA, encoding models), twin, wiring, self-other.",
    )

    recording: str | None = Field(
        None,
        description="Your recording: a .nwb file, a .npz file with a table of conditions, a folder with conditions.tsv, or that "
        "of the 92-image set.",
    )
    regions: tuple[str, ...] = Field((), description="With --recording: the regions to compare; all if not given.")
    activations: tuple[str, ...] = Field(
        (),
        description="With --recording: activations of your networks, one .npz or .safetensors file per network with an array "
        "(condition, feature) per layer; FAMILY-SEED.npz names its family. Without it, networks trained here see the images.",
    )
    methods: tuple[Literal["RSA", "encoding"], ...] = Field(
        ("RSA", "encoding"), description="Ways to compare: RSA, and encoding models, which need himalaya (repscope[brain])."
    )
    measure: Measure = Field("pearson", description="How RDMs are compared.")
    networks: int = Field(8, ge=2, description="Networks per family that are compared with recordings.")
    recordings: int = Field(40, ge=2, description="Simulated recordings per generating family, each of a network of its own.")
    encoded: int = Field(8, ge=2, description="How many of them are compared by encoding models too.")
    conditions: int = Field(120, ge=20, le=597, description="Stimuli of a simulated recording.")
    subjects: int = Field(4, ge=2, description="Subjects of a simulated recording.")
    channels: int = Field(60, ge=2, description="Channels (neurons, voxels) per subject.")
    repeats: int = Field(3, ge=2, le=1000, description="Repeats of every stimulus.")
    noise: float = Field(1.0, ge=0, allow_inf_nan=False, description="Noise of one repeat, in units of the signal.")
    own: float = Field(0.5, ge=0, allow_inf_nan=False, description="What is each subject's own, in units of the shared signal.")
    steps: int = Field(600, ge=10, description="Updates of every training.")
    rate: float = Field(3e-3, gt=0, allow_inf_nan=False, description="Peak learning rate of AdamW.")
    batch: int = Field(64, ge=4, description="Images per update and network.")
    sensorium: str | None = Field(
        None, description="Your recording for a digital twin: a folder in the format of the Sensorium competitions (static images)."
    )
    neurons: int = Field(40, ge=4, le=100_000, description="Simulated neurons of the digital twin.")
    images: int = Field(2000, ge=60, description="Images that the digital twin is fitted to.")
    connectome: str | None = Field(
        None,
        description="Your connectome: a table names × names, or one with columns pre, post and a count; or worm (C. elegans, "
        "repscope[worm]).",
    )
    functional: str | None = Field(
        None, description="Similarity of your cells' responses: a table names × names, or columns pre, post and a number."
    )
    signals: str | None = Field(
        None, description="Effects of stimulating one of your cells on another, [stimulated, responding]; the same formats."
    )
    exposure: str | None = Field(
        None, description="Contact, or length of co-travel, of your cells: how much opportunity pairs have for a synapse."
    )
    microns: str | None = Field(None, description="A folder with the tables of MICrONS, named like edges.csv and nodes.csv.")
    properties: tuple[str, ...] = Field(
        (), description="With --microns: columns of the table of nodes over which responses of neurons are correlated."
    )
    trials: str | None = Field(
        None,
        description="Your trials for self and other: a table with columns agent (self, other), outcome, perhaps stimulus and "
        "identity, and one column per unit.",
    )
    cells: int = Field(40, ge=12, description="Cells of a simulated connectome.")
    draws: int = Field(100, ge=2, description="Simulated connectomes, and pairs of networks that watch each other, of each kind.")
    permutations: int = Field(2000, ge=20, le=1_000_000, description="Permutations of each test of a connectome.")

    @field_validator("methods")
    @classmethod
    def _each_method_once(cls, methods: tuple[Any, ...]) -> tuple[Any, ...]:
        if not methods or len(set(methods)) < len(methods):
            raise ValueError("name each method once, and at least one: RSA, encoding")
        return methods

    @field_validator("parts")
    @classmethod
    def _each_part_once(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if not given or len(set(given)) < len(given):
            raise ValueError(f"name each part once, and at least one: {', '.join(PARTS)}")
        return given

    @model_validator(mode="after")
    def _belongs(self) -> "BrainOptions":
        if self.recording is None and (given := self.given(*_OF_RECORDING)):
            raise ValueError(f"{given[0]} is of your recording; give --recording as well")
        if self.connectome is None and self.microns is None and (given := self.given(*_OF_WIRING)):
            raise ValueError(f"{given[0]} is of your connectome; give --connectome as well")
        if self.given("encoded") and self.encoded > self.recordings:
            raise ValueError(f"--encoded is {self.encoded} of --recordings {self.recordings}; give no more than there are")
        if self.connectome is not None and self.microns is not None:
            raise ValueError("--connectome and --microns are two connectomes; give one of them")
        if self.microns is None and self.properties:
            raise ValueError("--properties names columns of the tables of --microns; give that folder as well")
        if self.microns is not None and self.exposure is not None:
            raise ValueError("--exposure is in the tables of --microns already; leave it out")
        for part, of in _OF_PART.items():
            if part not in self.parts and (given := self.given(*of)):
                raise ValueError(f"{given[0]} is of the part {part}, which is not among --parts; add it")
        return self

    def files(self) -> list[Path]:
        """The user's recordings, activations, connectome and trials."""
        wiring = (self.connectome if self.connectome != WORM else None, self.functional, self.signals, self.exposure)
        return files_in(self.recording, *self.activations, self.sensorium, *wiring, self.microns, self.trials)
