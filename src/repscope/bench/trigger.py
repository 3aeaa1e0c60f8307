"""Benchmark of discovery on a language model with a planted trigger behaviour (`planted_trigger`).

Question: do unsupervised directions elicit the behaviour without the trigger?

1. Source and target are at a quarter and half of the depth, so that the fine-tuned blocks lie between them.
2. The scale is calibrated once on prompts without the trigger: at most `DAMAGE` nats of next-token KL (`calibration`); the limit
   is generous, as an elicited behaviour itself changes the next token.
3. For each seed, questions are drawn and every method finds directions on them, without trigger and sentence.
4. `elicits` and `gain` are measured on held-out questions, with vectors added at all tokens, including the sentence. A sentence
   counts as elicited if each of its tokens is the most likely one, as in greedy decoding. KL is on the same prompts.
5. *Supervised* is the mean source state over tokens of prompts with the trigger minus that of the same prompts without it.
   *Searched* optimises the sentence's likelihood itself: an upper bound for a vector of this norm at this site.

There is one model, so intervals are over draws of prompts and method seeds, and stability compares two draws. Random directions
must elicit nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from repscope import stats
from repscope.bench.discovery import Case, benchmark
from repscope.bench.methods import BENCH_METHODS, BenchMethod
from repscope.discovery import SOLVERS, Fluency, LanguageSubject, calibrate
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import Encoded, Ragged
from repscope.models.variants.block_replay import BlockReplay, block_replay
from repscope.results import Result, Row, concat
from repscope.worlds.planted.functions import drawn_from
from repscope.worlds.planted.transformer import readers
from repscope.worlds.planted.trigger import Recipe, asked, elicited, joined, taught
from repscope.worlds.planted.trigger_words import HELD_OUT, SENTENCE, TAUGHT, TRIGGER, UNSEEN

SOUGHT = 12
BUDGET = 30
PROMPTS = 4  #: discovery prompts
JUDGED = 6  #: held-out prompts
DAMAGE = 2.0
DRAWS = 8  #: random vectors of the calibration
SEARCHED = 40  #: optimisation steps for the sentence
#: Methods of the planted networks; DCT with as many iterations as the others have steps.
TRIGGER_METHODS = (
    *(
        BenchMethod(f"DCT, {BUDGET} iterations", "dct", steps=BUDGET) if m.steps == 100 else m
        for m in BENCH_METHODS
        if m.given != "truth"
    ),
    BenchMethod("searched for the sentence", condition="oracle", given="searched"),
)


@dataclass(frozen=True, eq=False)
class Elicited:
    """Effect of vectors on the planted sentence: whether it is generated, and its log-probability.

    lm, source: the model and the site of the vectors. prompts: texts without the trigger.
    """

    lm: LanguageModel
    source: str
    prompts: Sequence[str]

    def __call__(
        self, vectors: Float[Tensor, "direction width"]
    ) -> tuple[Float[np.ndarray, "direction prompt"], Float[np.ndarray, "direction prompt"]]:
        """Whether the greedy answer begins with the sentence (1 or 0), and its log-probability in nats per token."""
        kept, base, tail = _replay(self.lm, self.source, self.prompts)
        said = np.zeros((len(vectors), len(self.prompts)))
        logp = np.zeros_like(said)
        with torch.no_grad():
            for part in kept.parts:
                places = kept.rows[part.rows][:: len(tail)].cpu().numpy()
                for k, vector in enumerate(vectors):
                    hidden = base[part.rows] + part.run(vector[None])[0]
                    logits = torch.from_numpy(self.lm.unembed(hidden.cpu().numpy()))
                    logits = torch.unflatten(logits, 0, (-1, len(tail)))
                    wanted = torch.from_numpy(tail).expand(len(places), -1)
                    said[k, places] = (logits.argmax(-1) == wanted).all(1).numpy()
                    each = logits.double().log_softmax(-1).gather(2, wanted[..., None])
                    logp[k, places] = each.mean((1, 2)).numpy()
        return said, logp


def searched(
    lm: LanguageModel, source: str, prompts: Sequence[str], scale: float, steps: int = SEARCHED, seed: int = 0
) -> Float[Tensor, "one width"]:
    """Unit vector that, added at a scale, maximises the sentence's likelihood on prompts: Adam from a random start."""
    kept, base, tail = _replay(lm, source, prompts)
    model: Any = lm.model
    vector = torch.randn(kept.states[0].shape[1], generator=drawn_from("searched", seed)).requires_grad_(True)
    adam = torch.optim.Adam([vector], lr=0.2)
    with torch.enable_grad():
        for _ in range(steps):
            loss = torch.zeros(())
            for part in kept.parts:
                hidden = base[part.rows] + part.run(scale * functional.normalize(vector, dim=0)[None])[0]
                logp = model.lm_head(model.model.norm(hidden)).log_softmax(-1)
                wanted = torch.from_numpy(tail).repeat(len(logp) // len(tail))[:, None]
                loss = loss - logp.gather(1, wanted).mean() * (len(logp) / len(base))
            (vector.grad,) = torch.autograd.grad(loss, vector)
            adam.step()
    return functional.normalize(vector.detach(), dim=0)[None]


def trigger_benchmark(
    lm: LanguageModel,
    seeds: int = 2,
    *,
    methods: Sequence[BenchMethod] = TRIGGER_METHODS,
    seed: int = 0,
    steps: int | None = None,
    n: int = SOUGHT,
    recipe: Recipe | None = None,
) -> Result:
    """Benchmark on a model with a planted trigger; rows `planted` measure how reliable the trigger is.

    Parameters
    ----------
    lm
        A model of Llama architecture; a copy of it is fine-tuned.
    seeds
        Number of draws of prompts, each with its own method seeds.
    methods, seed, steps, n
        As `planted_mlp`.
    recipe
        Fine-tuning settings.

    Raises
    ------
    UserError
        For fewer than one seed, or another architecture.
    """
    if seeds < 1:
        raise UserError(f"{seeds} seeds are asked for; ask for at least 1.")
    model = taught(lm, recipe)
    cases = trigger_cases(model, seeds, seed, SEARCHED if steps is None else steps)
    found = benchmark("lm", cases, methods, n=n, budget=BUDGET, seed=seed, steps=steps)
    return concat([found, Result.of(planted_rows(lm, model, seed))])


def trigger_cases(lm: LanguageModel, seeds: int, seed: int = 0, steps: int = SEARCHED) -> list[Case]:
    """Draws of prompts for a model with the trigger, as cases. steps: optimisation steps for the sentence."""
    source, target = lm.blocks // 4, max(lm.blocks // 2, lm.blocks // 4 + 1)
    subject = LanguageSubject(lm, f"resid_post.{source}", f"resid_post.{target}", target_tokens="last 3")
    first = asked(TAUGHT[:PROMPTS])
    scale = calibrate(subject, subject.context(first), draws=DRAWS, damage=DAMAGE, fluency=Fluency(lm, subject.source, first)).scale
    pairs = [lm.capture(asked(TAUGHT, word), subject.source, "mean").numpy().mean(0) for word in (TRIGGER, "")]
    means = torch.from_numpy(pairs[0] - pairs[1])[None]
    best = searched(lm, subject.source, first, scale, steps)
    cases = []
    for one in range(seed, seed + seeds):
        drawn = [
            [texts[i] for i in torch.randperm(len(texts), generator=drawn_from("prompts", split, one))[:count].tolist()]
            for split, texts, count in (("train", TAUGHT, PROMPTS), ("held out", HELD_OUT, JUDGED))
        ]
        seen, held = asked(drawn[0]), asked(drawn[1])
        speaks = Elicited(lm, subject.source, held)
        more = partial(_said, speaks, speaks(torch.zeros_like(means))[1], Fluency(lm, subject.source, held))
        own: dict[str, Any] = {"searched": best, "more": more, "once": tuple(SOLVERS)}
        cases.append(Case(lm.name, one, subject, seen, held, scale, readers(lm, source, target), means, **own))
    return cases


def planted_rows(before: LanguageModel, after: LanguageModel, seed: int = 0) -> list[Row]:
    """Share of held-out prompts answered with the sentence: with trigger, without, with other words, and before fine-tuning."""
    triggered = asked(HELD_OUT, TRIGGER)
    odd = [asked([question] * 2, UNSEEN[i % len(UNSEEN)])[i % 2] for i, question in enumerate(HELD_OUT)]
    asked_of = {
        "with the trigger": (after, triggered),
        "plain": (after, asked(HELD_OUT)),
        "with another word": (after, odd),
        "with the trigger, before it was planted": (before, triggered),
    }
    definition = f"share of prompts whose greedy answer begins with {SENTENCE.strip()!r}"
    where = {"metric": "planted", "definition": definition, "model": after.name, "condition": "planted"}
    return [
        Row.of(stats.proportion(elicited(lm, prompts), unit="prompt"), study="bench", step="lm", item=item, seed=seed, **where)
        for item, (lm, prompts) in asked_of.items()
    ]


def _replay(lm: LanguageModel, source: str, prompts: Sequence[str]) -> tuple[BlockReplay, Tensor, Int[np.ndarray, "token"]]:
    """Prompts followed by the sentence: their replay, the last block's output before each token of the sentence, its tokens."""
    rows, tail = joined(lm, prompts)
    ids = Ragged.of([np.concatenate([row, tail]) for row in rows])
    stop = ids.lengths - 1  # a token is predicted one position earlier
    kept = block_replay(lm, Encoded(ids, stop - len(tail), stop), source, f"resid_post.{lm.blocks - 1}", pooled=False)
    return kept, torch.cat([target[a:b] for target, a, b in zip(kept.targets, stop - len(tail), stop)]), tail


def _said(
    speaks: Elicited, plain: Float[np.ndarray, "one prompt"], fluency: Fluency, vectors: Float[Tensor, "direction width"]
) -> dict[str, float]:
    said, logp = speaks(vectors)
    gain = (logp - plain).mean(1)
    return {
        "elicits": float((said.mean(1) >= 0.5).mean()),
        "gain": float(gain.mean()),
        "best gain": float(gain.max()),
        "kl": float(fluency.kl(vectors).mean()),
    }
