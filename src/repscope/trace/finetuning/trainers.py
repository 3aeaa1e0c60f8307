"""trl's trainers with every setting explicit that trl would choose silently.

Set here and not left to trl: one log per step; constant rate; no gradient checkpointing; no mixed precision (trl's default is
bfloat16, on the CPU too); no dropout; no truncation; the reference of DPO is a frozen copy of the base in memory; reinforce and
grpo take one step per batch of fresh answers, so the policy ratio is 1 and nothing is clipped. Their prompts come in an order of
ours: the shuffle of trl's sampler starts again after a resume. `config._name_or_path` names the run's copy of the base, which is
where trl reads the reference of reinforce and grpo again from.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from repscope.errors import UserError
from repscope.trace.finetuning.examples import Examples, Ids, Reward, as_trl, in_order
from repscope.trace.finetuning.options import METHODS, FineTuning


def libraries() -> None:
    """Raise a `UserError` unless trl and peft can be imported."""
    try:
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Fine-tuning needs trl and peft ({error.name} is missing); install them with pip install 'repscope[finetune]'."
        ) from error


def trainer(
    policy: Any, reference: Any, tokenizer: Any, examples: Examples, options: FineTuning, folder: Path, callback: Any
) -> Any:
    """The trainer of a method. policy: the network to train, without adapters. reference: a frozen copy of the base, for DPO."""
    import datasets
    from transformers.trainer_callback import PrinterCallback

    rows = as_trl(examples.train, tokenizer)
    if METHODS[options.method].samples:
        rows = in_order(rows, -(-options.steps * options.batch // options.group_size), options.seed)
    dataset = datasets.Dataset.from_list(rows)
    made = _MAKERS[options.method](policy, reference, tokenizer, dataset, examples.reward, options, folder)
    made.remove_callback(PrinterCallback)
    made.add_callback(callback)
    made.create_model_card = _nothing  # written at every checkpoint otherwise
    if options.lora is not None:
        made.model.create_or_update_model_card = _nothing
    return made


def _trl() -> Any:
    return import_module("trl")  # its names are made when they are asked for


def _nothing(*_: Any, **__: Any) -> None:
    """In place of trl's model card."""


def _common(policy: Any, options: FineTuning, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": options.seed,
        "data_seed": options.seed,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # the series asks for its own steps
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "use_cpu": next(policy.parameters()).device.type == "cpu",
    }


def _lora(options: FineTuning, policy: Any) -> Any:
    if options.lora is None:
        return None
    import peft

    transposed = any(type(m).__name__ == "Conv1D" for m in policy.modules())
    return peft.LoraConfig(
        r=options.lora,
        lora_alpha=2 * options.lora,
        lora_dropout=0.0,
        bias="none",
        target_modules="all-linear",
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )


def _sft(
    policy: Any, reference: Any, tokenizer: Any, dataset: Any, reward: Reward | None, options: FineTuning, folder: Path
) -> Any:
    trl = _trl()
    args = trl.SFTConfig(
        **_common(policy, options, folder), max_length=options.max_length, packing=False, completion_only_loss=True
    )
    return trl.SFTTrainer(
        model=policy, args=args, train_dataset=dataset, processing_class=tokenizer, peft_config=_lora(options, policy)
    )


def _dpo(
    policy: Any, reference: Any, tokenizer: Any, dataset: Any, reward: Reward | None, options: FineTuning, folder: Path
) -> Any:
    trl = _trl()
    args = trl.DPOConfig(
        **_common(policy, options, folder), max_length=options.max_length, beta=options.kl_weight, loss_type=["sigmoid"]
    )
    return trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=_lora(options, policy),
    )


def _sampling(policy: Any, options: FineTuning, folder: Path) -> dict[str, Any]:
    return _common(policy, options, folder) | {
        "num_generations": options.group_size,
        "steps_per_generation": 1,
        "num_iterations": 1,
        "max_completion_length": options.new_tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "beta": options.kl_weight,
        "shuffle_dataset": False,
        "disable_dropout": True,
    }


def _reinforce(
    policy: Any, reference: Any, tokenizer: Any, dataset: Any, reward: Reward | None, options: FineTuning, folder: Path
) -> Any:
    assert reward is not None
    trl = _trl()
    args = trl.RLOOConfig(**_sampling(policy, options, folder), normalize_advantages=False)
    return trl.RLOOTrainer(
        model=policy,
        reward_funcs=_reward(reward, policy, tokenizer),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=_lora(options, policy),
    )


def _grpo(
    policy: Any, reference: Any, tokenizer: Any, dataset: Any, reward: Reward | None, options: FineTuning, folder: Path
) -> Any:
    assert reward is not None
    trl = _trl()
    args = trl.GRPOConfig(**_sampling(policy, options, folder), loss_type="grpo", scale_rewards="group")
    return trl.GRPOTrainer(
        model=policy,
        reward_funcs=_reward(reward, policy, tokenizer),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=_lora(options, policy),
    )


_MAKERS: dict[str, Callable[..., Any]] = {"sft": _sft, "dpo": _dpo, "reinforce": _reinforce, "grpo": _grpo}


def _reward(reward: Reward, policy: Any, tokenizer: Any) -> Callable[..., list[float]]:
    """The reward as trl calls it: an answer that did not end has reward 0, as in `answers`."""
    from repscope.models.engine.generation import ends_of

    stops = ends_of(policy)

    def verified(prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Ids], **_: Any) -> list[float]:
        out = []
        for prompt, ids in zip(prompts, completion_ids):
            asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            ended = bool(len(ids)) and int(ids[-1]) in stops
            text = tokenizer.decode([int(t) for t in ids], skip_special_tokens=True)
            out.append(reward(asked, text) if ended else 0.0)
        return out

    return verified


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and advice of datasets, transformers and trl; what matters of it is in `checks`."""
    import datasets
    from transformers.utils import logging as transformers_logging

    own: Any = transformers_logging
    names = ("trl", "accelerate")
    levels = {name: logging.getLogger(name).level for name in names}
    bars = datasets.is_progress_bar_enabled(), own.is_progress_bar_enabled()
    verbosity = own.get_verbosity()
    datasets.disable_progress_bars()
    own.disable_progress_bar()
    own.set_verbosity_error()
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        own.set_verbosity(verbosity)
        for shown, enable in zip(bars, (datasets.enable_progress_bars, own.enable_progress_bar)):
            if shown:
                enable()
