"""Options of `bench discovery`."""

from pydantic import Field

from repscope.studies.run.options import StudyOptions


class BenchOptions(StudyOptions):
    """Options of `bench discovery`."""

    setting: str = Field(
        "planted-mlp",
        description="planted-mlp (functions), planted-transformer (weights of a small transformer), lm (a behaviour in a language "
        "model), gan and ddpm (image generators with known factors), digits (a GAN of handwritten digits).",
    )
    seeds: int | None = Field(
        None, ge=1, le=1000, description="Networks per kind, or draws of prompts; the setting's own number if not given."
    )
    kinds: tuple[str, ...] = Field((), description="Kinds of planted networks; all if not given.")
    n: int | None = Field(None, ge=1, description="Number of directions per method.")
    model: str = Field("", description="The model, for the setting lm.")
