"""What fine-tuning refuses, in one sentence, and what users hand in."""

import builtins
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from repscope.errors import UserError
from repscope.trace.finetuning import FineTuning, checks, finetune
from repscope.trace.finetuning.examples import checked, fitting, from_file, from_task, identity_of, in_order, pairs_of, reward_named
from toy_chat import TASK, toy


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "ppo"}, "no method 'ppo'"),
        ({"method": "dpo", "beta": 0}, "DPO with --beta 0 has no gradient"),
        ({"method": "sft", "beta": 0.1}, "--beta does not apply to sft, only to dpo, reinforce, grpo"),
        ({"method": "sft", "group": 4}, "--group does not apply to sft"),
        ({"method": "dpo", "group": 4}, "--group does not apply to dpo"),
        ({"method": "grpo", "samples": 4}, "--samples does not apply to grpo, only to dpo"),
        ({"method": "sft", "new_tokens": 0}, "--new-tokens is 0"),
        ({"method": "grpo", "batch": 6}, "--group is 4 and --batch 6"),
        ({"method": "sft", "keep": 9, "steps": 3}, "--keep is 9 and --steps 3"),
        ({"method": "sft", "rate": float("nan")}, "positive learning rate"),
        ({"method": "sft", "lora": 0}, "rank 0 trains nothing"),
    ],
)
def test_options_that_do_not_fit(given, says):
    with pytest.raises(UserError, match=says):
        FineTuning(**given)


def test_the_default_of_keep_fits_the_steps():
    assert FineTuning(method="sft", steps=2).kept == (1, 2)
    assert FineTuning(method="sft").kept == (15, 30, 45, 60)
    told = FineTuning(method="sft", steps=2).as_dict()
    assert (told["keep"], told["group"], told["samples"]) == (2, 4, 4)


def test_without_trl_the_extra_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "trl":
            raise ModuleNotFoundError("No module named 'trl'", name="trl")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"trl is missing.*repscope\[finetune\]"):
        finetune(toy(), FineTuning(method="sft"), tmp_path / "x", task=TASK)


def test_rows_of_a_file_are_split_by_prompt(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"sun {i % 12}", "completion": f"cat {i}"} for i in range(24)] + [{"prompt": "sea", "completion": ""}]
    file.write_text("\n".join(map(json.dumps, rows)))
    found = from_file(file, FineTuning(method="sft"), None)
    assert len(found.heldout) == 2
    assert not set(found.heldout) & set(found.train["prompt"])
    assert len(found.train) == 20
    assert any("1 of 25 rows" in note for note in found.notes)
    with pytest.raises(UserError, match="chosen"):
        from_file(file, FineTuning(method="dpo"), None)
    with pytest.raises(UserError, match="grpo needs a reward"):
        from_file(file, FineTuning(method="grpo"), None)
    file.write_text("\n".join(map(json.dumps, rows[:5])))
    with pytest.raises(UserError, match="has 5 different prompts; give 10"):
        from_file(file, FineTuning(method="sft"), None)


def test_long_rows_are_counted_and_many_are_refused():
    lm = toy()
    options = FineTuning(method="sft", max_length=8, new_tokens=4)
    rows = pd.DataFrame({"prompt": ["sun sea"] * 8 + ["sun " * 9] * 2, "completion": ["cat cat"] * 10})
    examples = replace(from_task(TASK, options), train=rows)
    found = fitting(examples, lm.tokenizer, options)
    assert len(found.train) == 8
    assert "2 of 10 rows are longer than 8 tokens" in found.notes[0]
    with pytest.raises(UserError, match="10 of 10 rows of cats are longer than --max-length 4"):
        fitting(examples, lm.tokenizer, replace(options, max_length=4, new_tokens=1))


def test_what_trl_would_do_silently_is_refused(tmp_path):
    """Rows of a trainer in which trl dropped a row, cut an answer, and left the end out."""
    lm, options = toy(), FineTuning(method="dpo", max_length=5)
    examples = replace(
        from_task(TASK, options), train=pd.DataFrame({"prompt": ["sun sea"] * 2, "chosen": "cat", "rejected": "dog"})
    )

    class Trainer:
        model = lm.model
        accelerator = type("A", (), {"unwrap_model": staticmethod(lambda model: model)})

    row = {"prompt_ids": [4, 5], "chosen_ids": [2, 0], "rejected_ids": [3, 0]}
    for data, says in (
        ([row], "trl dropped 1 of 2 rows"),
        ([row, row | {"rejected_ids": []}], "trl cut rows"),
        ([row, row | {"chosen_ids": [2] * 9}], r"the longest has 11"),
        ([row | {"chosen_ids": [2], "rejected_ids": [3]}] * 2, "no.*end-of-text|holds an end-of-text"),
    ):
        Trainer.train_dataset = data
        with pytest.raises(UserError, match=says):
            checks.prepared_rows(Trainer, examples, options, lm.tokenizer)
    Trainer.train_dataset = [row, row | {"chosen_ids": [2]}]
    facts = checks.prepared_rows(Trainer, examples, options, lm.tokenizer)
    assert facts["completions with an end-of-text token"] == 0.75
    with pytest.raises(UserError, match="reference is not the base"):
        checks.first_step({"loss": 0.71}, options)
    with pytest.raises(UserError, match="reference is not the base"):
        checks.first_step({"loss": 0.0, "kl": 0.2}, FineTuning(method="grpo", beta=0.1))


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    lm = toy()
    lm.tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        finetune(lm, FineTuning(method="sft"), tmp_path / "x", task=TASK)


def test_weights_spread_over_devices_are_refused(tmp_path):
    with pytest.raises(UserError, match="on one device"):
        finetune(toy(), FineTuning(method="sft"), tmp_path / "x", task=TASK, device="disk")


def test_a_reward_is_a_number_from_0_to_1_of_code_that_the_user_names(tmp_path, monkeypatch):
    (tmp_path / "mine_rewards.py").write_text("def good(p, a): return len(a) / 10\nLEVEL = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert reward_named("mine_rewards:good")("p", "abcde") == 0.5
    with pytest.raises(UserError, match="reward is a number from 0 to 1"):
        reward_named("mine_rewards:good")("p", "a" * 11)
    for name, says in (
        ("mine_rewards", "MODULE:FUNCTION"),
        ("mine_rewards:god", "did you mean 'good'"),
        ("nothing_here:f", "imported"),
    ):
        with pytest.raises(UserError, match=says):
            reward_named(name)
    sys.modules.pop("mine_rewards")


def test_a_failing_reward_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "failing_rewards.py").write_text("def bad(p, a):\n    return 1 / len(a)\n")
    (tmp_path / "broken_rewards.py").write_text("def bad(p, a):\n    return 1\nnothing\n")
    (tmp_path / "leaving_rewards.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    says = r"reward failing_rewards:bad failed on the prompt 'sun' and the answer '' \(ZeroDivisionError: division by zero\)"
    with pytest.raises(UserError, match=says):
        reward_named("failing_rewards:bad")("sun", "")
    with pytest.raises(UserError, match=r"broken_rewards:bad fails when it is imported \(NameError: .*nothing"):
        reward_named("broken_rewards:bad")
    with pytest.raises(UserError, match=r"leaving_rewards:bad fails when it is imported \(SystemExit"):
        reward_named("leaving_rewards:bad")
    sys.modules.pop("failing_rewards")


LAMBDAS = [lambda p, a: 0.25, lambda p, a: 0.75]


def above(level, p, a):
    return float(len(a) > level)


class Longer:
    def __init__(self, level):
        self.level = level

    def __call__(self, p, a):
        return float(len(a) > self.level)

    def other(self, p, a):
        return 0.0


@dataclass(frozen=True, slots=True)
class Slotted:
    words: frozenset


def closed(level, words=frozenset({"sun", "sea", "red"})):
    def reward(p, a):
        return float(len(a) > level and a in words)

    return reward


def test_other_rewards_have_other_identities(tmp_path):
    def rewards():
        slotted = [Slotted(frozenset(words)) for words in ("ab", "ac")]
        held = [re.compile("a"), re.compile("b"), torch.zeros(2), torch.ones(2), object(), *slotted]
        own = [partial(above, 1), partial(above, 2), Longer(1), Longer(2), Longer(1).other, closed(1), closed(2)]
        return [*LAMBDAS, *own, *(partial(above, value) for value in held)]

    found = [identity_of(checked(r)) for r in rewards()]
    assert len(set(found)) == len(found)
    assert identity_of(None) is None
    assert [identity_of(r) for r in rewards()] == found, "addresses and the order of sets have no part in it"


def test_the_identity_of_a_reward_is_its_source_and_not_its_process(tmp_path, monkeypatch):
    file = tmp_path / "own_rewards.py"
    text = "def in_words(p, a): return float(a in {'sun', 'sea', 'red'})\nf = lambda p, a: float(a in {'sun', 'sea', 'red'})\n"
    file.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    rewards = [reward_named(f"own_rewards:{name}") for name in ("in_words", "f")]
    first = [identity_of(reward) for reward in rewards]
    ask = (
        "from repscope.trace.finetuning.examples import identity_of, reward_named; "
        "print([identity_of(reward_named(f'own_rewards:{n}')) for n in ('in_words', 'f')])"
    )
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONDONTWRITEBYTECODE": "1"}  # sets have another order there
    found = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(first)
    file.write_text(text + "# changed\n")
    assert not set(first) & {identity_of(reward) for reward in rewards}
    sys.modules.pop("own_rewards")


def test_pairs_are_the_best_and_the_worst_answer():
    pairs = pairs_of(["p", "q"], [["a", "b", "c"], ["d", "e", "f"]], [[0.5, 0, 1], [1, 1, 1]])
    assert pairs.to_dict("records") == [{"prompt": "p", "chosen": "c", "rejected": "b"}]


def test_the_order_of_prompts_is_whole_permutations():
    order = in_order(list(range(5)), 12, seed=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order[:5] != order[5:10]
    assert order == in_order(list(range(5)), 12, seed=3)
    assert order[:5] != in_order(list(range(5)), 12, seed=4)[:5]


def test_changes_are_counted_exactly_and_after_rounding():
    import torch

    base = {"a": torch.ones(4), "b": torch.full((2, 2), 3.0)}
    tuned = {"a": torch.tensor([1.0, 1.0, 1.0 + 2**-12, 1.5]), "b": base["b"]}
    found = checks.changed(base, tuned)
    assert found["changed_float32"] == 0.5
    assert found["changed_bfloat16"] == 0.25
    assert found["relative_norm"] == pytest.approx(np.sqrt((2.0**-24 + 0.25) / (4 + 36)))
