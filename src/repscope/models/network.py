"""Capture, gradients and Jacobians for any `nn.Module` with tensor inputs (CNN, RNN, ViT)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from repscope.errors import UserError
from repscope.models.activations import Activations
from repscope.models.edits import Pass
from repscope.models.engine.anatomy import resolve
from repscope.models.engine.base import BaseNetwork, Read, tapped
from repscope.models.engine.fingerprint import WeightSource
from repscope.models.engine.hooks import unhooked
from repscope.models.engine.positions import as_float
from repscope.models.engine.text_network import check_count
from repscope.models.jacobian import Jacobian
from repscope.models.linear.jacobian_passes import plan_jacobian_of_inputs
from repscope.models.sites import PerSite, Site, Tokens, names_one

Inputs = Tensor | Mapping[str, Tensor]


class Network(BaseNetwork):
    """Any `nn.Module` with tensor inputs. For text use `LanguageModel`.

    Parameters
    ----------
    module
        The module. It is not copied, moved or changed.
    example
        Two inputs or more, with which the sites of a transformer (a ViT) are found and verified. Without them only `module:` paths
        are available.
    source
        Origin of the weights; by default a digest of sampled entries.
    """

    def __init__(self, module: nn.Module, example: Inputs | None = None, *, source: WeightSource | None = None) -> None:
        super().__init__(module, source=source)
        if example is not None:
            named = self._named(example)
            self.anatomy = resolve(module, _embedding(module), self._arguments(named))

    def capture(self, inputs: Inputs, at: str | Site | Sequence[str | Site], *, batch: int = 64) -> Activations:
        """Capture activations at some modules.

        Parameters
        ----------
        inputs
            One tensor (prompt, …), or a mapping of keyword arguments to such tensors.
        at
            Sites, mostly `module:PATH`.
        batch
            Inputs per forward pass.

        Returns
        -------
        Activations
            One row per input and site; the first axis of a module's output is that of the inputs.

        Raises
        ------
        UserError
            For a module that is unknown, does not run, or whose output does not have one row per input.
        """
        sites = self.resolve(at)
        named, total = self._counted(inputs, batch)
        self._check_single_calls(sites, named)
        held: dict[Site, np.ndarray] = {}
        start = 0

        def reader(site: Site) -> Read:
            def read(value: Tensor) -> None:
                size = min(batch, total - start)
                if len(value) != size:
                    raise UserError(f"{site} gives {len(value)} rows for {size} inputs; it cannot be split by input.")
                _write(held, site, total, start, value)

            return read

        with unhooked(self.module), tapped(self.taps, [(self.tap(s), reader(s)) for s in sites]) as run:
            for start in range(0, total, batch):
                with self._running(start, min(start + batch, total)):
                    part = self._arguments({k: v[start : start + batch] for k, v in named.items()})
                    run(part[""]) if "" in part else run(**part)
        return self._activations(held, total, at)

    def gradient(
        self, inputs: Inputs, of: Callable[[Any], Tensor], at: str | Site | Sequence[str | Site], *, batch: int = 64
    ) -> tuple[Float[np.ndarray, "prompt"], Activations]:
        """Gradient of a scalar function of the output, per input.

        Parameters
        ----------
        inputs
            As for `capture`.
        of
            Maps the module's output to one number per input: (row).
        at
            Sites, mostly `module:PATH`.
        batch
            Inputs per pass.

        Returns
        -------
        values, gradients
            The scalar of each input, and its gradient at each site, in the shape that `capture` returns.

        Raises
        ------
        UserError
            As `capture`; and when `of` does not return one number per input.
        """
        sites = self.resolve(at)
        named, total = self._counted(inputs, batch)
        self._check_single_calls(sites, named)
        held: dict[Site, np.ndarray] = {}
        values = np.empty(total)
        for start in range(0, total, batch):
            stop = min(start + batch, total)
            part = self._arguments({k: v[start:stop] for k, v in named.items()})

            def run(part: Mapping[str, Tensor] = part, start: int = start, stop: int = stop) -> Tensor:
                scores = of(self.module(part[""]) if "" in part else self.module(**part))
                values[start:stop] = per_row(scores, stop - start).detach().double().cpu().numpy()
                return scores.sum()

            with self._running(start, stop):
                for site, grad in zip(sites, self.differentiated(sites, run)):
                    _write(held, site, total, start, grad)
        return values, self._activations(held, total, at)

    def jacobian(
        self, inputs: Inputs, source: str | Site | Sequence[str | Site], target: str | Site, *, batch: int = 16
    ) -> Jacobian:
        """The Jacobian of one module's output with respect to another's, per input; all features of each are one axis.

        Parameters
        ----------
        inputs
            As for `capture`.
        source, target
            Sites, mostly `module:PATH`.
        batch
            Inputs per pass. The graph of a single batch is cached; graphs of several batches are recomputed for each product.

        Raises
        ------
        UserError
            As `capture`; for a target that does not depend on the source, or depends on other inputs.

        >>> import torch
        >>> net = Network(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)))
        >>> net.jacobian(torch.ones(5, 3), "module:0", "module:2").matrix().shape
        (5, 2, 4)
        """
        named, total = self._counted(inputs, batch)
        named = {name: value.detach().clone() for name, value in named.items()}  # inputs may change later
        self._check_single_calls([*self.resolve(source), *self.resolve(target)], named)

        def run(go: Callable[..., None], start: int, stop: int) -> None:
            part = self._arguments({name: value[start:stop] for name, value in named.items()})
            with self._running(start, stop):
                go(part[""]) if "" in part else go(**part)

        return Jacobian.over(plan_jacobian_of_inputs(self, run, total, source, target, batch))

    @contextmanager
    def _running(self, start: int, stop: int) -> Iterator[None]:
        """Give the installed edits the layout of the pass over some inputs."""
        for installed in self.installed:
            tokens = installed.edit.tokens
            if tokens != "all" and not tokens.isdigit() and tokens != "first":
                raise UserError(f"{installed.edit}: a network without text knows the tokens all, first and 0, 1, 2 …")
            at = 0 if tokens in ("all", "first") else int(tokens)
            installed.start = None if tokens == "all" else np.full(stop, at)
            installed.stop = None if tokens == "all" else np.full(stop, at + 1)
        self._pass = Pass(np.arange(start, stop), np.zeros(stop - start, dtype=np.int64))
        try:
            yield
        finally:
            self._pass = None

    def _counted(self, inputs: Inputs, batch: int) -> tuple[Mapping[str, Tensor], int]:
        """Check inputs and batch size; return the inputs by name and their number."""
        check_count("batch", batch)
        named = self._named(inputs)
        total = len(next(iter(named.values())))
        if not total:
            raise UserError("There is no input: the tensor has no rows.")
        return named, total

    def _check_single_calls(self, sites: Sequence[Site], named: Mapping[str, Tensor]) -> None:
        """Check on two inputs that modules run once per pass."""

        def run() -> None:
            part = self._arguments({name: value[:2] for name, value in named.items()})
            self.module(part[""]) if "" in part else self.module(**part)

        self.check_single_calls(sites, run)

    def _named(self, inputs: Inputs) -> Mapping[str, Tensor]:
        named = inputs if isinstance(inputs, Mapping) else {"": inputs}
        if not named or not all(isinstance(v, Tensor) and v.dim() for v in named.values()):
            raise UserError("A network takes a tensor with one row per input, or a mapping of keyword arguments to such tensors.")
        counts = {name: len(value) for name, value in named.items()}
        if len(set(counts.values())) > 1:
            listed = " and ".join(f"{name!r} has {count} rows" for name, count in counts.items())
            raise UserError(f"Of the inputs {listed}; give as many of each.")
        total = next(iter(counts.values()))
        for edit in (installed.edit for installed in self.installed if installed.edit.per_prompt):
            if (held := len(edit.arrays["vector"])) != total:
                raise UserError(f"{edit} has {held} vectors for {total} inputs; give one for each.")
        return named

    def _arguments(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in named.items()}

    def _activations(self, held: dict[Site, np.ndarray], total: int, at: Any) -> Activations:
        requested = self.requested_sites(at)
        return Activations(
            rows=PerSite((s, held[s]) for s in dict.fromkeys(requested)),
            tokens=Tokens.parse("last"),
            offsets=np.arange(total + 1),
            positions=np.zeros(total, dtype=np.int64),
            model=self.fingerprint,
            single=names_one(at),
            requested=tuple(requested),
        )


def per_row(scores: Any, rows: int) -> Float[Tensor, "row"]:
    """Check that there is one score per row."""
    if not isinstance(scores, Tensor) or scores.shape != (rows,):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"The function to differentiate gave {shape} for {rows} inputs; it must give one number each.")
    return scores


def _write(held: dict[Site, np.ndarray], site: Site, total: int, start: int, value: Tensor) -> None:
    if value.is_complex():
        raise UserError(f"{site} has complex values, but only real ones are supported; choose another module.")
    rows = as_float(value.detach()).cpu().numpy()
    held.setdefault(site, np.empty((total, *rows.shape[1:]), rows.dtype))[start : start + len(rows)] = rows


def _embedding(module: nn.Module) -> nn.Module | None:
    """The input embedding of a Hugging Face model."""
    named = getattr(module, "get_input_embeddings", None)
    try:
        found = named() if callable(named) else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None
