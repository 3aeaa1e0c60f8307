"""A patch of visual cortex with known receptive fields: neurons that respond to images, with behaviour and Poisson noise.

1. Each neuron has a Gabor filter with its own centre, orientation and phase. Simple cells rectify its output; complex cells take
   the root of the summed squares of two filters in quadrature. A gain sets the mean rate.
2. Images are Gaussian noise whose spectrum falls with frequency, as that of natural images does; videos are such noise that changes
   slowly. In videos a neuron responds to the frame `DELAY` before.
3. Running multiplies the rate by exp(gain · speed). Responses are Poisson counts.
The truth is known: rates without noise, centres, preferred orientations.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from repscope.errors import UserError

WAVE, SIGMA, DELAY = 5.0, 1.5, 1  #: pixels, pixels, frames


@dataclass(frozen=True, eq=False)
class VisualCortex:
    """Neurons. centres: (neuron, 2), row and column in pixels. orientations: radians, 0 to π. complex_cells: which are. size: of
    images.
    """

    centres: Float[np.ndarray, "neuron 2"]
    orientations: Float[np.ndarray, "neuron"]
    complex_cells: Bool[np.ndarray, "neuron"]
    filters: Float[np.ndarray, "phase neuron pixel"]
    scale: Float[np.ndarray, "neuron"]
    running: Float[np.ndarray, "neuron"]
    size: int

    def rates(
        self, images: Float[np.ndarray, "image height width"], speed: Float[np.ndarray, "image"] | None = None
    ) -> Float[np.ndarray, "image neuron"]:
        """Rates without noise."""
        x = images.reshape(len(images), -1)
        even, odd = x @ self.filters[0].T, x @ self.filters[1].T
        drive = np.where(self.complex_cells, np.sqrt(even**2 + odd**2), np.maximum(even, 0))
        found = 0.1 + self.scale * drive
        return np.asarray(found if speed is None else found * np.exp(speed[:, None] * self.running))

    def video_rates(self, videos: Float[np.ndarray, "video frame height width"]) -> Float[np.ndarray, "video frame neuron"]:
        """Rates without noise; the first frames respond to an empty screen."""
        late = np.concatenate([np.zeros_like(videos[:, :DELAY]), videos[:, :-DELAY]], 1)
        return self.rates(late.reshape(-1, self.size, self.size)).reshape(*videos.shape[:2], -1)


def visual_cortex(
    neurons: int = 60, *, size: int = 16, complex_share: float = 0.3, rate: float = 1.5, seed: int = 0
) -> VisualCortex:
    """Draw neurons whose receptive fields lie inside the image.

    Raises
    ------
    UserError
        For images too small for a receptive field.
    """
    if size < 4 * SIGMA + 2:
        raise UserError(f"Images of {size} pixels are too small for a receptive field; at least {int(4 * SIGMA + 2)} are needed.")
    rng = np.random.default_rng(seed)
    centres = rng.uniform(2 * SIGMA, size - 1 - 2 * SIGMA, (neurons, 2))
    orientations, phases = rng.uniform(0, np.pi, neurons), rng.uniform(0, 2 * np.pi, neurons)
    rows, columns = np.mgrid[:size, :size]
    dy, dx = rows - centres[:, 0, None, None], columns - centres[:, 1, None, None]
    along = dx * np.cos(orientations)[:, None, None] + dy * np.sin(orientations)[:, None, None]
    envelope = np.exp(-(dx**2 + dy**2) / (2 * SIGMA**2))
    filters = np.stack([envelope * np.cos(2 * np.pi * along / WAVE + (phases + turn)[:, None, None]) for turn in (0, np.pi / 2)])
    filters = filters.reshape(2, neurons, -1)
    filters /= np.linalg.norm(filters, axis=2, keepdims=True)
    kind = rng.random(neurons) < complex_share
    cortex = VisualCortex(centres, orientations, kind, filters, np.ones(neurons), rng.normal(0, 0.3, neurons), size)
    drive = cortex.rates(noise_images(500, size, seed=seed + 1)).mean(0) - 0.1
    return VisualCortex(centres, orientations, kind, filters, rate / drive, cortex.running, size)


def noise_images(n: int, size: int = 16, *, seed: int = 0, slope: float = 0.7) -> Float[np.ndarray, "image height width"]:
    """Gaussian noise with an amplitude spectrum of 1 / f^slope; mean 0, standard deviation 1 over all images."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = np.inf
    shaped = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, size, size))) / np.maximum(f, 1 / size) ** slope, s=(size, size))
    return np.asarray((shaped - shaped.mean()) / shaped.std())


def noise_videos(
    n: int, frames: int, size: int = 16, *, seed: int = 0, keep: float = 0.6
) -> Float[np.ndarray, "video frame height width"]:
    """Videos of such noise; `keep` is the correlation of a frame with the one before."""
    fresh = noise_images(n * frames, size, seed=seed).reshape(n, frames, size, size)
    for t in range(1, frames):
        fresh[:, t] = keep * fresh[:, t - 1] + np.sqrt(1 - keep**2) * fresh[:, t]
    return fresh
