"""Stacked small language models: Hugging Face's GPT-2 and torch's LSTM as twins, training alone and together, kill and resume."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from repscope.errors import UserError
from repscope.models.loading.stacked_weights import unstack
from repscope.worlds.small_lm import Training, lstm, train, transformer

SHAPE = transformer.Shape(vocab=11, length=9, width=16)
LSTM = lstm.LSTMShape(vocab=11, width=12, layers=2)


def documents(step, networks=1):
    """The alphabet from a random place on, so that there is something to learn."""
    first = torch.randint(0, 11, (networks, 8, 1), generator=torch.Generator().manual_seed(step))
    return (first + torch.arange(9)) % 11


def test_logits_equal_gpt2():
    state = transformer.initial(SHAPE, [3, 4])
    tokens = documents(0, 2)
    found = transformer.logits(SHAPE, state, tokens)
    for i in range(2):
        twin = GPT2LMHeadModel(GPT2Config(**SHAPE.settings())).eval()
        held = unstack(state, i)
        twin.load_state_dict(held | {"lm_head.weight": held["transformer.wte.weight"]}, strict=True)
        with torch.no_grad():
            torch.testing.assert_close(found[i], twin(tokens[i]).logits, atol=1e-5, rtol=1e-5)


def test_logits_equal_torchs_lstm():
    state = lstm.initial(LSTM, [3, 4])
    tokens = documents(0, 2)
    found = lstm.logits(LSTM, state, tokens)
    for i in range(2):
        twin = torch.nn.LSTM(12, 12, 2, batch_first=True)
        with torch.no_grad():
            for layer in range(2):
                getattr(twin, f"weight_ih_l{layer}").copy_(state[f"lstm.{layer}.input"][i].T)
                getattr(twin, f"weight_hh_l{layer}").copy_(state[f"lstm.{layer}.recurrent"][i].T)
                getattr(twin, f"bias_ih_l{layer}").copy_(state[f"lstm.{layer}.bias"][i])
                getattr(twin, f"bias_hh_l{layer}").zero_()
            table = state["embed.weight"][i]
            expected = twin(table[tokens[i]])[0] @ table.T + state["head.bias"][i]
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("module", "shape"), [(transformer, SHAPE), (lstm, LSTM)])
def test_together_as_one_after_the_other(module, shape):
    logits = partial(module.logits, shape)
    schedule = Training(12, warm_up=4, clip=0.5)
    together = train(logits, module.initial(shape, [0, 1, 2]), lambda step: documents(step, 3), schedule)
    assert (together.losses[-1] < together.losses[0]).all()
    for i in range(3):
        alone = train(logits, module.initial(shape, [i]), lambda step, i=i: documents(step, 3)[i : i + 1], schedule)
        np.testing.assert_allclose(alone.losses[:, 0], together.losses[:, i], atol=1e-4)


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    logits = partial(transformer.logits, SHAPE)
    start, schedule = transformer.initial(SHAPE, [0, 1]), Training(9, warm_up=2, keep=2)
    whole = train(logits, start, documents, schedule)
    saved = tmp_path / "part" / "state.safetensors"

    def killed(step):
        if step == 5:
            raise KeyboardInterrupt
        return documents(step)

    with pytest.raises(KeyboardInterrupt):
        train(logits, start, killed, schedule, saved=saved)
    assert saved.is_file()
    seen = []
    again = train(logits, start, lambda step: (seen.append(step), documents(step))[1], schedule, saved=saved)
    assert seen[0] == 4
    np.testing.assert_array_equal(again.losses, whole.losses)
    for name in whole.state:
        assert torch.equal(again.state[name], whole.state[name])
    assert not saved.exists()
    saved.write_bytes(b"damaged")
    np.testing.assert_array_equal(train(logits, start, documents, schedule, saved=saved).losses, whole.losses)


def test_generation_equals_the_plain_pass():
    state = transformer.initial(SHAPE, [0, 1])
    found = transformer.generate(SHAPE, state, documents(0, 2)[..., :2], 6, None)
    for at in range(2, 8):
        torch.testing.assert_close(transformer.logits(SHAPE, state, found[..., :at])[:, :, -1].argmax(-1), found[..., at])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: transformer.Shape(5, 5, 6, heads=4), "heads divide the width"),
        (lambda: lstm.LSTMShape(5, 0), "at least 1"),
        (lambda: Training(0), "trains nothing"),
        (
            lambda: train(partial(transformer.logits, SHAPE), transformer.initial(SHAPE, [0]), documents, Training(30, 1e9, 1)),
            "not a number",
        ),
    ],
)
def test_mistakes(make, said):
    with pytest.raises(UserError, match=said):
        make()
