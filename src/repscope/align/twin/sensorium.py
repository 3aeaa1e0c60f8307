"""Published twins of mouse visual cortex: checkpoints of the Sensorium baseline models, opened from a local file.

The format (Willeke et al. 2022, arXiv:2206.08666; repository sinzlab/sensorium, MIT): a state dictionary with

- `core.features.layer0.conv`, `.norm`: a convolution without padding, batch normalisation;
- `core.features.layer1 … .ds_conv.{in_depth_conv, spatial_conv, out_depth_conv}`, `.norm`: depth-separable convolutions, padded;
- per recording `readout.NAME.*`: `_features` (1, channel, 1, neuron), `bias`, and positions: `_mu`, or `source_grid` (cortical
  positions) with `mu_transform.0` and `.2`, an MLP whose tanh is the position.

ELU between layers; rate = ELU(y) + 1. The file is read with `weights_only`: nothing in it is run. Images are (image, 1, 36, 64) for
the published models, normalised as in training, which the checkpoint does not say: results depend on it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from repscope.errors import UserError, no_file, unknown

_EPS = 1e-5


@dataclass(frozen=True, eq=False)
class SensoriumTwin:
    """A published twin. recordings: names. cortex: positions of the neurons of a recording in cortex, if the file has them."""

    weights: dict[str, Tensor]
    recordings: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Number of the core's layers."""
        return len({key.split(".")[2] for key in self.weights if key.startswith("core.features.layer")})

    @torch.no_grad()
    def features(self, images: Any, layer: int | None = None) -> Float[np.ndarray, "image feature height width"]:
        """Features of the core after a layer (by default the last)."""
        return self._core(images, layer).numpy()

    @torch.no_grad()
    def predict(self, images: Any, recording: str | None = None, batch: int = 64) -> Float[np.ndarray, "image neuron"]:
        """Rates of the neurons of a recording.

        Raises
        ------
        UserError
            For an unknown recording, or images of another shape than (image, 1, height, width).
        """
        name = self._named(recording)
        at = self.positions(name).view(1, -1, 1, 2)
        parts = []
        for k in range(0, len(images), batch):
            x = self._core(images[k : k + batch], None)
            y = functional.grid_sample(x, at.expand(len(x), -1, -1, -1), align_corners=True)[..., 0]
            features = self.weights[f"readout.{name}._features"][0, :, 0]
            parts.append(functional.elu((y * features).sum(1) + self.weights[f"readout.{name}.bias"]) + 1)
        return torch.cat(parts).numpy()

    def positions(self, recording: str | None = None) -> Tensor:
        """Positions of the readouts, (neuron, 2), in [-1, 1]: across, down."""
        w, r = self.weights, f"readout.{self._named(recording)}."
        if f"{r}_mu" in w:
            return w[f"{r}_mu"].reshape(-1, 2)
        mlp = f"{r}mu_transform."
        hidden = functional.elu(functional.linear(w[f"{r}source_grid"], w[f"{mlp}0.weight"], w[f"{mlp}0.bias"]))
        return torch.tanh(functional.linear(hidden, w[f"{mlp}2.weight"], w[f"{mlp}2.bias"]))

    def cortex(self, recording: str | None = None) -> Float[np.ndarray, "neuron axis"] | None:
        """Positions of the neurons in cortex, scaled as in training, or None."""
        found = self.weights.get(f"readout.{self._named(recording)}.source_grid")
        return None if found is None else found.numpy()

    def _named(self, recording: str | None) -> str:
        if recording is None:
            if len(self.recordings) > 1:
                raise UserError(f"The file has {len(self.recordings)} recordings; name one of {', '.join(self.recordings)}.")
            return self.recordings[0]
        if recording not in self.recordings:
            raise unknown("recording", recording, self.recordings)
        return recording

    def _core(self, images: Any, layer: int | None) -> Tensor:
        x = torch.as_tensor(np.asarray(images), dtype=torch.float32)
        x = x[:, None] if x.ndim == 3 else x
        first = self.weights["core.features.layer0.conv.weight"]
        if x.ndim != 4 or x.shape[1] != first.shape[1]:
            raise UserError(f"Images have the shape {tuple(x.shape)}; this twin takes (image, {first.shape[1]}, height, width).")
        for i in range(self.layers if layer is None else layer + 1):
            p = f"core.features.layer{i}."
            if i == 0:
                x = functional.conv2d(x, first)
            else:
                x = functional.conv2d(x, self.weights[p + "ds_conv.in_depth_conv.weight"])
                spatial = self.weights[p + "ds_conv.spatial_conv.weight"]
                x = functional.conv2d(x, spatial, padding=spatial.shape[-1] // 2, groups=len(spatial))
                x = functional.conv2d(x, self.weights[p + "ds_conv.out_depth_conv.weight"])
            names = ("running_mean", "running_var", "weight", "bias")
            mean, var, scale, shift = (self.weights[f"{p}norm.{what}"] for what in names)
            x = functional.elu(functional.batch_norm(x, mean, var, scale, shift, eps=_EPS))
        return x


def open_sensorium(path: str | Path) -> SensoriumTwin:
    """Open a checkpoint of a Sensorium baseline model.

    Raises
    ------
    UserError
        For a missing or damaged file, one with anything but tensors, or another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise no_file(path, [p.name for p in path.parent.glob("*.pth")], "checkpoint")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of torch, of zip, of pickle
        wrong = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path} cannot be read as weights ({wrong}); give a checkpoint of a Sensorium baseline model.") from None
    weights = {str(k): v for k, v in held.items() if isinstance(v, Tensor)} if isinstance(held, dict) else {}
    recordings = tuple(dict.fromkeys(key.split(".")[1] for key in weights if key.startswith("readout.") and key.count(".") >= 2))
    needed = ["core.features.layer0.conv.weight", *(f"readout.{r}.{what}" for r in recordings for what in ("_features", "bias"))]
    missing = [key for key in needed if key not in weights]
    if missing or not recordings:
        raise UserError(
            f"{path} has no {(missing or ['readout'])[0]}; it is no checkpoint of a Sensorium baseline model (convolutional core, "
            "Gaussian readout)."
        )
    return SensoriumTwin({k: nn.Parameter(v.float(), requires_grad=False).data for k, v in weights.items()}, recordings)
