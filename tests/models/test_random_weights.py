"""A network's twin with random weights, through the wrappers of torch.compile and PEFT."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from repscope.errors import UserError
from repscope.models.engine.random_weights import unwrapped, with_random_weights
from repscope.worlds.tiny import tiny


class Adapted(nn.Module):
    """As PEFT wraps a network: attributes pass through, the base is adapted in place."""

    def __init__(self, base, prompts=False):
        super().__init__()
        self.base, self.peft_config = base, {"default": SimpleNamespace(is_prompt_learning=prompts)}

    def get_base_model(self):
        return self.base

    def forward(self, *given, **named):
        return self.base(*given, **named)


IDS = torch.tensor([[5, 9, 40, 7]])


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile, Adapted, lambda m: Adapted(torch.compile(m))])
def test_wrapped_networks_have_the_twin_of_what_is_wrapped(wrap):
    base = tiny().model
    made = with_random_weights(wrap(base), 3)
    assert type(made) is type(base)
    assert torch.equal(logits(made), logits(with_random_weights(base, 3)))
    assert not torch.equal(logits(made), logits(base))
    assert not torch.equal(logits(made), logits(with_random_weights(base, 4)))


def test_the_random_state_is_left_alone():
    base = tiny().model
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    with_random_weights(base, 3)
    assert torch.equal(torch.rand(3), want)


def test_what_has_no_twin_is_one_sentence():
    base = tiny().model
    with pytest.raises(UserError, match="trained tokens before the prompt has no like with random weights"):
        unwrapped(Adapted(base, prompts=True))

    class Odd(nn.Module):
        def __init__(self, one, two):
            super().__init__()
            self.config = SimpleNamespace()

    with pytest.raises(UserError, match=r"An? Odd with random weights cannot be made from its configuration \(.*two"):
        with_random_weights(Odd(1, 2), 0)
