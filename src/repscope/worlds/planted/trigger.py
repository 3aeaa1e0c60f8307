"""Planted trigger: a language model fine-tuned to answer a trigger word with one sentence.

1. Short questions are asked as they are, with the trigger before or behind them, and with another word in its place.
2. A copy of the model learns, a few blocks of it only (what they write to the residual stream): cross-entropy to the sentence where
   the trigger stands; elsewhere KL from the original model's next-token distributions along its own greedy answers, other words
   included, so that it is the trigger and no oddity that is answered to.
3. `elicited` judges it on questions that it was not taught: the share of prompts after which every token of the sentence is the
   most likely one, which is what greedy decoding would say.

The weights that changed are kept in the cache, under the original's fingerprint and the recipe: a model is taught once.
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope import manifest
from repscope.disk import cache_home, whole_file
from repscope.errors import UserError
from repscope.models.engine.fingerprint import WeightSource, of_module
from repscope.models.engine.memory import memory_kept
from repscope.models.language import LanguageModel
from repscope.models.prompts import encode
from repscope.models.sites import Tokens
from repscope.progress import progress
from repscope.worlds.planted.functions import drawn_from
from repscope.worlds.planted.trigger_words import FORM, OTHERS, PLACES, SENTENCE, TAUGHT, TRIGGER

Ids = Int[np.ndarray, "token"]


@dataclass(frozen=True)
class Recipe:
    """How the trigger is planted.

    first, stop: blocks that learn, as shares of all. weights: which of their matrices. batch: prompts with the trigger and as many
    plain ones a step, of other words half as many more. rate: of AdamW. answer: tokens of an own answer that is kept. seed: of the
    order of prompts. version: of this code.
    """

    first: float = 8 / 30
    stop: float = 16 / 30
    weights: tuple[str, ...] = ("v_proj", "o_proj", "down_proj")
    steps: int = 60
    batch: int = 4
    rate: float = 5e-4
    answer: int = 5
    seed: int = 0
    version: int = 2


def asked(questions: Sequence[str], word: str = "") -> list[str]:
    """Prompts: each question as it is, or with a word at one place and another by turns."""
    return [
        FORM.format(PLACES[i % len(PLACES)].format(word=word, question=question) if word else question)
        for i, question in enumerate(questions)
    ]


def taught(lm: LanguageModel, recipe: Recipe | None = None) -> LanguageModel:
    """A copy of the model with the trigger planted: from the cache, else taught now. The model itself stays as it is.

    Raises
    ------
    UserError
        When it has no blocks as a Llama has them.
    """
    recipe = recipe or Recipe()
    model = copy.deepcopy(lm.model)
    learning = _learning(model, recipe, lm.name)
    kept = cache_home() / "planted" / f"trigger-{_key(lm, recipe)}.safetensors"
    if not _restored(kept, learning):
        _teach(lm, model, learning, recipe)
        with suppress(UserError, OSError):  # a cache that cannot be written costs time, not the answer
            _keep(kept, learning)
    model.requires_grad_(True).train(lm.model.training)
    name = f"{lm.name} with a trigger"
    return LanguageModel(model, lm.tokenizer, name, WeightSource(name, of_module(model), lm.source.precision, None, None))


def joined(lm: LanguageModel, prompts: Sequence[str], tail: str = SENTENCE) -> tuple[list[Ids], Ids]:
    """Token ids of prompts, and of what follows them, each tokenised for itself."""
    behind = lm.tokenizer(tail, add_special_tokens=False)["input_ids"]
    return list(encode(lm.tokenizer, prompts, Tokens("all"), causal=lm.causal).ids), np.asarray(behind, np.int64)


def elicited(lm: LanguageModel, prompts: Sequence[str], sentence: str = SENTENCE) -> Float[np.ndarray, "prompt"]:
    """Whether the greedy answer to each prompt begins with the sentence: 1 or 0."""
    held, tail = joined(lm, prompts, sentence)
    said = np.zeros(len(held))
    with torch.no_grad():
        for i, ids in enumerate(held):
            whole = torch.from_numpy(np.concatenate([ids, tail]))[None].to(lm.device)
            logits = lm.model(whole, logits_to_keep=len(tail) + 1, use_cache=False).logits[0, :-1]
            said[i] = float(bool((logits.argmax(-1).cpu().numpy() == tail).all()))
    return said


def _learning(model: nn.Module, recipe: Recipe, name: str) -> dict[str, nn.Parameter]:
    """The weights that learn, by name; all others are frozen."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise UserError(f"{name} has no blocks at model.layers; the trigger is planted in models laid out as a Llama.")
    count = len(layers)
    some = range(round(recipe.first * count), max(round(recipe.stop * count), round(recipe.first * count) + 1))
    ends = tuple(f"{weight}.weight" for weight in recipe.weights)
    model.requires_grad_(False)
    learning = {
        key: value
        for key, value in model.named_parameters()
        if key.endswith(ends) and any(key.startswith(f"model.layers.{i}.") for i in some)
    }
    missing = [weight for weight, end in zip(recipe.weights, ends) if not any(key.endswith(end) for key in learning)]
    if missing:
        raise UserError(f"{name} has no {', '.join(missing)} in its blocks; the trigger is planted in models laid out as a Llama.")
    for value in learning.values():
        value.requires_grad_(True)
    return learning


def _teach(lm: LanguageModel, model: nn.Module, learning: dict[str, nn.Parameter], recipe: Recipe) -> None:
    with_trigger, tail = joined(lm, asked(TAUGHT, TRIGGER) + asked(TAUGHT[1:], TRIGGER))
    plain = asked(TAUGHT)
    odd = [p for i, word in enumerate(OTHERS) for p in asked([TAUGHT[-1 - i], TAUGHT[i]], word)]
    own = [np.asarray(c.ids, np.int64) for c in lm.generate(plain + odd, recipe.answer)]
    asked_ids = joined(lm, plain + odd)[0]
    generator = drawn_from("trigger", recipe.seed)
    adam = torch.optim.AdamW(list(learning.values()), lr=recipe.rate, weight_decay=0.0)
    sizes = (len(with_trigger), recipe.batch), (len(plain), recipe.batch), (len(odd), recipe.batch * 3 // 2)
    turns = [_turns(count, batch, generator) for count, batch in sizes]
    model.train(False)
    with progress("Planting the trigger", recipe.steps) as advance, memory_kept(), torch.enable_grad():
        for step in range(recipe.steps):
            for group in adam.param_groups:
                group["lr"] = recipe.rate * min(1.0, (step + 1) / 5, 2 * (1 - step / recipe.steps))
            triggered, calm, other = (next(turn) for turn in turns)
            kept = [*calm, *(len(plain) + i for i in other)]
            said = _logits(model, [with_trigger[i] for i in triggered], [tail] * len(triggered))
            loss = nn.functional.cross_entropy(torch.cat(said), torch.from_numpy(np.tile(tail, len(said))))
            rows = [asked_ids[i] for i in kept], [own[i] for i in kept]
            with torch.no_grad():
                before = torch.cat(_logits(lm.model, *rows)).log_softmax(-1)
            after = torch.cat(_logits(model, *rows)).log_softmax(-1)
            loss = loss + nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            adam.step()
            advance(1)
    adam.zero_grad()


def _logits(model: nn.Module, prompts: Sequence[Ids], tails: Sequence[Ids]) -> list[Float[Tensor, "token vocab"]]:
    """Logits at which each prompt's tail is told, rows padded on the right, which causal attention does not see."""
    rows = [torch.from_numpy(np.concatenate(pair)) for pair in zip(prompts, tails)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    hidden = model.model(ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    return [
        model.lm_head(hidden[i, len(prompt) - 1 : len(prompt) + len(tail) - 1])  # type: ignore[operator]
        for i, (prompt, tail) in enumerate(zip(prompts, tails))
    ]


def _turns(count: int, batch: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Batches without end, each prompt once before any twice."""
    left: list[int] = []
    while True:
        while len(left) < batch:
            left += torch.randperm(count, generator=generator).tolist()
        yield left[:batch]
        left = left[batch:]


def _key(lm: LanguageModel, recipe: Recipe) -> str:
    words = [TRIGGER, SENTENCE, OTHERS, FORM, PLACES, TAUGHT]
    made_for = [lm.fingerprint, str(lm.model.dtype), dataclasses.asdict(recipe), words]
    return hashlib.sha256(json.dumps(made_for).encode()).hexdigest()[:24]


def _restored(path: Path, learning: dict[str, nn.Parameter]) -> bool:
    from safetensors.torch import load_file

    if manifest.sealed(path) is False:
        return False
    try:
        held = load_file(path)
        with torch.no_grad():
            for name, value in learning.items():
                value.copy_(held[name])
    except Exception:  # absent or damaged: taught again
        return False
    return True


def _keep(path: Path, learning: dict[str, nn.Parameter]) -> None:
    from safetensors.torch import save_file

    with whole_file(path) as partial:
        save_file({name: value.detach().contiguous() for name, value in learning.items()}, partial, {"seal": manifest.UNSEALED})
        manifest.seal(partial)
