"""Network: any `nn.Module` with named sites. Takes tensors, never text.

A capture hangs a hook on each module asked for, reduces what passes there at once, and ends the forward pass after the last
of them, so that nothing beyond is computed. Nothing is patched: hooks live in a context manager, and the module leaves it as
it came (hooks, training flags, gradients), also after an exception or an interrupt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from repscope.errors import UserError, unknown
from repscope.models.activations import Activations
from repscope.models.anatomy import Anatomy, Tap, at_rest, first_tensor, hidden_argument
from repscope.models.fingerprint import Source, of_module
from repscope.models.sites import KINDS, Site, Tokens

Read = Callable[[Tensor], None]


class _Reached(Exception):
    """Raised inside a forward pass when every site asked for has been read."""


@contextmanager
def tapped(module: nn.Module, reads: Mapping[Tap, Read]) -> Iterator[Callable[..., None]]:
    """Yield a function that runs the module and hands each tapped tensor to its reader, then stops after the last one.

    A module that runs several times in one pass is read the first time. The module must be at rest (see `at_rest`).

    Raises
    ------
    UserError
        From the yielded function, when a tapped module did not run.
    """
    modules = dict(module.named_modules())
    pending: set[Tap] = set()
    handles = []

    def done(tap: Tap, value: Tensor | None) -> None:
        if tap not in pending:
            return
        if value is None:
            raise UserError(f"The {tap.side}put of module {tap.path!r} is no tensor; choose another module.")
        pending.discard(tap)
        reads[tap](value)
        if not pending:
            raise _Reached

    def hook_for(tap: Tap) -> Any:
        if tap.side == "in":
            return lambda _, args, kwargs: done(tap, hidden_argument(args, kwargs))
        return lambda _, args, output: done(tap, first_tensor(output))

    def run(*args: Any, **kwargs: Any) -> None:
        pending.update(reads)
        try:
            module(*args, **kwargs)
        except _Reached:
            return
        raise UserError(f"{sorted(t.path for t in pending)} did not run in the forward pass; choose other modules.")

    try:
        for tap in reads:
            target = modules[tap.path]
            if tap.side == "in":
                handles.append(target.register_forward_pre_hook(hook_for(tap), with_kwargs=True))
            else:
                handles.append(target.register_forward_hook(hook_for(tap)))
        yield run
    finally:
        for handle in handles:
            handle.remove()


class Sited:
    """A module that was handed in, untouched, and the sites found in it: what `Network` and `LanguageModel` share.

    Parameters
    ----------
    module
        Any `nn.Module`. It is not copied, moved or changed.
    source
        Where its weights come from; made from a digest of sampled entries when not given.
    anatomy
        Its sites, where a resolver found any; without it there are `module:` sites only.
    """

    def __init__(self, module: nn.Module, *, source: Source | None = None, anatomy: Anatomy | None = None) -> None:
        self.module = module
        self.anatomy = anatomy
        self.prefix = ""  #: what stands before the module's paths in the model that holds it
        self.source = source or Source(
            name=type(module).__name__,
            fingerprint=of_module(module),
            precision=str(next(module.parameters(), torch.zeros(())).dtype).removeprefix("torch."),
            path=None,
            revision=None,
        )

    @property
    def fingerprint(self) -> str:
        """The digest of the weights that travels with every result."""
        return str(self.source.fingerprint)

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the first parameter."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def resolve(self, at: str | Site | Sequence[str | Site]) -> list[Site]:
        """The sites that a request names, in the order of the forward pass; `resid_post` stands for all its blocks.

        Raises
        ------
        UserError
            For a name that is no site, a block that is not there, a site that this network does not have (with the reason).
        """
        asked = [at] if isinstance(at, (str, Site)) else list(at)
        found = {site: None for name in asked for site in self._expand(Site.parse(name))}
        if not found:
            raise UserError("No site was asked for; name one such as resid_post.8.")
        return sorted(found, key=lambda site: site.depth)

    def _expand(self, site: Site) -> list[Site]:
        if site.kind == "module":
            paths = [p for p, _ in self.module.named_modules() if p]
            if self._path(site) not in paths:
                raise unknown("module", site.path, paths)
            return [site]
        if self.anatomy is None:
            raise UserError(
                f"{site} is a site of transformers, and none was found in {self.source.name}: use module:PATH."
            )
        if site.kind in self.anatomy.refused and not any(s.kind == site.kind for s in self.anatomy.taps):
            raise UserError(f"{self.source.name} has no {site.kind}: {self.anatomy.refused[site.kind]}.")
        if not KINDS[site.kind].per_block:
            return [site]
        blocks = self.anatomy.blocks
        if site.layer is None:
            return [Site(site.kind, b) for b in range(blocks) if Site(site.kind, b) in self.anatomy.taps]
        layer = site.layer + blocks if site.layer < 0 else site.layer
        if not 0 <= layer < blocks:
            raise UserError(f"There is no {site}: {self.source.name} has the blocks 0 to {blocks - 1}.")
        if Site(site.kind, layer) not in self.anatomy.taps:
            raise UserError(
                f"{self.source.name} has no {site}: {self.anatomy.refused.get(site.kind, 'it was not found')}."
            )
        return [Site(site.kind, layer)]

    def _path(self, site: Site) -> str:
        """The path below the module: Hugging Face's own `model.layers.3.mlp` names the same place as `layers.3.mlp`."""
        return site.path.removeprefix(f"{self.prefix}.") if self.prefix else site.path

    def tap(self, site: Site) -> Tap:
        """The module, and the side of it, where a resolved site is read."""
        if site.kind == "module":
            return Tap(self._path(site), site.side)
        assert self.anatomy is not None
        return self.anatomy.taps[site]

    def sites(self) -> list[tuple[str, str, str, str]]:
        """The resolved table: for each kind its name, where the first one is read, its definition, or why there is none."""
        rows = []
        for kind in KINDS.values():
            here = [s for s in (self.anatomy.taps if self.anatomy else {}) if s.kind == kind.name]
            if here:
                tap = self.tap(here[0])
                name = f"{kind.name}.0…{len(here) - 1}" if kind.per_block else kind.name
                rows.append((name, f"{tap.side}put of {tap.path}", kind.definition, kind.identity))
            else:
                why = (
                    self.anatomy.refused.get(kind.name, "it was not found") if self.anatomy else "no transformer blocks"
                )
                rows.append((kind.name, "–", kind.definition, f"refused: {why}"))
        return rows


class Network(Sited):
    """Any `nn.Module` under study, fed with tensors. Its sites are `module:` paths; text needs a `LanguageModel`."""

    def capture(
        self, inputs: Tensor | Mapping[str, Tensor], at: str | Site | Sequence[str | Site], *, batch: int = 64
    ) -> Activations:
        """What the network holds at some modules, for a batch of inputs.

        Parameters
        ----------
        inputs
            One tensor (prompt, …), or a mapping of keyword arguments to such tensors.
        at
            Sites, mostly `module:PATH`.
        batch
            Inputs that run at once.

        Returns
        -------
        Activations
            One row an input and site: the output of the module with its first axis as the inputs'.

        Raises
        ------
        UserError
            For an unknown module, one that does not run, or one whose output has no row for each input.
        """
        sites = self.resolve(at)
        named = inputs if isinstance(inputs, Mapping) else {"": inputs}
        if not named or not all(isinstance(v, Tensor) and v.dim() for v in named.values()):
            raise UserError("A network takes a tensor with one row an input, or keyword arguments to such tensors.")
        total = len(next(iter(named.values())))
        held: dict[Site, np.ndarray] = {}
        start = 0

        def reader(site: Site) -> Read:
            def read(value: Tensor) -> None:
                size = min(batch, total - start)
                if len(value) != size:
                    raise UserError(f"{site} gives {len(value)} rows for {size} inputs; it cannot be split by input.")
                rows = as_float(value).cpu().numpy()
                held.setdefault(site, np.empty((total, *rows.shape[1:]), rows.dtype))[start : start + size] = rows

            return read

        with at_rest(self.module), tapped(self.module, {self.tap(s): reader(s) for s in sites}) as run:
            for start in range(0, total, batch):
                part = {k: v[start : start + batch].to(self.device) for k, v in named.items()}
                run(part[""]) if "" in part else run(**part)
        return Activations(
            rows={s: held[s] for s in sites},
            tokens=Tokens.parse("last"),
            offsets=np.arange(total + 1),
            positions=np.zeros(total, dtype=np.int64),
            model=self.fingerprint,
            single=isinstance(at, (str, Site)) and Site.parse(at).single,
        )


def as_float(x: Tensor) -> Float[Tensor, "..."]:
    """Floating values as float32 where numpy has no such type (bfloat16); float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
