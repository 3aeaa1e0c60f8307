"""Randomly initialised copies of a network: the control for effects of training.

Sees through the wrappers of torch.compile and of PEFT. Adapters are not made: fresh ones add nothing. Knows modules of Hugging Face
only, no text.
"""

import copy
from typing import Any

import torch

from repscope.errors import UserError


def with_random_weights(model: Any, seed: int) -> Any:
    """A network like `model` with random weights, on the CPU; the same seed gives the same weights. `model` stays as it is.

    Raises a `UserError` when the class cannot be made from its configuration, and for trained tokens before the prompt (PEFT).
    """
    bare = unwrapped(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return type(bare)(copy.deepcopy(bare.config))
        except Exception as error:  # whatever a class of somebody else's raises
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
            raise UserError(
                f"A {type(bare).__name__} with random weights cannot be made from its configuration ({reason}); make one yourself "
                "and hand it to rs.load(model, tokenizer=…)."
            ) from error


def unwrapped(model: Any) -> Any:
    """The network inside the wrappers that torch.compile and PEFT put around it.

    Raises a `UserError` for a network of PEFT that puts trained tokens before the prompt, which its base network alone is not.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            if any(getattr(one, "is_prompt_learning", False) for one in model.peft_config.values()):
                raise UserError(
                    f"A {type(model).__name__} with trained tokens before the prompt has no like with random weights; take the "
                    "twin of its base model."
                )
            model = model.get_base_model()
        else:
            return model
