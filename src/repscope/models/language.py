"""LanguageModel: a network that reads text. Text and spans in, activations and logits out.

One capture, from prompts to rows:
1. Texts become token ids and spans of positions (`prompts`), ids become a plan of batches (`plan`).
2. Each batch runs through the blocks up to the last site asked for, never the head. Causal networks are padded on the right
   with no mask (later tokens cannot reach earlier ones, which was proved at load); others get a mask.
3. A prefix that all prompts share runs once; its keys and values are repeated for each batch.
4. Inside the hook the wanted positions are picked, or averaged in float32, and written to their place in the result: memory
   beyond the result is one batch, whatever the number of prompts.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from repscope.errors import UserError
from repscope.models.activations import Activations
from repscope.models.anatomy import at_rest, find_blocks, resolve
from repscope.models.fingerprint import Source, of_module
from repscope.models.gather import Wanted, padded, users_of
from repscope.models.network import Read, Sited, as_float, tapped
from repscope.models.plan import Plan, plan
from repscope.models.prompts import Encoded, Prompt, PromptLike, encode
from repscope.models.rows import Rows
from repscope.models.sites import Site, Tokens
from repscope.progress import progress

BATCH_TOKENS = 1024
_SENTINEL = "repscope-content"


class LanguageModel(Sited):
    """A language model and its tokenizer, both the untouched Hugging Face objects: `lm.model`, `lm.tokenizer`.

    Parameters
    ----------
    model
        A Hugging Face model, with or without a head.
    tokenizer
        Its tokenizer.
    name
        What to call it in tables.
    source
        Where its weights come from; a digest of sampled entries when not given.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None, source: Source | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        body: nn.Module = model.base_model
        if source is None:
            precision = str(model.dtype).removeprefix("torch.")
            source = Source(name or type(model).__name__, of_module(model), precision, None, None)
        super().__init__(body, source=source)
        self.name = name or source.name
        self.prefix = str(getattr(model, "base_model_prefix", "")) if body is not model else ""
        self._takes_cache = "use_cache" in inspect.signature(body.forward).parameters
        if getattr(model.config, "is_encoder_decoder", False):
            raise UserError(
                f"{self.name} is an encoder–decoder, which is not supported yet; use `rs.Network` on one half of it."
            )
        self.vocabulary = vocabulary = int(model.get_input_embeddings().weight.shape[0])
        ids = torch.arange(6).repeat(2, 1) + vocabulary // 3
        ids[1, -1] += 1
        self._probe = ids.to(self.device) % vocabulary
        self.anatomy = resolve(body, model.get_input_embeddings(), {"input_ids": self._probe, **self._plain()})
        self._prefix_sound: bool | None = None
        self._head: Callable[[Tensor], Tensor] | None = None

    def __repr__(self) -> str:
        held = f"{self.anatomy.blocks} blocks × {self.anatomy.width}" if self.anatomy else "no blocks found"
        return f"LanguageModel({self.name}, {held}, {self.source.precision}, {self.fingerprint})"

    @property
    def blocks(self) -> int:
        """How many blocks the network has."""
        return self.anatomy.blocks if self.anatomy else 0

    @property
    def context(self) -> int | None:
        """Most tokens that the network takes, None where its configuration does not say."""
        stated = getattr(self.model.config, "max_position_embeddings", None)
        offset = 2 if getattr(self.model.config, "model_type", "") in ("roberta", "xlm-roberta", "camembert") else 0
        return int(stated) - offset if stated and int(stated) > 0 else None

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as a reader would see them, exactly as the network gets them."""
        return [self.tokenizer.decode([i]) for i in self.tokenizer(text)["input_ids"]]

    def chat(self, content: str | Prompt, system: str | None = None) -> Prompt:
        """The content as a user's turn in the model's chat template, ready for its answer; spans move along with it.

        Raises
        ------
        UserError
            When the tokenizer has no chat template, or its template changes the content.
        """
        prompt = Prompt(content) if isinstance(content, str) else content
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError(f"The tokenizer of {self.name} has no chat template; use plain prompts.")

        def rendered(text: str) -> str:
            turns = ([{"role": "system", "content": system}] if system is not None else []) + [
                {"role": "user", "content": text}
            ]
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

        before = rendered(_SENTINEL).index(_SENTINEL)
        text = rendered(prompt.text)
        if text[before : before + len(prompt.text)] != prompt.text:
            raise UserError(
                f"The chat template of {self.name} changes the content {prompt.text[:40]!r} …; strip it first."
            )
        spans = {name: (a + before, b + before) for name, (a, b) in prompt.spans.items()}
        return Prompt(text, spans | {"content": (before, before + len(prompt.text))}, special=False)

    def plan(self, prompts: Iterable[PromptLike], batch_tokens: int = BATCH_TOKENS) -> Plan:
        """What a capture of these prompts would run: distinct prompts, shared prefix, batches."""
        encoded = encode(self.tokenizer, prompts, Tokens("all"), self.context)
        return self._planned(encoded, batch_tokens)

    def _planned(self, encoded: Encoded, batch_tokens: int) -> Plan:
        causal = bool(self.anatomy and self.anatomy.causal)
        planned = plan(encoded.ids, batch_tokens, share_prefix=causal)
        if planned.prefix and not self._shares_prefix():
            planned = plan(encoded.ids, batch_tokens, share_prefix=False)
        return planned

    def capture(
        self,
        prompts: Iterable[PromptLike],
        at: str | Site | Sequence[str | Site],
        tokens: str | int | Tokens = "last",
        *,
        batch_tokens: int = BATCH_TOKENS,
        out: str | Path | None = None,
        dtype: str = "float32",
    ) -> Activations:
        """What the network holds at sites, for prompts.

        Parameters
        ----------
        prompts
            Texts, `Prompt`s with spans, or token ids.
        at
            One site (`"resid_post.8"`), a kind for all its blocks (`"resid_post"`), or a list.
        tokens
            `last`, `first`, `mean`, `all`, an index, each also after a span's name (`"subject.last"`).
        batch_tokens
            Padded tokens in one batch.
        out
            A folder for the rows, one `.npy` a site; the result is then memory-mapped and memory stays flat.
        dtype
            `float32` or `float16`, how rows are kept. Means are taken in float32.

        Returns
        -------
        Activations
            Rows in the order of the prompts.

        Raises
        ------
        UserError
            For unknown sites, spans or tokens, and for prompts that are empty or too long.
        """
        sites = self.resolve(at)
        picked = Tokens.parse(tokens)
        encoded = encode(self.tokenizer, prompts, picked, self.context)
        for i, row in enumerate(encoded.ids):
            if row.max() >= self.vocabulary or row.min() < 0:
                raise UserError(
                    f"Prompt {i} holds a token id that is not in the network's vocabulary of {self.vocabulary}."
                )
        planned = self._planned(encoded, batch_tokens)
        counts = encoded.stop - encoded.start if picked.ragged else np.ones(len(encoded.ids), dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        with Rows(sites, int(offsets[-1]), dtype, Path(out) if out is not None else None) as rows:
            self._fill(rows, sites, encoded, planned, picked, offsets)
        last = [np.arange(a, b) for a, b in zip(encoded.start, encoded.stop)] if picked.ragged else [encoded.stop - 1]
        return Activations(
            rows=rows.finish(),
            tokens=picked,
            offsets=offsets,
            positions=np.concatenate(last),
            model=self.fingerprint,
            single=isinstance(at, (str, Site)) and Site.parse(at).single,
        )

    def _fill(
        self,
        rows: Rows,
        sites: list[Site],
        encoded: Encoded,
        planned: Plan,
        picked: Tokens,
        offsets: Int[np.ndarray, "n"],
    ) -> None:
        """Run the plan; each site's hook writes its rows as they pass."""
        users = users_of(planned.inverse)
        needs_prefix = bool(planned.prefix) and bool((encoded.start < planned.prefix).any())
        prefix_rows: dict[Site, Tensor] = {}
        wanted: Wanted | None = None

        def reader(site: Site) -> Read:
            def read(hidden: Tensor) -> None:
                if wanted is None:  # the shared prefix is running
                    if needs_prefix:
                        prefix_rows[site] = hidden
                    return
                if needs_prefix:
                    hidden = torch.cat([prefix_rows[site].expand(len(hidden), -1, -1), hidden], dim=1)
                rows.write(site, wanted.destination, wanted.take(hidden))

            return read

        taps = {self.tap(site): reader(site) for site in sites}
        with at_rest(self.module), tapped(self.module, taps) as run, progress("Capturing", planned.tokens) as advance:
            cache = None
            if planned.prefix:
                cache = self._cache()
                shared = torch.from_numpy(planned.ids[0][: planned.prefix][None]).to(self.device)
                run(input_ids=shared, past_key_values=cache, **self._plain(use_cache=True))
                advance(planned.prefix)
            for batch in reversed(planned.batches):  # the longest first: memory peaks at once or not at all
                ids, lengths = padded([planned.ids[i][planned.prefix :] for i in batch], self._pad)
                wanted = Wanted.of(
                    batch, users, encoded, picked, offsets, 0 if needs_prefix else planned.prefix, self.device
                )
                run(**self._inputs(ids, lengths, cache))
                advance(ids.size)

    def _inputs(self, ids: Int[np.ndarray, "row token"], lengths: Int[np.ndarray, "row"], cache: Any) -> dict[str, Any]:
        named: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self.device)}
        if cache is not None:
            own = copy.deepcopy(cache)  # a pass appends to its cache; the prefix's own must stay as it is
            own.batch_repeat_interleave(len(ids))
            return named | {"past_key_values": own} | self._plain(use_cache=True)
        if (self.anatomy is None or not self.anatomy.causal) and lengths.min() < ids.shape[1]:
            mask = np.arange(ids.shape[1])[None] < lengths[:, None]
            named["attention_mask"] = torch.from_numpy(mask.astype(np.int64)).to(self.device)
        return named | self._plain()

    def _plain(self, use_cache: bool = False) -> dict[str, Any]:
        """Arguments that keep a pass from building a cache nobody asked for."""
        return {"use_cache": use_cache} if self._takes_cache else {}

    @property
    def _pad(self) -> int:
        pad = getattr(self.model.config, "pad_token_id", None)
        return pad if isinstance(pad, int) and pad >= 0 else 0

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def _shares_prefix(self) -> bool:
        """Whether a pass that goes on from a cached prefix gives what the whole pass gives; tried once, on the probe."""
        if self._prefix_sound is None:
            self._prefix_sound = self._prefix_agrees()
        return self._prefix_sound

    def _prefix_agrees(self) -> bool:
        assert self.anatomy is not None
        site = Site("resid_post", self.blocks - 1)
        if site not in self.anatomy.taps:
            return False
        seen: list[Tensor] = []
        cut = self._probe.shape[1] // 2
        try:
            with at_rest(self.module), tapped(self.module, {self.tap(site): seen.append}) as run:
                run(input_ids=self._probe, **self._plain())
                cache = self._cache()
                run(input_ids=self._probe[:1, :cut], past_key_values=cache, **self._plain(use_cache=True))
                own = copy.deepcopy(cache)
                own.batch_repeat_interleave(2)
                run(input_ids=self._probe[:, cut:], past_key_values=own, **self._plain(use_cache=True))
        except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError):
            return False  # a family whose cache is of another kind: its prompts run whole
        whole, continued = seen[0][:, cut:].double(), seen[2].double()
        return bool((whole - continued).norm() <= (1e-4 if seen[0].dtype == torch.float32 else 3e-2) * whole.norm())

    def unembed(
        self, hidden: Float[np.ndarray, "row d_model"], *, normed: bool = False
    ) -> Float[np.ndarray, "row vocab"]:
        """Logits that the head gives for residual-stream vectors: head(final_norm(hidden)), as the logit lens reads them.

        Parameters
        ----------
        hidden
            Vectors at `resid_post` of any block, or at `final_norm` with `normed=True`.

        Raises
        ------
        UserError
            When the model has no head, or one that is more than a map of the final norm's output.
        """
        head = self._proved_head()
        with at_rest(self.model):
            x = torch.from_numpy(np.ascontiguousarray(hidden)).to(self.device, self.model.dtype)
            if not normed:
                x = self.module.get_submodule(self.tap(self.resolve("final_norm")[0]).path)(x)
            logits: np.ndarray = as_float(head(x)).cpu().numpy()
        return logits

    def logits(
        self, prompts: Iterable[PromptLike], tokens: str | int = "last", *, batch_tokens: int = BATCH_TOKENS
    ) -> Float[np.ndarray, "row vocab"]:
        """Next-token logits at the positions asked for only; the head runs nowhere else.

        Raises
        ------
        UserError
            As `capture` and `unembed`.
        """
        self._proved_head()
        held = self.capture(prompts, "final_norm", tokens, batch_tokens=batch_tokens)
        return self.unembed(held[Site("final_norm")], normed=True)

    def _proved_head(self) -> Callable[[Tensor], Tensor]:
        if self._head is not None:
            return self._head
        module = self.model.get_output_embeddings()
        if module is None:
            raise UserError(f"{self.name} has no language-model head, so it gives no logits.")
        norm = self.tap(self.resolve("final_norm")[0])
        cap = getattr(self.model.config, "final_logit_softcapping", None)

        def head(x: Tensor) -> Tensor:
            y: Tensor = module(x)
            return torch.tanh(y / cap) * cap if cap else y

        seen: list[Tensor] = []
        with at_rest(self.model):
            with tapped(self.module, {norm: seen.append}) as run:
                run(input_ids=self._probe, **self._plain())
            theirs = self.model(input_ids=self._probe, **self._plain()).logits
            gap = (head(seen[0]) - theirs).double().norm() / theirs.double().norm()
        if gap > (1e-4 if theirs.dtype == torch.float32 else 3e-2):
            raise UserError(
                f"The head of {self.name} is more than a map of the final norm's output; its logits are not read here."
            )
        self._head = head
        return head

    def twin(self, seed: int = 0) -> "LanguageModel":
        """The same architecture with fresh random weights: the control for what training has put there."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self.model)(copy.deepcopy(self.model.config))
        fresh = fresh.to(self.device, self.model.dtype).eval()
        name = f"{self.name}, random weights (seed {seed})"
        source = replace(self.source, name=name, fingerprint=of_module(fresh), path=None, revision=None)
        return LanguageModel(fresh, self.tokenizer, name, source)

    def flops(self, sites: Sequence[Site], tokens: int) -> float:
        """Multiply-adds × 2 of the linear maps in the blocks that a capture of these sites runs, for so many tokens."""
        found = find_blocks(self.module)
        if found is None:
            return 2.0 * tokens * sum(p.numel() for p in self.module.parameters())
        deepest = max((self.blocks - 1 if s.layer is None else s.layer) for s in sites)
        run = [b for i, b in enumerate(found[1]) if i <= deepest and any(s.kind != "embed" for s in sites)]
        return 2.0 * tokens * sum(p.numel() for b in run for p in b.parameters() if p.dim() == 2)
