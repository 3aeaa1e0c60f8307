"""Options of the `brain` study."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from repscope.align.rdm_comparison import Measure
from repscope.studies.run.options import StudyOptions

_OF_RECORDING = ("regions", "activations")


class BrainOptions(StudyOptions):
    """Options of the `brain` study.

    Small families of networks are trained in the study and compared with simulated recordings that one of them generates: would the
    method have found it? With `recording` the same comparison is made with the user's recording.
    """

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
    repeats: int = Field(3, ge=2, description="Repeats of every stimulus.")
    noise: float = Field(1.0, ge=0, allow_inf_nan=False, description="Noise of one repeat, in units of the signal.")
    own: float = Field(0.5, ge=0, allow_inf_nan=False, description="What is each subject's own, in units of the shared signal.")
    steps: int = Field(600, ge=10, description="Updates of every training.")
    rate: float = Field(3e-3, gt=0, allow_inf_nan=False, description="Peak learning rate of AdamW.")
    batch: int = Field(64, ge=4, description="Images per update and network.")

    @field_validator("methods")
    @classmethod
    def _each_method_once(cls, methods: tuple[Any, ...]) -> tuple[Any, ...]:
        if not methods or len(set(methods)) < len(methods):
            raise ValueError("name each method once, and at least one: RSA, encoding")
        return methods

    @model_validator(mode="after")
    def _belongs(self) -> "BrainOptions":
        if self.recording is None and (given := self.given(*_OF_RECORDING)):
            raise ValueError(f"{given[0]} is of your recording; give --recording as well")
        return self

    def files(self) -> list[Path]:
        """The user's recording and activations."""
        paths = [Path(name).expanduser() for name in (self.recording, *self.activations) if name is not None]
        return [p for path in paths for p in (sorted(path.rglob("*")) if path.is_dir() else [path]) if p.is_file()]

    def sized(self) -> "BrainOptions":
        """With the smaller numbers of `tiny` and `short`, except for options that were given."""
        if self.tiny:
            small: dict[str, Any] = {"networks": 2, "recordings": 2, "encoded": 2, "conditions": 20, "subjects": 2, "channels": 8}
            return self.with_sizes(small | {"repeats": 2, "steps": 10, "batch": 16})
        if self.short:
            return self.with_sizes({"networks": 5, "recordings": 10, "encoded": 2})
        return self
