"""Shared state of the checks of one model: prompts, reference outputs, new tokens, state before.

Plain transformers runs on another module tree that shares the weights, so that its hooks do not remain on the user's model. Batches
are formed here, not by the engine's planner, so that short prompts use padding and a shared prefix too.
"""

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.planner import Plan, packed
from repscope.models.engine.positions import CollectedRows
from repscope.models.language import LanguageModel
from repscope.models.prompts import Encoded, PromptLike, Ragged, encode
from repscope.models.sites import Site, Tokens

_TEXTS = {
    "The river that runs through the middle of Paris is called the Seine, and the one in London": 16,
    "Hydrogen, helium and lithium are the first of the chemical": 9,
    "Once upon a time there was": 5,
    "A map": 2,
}  #: text → its first so many tokens
_NEW_TOKENS = 4
_LONGEST = 600  #: tokens up to which lengths are tried at which a network changes its behaviour; beyond, a check would take minutes
_ONE_BATCH = 1 << 20  #: padded tokens; whatever is asked runs in one batch
New = tuple[list[Int[np.ndarray, "token"]], list[Float[Tensor, "row vocab"]]]


class Inapplicable(Exception):
    """A check does not apply to this network; the text is the reason."""


class Fixture:
    """The model under test with its prompts, its initial state, and reference outputs that several checks share."""

    def __init__(self, lm: LanguageModel, prompts: Iterable[PromptLike] | None) -> None:
        ids = _ids(lm, prompts)
        lengths = [len(row) for row in ids]
        if len(set(lengths)) < 2 or min(lengths) < 2:
            raise UserError(f"The prompts have {lengths} tokens; give two or more of unequal lengths, none of a single token.")
        lm.checked(Ragged.of(ids))
        self.lm, self.ids = lm, ids
        self.longest = max(ids, key=len)
        near = [n for s in lm.proofs.switches if s <= _LONGEST for n in (s - 1, s + 1)]
        #: the prompts, and others with one token less and one more than every length at which the network changes its behaviour
        self.lengths = ids + lm.trial([n for n in near if n > 1 and n + _NEW_TOKENS <= (lm.context or n + _NEW_TOKENS)])
        self.beyond = [s for s in lm.proofs.switches if s > _LONGEST]
        self.before = state(lm)

    @cached_property
    def posts(self) -> list[Site]:
        """The output of every block."""
        found = [site for site in (self.lm.anatomy.taps if self.lm.anatomy else {}) if site.kind == "resid_post"]
        if not found:
            raise Inapplicable("no transformer blocks were found in it")
        return found

    @property
    def sites(self) -> list[Site]:
        """Sites compared between execution paths: the output of every block, and the input of the head."""
        taps = self.lm.anatomy.taps if self.lm.anatomy else {}
        found = [site for site in taps if site.kind == "resid_post"]
        if not found and Site("final_norm") not in taps:
            raise Inapplicable("no transformer blocks were found in it")
        return list(dict.fromkeys([*found, self.lm.last]))

    @property
    def middle(self) -> Site:
        """The output of a middle block; it is not the last one if there are two or more."""
        return self.posts[(len(self.posts) - 1) // 2]

    @cached_property
    def vector(self) -> Float[Tensor, "d_model"]:
        """A random direction with the median norm of the residual stream."""
        drawn = torch.randn(self.lm.anatomy.width, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
        lengths = np.linalg.norm(self.lm.capture(self.ids, self.middle, "all")[self.middle], axis=1)
        vector: Tensor = drawn * float(np.median(lengths)) / drawn.norm()
        return vector

    def head(self) -> None:
        """Raise `Inapplicable` unless there is a head whose logits can be read."""
        if self.lm.model.get_output_embeddings() is None:
            raise Inapplicable("it has no language-model head")
        try:
            self.lm.head()
        except UserError as error:
            raise Inapplicable(str(error)) from error

    def generates(self) -> None:
        """Raise `Inapplicable` unless the model can generate."""
        if not self.lm.generates:
            raise Inapplicable("it is no causal language model with a head, so it continues no text")

    def rows(
        self, sites: Sequence[Site], ids: list[Int[np.ndarray, "token"]], prefix: int = 0
    ) -> list[Float[Tensor, "row feature"]]:
        """All positions of prompts at each site, run as one batch after a shared prefix of some tokens."""
        rows = Ragged.of(ids)
        whole = Plan(rows, np.arange(len(ids)), prefix, [np.argsort(rows.lengths, kind="stable")])
        return self._run(sites, rows, whole)

    def packed(self, sites: Sequence[Site], ids: list[Int[np.ndarray, "token"]]) -> list[Float[Tensor, "row feature"]]:
        """As `rows`, with the prompts in several packs and shared prefixes run once."""
        rows = Ragged.of(ids)
        if why := self.lm.unpackable(rows, sites):
            raise Inapplicable(f"its prompts are not packed: {why}")
        return self._run(sites, rows, packed(rows, 2 * len(rows.flat) // 3, share=self.lm.causal))

    def _run(self, sites: Sequence[Site], ids: Ragged, planned: Plan) -> list[Float[Tensor, "row feature"]]:
        found = CollectedRows()
        self.lm.run(sites, Encoded.whole(ids), planned, Tokens("all"), found)
        return [found[site] for site in sites]

    @cached_property
    def plain(self) -> list[Any]:
        """The output of transformers for each prompt alone, including hidden states."""
        # Asked for hidden states, transformers leaves hooks behind; so it runs on another tree of modules with the same weights.
        shared = {id(t): t for t in [*self.lm.model.parameters(), *self.lm.model.buffers()]}
        model = copy.deepcopy(self.lm.model, shared)
        with unhooked(model):
            rows = [torch.from_numpy(row)[None].to(self.lm.device) for row in self.lengths]
            return [model(input_ids=row, output_hidden_states=True, **self.lm.plain()) for row in rows]

    def generated(self, *, use_cache: bool) -> New:
        """Greedy new tokens of each prompt, and the logits of each step as the head gave them, rows as the prompts."""
        way = self.lm.generation(max(map(len, self.ids)) + _NEW_TOKENS, own=use_cache)
        if not way.batch:
            each = [self._continued([row], use_cache) for row in self.ids]
            most = max(len(steps) for _, steps in each)
            rest = [steps + [torch.full_like(steps[0], torch.nan)] * (most - len(steps)) for _, steps in each]
            return [text for texts, _ in each for text in texts], [torch.cat(step) for step in zip(*rest)]
        return self._continued(self.ids, use_cache)

    def _continued(self, ids: list[Int[np.ndarray, "token"]], use_cache: bool) -> New:
        """Greedy new tokens of prompts in one batch, and the logits of each step."""
        seen: list[Tensor] = []
        head = self.lm.model.get_output_embeddings()
        handle = head.register_forward_hook(lambda _, args, output: seen.append(output[:, -1].double().cpu()))
        try:
            texts = self.lm.generate(ids, _NEW_TOKENS, use_cache=use_cache, batch_tokens=_ONE_BATCH)
        finally:
            handle.remove()
        if len(seen) != max(len(text.ids) for text in texts):
            raise RuntimeError(f"the head ran {len(seen)} times for {max(len(text.ids) for text in texts)} tokens")
        ran = np.argsort([len(row) for row in ids], kind="stable")[::-1]  # the longest is the first row
        return [text.ids for text in texts], [step[torch.from_numpy(np.argsort(ran))] for step in seen]

    @cached_property
    def unedited(self) -> New:
        """Generated tokens with a cache and without edits."""
        return self.generated(use_cache=True)


def _ids(lm: LanguageModel, prompts: Iterable[PromptLike] | None) -> list[Int[np.ndarray, "token"]]:
    if prompts is not None:
        return list(encode(lm.tokenizer, prompts, Tokens("all"), lm.context, causal=lm.causal).ids)
    room = (lm.context or 1 << 20) - _NEW_TOKENS
    held = encode(lm.tokenizer, list(_TEXTS), Tokens("all"), causal=lm.causal).ids
    return [row[: min(most, room)] for row, most in zip(held, _TEXTS.values())]


_COMPARED = 1 << 16  #: numbers of a buffer that is compared by its values
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state(lm: LanguageModel) -> dict[str, Any]:
    """Everything about a model that an operation could change by mistake, by a readable name."""
    model = lm.model
    held: dict[str, Any] = {
        "attention implementation": getattr(model.config, "_attn_implementation", None),
        "configuration": str(model.config),
        "generation configuration": str(getattr(model, "generation_config", None)),
        "gradient mode": torch.is_grad_enabled(),
        "default precision": torch.get_default_dtype(),
        "installed edits": len(lm.installed),
    }
    for path, module in model.named_modules():
        name = path or type(model).__name__
        held[f"module {name}"] = (id(module), type(module))
        held[f"training mode of {name}"] = module.training
        held[f"forward of {name}"] = id(module.__dict__.get("forward"))
        for hooks in _HOOKS:
            held[f"{hooks.strip('_').replace('_', ' ')} of {name}"] = list(getattr(module, hooks))
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        held[f"precision of {name}"], held[f"device of {name}"] = p.dtype, p.device
        held[f"requires_grad of {name}"] = p.requires_grad
        held[f"values of {name}"] = (id(p), None if p.is_inference() else p._version)
    for name, b in model.named_buffers():  # some networks write into their own and have it put back, which is a write too
        if not b.is_meta and b.numel() <= _COMPARED:
            held[f"values of {name}"] = b.detach().cpu().double().numpy().tobytes()
    return held
