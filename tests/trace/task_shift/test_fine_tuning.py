"""Fine-tuning on k examples against peft and against a loop by hand, one example at a time."""

import copy

import numpy as np
import peft
import pytest
import torch
from torch.nn import functional

from families import build
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.trace.task_shift import fine_tuning
from repscope.trace.task_shift.fine_tuning import FewShotTuning, changed_weights, fine_tuned, reset, working_copy

EXAMPLES = [
    (np.array([5, 9, 7]), np.array([11, 12])),
    (np.array([3, 8]), np.array([20])),
    (np.array([4, 4, 6, 2]), np.array([9, 1, 2])),
]


def network(family, tokenizer):
    return LanguageModel(build(family), tokenizer, family)


def by_hand(model, trained, rate, steps):
    """The loss of one example at a time, summed over answer tokens; AdamW written out."""
    first, second = ([torch.zeros_like(p) for p in trained] for _ in range(2))
    losses, tokens = [], sum(len(a) for _, a in EXAMPLES)
    for t in range(1, steps + 1):
        for p in trained:
            p.grad = None
        total = 0.0
        for q, a in EXAMPLES:
            logits = model(torch.from_numpy(np.concatenate([q, a]))[None]).logits[0, len(q) - 1 : -1]
            loss = functional.cross_entropy(logits, torch.from_numpy(a), reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        losses.append(total)
        with torch.no_grad():
            for p, m, v in zip(trained, first, second):
                m.mul_(0.9).add_(0.1 * p.grad)
                v.mul_(0.999).add_(0.001 * p.grad**2)
                p -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return losses


def differences(copied, twin, base):
    """Largest difference of logits between copy and twin, and between copy and base."""
    ids = torch.tensor([[3, 8, 1, 4]])
    with torch.no_grad():
        own = copied.model(ids).logits
        return float((own - twin(ids).logits).abs().max()), float((own - base.model(ids).logits).abs().max())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_full_fine_tuning_is_the_loop_by_hand(family, tokenizer):
    lm = network(family, tokenizer)
    copied, model = working_copy(lm), copy.deepcopy(lm.model)
    found = list(fine_tuned(lm, copied, EXAMPLES, FewShotTuning("full", (1, 3), 1e-3)))
    losses = by_hand(model, [p.requires_grad_(True) for p in model.parameters()], 1e-3, 3)
    assert [step for step, _ in found] == [1, 3]
    np.testing.assert_allclose([loss for _, loss in found], [losses[0], losses[2]], rtol=1e-4)
    error, change = differences(copied, model, lm)
    assert error < 0.02 * change


@pytest.mark.parametrize(("family", "targets"), [("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])])
def test_lora_is_pefts(family, targets, tokenizer):
    lm = network(family, tokenizer)
    copied, how = working_copy(lm), FewShotTuning("LoRA", (2,), 5e-2, rank=2, alpha=6.0)
    (_, loss), *_ = fine_tuned(lm, copied, EXAMPLES, how, seed=3)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=family == "gpt2")
    model = peft.get_peft_model(copy.deepcopy(lm.model), config)
    own = fine_tuning._LoRA.of(lm, how, 3).modules
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.copy_(own[name.removeprefix("base_model.model.").split(".lora_A")[0] + ".weight"][1])
    losses = by_hand(model, [p for n, p in model.named_parameters() if "lora_" in n], 5e-2, 2)
    assert loss == pytest.approx(losses[1], rel=1e-5)
    error, change = differences(copied, model, lm)
    assert error < 0.02 * change


def test_the_network_is_not_changed_and_a_seed_repeats(tokenizer):
    lm = network("llama", tokenizer)
    before = copy.deepcopy(lm.model.state_dict())
    copied, found = working_copy(lm), []
    for how in (FewShotTuning("LoRA", (2,)), FewShotTuning("full", (2,), 1e-3), FewShotTuning("LoRA", (2,))):
        list(fine_tuned(lm, copied, EXAMPLES, how, seed=1))
        found.append(copy.deepcopy(copied.model.state_dict()))
    assert all(torch.equal(before[k], v) for k, v in lm.model.state_dict().items())
    assert all(torch.equal(found[0][k], found[2][k]) for k in before)
    assert not all(torch.equal(found[0][k], found[1][k]) for k in before)
    reset(lm, copied)
    assert all(torch.equal(before[k], v) for k, v in copied.model.state_dict().items())
    assert not any(p.requires_grad for p in copied.model.parameters())


def test_upper_blocks_alone(tokenizer):
    lm = network("llama", tokenizer)
    copied = working_copy(lm)
    list(fine_tuned(lm, copied, EXAMPLES, FewShotTuning("full", (1,), 1e-3, first_block=2)))
    pairs = zip(copied.model.named_parameters(), lm.model.parameters())
    changed = {name for (name, a), b in pairs if not torch.equal(a, b)}
    assert changed
    assert all(".layers.2." in name or ".layers.3." in name for name in changed)
    list(fine_tuned(lm, copied, EXAMPLES, FewShotTuning("LoRA", (1,), 1e-1, first_block=3)))
    own = changed_weights(lm, copied)
    assert set(own) == {f"model.layers.3.self_attn.{name}_proj.weight" for name in "qv"}
    reset(lm, copied)
    assert not changed_weights(lm, copied)
    reset(lm, copied, own)
    assert all(torch.equal(own[name], weight) for name, weight in changed_weights(lm, copied).items())


def test_a_head_that_is_not_called_as_a_module_gives_the_same_loss(tokenizer):
    lm, losses = network("llama", tokenizer), []
    how = FewShotTuning("full", (2,), 1e-3)
    for hidden in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if hidden:
                patch.setattr(type(lm.model), "get_output_embeddings", lambda self: None)
            losses += [loss for _, loss in fine_tuned(lm, working_copy(lm), EXAMPLES, how)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda: FewShotTuning("half"), "'LoRA' or 'full'"),
        (lambda: FewShotTuning(steps=(2, 1)), "increasing"),
        (lambda: FewShotTuning(rate=0), "above 0"),
        (lambda: FewShotTuning(first_block=4), "blocks 0 to 3"),
        (lambda: FewShotTuning(targets="w_q"), "q_proj"),
        (lambda: FewShotTuning("full", first_block=9), "blocks 0 to 3"),
        (lambda: FewShotTuning("full", rate=1e30, steps=(8,)), "lower the rate"),
    ],
)
def test_what_cannot_be_trained_is_refused(how, words, tokenizer):
    lm = network("llama", tokenizer)
    with pytest.raises(UserError, match=words):
        list(fine_tuned(lm, working_copy(lm), EXAMPLES, how()))


def test_half_precision_is_refused(tokenizer):
    with pytest.raises(UserError, match="float32"):
        working_copy(LanguageModel(build("llama").bfloat16(), tokenizer, "half"))
