"""Stacked small language models: Hugging Face's GPT-2 and torch's LSTM as twins, training alone and together, kill and resume."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import repscope as rs
from repscope.errors import UserError
from repscope.worlds.small_lm import Training, huggingface, recurrent, train, transformer, write_folder

SHAPE = transformer.Shape(vocab=11, length=9, width=16)
LSTM = recurrent.Shape("lstm", vocab=11, width=12, layers=2)


def documents(step, networks=1):
    """The alphabet from a random place on, so that there is something to learn."""
    first = torch.randint(0, 11, (networks, 8, 1), generator=torch.Generator().manual_seed(step))
    return (first + torch.arange(9)) % 11


def away(shape, networks=2):
    """Networks whose gains, shifts and biases are away from where they begin."""
    g = torch.Generator().manual_seed(7)
    return {k: v + 0.2 * torch.randn(v.shape, generator=g) for k, v in transformer.initial(shape, list(range(networks))).items()}


@pytest.mark.parametrize("shape", [SHAPE, transformer.Shape(11, 40, 16, 1, 1, "gelu_new"), transformer.Shape(5, 12, 24, 3, 4)])
def test_logits_and_gradients_are_those_of_transformers(shape):
    state = {k: v.requires_grad_() for k, v in away(shape).items()}
    tokens = torch.randint(shape.vocab, (2, 4, shape.length), generator=torch.Generator().manual_seed(0))
    found = transformer.logits(shape, state, tokens)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    assert sum(v[0].numel() for v in state.values()) == shape.parameters
    for i in range(2):
        twin = huggingface(shape, state, i)
        theirs = twin(tokens[i]).logits
        torch.testing.assert_close(found[i], theirs, atol=1e-5, rtol=1e-5)
        (theirs * weights[i]).sum().backward()
        for name, value in twin.named_parameters():
            scale = value.grad.abs().max()
            torch.testing.assert_close(state[name].grad[i] / scale, value.grad / scale, atol=2e-5, rtol=0)


def test_a_network_depends_on_its_own_seed_alone():
    three, one = transformer.initial(SHAPE, [0, 1, 2]), transformer.initial(SHAPE, [1])
    assert all(torch.equal(three[k][1], one[k][0]) for k in one)


def test_a_folder_opens_and_its_text_is_the_tokens(tmp_path):
    state, tokens = away(SHAPE), documents(1)
    lm = rs.load(str(write_folder(SHAPE, state, 1, tmp_path / "network")))
    found = torch.as_tensor(np.asarray(lm.logits([" ".join(str(int(i)) for i in tokens[0, 0])])[0])).reshape(-1, SHAPE.vocab)
    expected = transformer.logits(SHAPE, {k: v[1:] for k, v in state.items()}, tokens[:, :1])[0, 0, -1]
    torch.testing.assert_close(found[-1].float(), expected, atol=1e-5, rtol=1e-5)


def test_logits_equal_torchs_lstm():
    state = recurrent.initial(LSTM, [3, 4])
    tokens = documents(0, 2)
    found = recurrent.logits(LSTM, state, tokens)
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


@pytest.mark.parametrize(("module", "shape"), [(transformer, SHAPE), (recurrent, LSTM)])
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


def test_an_lstm_continues_with_its_most_likely_token():
    state = recurrent.initial(LSTM, [0, 1])
    found = recurrent.generate(LSTM, state, documents(0, 2)[..., :3], 4)
    assert torch.equal(found[..., 3:], recurrent.logits(LSTM, state, found)[:, :, 2:-1].argmax(-1))
    one, two = (recurrent.generate(LSTM, state, documents(0, 2)[..., :3], 9, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(one, two)


def test_generation_equals_the_plain_pass():
    state = transformer.initial(SHAPE, [0, 1])
    found = transformer.generate(SHAPE, state, documents(0, 2)[..., :2], 6, None)
    for at in range(2, 8):
        torch.testing.assert_close(transformer.logits(SHAPE, state, found[..., :at])[:, :, -1].argmax(-1), found[..., at])


def test_stacked_training_is_torchs_own():
    """One network after the other with transformers' module, torch's AdamW and torch's clipping."""
    schedule = Training(15, rate=1e-2, warm_up=3, clip=0.3, decay=0.1)
    together = train(
        partial(transformer.logits, SHAPE), transformer.initial(SHAPE, [3, 4]), lambda step: documents(step, 2), schedule
    )
    for i, seed in enumerate([3, 4]):
        model = huggingface(SHAPE, transformer.initial(SHAPE, [seed]), 0).train()
        groups = [[p for p in model.parameters() if (p.dim() > 1) == matrix] for matrix in (True, False)]
        adam = torch.optim.AdamW(
            [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}], lr=1.0, betas=(0.9, 0.95)
        )
        for step in range(schedule.steps):
            for group in adam.param_groups:
                group["lr"] = schedule.rate_at(step)
            tokens = documents(step, 2)[i]
            loss = cross_entropy(model(tokens[:, :-1]).logits.reshape(-1, 11), tokens[:, 1:].reshape(-1))
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            adam.step()
            assert abs(loss.item() - together.losses[step, i]) < 1e-4


def test_networks_do_not_interact():
    """A network with large gradients leaves the other as it is."""
    wild, schedule = transformer.initial(SHAPE, [3, 4]), Training(8, warm_up=2)
    wild["transformer.wte.weight"][1] *= 200
    logits = partial(transformer.logits, SHAPE)
    calm = train(logits, transformer.initial(SHAPE, [3]), documents, schedule)
    np.testing.assert_allclose(train(logits, wild, documents, schedule).losses[:, 0], calm.losses[:, 0], atol=1e-4)


def test_samples_follow_the_distribution_and_their_seed():
    state, start = away(SHAPE), documents(0, 2)[:, :1, :2]
    odds = transformer.logits(SHAPE, state, start)[:, 0, -1].softmax(-1)
    drawn = transformer.generate(SHAPE, state, start.expand(2, 5000, 2), 1, torch.Generator().manual_seed(3))[..., -1]
    shares = torch.stack([torch.bincount(d, minlength=11) for d in drawn]) / 5000
    torch.testing.assert_close(shares, odds, atol=0.03, rtol=0)
    a, b, c = (transformer.generate(SHAPE, state, start, 7, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: transformer.Shape(5, 5, 6, heads=4), "heads divide the width"),
        (lambda: transformer.Shape(5, 5, 8, activation="swish"), "no activation 'swish'"),
        (lambda: transformer.generate(SHAPE, transformer.initial(SHAPE, [0]), documents(0)[..., :5], 5), "do not fit 9 positions"),
        (lambda: huggingface(SHAPE, transformer.initial(SHAPE, [0]), 1), "no network 1 among 1"),
        (lambda: recurrent.Shape("lstm", 5, 0), "at least 1"),
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
