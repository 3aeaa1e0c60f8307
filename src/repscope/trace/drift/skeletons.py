"""Networks without weights: which tensors a configuration means, which are tied, and which are stored transposed.

The network that a folder's configuration names is made on torch's meta device, which holds shapes and no numbers. No code that
comes with a folder is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from repscope.errors import UserError
from repscope.models.loading.folders import network_class
from repscope.models.loading.gguf import first_line
from repscope.trace.drift.stored import Stored


@dataclass(frozen=True)
class Skeleton:
    """The tensors of a network.

    kind: its class. shapes: name → shape. ties: name of a tied tensor → that of the tensor that it shares. conv1d: modules that
    store their matrix transposed. prefix: of the base network's names, with the dot.
    """

    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    conv1d: frozenset[str]
    prefix: str

    def transposed(self, module: str) -> bool:
        """Whether a module stores its matrix as (in, out)."""
        return module in self.conv1d

    def names_in(self, stored: Mapping[str, Stored], label: str) -> dict[str, str]:
        """Name in the network → name in a file; both ends of a tie have one.

        Raises
        ------
        UserError
            When the file lacks a tensor.
        """
        found: dict[str, str] = {}
        for name in self.shapes:
            alike = [name, *([self.ties[name]] if name in self.ties else []), *(t for t, s in self.ties.items() if s == name)]
            spelt = [s for n in alike for s in (n, n.removeprefix(self.prefix), self.prefix + n) if s in stored]
            if not spelt:
                raise UserError(f"{label} lacks {name} of a {self.kind}; check config.json against the weights.")
            found[name] = spelt[0]
        return found


def skeleton(folder: Path) -> Skeleton:
    """The network of a folder, without its weights.

    Raises
    ------
    UserError
        When transformers cannot make it.
    """
    import transformers
    from transformers.pytorch_utils import Conv1D

    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = network_class(config, classifiers=True).from_config(config)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(
            f"transformers {transformers.__version__} cannot make the network of {folder}: {first_line(error)}."
        ) from error
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    parameters = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    persistent = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    conv1d = frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return Skeleton(type(model).__name__, parameters | persistent, ties, conv1d, prefix if len(prefix) > 1 else "")
