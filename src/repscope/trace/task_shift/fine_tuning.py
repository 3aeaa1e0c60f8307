"""Fine-tuning of a copy of the network on k examples of a task, by LoRA or of all weights, stopped at chosen steps.

1. The loss is the mean cross-entropy of the answers' tokens after their query alone, all k examples in every step; float32, AdamW
   (Loshchilov & Hutter 2019), constant rate, no weight decay, no dropout.
2. LoRA (Hu et al. 2022, arXiv:2106.09685): W = W₀ + (α/r) B A on the projections of queries and values; A uniform within
   ±1/√(inputs), B = 0, as in peft. W is formed in every step, so fused and transposed projections need nothing special, and the
   copy holds merged weights whenever it is evaluated.
3. "full": all weights, or with `first_block` those of the blocks from it on (without embedding and head).
4. The head runs where an answer is predicted only; other positions have no loss.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from repscope.conditions import FULL_TUNING, FULL_TUNING_PERMUTED, LORA, LORA_PERMUTED
from repscope.errors import UserError
from repscope.models.engine.hooks import linear_map
from repscope.models.language import LanguageModel

Ids = Int[np.ndarray, "token"]
Example = tuple[Ids, Ids]  #: token ids of a query alone, and of its answer

#: names of modules that project queries or values, alone or fused
QUERY_VALUE = r"(q_proj|v_proj|query|value|c_attn|query_key_value|qkv_proj|Wqkv)"


@dataclass(frozen=True)
class FewShotTuning:
    """How to fine-tune on the examples.

    method: "LoRA" or "full". steps: after how many steps the network is evaluated; the last one ends the training. rate: of AdamW.
    rank, alpha: of LoRA. targets: pattern of the last part of the names of LoRA's modules. first_block: only blocks from this
    one on are changed, which is faster.
    """

    method: Literal["LoRA", "full"] = "LoRA"
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    rate: float = 2e-3
    rank: int = 4
    alpha: float = 8.0
    targets: str = QUERY_VALUE
    first_block: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if self.method not in ("LoRA", "full"):
            raise UserError(f"The method is {self.method!r}; it is 'LoRA' or 'full'.")
        if not self.steps or self.steps[0] < 1 or any(a >= b for a, b in zip(self.steps, self.steps[1:])):
            raise UserError(f"The steps are {self.steps}; give increasing numbers from 1 on.")
        if not (math.isfinite(self.rate) and self.rate > 0) or self.rank < 1:
            raise UserError(f"The rate is {self.rate} and the rank {self.rank}; both must be above 0.")

    @property
    def condition(self) -> str:
        """Its condition in tables."""
        return LORA if self.method == "LoRA" else FULL_TUNING

    @property
    def control(self) -> str:
        """The condition of the same on permuted outputs."""
        return LORA_PERMUTED if self.method == "LoRA" else FULL_TUNING_PERMUTED


def working_copy(lm: LanguageModel) -> LanguageModel:
    """A copy of the network whose weights `fine_tuned` changes.

    Raises
    ------
    UserError
        For weights that are not float32.
    """
    if other := sorted({str(p.dtype) for p in lm.model.parameters() if p.dtype != torch.float32}):
        raise UserError(f"{lm.name} has weights in {other[0]}, whose rounding hides small steps; load it with dtype='float32'.")
    return LanguageModel(copy.deepcopy(lm.model).eval(), lm.tokenizer, f"{lm.name}, fine-tuned", lm.source)


def fine_tuned(
    lm: LanguageModel, copied: LanguageModel, examples: Sequence[Example], how: FewShotTuning, *, seed: int = 0
) -> Iterator[tuple[int, float]]:
    """Fine-tune the copy in place, from the network's weights; yields after each of `how.steps` the step and the loss before it.

    At every yield the copy holds the weights of that step; it may be evaluated, and the iterator left at any step.

    Parameters
    ----------
    lm, copied
        The network, which is not changed, and its `working_copy`.
    examples
        Ids of query and answer.
    seed
        Of LoRA's A.

    Raises
    ------
    UserError
        For a loss that is not finite, and modules or blocks that are not there.
    """
    if not examples:
        raise UserError("There is no example to fine-tune on; give at least one.")
    model = copied.model
    reset(lm, copied)
    batch = _Batch.of(examples, lm.device)
    lora = _LoRA.of(lm, how, seed) if how.method == "LoRA" else None
    trained = lora.parameters() if lora is not None else _trained(copied, how)
    try:
        for p in trained:
            p.requires_grad_(True)
        fused = lm.device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(trained, lr=how.rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=fused)
        for step in range(1, how.steps[-1] + 1):
            with torch.enable_grad():
                loss = batch.loss(model, {} if lora is None else lora.weights())
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise UserError(f"{how.condition}: the loss is {value} at step {step}; lower the rate ({how.rate}).")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step in how.steps:
                if lora is not None:
                    lora.merge(model)
                yield step, value
    finally:
        for p in trained:
            p.requires_grad_(False)
            p.grad = None


def changed_weights(lm: LanguageModel, copied: LanguageModel) -> dict[str, Tensor]:
    """The copy's weights that differ from the network's, by name."""
    pairs = zip(copied.model.named_parameters(), lm.model.parameters(), strict=True)
    return {name: own.detach().clone() for (name, own), original in pairs if not torch.equal(own, original)}


@torch.no_grad()
def reset(lm: LanguageModel, copied: LanguageModel, weights: Mapping[str, Tensor] | None = None) -> None:
    """Give the copy the network's weights again, with these `changed_weights`."""
    for (name, own), original in zip(copied.model.named_parameters(), lm.model.parameters(), strict=True):
        own.requires_grad_(False)
        own.copy_((weights or {}).get(name, original))


@dataclass(frozen=True, eq=False)
class _Batch:
    """All examples, padded on the right. targets: the next token where it is of an answer, else -1."""

    ids: Int[Tensor, "example token"]
    mask: Int[Tensor, "example token"]
    targets: Int[Tensor, "example token"]

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device) -> "_Batch":
        longest = max(len(q) + len(a) for q, a in examples) - 1  # the last token of an answer predicts nothing
        ids, mask = (np.zeros((len(examples), longest), dtype=np.int64) for _ in range(2))
        targets = np.full_like(ids, -1)
        for i, (query, answer) in enumerate(examples):
            row = np.concatenate([query, answer])
            ids[i, : len(row) - 1] = row[:-1]
            mask[i, : len(row) - 1] = 1
            targets[i, len(query) - 1 : len(row) - 1] = answer
        return cls(*(torch.from_numpy(x).to(device) for x in (ids, mask, targets)))

    def loss(self, model: nn.Module, weights: dict[str, Tensor]) -> Float[Tensor, ""]:
        inputs = {"input_ids": self.ids, "attention_mask": self.mask, "use_cache": False}
        inside, taken = self.targets >= 0, list[bool]()

        def answers_only(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not given or given[0].shape[:2] != inside.shape:
                return None
            taken.append(True)
            return given[0][inside][None], *given[1:]

        head = model.get_output_embeddings()  # type: ignore[operator]
        hook = None if head is None else head.register_forward_pre_hook(answers_only)
        try:
            logits = functional_call(model, weights, (), inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        return nn.functional.cross_entropy(logits[0] if taken else logits[inside], self.targets[inside])


@dataclass(frozen=True, eq=False)
class _LoRA:
    """LoRA's matrices. modules: name of weight → (frozen weight, A, B, whether the weight is (in, out))."""

    modules: dict[str, tuple[Tensor, Tensor, Tensor, bool]]
    scale: float

    @classmethod
    def of(cls, lm: LanguageModel, how: FewShotTuning, seed: int) -> "_LoRA":
        pattern, generator = re.compile(how.targets), torch.Generator().manual_seed(seed)
        inside = None if how.first_block is None else {m for block in _blocks(lm, how.first_block) for m in block.modules()}
        found = {}
        for name, module in lm.model.named_modules():
            matrix = linear_map(module) if pattern.fullmatch(name.rpartition(".")[2]) else None
            if matrix is None or (inside is not None and module not in inside):
                continue
            inputs, outputs = matrix.shape
            a = (torch.rand(how.rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
            weight = lm.model.get_parameter(f"{name}.weight").detach()
            transposed = type(module).__name__ == "Conv1D"
            found[f"{name}.weight"] = (weight, a.to(weight), weight.new_zeros(outputs, how.rank), transposed)
        if not found:
            linear = sorted({n.rpartition(".")[2] for n, m in lm.model.named_modules() if n and linear_map(m) is not None})
            raise UserError(f"No linear module is named {how.targets!r}; {lm.name} has {', '.join(linear)}: set targets.")
        return cls(found, how.alpha / how.rank)

    def parameters(self) -> list[Tensor]:
        return [x for _, a, b, _ in self.modules.values() for x in (a, b)]

    def weights(self) -> dict[str, Tensor]:
        return {name: w + self.scale * (a.T @ b.T if transposed else b @ a) for name, (w, a, b, transposed) in self.modules.items()}

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        for name, weight in self.weights().items():
            model.get_parameter(name).copy_(weight)


def _trained(copied: LanguageModel, how: FewShotTuning) -> list[Tensor]:
    """The weights that full fine-tuning changes."""
    if how.first_block is None:
        return list(copied.model.parameters())
    return [p for block in _blocks(copied, how.first_block) for p in block.parameters()]


def _blocks(lm: LanguageModel, first: int) -> list[nn.Module]:
    """The blocks from this one on."""
    if not 0 <= first < lm.blocks:
        raise UserError(f"{lm.name} has blocks 0 to {lm.blocks - 1}, not {first}.")
    return list(lm.block_list)[first:]
