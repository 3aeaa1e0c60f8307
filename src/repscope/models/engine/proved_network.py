"""Network with token inputs whose fast execution paths are verified against plain passes.

The reference is `alone`: a single prompt in a plain pass. The trials follow `proofs`:

1. `batches`: prompts of several lengths in one padded batch.
2. `shares_prefix`: prompts after a prefix that ran once and whose keys and values (or states) are cached.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.errors import UserError
from repscope.models.edits import Pass
from repscope.models.engine.anatomy import is_causal, resolve
from repscope.models.engine.base import BaseNetwork, tapped
from repscope.models.engine.fingerprint import WeightSource
from repscope.models.engine.hooks import first_tensor, unhooked
from repscope.models.engine.positions import padded
from repscope.models.engine.proofs import Proofs, differing, prompts_of, special_ids, switch_lengths
from repscope.models.sites import Site

STOPS = (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError, AssertionError, NotImplementedError)
_SINGLE, _LOW = 1e-4, 3e-2  #: relative tolerance between two passes over one input, in float32 and lower precision


def altered(model: nn.Module) -> tuple[Any, ...]:
    """Hooks and replaced forward functions on a model, except those of repscope, transformers and accelerate."""
    found: list[Any] = []
    seen, left = {id(model)}, [model]  # asked before every pass, so without names
    while left:
        module = left.pop()
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            found += [(id(module), key) for key, hook in hooks.items() if is_foreign(hook)]
        if (own := module.__dict__.get("forward")) is not None and is_foreign(own):
            found.append((id(module), id(own)))
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                left.append(child)
    return tuple(found)


def is_foreign(function: Any, but: Sequence[str] = ("repscope", "transformers", "accelerate", "torch")) -> bool:
    """Whether a function comes from none of these packages."""
    home = str(getattr(getattr(function, "func", function), "__module__", ""))
    return home.split(".")[0] not in but


class ProvedNetwork(BaseNetwork):
    """A Hugging Face model fed with token ids, with or without a head. It is not modified."""

    def __init__(self, model: Any, source: WeightSource) -> None:
        self.model = model
        body: nn.Module = model.base_model
        super().__init__(body, source=source)
        self.name = source.name
        self.prefix = str(getattr(model, "base_model_prefix", "")) if body is not model else ""
        taken = inspect.signature(body.forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in taken.values()) and hasattr(model.config, "use_cache")
        self.takes_cache = "use_cache" in taken or anything
        self.cache_name = "cache" if "cache" in taken else "past_key_values"  #: transformers renamed it in 5.24
        if getattr(model.config, "is_encoder_decoder", False):
            raise UserError(f"{self.name} is an encoder–decoder, which is not supported yet; use `rs.Network` on one half of it.")
        embedding = model.get_input_embeddings()
        if not isinstance(getattr(embedding, "weight", None), Tensor):
            raise UserError(f"{self.name} has no single embedding of token ids; use `rs.Network` on the module itself.")
        self.vocabulary = vocabulary = int(embedding.weight.shape[0])
        ids = torch.arange(6).repeat(2, 1) + vocabulary // 3
        ids[1, -1] += 1
        self.probe = ids.to(self.device) % vocabulary
        try:
            self.anatomy = resolve(body, embedding, {"input_ids": self.probe, **self.plain()})
        except (ValueError, TypeError, IndexError, RuntimeError, AttributeError) as error:
            said = " ".join(str(error).split())[:160]
            raise UserError(f"{self.name} does not run on token ids alone: {type(error).__name__}, {said}.") from error
        fields = self.text_config.to_dict()
        self._altered: tuple[Any, ...] = altered(model)
        self._proofs = Proofs(switch_lengths(fields, self.context), self.context)
        self._special = special_ids(model.config.to_dict())
        self._alone: dict[bytes, Tensor] = {}  #: what proofs compare with: a prompt → its output when it runs alone
        if self.anatomy is not None:
            self._causal = self.anatomy.causal
        else:  # no blocks were found, and it may continue texts all the same
            out = self.outputs(input_ids=self.probe, **self.plain())
            self._causal = out.dim() == 3 and is_causal(out)

    @property
    def proofs(self) -> Proofs:
        """Trials on this network; reset when the user's hooks or forward functions change."""
        if (now := altered(self.model)) != self._altered:
            self._altered = now
            self._proofs.found.clear()
            self._alone.clear()
        return self._proofs

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.anatomy.blocks if self.anatomy else 0

    @property
    def block_list(self) -> nn.ModuleList:
        """The transformer blocks, possibly empty."""
        held = self.module.get_submodule(self.anatomy.prefix) if self.anatomy else nn.ModuleList()
        assert isinstance(held, nn.ModuleList)
        return held

    @property
    def text_config(self) -> Any:
        """The configuration of the text model."""
        found = getattr(self.model.config, "get_text_config", None)
        return found() if found is not None else self.model.config

    @property
    def entries(self) -> tuple[nn.Module, ...]:
        """The body and the whole model: some heads (OPT) call a part of the body, not its forward."""
        return (self.module,) if self.model is self.module else (self.module, self.model)

    @property
    def causal(self) -> bool:
        """Whether later tokens do not affect earlier ones."""
        return self._causal

    @property
    def generates(self) -> bool:
        """Whether it is a causal language model with a head."""
        return self.causal and hasattr(self.model, "generate") and self.model.get_output_embeddings() is not None

    def agree(self, a: Tensor, b: Tensor) -> bool:
        """Whether two computations of a tensor agree up to rounding."""
        tolerance = _SINGLE if a.dtype in (torch.float32, torch.float64) else _LOW
        return bool((a.double() - b.double()).norm() <= tolerance * b.double().norm())

    @property
    def context(self) -> int | None:
        """Maximum number of tokens, None if the configuration does not specify it."""
        config = self.text_config
        stated = getattr(config, "max_position_embeddings", None)
        offset = 2 if getattr(config, "model_type", "") in ("roberta", "xlm-roberta", "camembert") else 0
        if not isinstance(stated, int) or stated <= 0:
            return None
        rotary = getattr(config, "rope_parameters", None) or {}
        if isinstance(rotary, dict) and rotary.get("rope_type") == "dynamic":  # made for texts longer than the trained length
            return int(stated * float(rotary.get("factor", 1)))
        return stated - offset

    def batched_below(self, longest: int, worth: float = float("inf")) -> tuple[int, str]:
        """The length below which padded batches agree with single prompts, and why longer ones do not."""
        return self.proofs.holds_below("padded batch", longest, self._batch_differs, worth)

    def batches(self, longest: int, worth: float = float("inf")) -> bool:
        """Whether padded batches agree with single prompts up to this length."""
        return not self.proofs.refused("padded batch", longest, self._batch_differs, worth)

    @contextmanager
    def announced(
        self,
        prompts: Int[np.ndarray, "row"],
        offset: Int[np.ndarray, "row"] | None = None,
        cells: tuple[Int[np.ndarray, "column"], Int[np.ndarray, "column"]] | None = None,
    ) -> Iterator[None]:
        """Tell the installed edits the prompts of the rows of the next passes, and the padding columns before each.

        cells: of a pack, the prompt and the position of each column.
        """
        none = np.zeros(len(prompts), dtype=np.int64)
        self._pass = Pass(np.array(prompts), none if offset is None else offset, cells=cells)
        try:
            yield
        finally:
            self._pass = None

    def alone(self, row: Int[np.ndarray, "token"]) -> Float[Tensor, "token feature"]:
        """Output for a single prompt in a plain pass: the reference for fast paths."""
        key = np.asarray(row, dtype=np.int64).tobytes()
        if key not in self._alone:
            ids = torch.from_numpy(np.asarray(row, dtype=np.int64))[None].to(self.device)
            self._alone[key] = self.outputs(input_ids=ids, **self.plain())[0]
        return self._alone[key]

    def outputs(self, **inputs: Any) -> Float[Tensor, "row token feature"]:
        """Output of the network without head in one pass, without edits."""
        with self.unedited(), unhooked(self.module), self.taps.settled() as state:
            state.rewind()
            out = first_tensor(self.module(**inputs))
        if out is None or out.dim() < 2:
            raise ValueError("the network gives no vector for each token")
        rows = next(v for v in inputs.values() if isinstance(v, Tensor)).shape[:2]
        return out if out.dim() > 2 else torch.unflatten(out, 0, rows)

    def laid_out(self, site: Site) -> None:
        """Check once, with two passes, that a raw module's output is (prompt, token, feature).

        Raises a `UserError` when it is not: another axis comes first (parallel streams), or there is no token axis.
        """
        why = self.proofs.refused(f"layout of {site}", 0, lambda _: self._layout_differs(site))
        if why:
            raise UserError(f"{site} cannot be read by prompt and token: {why}.")

    def _layout_differs(self, site: Site) -> str:
        rows = np.stack(self.trial([5, 5, 5]))
        seen: list[Tensor] = []
        with self.unedited(), unhooked(self.module), tapped(self.taps, [(self.tap(site), seen.append)]) as run:
            for some in (rows, rows[2:]):
                run(input_ids=torch.from_numpy(some).to(self.device), **self.plain())
        whole, one = seen
        if whole.dim() == 2 and len(whole) == rows.size:  # rows and tokens as one axis
            whole, one = torch.unflatten(whole, 0, rows.shape), torch.unflatten(one, 0, (1, rows.shape[1]))
        shape = " × ".join(map(str, whole.shape))
        if whole.dim() < 3 or whole.shape[:2] != rows.shape:
            return f"for 3 prompts of 5 tokens it is {shape}"
        if self.batches(5) and whole.is_floating_point() and not self.agree(whole[2:], one):
            return f"for 3 prompts of 5 tokens it is {shape}, and what stands third is not the third prompt's"
        return ""

    def trial(self, lengths: Sequence[int]) -> list[Int[np.ndarray, "token"]]:
        """Random prompts of these lengths for a proof."""
        return prompts_of(lengths, self.vocabulary, self._special)

    def _batch_differs(self, lengths: Sequence[int]) -> str:
        """Why prompts of these lengths in one padded batch do not come out as alone; empty where they do."""
        rows = self.trial(lengths)
        try:
            ids, sizes = padded(rows, self.pad)
            out = self.outputs(**self.inputs(ids, sizes, None))
            ours = [one[: len(row)] for one, row in zip(out, rows, strict=True)]
        except STOPS as error:
            return f"a padded batch stops with {type(error).__name__}"
        return differing(ours, [self.alone(row) for row in rows], self.agree, "padded beside others")

    def inputs(self, ids: Int[np.ndarray, "row token"], lengths: Int[np.ndarray, "row"], cache: Any) -> dict[str, Any]:
        """Arguments of a pass over rows padded on the right, after a cached prefix where there is one."""
        named: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self.device)}
        if cache is not None:
            own = copy.deepcopy(cache)  # a pass appends to its cache; the prefix's own must stay as it is
            own.batch_repeat_interleave(len(ids))
            return named | {self.cache_name: own} | self.plain(use_cache=True)
        if (self.anatomy is None or not self.anatomy.causal) and lengths.min() < ids.shape[1]:
            mask = np.arange(ids.shape[1])[None] < lengths[:, None]
            named["attention_mask"] = torch.from_numpy(mask.astype(np.int64)).to(self.device)
        return named | self.plain()

    def plain(self, use_cache: bool = False) -> dict[str, Any]:
        """Arguments that prevent a pass from building an unneeded cache."""
        return {"use_cache": use_cache} if self.takes_cache else {}

    @property
    def pad(self) -> int:
        """The padding token id."""
        pad = getattr(self.text_config, "pad_token_id", None)
        return pad if isinstance(pad, int) and pad >= 0 else 0

    def cache(self) -> Any:
        """An empty cache of keys and values."""
        from transformers import DynamicCache

        return DynamicCache(config=self.text_config)

    def shares_prefix(self, longest: int = 0, worth: float = float("inf")) -> bool:
        """Whether continuing from a cached prefix agrees with a whole pass, for prompts of up to `longest` tokens."""
        return not self.prefix_refused(longest, worth)

    def prefix_refused(self, longest: int = 0, worth: float = float("inf")) -> str:
        """Why prompts of up to `longest` tokens cannot share a prefix; empty if they can."""
        if not self.causal:
            return "later tokens reach earlier ones"
        return self.proofs.refused("shared prefix", longest, self._prefix_differs, worth)

    def _prefix_differs(self, lengths: Sequence[int]) -> str:
        """Why continuing from a cached prefix changes the output; empty if it does not.

        The prefix is half of the shortest of the long prompts, and in a second trial all but two tokens of the longest.
        """
        longest = max(lengths)
        long = self.trial([longest])[0]
        totals = sorted({n for n in lengths if n > longest // 2 + 1} or {longest})
        cuts = [(min(totals) // 2, totals), (longest - 2, [longest, longest - 1])]
        for cut, ends in cuts:
            if cut < 1:
                continue
            rows = [np.concatenate([long[:cut], part]) for part in self.trial([end - cut for end in ends])]
            try:
                cache = self.cache()
                before = torch.from_numpy(long[None, :cut]).to(self.device)
                self.outputs(input_ids=before, **{self.cache_name: cache}, **self.plain(True))
                ids, sizes = padded([row[cut:] for row in rows], self.pad)
                out = self.outputs(**self.inputs(ids, sizes, cache))
                ours = [one[: len(row) - cut] for one, row in zip(out, rows, strict=True)]
            except STOPS as error:  # a family whose cache is of another kind: its prompts run whole
                return f"it does not go on from a cache of keys and values ({type(error).__name__})"
            theirs = [self.alone(row)[cut:] for row in rows]
            if why := differing(ours, theirs, self.agree, f"after a cached prefix of {cut} tokens"):
                return why
        return ""
