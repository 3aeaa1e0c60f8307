"""Fine-tuning of a model: a resumable run that leaves a series of checkpoints.

1. Rows: the built-in task's, or a user's file. Pairs of the task are made here: answers of the base, best and worst by reward.
2. `finetune.json` has options, digests of the rows and of the base; a folder of another run is refused.
3. trl trains a copy; `Series` writes, measures and marks the kept steps. Evaluation draws from random streams of its own.
4. After a kill, the same call continues from the last kept step, with the optimiser's state and torch's random state: the final
   weights are those of a run that was not killed. Files of the trainer are read with `weights_only`.
"""

import copy
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repscope import manifest
from repscope.data.verifiable import VerifiableTask, verifiable_task
from repscope.disk import need_folder, need_space, whole_file, whole_folder
from repscope.errors import UserError
from repscope.locks import only_process
from repscope.models.checkpoints import TABLE, CheckpointSet
from repscope.models.language import LanguageModel
from repscope.models.loading.checkpoint_files import Weights
from repscope.models.loading.folders import SPREAD
from repscope.models.loading.sources import load
from repscope.progress import progress
from repscope.trace.finetuning import checks
from repscope.trace.finetuning.answers import sampled
from repscope.trace.finetuning.examples import (
    Examples,
    Reward,
    checked,
    fitting,
    from_file,
    from_task,
    identity_of,
    pairs_of,
    prompt_ids,
)
from repscope.trace.finetuning.options import BASE, LOG, METHODS, RECORD, ROWS, STATE, FineTuning
from repscope.trace.finetuning.trainers import libraries, quiet, trainer
from repscope.untrusted import parse_json

_FILES = (RECORD, ROWS, TABLE, LOG)  #: of a series, beside the folders of its steps
_FEWEST = 8  #: preference pairs
_BELOW_BF16 = 3e-5  #: half the distance of neighbours in bfloat16 at weights of 0.01 to 0.02; an Adam step is about the rate


def finetune(
    model: str | Path | LanguageModel,
    options: FineTuning,
    out: str | Path,
    *,
    data: str | Path | None = None,
    task: str | VerifiableTask = "short-sentence",
    reward: Reward | None = None,
    device: str | None = None,
) -> CheckpointSet:
    """Fine-tune a model and save a series of checkpoints; the same call resumes an interrupted run.

    Parameters
    ----------
    model
        As for `load`, or a loaded model, which stays as it is.
    options
        Method, adapters, rate, steps and the rest.
    out
        Folder of the series; new, or that of the same run.
    data
        A user's table (JSON lines, CSV, TSV, Parquet) with prompt and completion (sft), prompt, chosen and rejected (dpo), or
        prompt (reinforce, grpo). None takes the task's rows.
    task
        A verifiable task or its name.
    reward
        Function of prompt and answer with values in [0, 1], for rows of `data`; replaces the reward of the task otherwise.
    device
        As for `load`.

    Returns
    -------
    CheckpointSet
        Steps 0 (the base) to the last, with reward, KL to the base in nats per answer, loss and the share of weights that changed.

    Raises
    ------
    UserError
        When trl or peft is missing, rows or options do not fit, the folder holds another run, or trl would change rows silently.
    """
    libraries()
    if device in SPREAD:
        raise UserError(f"Training holds all weights on one device, and {device!r} spreads them; give cpu or cuda.")
    if data is not None and options.samples is not None:
        raise UserError("--samples makes the pairs of a task, and rows of --data have pairs of their own; leave one out.")
    folder = Path(out).expanduser()
    need_folder(folder)
    given = None if reward is None else checked(reward)
    examples = from_file(Path(data).expanduser(), options, given) if data is not None else _of_task(task, options, given)
    lm = model if isinstance(model, LanguageModel) else load(model, device=device, dtype=options.dtype)
    _check(lm, options)
    with only_process(folder), _own_random_state(), quiet():
        return _run(lm, fitting(examples, lm.tokenizer, options), options, folder)


def _of_task(task: str | VerifiableTask, options: FineTuning, reward: Reward | None) -> Examples:
    made = verifiable_task(task) if isinstance(task, str) else task
    examples = from_task(made, options)
    return examples if reward is None else replace(examples, reward=reward)


def _run(lm: LanguageModel, examples: Examples, options: FineTuning, folder: Path) -> CheckpointSet:
    from repscope.trace.finetuning.series import Series, last_state  # brings the trainer of transformers, which takes seconds

    record = _record(lm, examples, options)
    held = _held(folder)
    if held is not None and held["run"] != record["run"]:
        named = next((k for k in record["run"] if held["run"].get(k) != record["run"][k]), "it")
        raise UserError(f"{folder} holds another fine-tuning ({named} differs); choose another folder, or remove it.")
    if held is not None and held["complete"]:
        found = CheckpointSet.open(folder)
        for path in found.table["path"]:
            Weights(path).close()  # refuses weights with other bytes than were written
        return found
    if held is None and folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise UserError(f"{folder} holds other files; choose a new folder.")
    policy, tokenizer = _copy(lm, options)
    size = sum(p.numel() * p.element_size() for p in policy.parameters())
    need_space(folder, size * (2 if options.lora is not None else 4 + len(options.kept)))
    if held is None:
        _write_record(folder, record | {"complete": False})
    if not (folder / BASE).is_dir() or manifest.damage(folder / BASE) is not None:
        _write_base(policy, tokenizer, folder)
    policy.config._name_or_path = str((folder / BASE).resolve())  # trl reads references, and PEFT configurations, from here
    if options.method == "dpo" and "chosen" not in examples.train:
        examples = _with_pairs(policy, tokenizer, examples, options, folder)
    elif not (folder / ROWS).is_file():
        _write_rows(folder, examples.train)
    needs_copy = options.method == "dpo" or options.lora is None
    reference = copy.deepcopy(policy).eval().requires_grad_(False) if needs_copy else None
    if options.dtype == "bfloat16" and options.lora is None and options.learning_rate < _BELOW_BF16:
        note = f"A rate of {options.learning_rate:g} is below the resolution of bfloat16 for most weights, which then never change."
        examples = replace(examples, notes=(*examples.notes, note))
    with progress("fine-tuning", options.steps) as advance:
        series = Series(folder, examples, options, tokenizer, reference, _name(options), advance)
        made = trainer(policy, reference, tokenizer, examples, options, folder / STATE, series)
        facts = checks.prepared_rows(made, examples, options, tokenizer) | checks.trained_weights(made.model)
        if (same := facts.get("prompts with the tokens that answers are sampled from", 1.0)) < 1:
            note = f"In {1 - same:.0%} of the rows prompt and answer share a token, and trl leaves the end of the prompt out."
            examples = replace(examples, notes=(*examples.notes, note))
        state = last_state(folder)
        if state is not None:
            advance(int(state.name.removeprefix("checkpoint-")))
        made.train(resume_from_checkpoint=str(state) if state is not None else None)
    first = next(entry for entry in made.state.log_history if entry["step"] == 1 and "loss" in entry)
    facts |= checks.first_step(first, options)
    equal, notes = checks.equal_rewards(made.state.log_history, options)
    _write_record(folder, record | {"complete": True, "facts": facts | equal, "notes": [*examples.notes, *notes]})
    shutil.rmtree(folder / STATE, ignore_errors=True)
    return CheckpointSet.open(folder)


# ------------------------------------------------------------------------------------------------------ preparation


def _check(lm: LanguageModel, options: FineTuning) -> None:
    if not lm.causal or lm.model.get_output_embeddings() is None:
        raise UserError(f"{lm.name} is no causal language model with a head; fine-tuning trains those.")
    if lm.tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {lm.name} has no end-of-text token, so its answers never end; set tokenizer.eos_token.")


def _copy(lm: LanguageModel, options: FineTuning) -> tuple[Any, Any]:
    """The network to train and its tokenizer, copies in the asked precision, with one list of end tokens and without dropout."""
    import torch

    policy, tokenizer = copy.deepcopy(lm.model), copy.deepcopy(lm.tokenizer)
    policy.to(getattr(torch, options.dtype)).requires_grad_(True)
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    stops = policy.generation_config.eos_token_id
    known = [stops] if isinstance(stops, int) else list(stops or [])
    if tokenizer.eos_token_id not in known:
        known.insert(0, tokenizer.eos_token_id)
    policy.generation_config.eos_token_id = known
    policy.generation_config.pad_token_id = policy.config.pad_token_id = tokenizer.pad_token_id
    return policy, tokenizer


def _with_pairs(policy: Any, tokenizer: Any, examples: Examples, options: FineTuning, folder: Path) -> Examples:
    """Preference pairs from the base's own answers, made once and kept in the run's folder."""
    prompts = list(examples.train["prompt"])
    file = folder / ROWS
    if file.is_file():
        manifest.need_sound(file)
        pairs = pd.read_json(file, lines=True, dtype=False)
    else:
        assert examples.reward is not None
        many = [prompt for prompt in prompts for _ in range(options.answers_per_pair)]
        before = [prompt_ids(tokenizer, prompt) for prompt in many]
        answers = sampled(policy, tokenizer, many, before, options.new_tokens, options.seed)
        texts = [a.text for a in answers]
        values = [a.reward(examples.reward) for a in answers]
        n = options.answers_per_pair
        parts = range(0, len(many), n)
        pairs = pairs_of(prompts, [texts[i : i + n] for i in parts], [values[i : i + n] for i in parts])
        _write_rows(folder, pairs)
    if len(pairs) < _FEWEST:
        raise UserError(
            f"The base's answers differ in reward for {len(pairs)} of {len(prompts)} prompts only; raise --samples from "
            f"{options.answers_per_pair}, or give pairs with --data."
        )
    note = f"{len(pairs)} of {len(prompts)} prompts have answers of the base that differ in reward; dpo learns from these pairs."
    return replace(examples, train=pairs, notes=(*examples.notes, note))


def _write_base(policy: Any, tokenizer: Any, folder: Path) -> None:
    with whole_folder(folder / BASE) as partial:
        policy.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def _write_rows(folder: Path, rows: pd.DataFrame) -> None:
    with manifest.changing(folder, _FILES), whole_file(folder / ROWS) as partial:
        rows.to_json(partial, orient="records", lines=True, force_ascii=False)


# ------------------------------------------------------------------------------------------------------ the run's record


def _name(options: FineTuning) -> str:
    return f"{options.method}-seed{options.seed}"


def _record(lm: LanguageModel, examples: Examples, options: FineTuning) -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    rows = examples.train.to_json(orient="records") + json.dumps(examples.heldout)
    own = options.as_dict() | {
        "model": str(lm.fingerprint),
        "rows": hashlib.sha256(rows.encode()).hexdigest()[:16],
        "reward": identity_of(examples.reward),
    }
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    says = METHODS[options.method].says
    told = {"model": lm.name, "data": examples.name, "says": says, "versions": versions, "threads": torch.get_num_threads()}
    return {"run": own, **told}


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    with manifest.changing(folder, _FILES), whole_file(folder / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")


def _held(folder: Path) -> dict[str, Any] | None:
    file = folder / RECORD
    if not file.is_file():
        return None
    manifest.need_sound(file)
    try:
        held = parse_json(file.read_text(encoding="utf-8"))
        if isinstance(held["run"], dict) and isinstance(held["complete"], bool):
            return dict(held)
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{file} is damaged; choose another folder, or remove it.")


@contextmanager
def _own_random_state() -> Iterator[None]:
    """The trainer sets the seeds of Python, numpy and torch; the user's random states come back."""
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
