"""Options of the `discover` study."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from repscope.discovery.comparison import RANDOM_METHOD
from repscope.studies.run.options import ModelOptions, TableOptions

MOST_PROMPTS = 3  #: for discovery, and as many held out, of the short form
_OF_LANGUAGE: tuple[str, ...] = ("model", "revision", "device", "dtype", "batch_tokens", "decimal", "na", "quote")
_OF_LANGUAGE += ("prompts", "plain", "source", "target", "tokens", "damage", "new_tokens")
_OF_IMAGES = ("data", "site", "samples", "images")
_SIZED = ("methods", "vectors", "steps", "seeds", "samples", "images")
_WITH_LABELS = ("factor regression", "factor regression, orthogonal")
IMAGE_METHODS: dict[str, tuple[str, ...]] = {
    "gan": (
        RANDOM_METHOD,
        "L2",
        "L2 + contrastive",
        "contrastive",
        "L2 + soft-orthogonal",
        "LatentCLR",
        "LatentCLR, linear",
        "LatentCLR, MLP",
        "Jacobian",
        "DCT",
        "GANSpace",
        "SeFa",
        *_WITH_LABELS,
    ),
    "diffusion": (
        RANDOM_METHOD,
        "L2",
        "L2 + contrastive",
        "contrastive",
        "L2 + soft-orthogonal",
        "NoiseCLR",
        "Jacobian",
        *_WITH_LABELS,
    ),
}


class DiscoverOptions(ModelOptions, TableOptions):
    """Options of the `discover` study.

    A run is about a language model; `subject` puts an image generator in its place, which it trains once.
    """

    subject: Literal["language", "gan", "diffusion"] = Field(
        "language", description="What is searched: a language model, or a GAN or a diffusion model of images with known factors."
    )
    data: Literal["sprites", "digits"] = Field(
        "sprites",
        description="With an image generator: what it draws, sprites of six known factors or, by a GAN, handwritten digits.",
    )
    site: Literal["conditioning", "h"] = Field(
        "conditioning", description="With --subject diffusion: where vectors are added, the words or the bottleneck (h-space)."
    )
    samples: int = Field(16, ge=2, description="With an image generator: samples that directions are found on.")
    images: int = Field(64, ge=4, description="With an image generator: held-out images on which directions are evaluated.")
    prompts: str | None = Field(None, description="A file of prompts: .txt with one per line, or a table with the column text.")
    plain: bool = Field(False, description="Use prompts as they are, without the chat template.")
    source: int | None = Field(
        None, ge=0, description="Block to whose output vectors are added; at a quarter of the depth if not given."
    )
    target: int | None = Field(
        None, ge=1, description="Block at whose output effects are measured; at three quarters of the depth if not given."
    )
    tokens: str = Field(
        "last 6", description='Tokens at which effects are measured: last, mean, all, or the mean of the last 6 ("last 6").'
    )
    methods: tuple[str, ...] = Field(
        (
            RANDOM_METHOD,
            "L2",
            "L2 + contrastive",
            "contrastive, skip removed",
            "L2 + soft-orthogonal",
            "contrastive",
            "DCT",
            "Jacobian",
        ),
        description="Methods to compare; of generators also LatentCLR, GANSpace and SeFa (of a GAN), NoiseCLR (of a diffusion "
        "model) and factor regression.",
    )
    vectors: int = Field(12, ge=2, description="Directions per method; other defaults for image generators.")
    steps: int = Field(40, ge=1, description="Optimisation steps per method; other defaults for image generators.")
    seeds: int = Field(3, ge=1, le=1000, description="Seeds per method; intervals are over seeds.")
    scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Norm of the vectors relative to the median norm at the source; calibrated if not given.",
    )
    damage: float = Field(
        0.5,
        gt=0,
        allow_inf_nan=False,
        description="Limit of the calibration: largest KL (nats) of the Jacobian's leading directions.",
    )
    new_tokens: int = Field(16, ge=0, description="Tokens per generated text for the measure of damage; 0 for none.")

    @model_validator(mode="after")
    def _one_scale(self) -> "DiscoverOptions":
        if self.scale is not None and self.given("damage"):
            raise ValueError("--damage calibrates the scale and --scale sets it; give only one of them")
        return self

    @model_validator(mode="after")
    def _options_that_fit(self) -> "DiscoverOptions":
        if not self.methods:
            raise ValueError("--methods names no method; give at least one, or omit it")
        if self.subject == "language" and (given := self.given(*_OF_IMAGES)):
            raise ValueError(f"{_belong(given)} to an image generator; give --subject gan or diffusion too, or omit {_them(given)}")
        if self.subject != "language" and (given := self.given(*_OF_LANGUAGE)):
            raise ValueError(f"{_belong(given)} to a language model, which --subject {self.subject} replaces; omit {_them(given)}")
        if self.subject == "diffusion" and self.data == "digits":
            raise ValueError("--data digits goes with --subject gan; the diffusion model draws captioned sprites")
        if self.subject == "gan" and self.given("site"):
            raise ValueError("--site belongs to --subject diffusion; directions of a GAN are added to its latent")
        return self

    def sized(self) -> "DiscoverOptions":
        """With the smaller numbers of `tiny` and `short`, and those of image generators."""
        if self.subject != "language":
            return self._sized_for_images()
        small: dict[str, Any] = {}
        if self.tiny:
            small = {"vectors": 4, "steps": 3, "seeds": 2, "new_tokens": 3, "tokens": "last 3", "plain": True}
            small["methods"] = (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")
        elif self.short:
            small = {"vectors": 4, "steps": 6, "seeds": 3, "new_tokens": 5}
            small["methods"] = (RANDOM_METHOD, "L2", "L2 + contrastive", "Jacobian")
        return self.with_sizes(small)

    def key(self) -> dict[str, Any]:
        """As `StudyOptions`; runs on language models are named without the options of image generators."""
        found = super().key()
        if self.subject == "language":
            return {k: v for k, v in found.items() if k not in ("subject", *_OF_IMAGES)}
        if self.data == "sprites":  # the only images of earlier versions, whose runs keep their names
            del found["data"]
            found |= {"given": [name for name in found["given"] if name != "data"]} if "given" in found else {}
        return found | self.sized().model_dump(mode="json", include=set(_SIZED))  # a version with other sizes is another run

    def files(self) -> list[Path]:
        """The user's own prompts."""
        return [Path(self.prompts)] if self.prompts else []

    def _sized_for_images(self) -> "DiscoverOptions":
        gan = self.subject == "gan"
        small: dict[str, Any] = {"methods": IMAGE_METHODS[self.subject], "seeds": 5, "model": f"{self.data}-{self.subject}"}
        if gan:
            small |= {"steps": 100, "vectors": 10 if self.data == "digits" else 6}
        else:
            small |= {"steps": 60, "vectors": 10, "samples": 6, "images": 24}
        if self.tiny:
            methods = (
                RANDOM_METHOD,
                "L2",
                "contrastive",
                "L2 + contrastive",
                *(("LatentCLR, MLP", "SeFa") if gan else ("NoiseCLR",)),
            )
            small |= {"vectors": 3, "steps": 2, "seeds": 2, "samples": 3, "images": 4, "methods": (*methods, _WITH_LABELS[0])}
        elif self.short:
            small |= {"steps": 40} if gan else {"vectors": 6, "steps": 15, "seeds": 3, "samples": 3, "images": 12}
        if self.site == "h":
            small["methods"] = tuple(name for name in small["methods"] if name not in _WITH_LABELS)  # h has no words
        if self.data == "digits":  # probabilities of classes sum to one, so their directions depend on each other
            small["methods"] = tuple(name for name in small["methods"] if name != _WITH_LABELS[1])
        return self.with_sizes(small)


def _belong(given: list[str]) -> str:
    return f"{' and '.join(given)} {'belongs' if len(given) == 1 else 'belong'}"


def _them(given: list[str]) -> str:
    return "it" if len(given) == 1 else "them"
