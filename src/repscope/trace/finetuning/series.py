"""The series of checkpoints of one fine-tuning: its folder, its table, and the trainer's callback that fills both.

A series is a `CheckpointSet`: `base/` (step 0) and `step-000010/` … in one folder with `checkpoints.csv`. With LoRA a step is
PEFT's own folder (adapter_model.safetensors, adapter_config.json), whose base is `../base`; `CheckpointSet` merges as it reads.
Trained whole, a step is a Hugging Face folder. The trainer's state for resuming is in `trainer/` until the run has ended.

Each kept step is measured on held-out prompts: reward, KL to the base, share of weights that changed.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import TrainerCallback

from repscope import manifest
from repscope.disk import whole_file, whole_folder
from repscope.models.checkpoints import TABLE
from repscope.models.loading.adapters import CONFIG
from repscope.models.loading.checkpoint_files import Weights
from repscope.progress import Advance
from repscope.stats import mean
from repscope.trace.finetuning import checks
from repscope.trace.finetuning.answers import kl_to_base, sampled
from repscope.trace.finetuning.examples import Examples, prompt_ids
from repscope.trace.finetuning.options import BASE, LOG, RECORD, ROWS, STATE, FineTuning

COMPLETE = "repscope-complete"
_FIRST = ("step", "epoch", "loss")  #: columns of the log
FILES = (RECORD, ROWS, TABLE, LOG)  #: of a series, beside the folders of its steps
_HELD = 64  #: held-out prompts that are measured
_SEED = 20_261  #: of held-out answers: the same random streams at each step


class Series(TrainerCallback):
    """Writes and measures the kept steps of a run while it trains."""

    def __init__(
        self, folder: Path, examples: Examples, options: FineTuning, tokenizer: Any, reference: Any, run: str, advance: Advance
    ) -> None:
        self.folder = folder
        self._examples, self._options, self._tokenizer, self._reference = examples, options, tokenizer, reference
        self._run, self._advance = run, advance
        self._prompts = examples.heldout[:_HELD]

    # ------------------------------------------------------------------------------------------ events of the trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The base is row 0; after a kill between a checkpoint and its row, the row is made here."""
        self._record(given["model"], state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for a checkpoint at the kept steps."""
        self._advance(1)
        control.should_save = state.global_step in self._options.kept
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        """The first step's loss shows whether the reference is the base."""
        if logs and state.global_step == 1 and "loss" in logs:
            checks.first_step(logs, self._options)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The trainer's checkpoint is complete: mark it, remove those before it, and record the step."""
        here = self.folder / STATE / f"checkpoint-{state.global_step}"
        manifest.write(here)
        (here / COMPLETE).touch()
        for other in (self.folder / STATE).glob("checkpoint-*"):
            if other != here:
                shutil.rmtree(other)
        self._record(given["model"], state)

    # ------------------------------------------------------------------------------------------ a step

    def _record(self, model: Any, state: Any) -> None:
        step = int(state.global_step)
        rows = read_rows(self.folder)
        if any(row["step"] == step for row in rows):
            return
        name = BASE if step == 0 else f"step-{step:06d}"
        if step:
            self._write(model, self.folder / name)
        row: dict[str, Any] = {
            "run": self._run,
            "step": step,
            "path": name,
            "method": self._options.method,
            "seed": self._options.seed,
        }
        row |= self._measured(model, step) | {"loss": _loss(state.log_history, rows[-1]["step"] if rows else 0)}
        row |= checks.changed(_weights(self.folder / BASE), _weights(self.folder / name))
        log = pd.DataFrame([entry for entry in state.log_history if "loss" in entry])
        # The trainer's state sorts names when it is saved, so the order of a resumed log would be another
        log = log.reindex(columns=[*_FIRST, *sorted(set(log.columns) - set(_FIRST))])
        with manifest.changing(self.folder, FILES):
            with whole_file(self.folder / TABLE) as partial:
                pd.DataFrame([*rows, row]).to_csv(partial, index=False)
            with whole_file(self.folder / LOG) as partial:
                log.to_csv(partial, index=False)

    def _write(self, model: Any, folder: Path) -> None:
        with whole_folder(folder) as partial:
            if self._options.lora is None:
                model.save_pretrained(partial)
                self._tokenizer.save_pretrained(partial)
                return
            model.save_pretrained(partial, save_embedding_layers=False)
            config = json.loads((partial / CONFIG).read_text(encoding="utf-8"))
            (partial / CONFIG).write_text(
                json.dumps(config | {"base_model_name_or_path": f"../{BASE}"}, indent=2), encoding="utf-8"
            )

    def _measured(self, model: Any, step: int) -> dict[str, float]:
        before = [prompt_ids(self._tokenizer, prompt) for prompt in self._prompts]
        answers = sampled(model, self._tokenizer, self._prompts, before, self._options.new_tokens, _SEED)
        tokens = np.array([len(a.ids) for a in answers], dtype=float)
        found = {
            "prompts": float(len(answers)),
            "ended": float(np.mean([a.ended for a in answers])),
            "tokens": float(tokens.mean()),
        }
        reward = self._examples.reward
        if reward is not None:
            rewards = mean(np.array([a.reward(reward) for a in answers]), unit="prompt")
            found |= {"reward": rewards.value, "reward_lo": rewards.lo, "reward_hi": rewards.hi}
        kl = np.zeros(len(answers))
        if step:
            kl = kl_to_base(model, self._base_logits(model), answers, model.config.get_text_config().vocab_size)
        total = mean(kl, unit="prompt")
        return found | {"kl": total.value, "kl_lo": total.lo, "kl_hi": total.hi, "kl_per_token": float(kl.sum() / tokens.sum())}

    def _base_logits(self, model: Any) -> Any:
        """ids → logits of the base: the frozen copy, or the network without its adapters."""

        def logits(ids: Tensor) -> Tensor:
            if self._reference is not None:
                return self._reference(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]
            with model.disable_adapter():
                return model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]

        return logits


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the series so far."""
    file = folder / TABLE
    return [{str(k): v for k, v in row.items()} for row in pd.read_csv(file).to_dict("records")] if file.is_file() else []


def last_state(folder: Path) -> Path | None:
    """The trainer's last complete checkpoint; incomplete and damaged ones are removed."""
    found = {}
    for path in (folder / STATE).glob("checkpoint-*"):
        if (path / COMPLETE).is_file() and manifest.damage(path) is None:
            found[int(path.name.removeprefix("checkpoint-"))] = path
        else:
            shutil.rmtree(path)
    return found[max(found)] if found else None


def _weights(folder: Path) -> Weights:
    return Weights(folder)


def _loss(history: list[dict[str, Any]], after: int) -> float:
    """Mean training loss of the steps since the row before."""
    losses = [entry["loss"] for entry in history if "loss" in entry and entry["step"] > after]
    return float(np.mean(losses)) if losses else float("nan")
