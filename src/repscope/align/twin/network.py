"""The network of a digital twin: a core that all neurons share, and a position, weights and a gain for each of them.

    features = core(stimulus)                                  channels × height × width (× time)
    y_n      = Σ_c f_nc · features_c at (μ_n + Σ_n ε) + b_n      ε ~ N(0, 1) per image in training, 0 afterwards
    rate_n   = (ELU(y_n) + 1) · exp(g_n · behaviour)

1. Core: convolutions with batch normalisation and ELU. A convolution keeps the size, so that positions are those of the stimulus.
   Videos: the first convolution also spans time, and sees only the past.
2. Readout: one point in the features, found by gradient through bilinear sampling (Lurz et al. 2021, "Generalization in data-driven
   models of primary visual cortex"; positions in [-1, 1], as in torch's `grid_sample`, with corners aligned).
3. `place`: gradients of a position are local. So positions begin where the features of the core, even untrained, go along with the
   neuron's responses best: the largest sum over channels of squared correlations
   with them and with their squares.
4. Behaviour (running, pupil …) multiplies the rate.

Takes arrays; knows no data set. Poisson loss and training: `fitting`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from repscope.errors import UserError

_RATE = 1e-6  #: lowest rate, so that its logarithm is finite


@dataclass(frozen=True)
class CoreShape:
    """Sizes of a core. channels: of each layer. kernel: of the first layer, odd; inner: of the others. frames: of the first layer,
    for videos; 0 for images. inputs: channels of the stimulus."""

    channels: tuple[int, ...] = (24, 16)
    kernel: int = 7
    inner: int = 3
    frames: int = 0
    inputs: int = 1


class TwinNetwork(nn.Module):
    """Core, readouts and gains.

    Parameters
    ----------
    neurons
        Number of neurons.
    shape
        Of the core.
    behaviour
        Number of behavioural variables; 0 for none.
    seed
        Of the initial weights.

    Raises
    ------
    UserError
        For an even kernel or no neuron.
    """

    def __init__(self, neurons: int, shape: CoreShape | None = None, *, behaviour: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape or CoreShape()
        if neurons < 1:
            raise UserError("A twin of no neuron was asked for; give at least one.")
        if self.shape.kernel % 2 == 0 or self.shape.inner % 2 == 0:
            raise UserError(f"Kernels of {self.shape.kernel} and {self.shape.inner} have no centre; give odd sizes.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.core = _core(self.shape)
        width = self.shape.channels[-1]
        self.position = nn.Parameter(torch.zeros(neurons, 2))
        self.spread = nn.Parameter(torch.full((neurons,), 0.05).log())
        self.weights = nn.Parameter(torch.full((neurons, width), 1.0 / width))
        self.bias = nn.Parameter(torch.zeros(neurons))
        self.gain = nn.Parameter(torch.zeros(neurons, behaviour)) if behaviour else None

    def features(self, stimulus: Float[Tensor, "batch channel *space"]) -> Float[Tensor, "batch feature *space"]:
        """The core's features: (image, feature, height, width), or (video, feature, frame, height, width)."""
        frames = self.shape.frames
        if frames:
            stimulus = functional.pad(stimulus, (0, 0, 0, 0, frames - 1, 0))  # the past alone
        found: Tensor = self.core(stimulus)
        return found

    def read(
        self, features: Float[Tensor, "batch feature *space"], behaviour: Tensor | None = None, noise: torch.Generator | None = None
    ) -> Float[Tensor, "batch *time neuron"]:
        """Rates from features. noise: sample positions, as in training."""
        if features.ndim == 5:  # videos: frames as a batch
            batch, width, frames, *size = features.shape
            flat = features.transpose(1, 2).reshape(batch * frames, width, *size)
            flat_behaviour = None if behaviour is None else behaviour.reshape(batch * frames, -1)
            return self.read(flat, flat_behaviour, noise).reshape(batch, frames, -1)
        at = self.position.expand(len(features), -1, -1)
        if noise is not None:
            at = at + self.spread.exp()[:, None] * torch.randn(at.shape, generator=noise)
        sampled = functional.grid_sample(features, at[:, :, None].clamp(-1, 1), align_corners=True)[..., 0]
        rate = functional.elu(torch.einsum("bcn,nc->bn", sampled, self.weights) + self.bias) + 1
        if self.gain is not None:
            if behaviour is None:
                raise UserError("This twin was made for behaviour; give the behavioural variables of each trial.")
            rate = rate * (behaviour @ self.gain.T).clamp(-4, 4).exp()
        return rate + _RATE

    def forward(
        self, stimulus: Float[Tensor, "batch channel *space"], behaviour: Tensor | None = None, noise: torch.Generator | None = None
    ) -> Float[Tensor, "batch *time neuron"]:
        """Rates of all neurons."""
        return self.read(self.features(stimulus), behaviour, noise)

    @torch.no_grad()
    def place(self, features: Float[Tensor, "batch feature *space"], responses: Float[Tensor, "batch *time neuron"]) -> None:
        """Move each neuron to the point whose features go along with its responses best, and set its bias to its mean rate."""
        if features.ndim == 5:
            features = features.transpose(1, 2).flatten(0, 1)
            responses = responses.flatten(0, 1)
        y = responses - responses.mean(0)
        y = y / y.norm(dim=0).clamp_min(1e-6)
        height, width = features.shape[-2:]
        squares = torch.zeros(y.shape[1], height * width)
        for channel in range(features.shape[1]):
            x = features[:, channel].flatten(1)
            x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
            for one in (x, x.square() - 1):  # the square for cells that respond to both signs
                squares += (y.T @ one) ** 2 / one.square().mean(0).clamp_min(1e-6)
        best = squares.argmax(1)
        row, column = best // width, best % width
        self.position.copy_(torch.stack([2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1], 1))
        mean = responses.mean(0).clamp_min(0.05)
        self.bias.copy_(torch.where(mean >= 1, mean - 1, mean.log()))  # ELU(b) + 1 = mean

    def penalty(self) -> Tensor:
        """L1 norm of the readouts' weights, per neuron and channel, plus roughness of the first layer's filters."""
        first = next(m for m in self.core.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)).weight
        rough = (first[..., 1:, :] - first[..., :-1, :]).square().sum() + (first[..., 1:] - first[..., :-1]).square().sum()
        return self.weights.abs().sum() / len(self.weights) + rough


class LinearNonlinear(nn.Module):
    """The baseline: one linear filter over all pixels per neuron, rate = ELU(w · stimulus + b) + 1. Images only."""

    def __init__(self, neurons: int, pixels: int) -> None:
        super().__init__()
        self.filters = nn.Linear(pixels, neurons)
        nn.init.zeros_(self.filters.weight)
        nn.init.zeros_(self.filters.bias)

    def forward(
        self, stimulus: Float[Tensor, "batch channel height width"], behaviour: Tensor | None = None, noise: object = None
    ) -> Float[Tensor, "batch neuron"]:
        """Rates of all neurons; behaviour and noise are ignored."""
        found: Tensor = functional.elu(self.filters(stimulus.flatten(1))) + 1 + _RATE
        return found

    def penalty(self) -> Tensor:
        """Squared norm of the filters, per neuron."""
        return self.filters.weight.square().sum() / len(self.filters.weight)


def _core(shape: CoreShape) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = shape.inputs
    for i, channels in enumerate(shape.channels):
        kernel = shape.kernel if i == 0 else shape.inner
        if shape.frames:
            depth = shape.frames if i == 0 else 1
            pad = (0, kernel // 2, kernel // 2)
            layers += [nn.Conv3d(inputs, channels, (depth, kernel, kernel), padding=pad, bias=False), nn.BatchNorm3d(channels)]
        else:
            layers += [nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(channels)]
        layers.append(nn.ELU())
        inputs = channels
    return nn.Sequential(*layers)
