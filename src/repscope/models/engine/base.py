"""Base class of `Network` and `LanguageModel`: site lookup, capture, edits and gradients.

1. A name is resolved to a site of this network, or an error says why there is none.
2. A capture attaches a reader to each site and stops the forward pass after the last of them.
3. `edit` installs edits for everything that runs inside its context, in the order of the forward pass.
4. For gradients the weights are frozen; the graph runs from the first requested site to the scalar.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from repscope.errors import UserError, unknown
from repscope.models.edits import Edit, Installed, Pass
from repscope.models.engine.anatomy import Anatomy
from repscope.models.engine.attention_probe import PARTS
from repscope.models.engine.fingerprint import WeightSource, of_module
from repscope.models.engine.hooks import Handler, HookPoint, Hooks, unhooked
from repscope.models.inputs.text_spans import described
from repscope.models.sites import KINDS, Site

Read = Callable[[Tensor], None]
_STARRED = re.compile(r"(\w+)\.(?=.*\*)(\*|-?\d+)\.(\*|-?\d+)")


class _Reached(Exception):
    """Raised inside a forward pass when every requested site has been read."""


@contextmanager
def tapped(taps: Hooks, reads: Sequence[tuple[HookPoint, Read]]) -> Iterator[Callable[..., None]]:
    """Yield a function that runs the network, passes each tapped tensor to its reader and stops after the last one.

    A module that runs several times per pass is read the first time. Needs `unhooked`.

    Raises
    ------
    UserError
        From the yielded function, when a tapped module did not run.
    """
    pending: set[int] = set()

    def handler(number: int, read: Read) -> Handler:
        def handle(value: Tensor) -> None:
            if number in pending:
                pending.discard(number)
                read(value)
                if not pending:
                    raise _Reached

        return handle

    def run(*args: Any, **kwargs: Any) -> None:
        pending.update(range(len(reads)))
        taps.state.rewind()
        try:
            taps.module(*args, **kwargs)
        except _Reached:
            return
        missed = sorted(reads[i][0].path for i in pending)
        raise UserError(f"{missed} did not run in the forward pass; choose other modules.")

    with taps.hooked([(tap, handler(i, read)) for i, (tap, read) in enumerate(reads)]):
        yield run


def several_calls(site: Site, times: str = "several times") -> UserError:
    """The error for a site whose module runs several times in one forward pass."""
    return UserError(
        f"{site} runs {times} in one forward pass and so holds several tensors; choose a module inside or around it that runs once."
    )


class BaseNetwork:
    """An unmodified module and the sites found in it: the base of `Network` and `LanguageModel`.

    Parameters
    ----------
    module
        Any `nn.Module`. It is not copied, moved or changed.
    source
        Origin of the weights; by default a digest of sampled entries.
    anatomy
        Its sites, if a resolver found any; else only `module:` sites exist.
    """

    def __init__(self, module: nn.Module, *, source: WeightSource | None = None, anatomy: Anatomy | None = None) -> None:
        self.module = module
        self.anatomy = anatomy
        self.taps = Hooks(module)
        self.installed: list[Installed] = []  #: edits of the open contexts
        self._pass: Pass | None = None
        self._run_once: set[str] = set()  #: paths of modules that run once per forward pass
        self.prefix = ""  #: path of the module inside the full model
        self.source = source or WeightSource(
            name=type(module).__name__,
            fingerprint=of_module(module),
            precision=str(next(module.parameters(), torch.zeros(())).dtype).removeprefix("torch."),
            path=None,
            revision=None,
        )

    @property
    def fingerprint(self) -> str:
        """The digest of the weights, stored with every result."""
        return str(self.source.fingerprint)

    @property
    def device(self) -> torch.device:
        """Device of inputs: that of the first parameter, or its execution device if accelerate has offloaded it."""
        for module in self.module.modules():
            hook = getattr(module, "_hf_hook", None)
            if (runs_on := getattr(hook, "execution_device", None)) is not None:
                return torch.device(runs_on)
            for parameter in module.parameters(recurse=False):
                return parameter.device
        return torch.device("cpu")

    @property
    def entries(self) -> tuple[nn.Module, ...]:
        """The modules at which a pass over tokens may begin; empty for networks without tokens."""
        return ()

    def resolve(self, at: str | Site | Sequence[str | Site]) -> list[Site]:
        """The distinct sites of a request, in the order of the forward pass; `resid_post` means all blocks.

        Raises
        ------
        UserError
            For an unknown name, a block out of range, or a site that this network lacks (with the reason).
        """
        return sorted(dict.fromkeys(self.requested_sites(at)), key=lambda site: site.depth)

    def requested_sites(self, at: str | Site | Sequence[str | Site]) -> list[Site]:
        """As `resolve`, in the order of the request and with repetition; a kind's blocks in forward order."""
        if not isinstance(at, (str, Site)) and (
            isinstance(at, (bytes, Mapping, Set)) or not isinstance(at, Iterable) or getattr(at, "ndim", 1) == 0
        ):
            raise UserError(f"{described(at)} names no site; write one such as 'resid_post.8', or a list of them.")
        names = [at] if isinstance(at, (str, Site)) else list(at)
        found = [site for name in names for site in self._starred(name) or self._expand(Site.parse(name))]
        if not found:
            raise UserError("No site was asked for; name one such as resid_post.8.")
        return found

    def _starred(self, name: str | Site) -> list[Site]:
        """Expand `z.8.*` (all heads of block 8), `z.*.3` (head 3 of all blocks) and `z.*.*` (all heads); else empty."""
        if not isinstance(name, str) or not (starred := _STARRED.fullmatch(name.strip())):
            return []
        kind, layer, head = starred.groups()
        blocks = self._expand(Site.parse(kind if layer == "*" else f"{kind}.{layer}"))
        if head != "*":
            Site.parse(f"{kind}.0.{head}")  # says where there are no heads
            return [found for site in blocks for found in self._expand(replace(site, head=int(head)))]
        if not KINDS[kind].heads:
            Site.parse(f"{kind}.0.0")
        counts = [self.tap(site).kv_heads if kind in ("k", "v") else self.tap(site).heads for site in blocks]
        return [replace(site, head=n) for site, heads in zip(blocks, counts) for n in range(heads)]

    def _expand(self, site: Site) -> list[Site]:
        if site.kind == "module":
            paths = [p for p, _ in self.module.named_modules() if p]
            if self._path(site) not in paths:
                raise unknown("module", site.path, paths)
            return [site]
        if self.anatomy is None:
            raise UserError(f"{site} is a site of transformers, and none was found in {self.source.name}: use module:PATH.")
        anatomy = self.anatomy
        if site.kind in anatomy.refused and not any(s.kind == site.kind for s in anatomy.taps):
            raise UserError(f"{self.source.name} has no {site.kind}: {anatomy.refused[site.kind]}.")
        if not KINDS[site.kind].per_block:
            return [site]
        if site.layer is None:
            return [s for s in anatomy.taps if s.kind == site.kind]
        layer = site.layer + anatomy.blocks if site.layer < 0 else site.layer
        if not 0 <= layer < anatomy.blocks:
            raise UserError(f"There is no {site}: {self.source.name} has the blocks 0 to {anatomy.blocks - 1}.")
        whole = Site(site.kind, layer)
        if whole not in anatomy.taps:
            raise UserError(f"{self.source.name} has no {site}: {anatomy.refused.get(site.kind, 'it was not found')}.")
        if site.head is None:
            return [whole]
        tap = anatomy.taps[whole]
        heads = tap.kv_heads if site.kind in ("k", "v") else tap.heads
        head = site.head + heads if site.head < 0 else site.head
        if not 0 <= head < heads:
            raise UserError(f"There is no {site}: {site.kind} of block {layer} has the heads 0 to {heads - 1}.")
        return [replace(whole, head=head)]

    def _path(self, site: Site) -> str:
        """The path relative to the module: Hugging Face's `model.layers.3.mlp` is the same place as `layers.3.mlp`."""
        return site.path.removeprefix(f"{self.prefix}.") if self.prefix else site.path

    def check_single_calls(self, sites: Sequence[Site], run: Callable[[], object]) -> None:
        """Check, once for each, that modules named by their path run once in the forward pass of `run`.

        Raises
        ------
        UserError
            For a module that runs several times: which of its tensors is meant would be ambiguous.
        """
        paths = {self._path(site) for site in sites if site.kind == "module"} - self._run_once
        if not paths:
            return
        calls = dict.fromkeys(paths, 0)

        def count_call(path: str, *_: Any) -> None:
            calls[path] += 1

        with ExitStack() as stack:
            for path in paths:
                stack.callback(self.module.get_submodule(path).register_forward_pre_hook(partial(count_call, path)).remove)
            stack.enter_context(self.unedited())
            stack.enter_context(unhooked(self.module))
            run()
        for path, count in calls.items():
            if count > 1:
                raise several_calls(Site("module", path=path), f"{count} times")
        self._run_once |= {path for path, count in calls.items() if count == 1}

    def tap(self, site: Site) -> HookPoint:
        """Where a resolved site is read."""
        if site.kind == "module":
            return HookPoint(self._path(site), site.side)
        assert self.anatomy is not None
        return replace(self.anatomy.taps[replace(site, head=None)], head=site.head)

    def write_tap(self, site: Site) -> HookPoint:
        """Where a resolved site is replaced; for some sites this differs from where it is read.

        Raises
        ------
        UserError
            For a site that is computed from others.
        """
        if site.kind != "module" and (why := KINDS[site.kind].computed):
            raise UserError(f"{site} can be read but not changed or differentiated: {why}.")
        assert site.kind == "module" or self.anatomy is not None
        other = self.anatomy.writes.get(site) if self.anatomy else None
        return other or self.tap(site)

    def sites(self) -> list[tuple[str, str, str, str]]:
        """Table of site kinds: name, where the first one is read, definition, and why it is absent, if so."""
        rows = []
        for kind in KINDS.values():
            here = [s for s in (self.anatomy.taps if self.anatomy else {}) if s.kind == kind.name]
            if here:
                tap = self.tap(here[0])
                name = f"{kind.name}.{here[0].layer}…{here[-1].layer}" if kind.per_block else kind.name
                if kind.heads:
                    name += f".0…{(tap.kv_heads if kind.name in ('k', 'v') else tap.heads) - 1}"
                where = f"attention of {tap.path}" if tap.part in PARTS else f"{tap.side}put of {tap.path}"
                rows.append((name, where, kind.definition, kind.identity))
            else:
                why = self.anatomy.refused.get(kind.name, "it was not found") if self.anatomy else "no transformer blocks"
                rows.append((kind.name, "–", kind.definition, f"refused: {why}"))
        return rows

    @contextmanager
    def edit(self, *edits: Edit) -> Iterator[Self]:
        """Edit activations in everything that runs inside the context.

        Edits at one site act in the order given, sites in the order of the forward pass; of nested contexts the outer acts first.

        Raises
        ------
        UserError
            For a site that is absent or read-only; at the end, for an edit that was never reached or changed nothing.
        """
        placed = [(site, edit) for edit in edits for site in self.resolve(edit.site)]
        placed.sort(key=lambda pair: pair[0].depth)
        if not placed:
            raise UserError("No edit was given; make one such as Edit.add('resid_post.8', vector).")
        new = [Installed(edit, site, lambda: self._pass) for site, edit in placed]
        taps = [self.write_tap(installed.site) for installed in new]
        held = len(self.installed)
        with ExitStack() as stack:
            if not held:
                for entry in self.entries:
                    stack.callback(entry.register_forward_pre_hook(self._locate, with_kwargs=True).remove)
                self.taps.placed.append(self._locate)
                stack.callback(self.taps.placed.remove, self._locate)
            stack.enter_context(self.taps.hooked(zip(taps, new), placed=True))
            self.installed.extend(new)
            stack.callback(lambda: self.installed.__delitem__(slice(held, None)))
            yield self
        for edit in edits:  # one edit may have many sites, and need not act at each
            mine = [installed for installed in new if installed.edit is edit]
            if edit.kind == "observe" and any(installed.hit for installed in mine):
                continue
            if not any(installed.moved or installed.planned for installed in mine):
                why = "changed nothing" if any(installed.hit for installed in mine) else "was never reached"
                raise UserError(f"{edit} {why}; check its site, its tokens and its vector.")

    def _locate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set the running pass's number of columns, and their total including the cache."""
        self.taps.rest()
        if self._pass is None:
            return
        offered = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
        given = next((value for value in offered if isinstance(value, Tensor)), None)
        caches = (kwargs.get(name) for name in ("cache", "past_key_values"))  # transformers renamed it in 5.24
        cache = next((held for held in caches if held is not None), None)
        past = int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0
        if given is not None and given.dim() > 1:
            self._pass.columns = int(given.shape[1])
            self._pass.total = past + int(given.shape[1])

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Disable all installed edits inside the context."""
        before = [installed.asleep for installed in self.installed]
        try:
            for installed in self.installed:
                installed.asleep = True
            yield
        finally:
            for installed, slept in zip(self.installed, before):
                installed.asleep = slept

    def differentiated(self, sites: Sequence[Site], run: Callable[[], Tensor]) -> list[Tensor]:
        """Gradient of the scalar that `run` returns at each site: (row, token, *feature), in the layout of reading.

        Weights get no gradients; the graph starts at the first site.

        Raises
        ------
        UserError
            For a site that is not reached or is read-only.
        """
        held: dict[Site, Tensor] = {}

        def hold(site: Site) -> Handler:
            def handle(value: Tensor) -> Tensor | None:
                if site in held:
                    raise several_calls(site)
                held[site] = value.clone() if value.requires_grad else value.detach().requires_grad_()
                return held[site].clone()  # some families modify it in place, which is not allowed for a leaf

            return handle

        hooks = [(self.write_tap(site), hold(site)) for site in sites]
        with unhooked(self.module, differentiable=True), self.taps.hooked(hooks):
            scalar = run()
            if missed := [str(s) for s in sites if s not in held]:
                raise UserError(f"{', '.join(missed)} did not run before the scalar was reached; it has no gradient there.")
            if not scalar.requires_grad:
                raise UserError("The scalar does not depend on the network at these sites; its gradient is zero.")
            grads = torch.autograd.grad(scalar, [held[s] for s in sites], allow_unused=True)
        return [torch.zeros_like(held[s]) if g is None else g for s, g in zip(sites, grads)]
