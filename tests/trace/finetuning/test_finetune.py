"""Fine-tuning: each method raises the reward of a toy, a killed run ends as one that was not, and nothing of trl passes unseen."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from repscope.errors import UserError
from repscope.models.checkpoints import CheckpointSet
from repscope.models.loading.checkpoint_files import Weights
from repscope.trace.finetuning import FineTuning, finetune, run
from repscope.trace.finetuning.series import Series
from toy_chat import TASK, toy

QUICK = {"steps": 12, "keep": 2, "batch": 16, "new_tokens": 6, "rate": 3e-2, "lora": 4}
SHORT = QUICK | {"steps": 4, "batch": 8}
SAMPLES = {"dpo": {"samples": 8}}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A finished series per method; dpo's starts from a model that was changed in memory."""
    made = {}
    for method, more in (
        ("sft", {}),
        ("dpo", {"lora": None, "beta": 0.3, "rate": 1e-2, "samples": 16}),
        ("reinforce", {"lora": None}),
        ("grpo", {"beta": 1e-3}),
    ):
        lm = toy()
        with torch.no_grad():
            lm.model.lm_head.weight.mul_(1.1)
        before = {name: value.clone() for name, value in lm.model.state_dict().items()}
        folder = tmp_path_factory.mktemp("series") / method
        made[method] = finetune(lm, FineTuning(method=method, **QUICK | more), folder, task=TASK), lm, before
    return made


@pytest.mark.parametrize("method", ["sft", "dpo", "reinforce", "grpo"])
def test_each_method_raises_the_reward_and_its_series_can_be_opened(series, method):
    found, lm, before = series[method]
    table = CheckpointSet.open(found.folder).table
    assert list(table["step"]) == [0, 6, 12]
    assert set(table["method"]) == {method}
    reward, kl = table["reward"], table["kl"]
    assert reward.iloc[-1] > table["reward_hi"].iloc[0]
    assert kl.iloc[0] == 0 < kl.iloc[-1]
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items()), "the user's model"
    assert not (found.folder / "trainer").exists()
    assert not list(found.folder.rglob("*.pt*"))
    assert not list(found.folder.rglob("*.bin"))


def test_facts_show_the_reference_and_the_rows(series):
    def facts(method):
        return json.loads((series[method][0].folder / run.RECORD).read_text())["facts"]

    assert abs(facts("dpo")["first loss of DPO minus log 2"]) < 1e-6
    assert facts("grpo")["first KL to the reference"] == 0
    assert facts("sft")["completions with an end-of-text token"] == facts("dpo")["completions with an end-of-text token"] == 1
    assert facts("sft")["prompts with the tokens that answers are sampled from"] == 1
    assert facts("reinforce")["precision of trained weights"] == "float32"


def test_the_base_of_a_series_is_the_model_in_memory(series):
    found, _, before = series["dpo"]
    base = found.state(0)
    assert base.keys() == before.keys()
    assert all(torch.equal(base[name], before[name]) for name in base)


def test_an_adapter_is_merged_as_peft_merges_it(series):
    import peft
    import transformers

    found = series["sft"][0]
    base = transformers.AutoModelForCausalLM.from_pretrained(found.folder / "base", dtype=torch.float64)
    tuned = (
        peft.PeftModel.from_pretrained(base, found.folder / "step-000012", autocast_adapter_dtype=False).double().merge_and_unload()
    )
    ours, changed = found.state(2), 0
    for name, value in tuned.state_dict().items():
        assert torch.allclose(ours[name].double(), value, atol=1e-6, rtol=1e-6)
        changed += not torch.equal(ours[name], found.state(0)[name])
    assert changed == 14  # seven linear layers in each of two blocks
    assert found.table["changed_float32"].iloc[0] == 0
    assert found.table["changed_float32"].iloc[-1] > 0.99


def test_kl_is_that_of_the_two_models_in_float64(series):
    """Slow twin: one answer at a time, from the folders on disk."""
    import transformers

    from repscope.trace.finetuning.answers import sampled
    from repscope.trace.finetuning.examples import prompt_ids

    found = series["reinforce"][0]
    lm = toy()
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(found.folder / name, dtype=torch.float32)
        for name in ("base", "step-000012")
    ]
    prompts = [e.prompt for e in TASK.heldout]
    answers = sampled(models[1], lm.tokenizer, prompts, [prompt_ids(lm.tokenizer, p) for p in prompts], 6, 20_261)
    total = 0.0
    for answer in answers:
        ids = torch.from_numpy(np.concatenate([answer.before, answer.ids]))[None]
        q, p = (torch.log_softmax(m.double()(ids).logits[0, len(answer.before) - 1 : -1], -1).detach() for m in models)
        total += float((p.exp() * (p - q)).sum())
    assert found.table["kl"].iloc[-1] == pytest.approx(total / len(answers), rel=1e-4)
    rewards = [TASK.reward(a.prompt, a.text) if a.ended else 0 for a in answers]
    assert found.table["reward"].iloc[-1] == pytest.approx(np.mean(rewards))


class Killed(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("method", ["sft", "dpo", "reinforce"])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(method, tmp_path, monkeypatch):
    options = FineTuning(method=method, **SHORT | SAMPLES.get(method, {}))
    small = replace(TASK, heldout=TASK.heldout[:4], train=TASK.train[: 20 if method == "dpo" else 12])  # more than one epoch
    torch.manual_seed(5)
    want = torch.rand(2)
    torch.manual_seed(5)
    whole = finetune(toy(), options, tmp_path / "whole", task=small)
    assert torch.equal(torch.rand(2), want), "the random state stays the user's"
    with monkeypatch.context() as patched:
        ends = Series.on_step_end

        def killed(self, args, state, control, **given):
            if state.global_step == 3:
                raise Killed
            return ends(self, args, state, control, **given)

        patched.setattr(Series, "on_step_end", killed)
        with pytest.raises(Killed):
            finetune(toy(), options, tmp_path / "killed", task=small)
    assert list(CheckpointSet.open(tmp_path / "killed").table["step"]) == [0, 2], "what was kept can be opened"
    torch.manual_seed(123)
    again = finetune(toy(), options, tmp_path / "killed", task=small)
    for a, b in zip((Weights(p) for p in whole.table["path"]), (Weights(p) for p in again.table["path"])):
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.table.drop(columns="path").equals(again.table.drop(columns="path"))
    logs = [pd.read_csv(f.folder / "log.csv") for f in (whole, again)]
    assert list(logs[0]) == list(logs[1])
    assert list(logs[0])[:3] == ["step", "epoch", "loss"]
    assert logs[0]["loss"].equals(logs[1]["loss"])
    facts = [json.loads((f.folder / run.RECORD).read_text())["facts"] for f in (whole, again)]
    assert facts[0] == facts[1], "facts of the first step outlive a kill"


def test_a_finished_run_is_opened_and_another_is_refused(series, tmp_path):
    found, lm, _ = series["sft"]
    options = FineTuning(method="sft", **QUICK)
    assert finetune(lm, options, found.folder, task=TASK).table.equals(found.table)
    with pytest.raises(UserError, match=r"holds another fine-tuning \(seed differs\)"):
        finetune(lm, replace(options, seed=1), found.folder, task=TASK)
    with pytest.raises(UserError, match=r"\(reward differs\)"):
        finetune(lm, options, found.folder, task=TASK, reward=lambda prompt, answer: 0.5)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        finetune(lm, options, tmp_path, task=TASK)


def half(prompt, answer):
    return 0.5


@pytest.mark.parametrize("method", ["reinforce", "grpo"])
def test_groups_of_equal_rewards_are_counted_and_noted(method, series, tmp_path):
    options = FineTuning(method=method, **SHORT | {"steps": 2, "keep": None, "new_tokens": 1, "lora": 2})
    lm = toy()
    found = finetune(lm, options, tmp_path / "x", task=TASK, reward=lambda prompt, answer: 0.0)
    record = json.loads((found.folder / run.RECORD).read_text())
    assert record["facts"]["groups with equal rewards"] == record["facts"]["groups of answers to one prompt"] == 4
    assert any("equal in all 4 groups, so nothing was learned" in note for note in record["notes"])
    assert list(found.table["changed_float32"]) == [0, 0, 0], "the note is true"
    learned = json.loads((series[method][0].folder / run.RECORD).read_text())
    assert learned["facts"]["groups with equal rewards"] < learned["facts"]["groups of answers to one prompt"] == 48
    assert not any("nothing was learned" in note for note in learned["notes"])


def test_a_half_run_folder_is_not_continued_with_another_reward(tmp_path, monkeypatch):
    options, folder = FineTuning(method="grpo", **SHORT), tmp_path / "x"

    def killed(self, args, state, control, **given):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Series, "on_step_end", killed)
        with pytest.raises(Killed):
            finetune(toy(), options, folder, task=TASK)
    assert not json.loads((folder / run.RECORD).read_text())["complete"]
    with pytest.raises(UserError, match=r"holds another fine-tuning \(reward differs\)"):
        finetune(toy(), options, folder, task=TASK, reward=half)


def test_a_series_with_a_damaged_file_is_refused(series):
    found, lm, _ = series["sft"]
    options = FineTuning(method="sft", **QUICK)
    for name in ("checkpoints.csv", "finetune.json", "base/model.safetensors", "step-000012/adapter_model.safetensors"):
        path = found.folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
        with pytest.raises(UserError, match="damaged"):
            finetune(lm, options, found.folder, task=TASK)
        path.write_bytes(whole)
    assert finetune(lm, options, found.folder, task=TASK).table.equals(found.table)


def test_reinforce_is_the_score_function_gradient_with_a_leave_one_out_baseline(tmp_path, monkeypatch):
    """The gradient norm that trl logs at the first step, from its own samples, by hand in float64."""
    import copy

    import trl

    lm, seen = toy(), []
    loss = trl.RLOOTrainer._compute_loss

    def spied(self, model, inputs):
        seen.append({k: v.clone() for k, v in inputs.items()})
        return loss(self, model, inputs)

    monkeypatch.setattr(trl.RLOOTrainer, "_compute_loss", spied)
    options = FineTuning(method="reinforce", **SHORT | {"steps": 1, "keep": 1, "lora": None, "batch": 8, "group": 4})
    found = finetune(lm, options, tmp_path / "x", task=TASK)
    (batch,) = seen
    model = copy.deepcopy(lm.model).double()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, batch["prompt_ids"].shape[1] - 1 : -1]
    logp = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    rewards = []
    for prompt, answer in zip(batch["prompt_ids"], batch["completion_ids"]):
        ended = bool((answer == 0).any())
        texts = [lm.tokenizer.decode(part, skip_special_tokens=True) for part in (prompt, answer)]
        rewards.append(TASK.reward(*texts) if ended else 0.0)
    r = torch.tensor(rewards, dtype=torch.float64)
    groups = (batch["prompt_ids"][:, None] == batch["prompt_ids"]).all(-1).double()  # trl shuffles the batch
    assert groups.sum(1).tolist() == [4.0] * 8
    advantage = r - (groups @ r - r) / 3
    assert advantage.abs().sum() > 0
    assert batch["advantages"].tolist() == pytest.approx(advantage.tolist(), abs=1e-6)
    assert batch["old_logps"].tolist() == pytest.approx((logp * batch["completion_mask"]).sum(1).tolist(), abs=1e-4)
    (-(advantage * (logp * batch["completion_mask"]).sum(1)).mean()).backward()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))
    log = pd.read_csv(found.folder / "log.csv")
    assert log["grad_norm"].iloc[0] == pytest.approx(float(norm), rel=1e-4)
