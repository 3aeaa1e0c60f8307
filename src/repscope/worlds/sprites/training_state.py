"""State of a training that a killed process left: modules, their Adam moments, the step, and losses, in one safetensors file.

Batches depend on the seed and the step alone, so a resumed training ends with the same weights as one that was left alone. A state
that cannot be written (a full disk, a folder without permission) costs a resumed training its time, not this one its result.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from repscope import manifest
from repscope.disk import whole_file
from repscope.errors import UserError
from repscope.progress import progress
from repscope.untrusted import parse_json
from repscope.worlds.hans.stacked import one_thread

_MOMENTS = ("exp_avg", "exp_avg_sq")


def train_averaged(
    title: str,
    schedule: Any,
    saved: Path | None,
    modules: Mapping[str, nn.Module],
    adams: Mapping[str, torch.optim.Adam],
    update: Callable[[int], np.ndarray],
) -> Float[np.ndarray, "step *loss"]:
    """Losses of all updates. modules: trained ones, and `average`, of the first's weights. schedule: steps, keep and average."""
    first, losses = read_state(saved, modules, adams)
    with progress(title, schedule.steps) as advance, one_thread(), torch.enable_grad():
        advance(first)
        for step in range(first, schedule.steps):
            losses.append(update(step))
            average_weights(modules["average"], next(iter(modules.values())), min(schedule.average, (step + 1) / (step + 10)))
            advance(1)
            if saved is not None and (step + 1) % schedule.keep == 0 and step + 1 < schedule.steps:
                write_state(saved, step + 1, modules, adams, losses)
    if saved is not None:
        saved.unlink(missing_ok=True)
    return np.stack(losses)


def write_state(
    path: Path, step: int, modules: Mapping[str, nn.Module], adams: Mapping[str, torch.optim.Adam], losses: Sequence[np.ndarray]
) -> None:
    """Save what the next step needs, if the file can be written."""
    held: dict[str, Tensor] = {f"w/{m}/{k}": v.detach() for m, module in modules.items() for k, v in module.state_dict().items()}
    for name, adam in adams.items():
        for i, weight in enumerate(_weights(adam)):
            held |= {f"{part}/{name}/{i}": adam.state[weight][part] for part in _MOMENTS}
    held["losses"] = torch.from_numpy(np.stack(losses))
    with suppress(UserError, OSError), whole_file(path) as partial:
        metadata = {"progress": json.dumps({"step": step}), "seal": manifest.UNSEALED}
        save_file({k: v.clone().contiguous() for k, v in held.items()}, partial, metadata)
        manifest.seal(partial)


def read_state(
    path: Path | None, modules: Mapping[str, nn.Module], adams: Mapping[str, torch.optim.Adam]
) -> tuple[int, list[np.ndarray]]:
    """The step to continue at, with weights and moments restored; 0 without a saved state, or with a damaged or other one."""
    if path is None or not path.is_file() or manifest.sealed(path) is False:
        return 0, []
    try:
        with safe_open(path, "pt") as file:
            step = int(parse_json(file.metadata()["progress"])["step"])
            held = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return 0, []
    wanted = {f"w/{m}/{k}": v.shape for m, module in modules.items() for k, v in module.state_dict().items()}
    if any(k not in held or held[k].shape != shape for k, shape in wanted.items()):
        return 0, []
    for name, module in modules.items():
        module.load_state_dict({k: held[f"w/{name}/{k}"] for k in module.state_dict()})
    for name, adam in adams.items():
        for i, weight in enumerate(_weights(adam)):
            moments = {part: held[f"{part}/{name}/{i}"].clone() for part in _MOMENTS}
            adam.state[weight] = {"step": torch.tensor(float(step)), **moments}
    return step, list(held["losses"].numpy())


@torch.no_grad()
def average_weights(average: nn.Module, module: nn.Module, share: float) -> None:
    """Exponential moving average of weights: `share` of the old average remains."""
    for a, b in zip(average.parameters(), module.parameters()):
        a.lerp_(b, 1 - share)
    for held, new in zip(average.buffers(), module.buffers()):
        held.copy_(new)


def _weights(adam: torch.optim.Adam) -> list[Tensor]:
    return [weight for group in adam.param_groups for weight in group["params"]]
