"""A diffusion model: a U-Net of diffusers and the noise schedule of its training, for DDIM sampling and inversion with edits.

| site | vector | added |
|---|---|---|
| `conditioning` | (word width) | to every token of the empty prompt's encoding: with one token, the learnt token of NoiseCLR |
| `h` | (channel · height · width) | to the output of the U-Net's middle block, at every step: Asyrp's h-space |
| `x_t` | (pixel) | to the noisy image |

Rows of images and of noise are flat (row, channel · height · width), in the U-Net's own values (mostly from -1 to 1). Nothing of
the network is changed: edits live in hooks for the time of a pass.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.arrays import as_array, as_tensor
from repscope.errors import UserError, unknown
from repscope.models.engine.fingerprint import of_module
from repscope.models.engine.hooks import first_tensor
from repscope.models.generators.ddim import descending, epsilon, level_at, moved, noise_levels, predicted_image
from repscope.models.generators.partial_pass import output_of

#: site → its name in directions
SITES = {"conditioning": "module:encoder_hidden_states", "h": "module:mid_block", "x_t": "module:#in"}
Vectors = Float[Tensor, "row width"]


@dataclass(eq=False)
class DiffusionGenerator:
    """A U-Net with its schedule. Images, noise and vectors are tensors, arrays or lists.

    unet: a `UNet2DModel` or `UNet2DConditionModel`, in evaluation mode. scheduler: with the noise levels of its training. empty:
    encoding of the empty prompt, for a U-Net that attends to words. name: in results.

    Raises a `UserError` for a scheduler without DDIM inversion, and for a conditional U-Net without `empty`.
    """

    unet: Any = field(repr=False)
    scheduler: Any = field(repr=False)
    empty: Float[Tensor, "token width"] | None = field(default=None, repr=False)
    name: str = "diffusion model"
    levels: Float[Tensor, "time"] = field(init=False, repr=False)
    model: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        self.levels = noise_levels(self.scheduler)
        if not hasattr(self.unet, "config"):
            raise UserError(
                f"The U-Net is of {type(self.unet).__name__}; give a UNet2DModel or a UNet2DConditionModel of diffusers."
            )
        if self.empty is not None:
            self.empty = as_tensor(self.empty, "words of the empty prompt")
        attends = getattr(self.unet.config, "encoder_hid_dim", None) or getattr(self.unet.config, "cross_attention_dim", None)
        if type(self.unet).__name__ != "UNet2DConditionModel":
            attends = None
        if attends and self.empty is None:
            raise UserError("This U-Net attends to the words of a prompt; give empty=…, that of the empty prompt.")
        if not attends and self.empty is not None:
            raise UserError("This U-Net attends to no words; leave empty=… out.")
        if self.empty is not None and self.empty.shape[1:] != (attends,):
            raise UserError(f"The empty prompt has the shape {tuple(self.empty.shape)}; this U-Net takes (token, {attends}).")
        self.model = str(of_module(self.unet))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        size = self.unet.config.sample_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return int(self.unet.config.in_channels), int(height), int(width)

    @property
    def pixels(self) -> int:
        """Numbers per image."""
        return int(torch.Size(self.shape).numel())

    def width(self, site: str) -> int:
        """Width of the vectors at a site.

        Raises
        ------
        UserError
            For an unknown site, or one that this U-Net has not.
        """
        if site == "x_t":
            return self.pixels
        if site == "conditioning":
            if self.empty is None:
                raise UserError("This U-Net attends to no words, so it has no conditioning; take the site h or x_t.")
            return int(self.empty.shape[1])
        if site != "h":
            raise unknown("site of a diffusion model", site, SITES)
        with torch.no_grad():
            return int(self.bottleneck(torch.zeros(1, self.pixels), torch.zeros(1, dtype=torch.long)).shape[1])

    def noise(self, count: int, seed: int) -> Float[Tensor, "row pixel"]:
        """Draws from N(0, I)."""
        return torch.randn(count, self.pixels, generator=torch.Generator().manual_seed(seed))

    def noised(
        self, images: Float[Tensor, "row pixel"], noise: Float[Tensor, "row pixel"], t: Int[Tensor, "row"]
    ) -> Float[Tensor, "row pixel"]:
        """Images with the noise of time t.

        Raises
        ------
        UserError
            For images and noise of different shapes, and times that are not those of the training.
        """
        images, noise = as_tensor(images, "images"), as_tensor(noise, "noises")
        if images.shape != noise.shape:
            raise UserError(
                f"The images have the shape {tuple(images.shape)} and the noises {tuple(noise.shape)}; give equal ones."
            )
        level = self.levels[self._times(t, len(images))][:, None]
        return level.sqrt() * images + (1 - level).sqrt() * noise

    def predicted(
        self, x: Float[Tensor, "row pixel"], t: Int[Tensor, "row"], site: str = "", vectors: Vectors | None = None
    ) -> Float[Tensor, "row pixel"]:
        """The noise that the U-Net predicts in x at times t, with vectors added at a site. Differentiable in the vectors.

        Raises
        ------
        UserError
            For vectors of another shape or an unknown site.
        """
        x = as_tensor(x, "images")
        x, output = self._output(x, t := self._times(t, len(x)), site, vectors)
        return epsilon(self._prediction, output, x, self.levels[t][:, None])

    def bottleneck(
        self, x: Float[Tensor, "row pixel"], t: Int[Tensor, "row"], site: str = "", vectors: Vectors | None = None
    ) -> Float[Tensor, "row width"]:
        """Output of the middle block (h-space), flat; the upper half of the U-Net does not run. Differentiable."""
        x, words, _ = self._inputs(x, site, vectors)
        t = self._times(t, len(x))
        self._middle()
        return output_of(self.unet, "mid_block", lambda: self._run(x, t, words)).flatten(1)

    @torch.no_grad()
    def sample(
        self,
        noise: Float[Tensor, "row pixel"],
        steps: int,
        site: str = "",
        vectors: Vectors | None = None,
        *,
        asymmetric: bool = False,
    ) -> Float[Tensor, "row pixel"]:
        """Images by DDIM, with the same vector added at every step.

        Parameters
        ----------
        noise
            Start, one row per image.
        steps
            Number of steps.
        site, vectors
            Where vectors are added, one per row.
        asymmetric
            Edit the predicted image alone and not the direction to the noise, as Asyrp; two passes per step.

        Raises
        ------
        UserError
            As `predicted`; for a number of steps that the training does not allow.
        """
        x = as_tensor(noise, "noises")
        for t, to in descending(self.levels, steps, self._spacing):
            image, eps = self._image_and_noise(x, t, site, vectors)
            if asymmetric and vectors is not None:
                _, eps = self._image_and_noise(x, t)
            if self._clip is not None:
                image = image.clamp(-self._clip, self._clip)
            x = moved(image, eps, level_at(self.levels, to))
        return x

    @torch.no_grad()
    def invert(self, images: Float[Tensor, "row pixel"], steps: int) -> Float[Tensor, "row pixel"]:
        """The noise from which DDIM samples these images, approximately: the same steps the other way."""
        x = as_tensor(images, "images")
        for to, t in reversed(descending(self.levels, steps, self._spacing)):
            # the noise is predicted for the level that is reached, as in diffusers' DDIMInverseScheduler
            eps = self.predicted(x, torch.full((len(x),), to, dtype=torch.long))
            level = level_at(self.levels, t)
            x = moved(predicted_image("epsilon", eps, x, level), eps, level_at(self.levels, to))
        return x

    @property
    def _prediction(self) -> str:
        return str(self.scheduler.config.prediction_type)

    @property
    def _clip(self) -> float | None:
        """Range of the predicted image, where the scheduler clips it."""
        config = self.scheduler.config
        return float(getattr(config, "clip_sample_range", 1.0)) if getattr(config, "clip_sample", False) else None

    @property
    def _spacing(self) -> str:
        return str(getattr(self.scheduler.config, "timestep_spacing", "leading"))

    def _image_and_noise(self, x: Tensor, t: int, site: str = "", vectors: Vectors | None = None) -> tuple[Tensor, Tensor]:
        """The image and the noise that the U-Net predicts in x at one time."""
        x, output = self._output(x, torch.full((len(x),), t, dtype=torch.long), site, vectors)
        level = self.levels[t]
        return predicted_image(self._prediction, output, x, level), epsilon(self._prediction, output, x, level)

    def _output(self, x: Tensor, t: Tensor, site: str, vectors: Vectors | None) -> tuple[Tensor, Tensor]:
        """x as the U-Net takes it, and its output."""
        x, words, added = self._inputs(x, site, vectors)
        handle = None
        if added is not None:
            handle = self._middle().register_forward_hook(lambda _, args, output: _plus(output, added))
        try:
            return x, self._run(x, t, words)
        finally:
            if handle is not None:
                handle.remove()

    def _inputs(self, x: Tensor, site: str, vectors: Vectors | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x and words with what is added to them, and what is added to h."""
        x = as_tensor(x, "images")
        if x.dim() != 2 or x.shape[1] != self.pixels:
            raise UserError(f"The images have the shape {tuple(x.shape)}; this U-Net takes (row, {self.pixels}).")
        words = None if self.empty is None else self.empty.expand(len(x), -1, -1)
        if vectors is None:
            return x, words, None
        vectors = as_tensor(vectors, "vectors")
        if vectors.shape != (len(x), (width := self.width(site) if site != "h" else vectors.shape[-1])):
            raise UserError(f"The vectors have the shape {tuple(vectors.shape)}; at {site} give ({len(x)}, {width}).")
        if site == "x_t":
            return x + vectors, words, None
        if site == "conditioning":
            assert words is not None
            return x, words + vectors[:, None], None
        return x, words, vectors

    def _times(self, t: Any, rows: int) -> Int[Tensor, "row"]:
        """Times of the training, one per row."""
        found = t if isinstance(t, Tensor) else torch.tensor(as_array(t, "times"))
        whole = not found.is_floating_point() and found.dtype != torch.bool
        if found.shape != (rows,) or not whole or not bool(((found >= 0) & (found < len(self.levels))).all()):
            raise UserError(f"The times are to be {rows} whole numbers from 0 to {len(self.levels) - 1}, one per row of images.")
        return found.long()

    def _run(self, x: Tensor, t: Tensor, words: Tensor | None) -> Tensor:
        given = {} if words is None else {"encoder_hidden_states": words}
        output = self.unet(x.reshape(-1, *self.shape), t, **given, return_dict=False)[0]
        predicted: Tensor = output.flatten(1)[:, : self.pixels]  # some U-Nets predict the variance too
        return predicted

    def _middle(self) -> Any:
        if getattr(self.unet, "mid_block", None) is None:
            raise UserError("This U-Net has no middle block, so it has no h-space; take another site.")
        return self.unet.mid_block


def _plus(output: Any, added: Tensor) -> Any:
    """The middle block's output with vectors added."""
    held = first_tensor(output)
    if held is None or held[0].numel() != added.shape[1]:
        size = "no tensor" if held is None else f"{held[0].numel()} features"
        raise UserError(f"The vectors have {added.shape[1]} features and the middle block gives {size}; they must agree.")
    moved_ = held + added.reshape(held.shape)
    return moved_ if isinstance(output, Tensor) else (moved_, *output[1:])
