"""Network: any `nn.Module` with named sites: a CNN, an RNN, a vision transformer, one's own. Takes tensors, never text."""

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
from repscope.models.inputs.text_spans import described
from repscope.models.jacobian import Jacobian
from repscope.models.linear.jacobian_passes import plan_jacobian_of_inputs
from repscope.models.sites import PerSite, Site, Tokens, names_one

Inputs = Tensor | Mapping[str, Tensor]


class Network(BaseNetwork):
    """Any `nn.Module` under study, fed with tensors. Text needs a `LanguageModel`.

    Parameters
    ----------
    module
        The module. It is not copied, moved or changed.
    example
        Two inputs or more. With them the sites of a transformer (a ViT) are found and proved; without, there are `module:` paths.
    source
        Where its weights come from; made from a digest of sampled entries when not given.
    """

    def __init__(self, module: nn.Module, example: Inputs | None = None, *, source: WeightSource | None = None) -> None:
        super().__init__(module, source=source)
        if example is not None:
            named = self._named(example)
            self.anatomy = resolve(module, _embedding(module), self._arguments(named))

    def capture(self, inputs: Inputs, at: str | Site | Sequence[str | Site], *, batch: int = 64) -> Activations:
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
        asked, sites = self.asked(at), self.resolve(at)
        named, total = self._counted(inputs, batch)
        self._see_once(sites, named)
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
        return self._activations(held, asked, total, at)

    def gradient(
        self, inputs: Inputs, of: Callable[[Any], Tensor], at: str | Site | Sequence[str | Site], *, batch: int = 64
    ) -> tuple[Float[np.ndarray, "prompt"], Activations]:
        """The gradient of a scalar of the output, input by input.

        Parameters
        ----------
        inputs
            As for `capture`.
        of
            Given what the module returns, gives one number an input: (row).
        at
            Sites, mostly `module:PATH`.
        batch
            Inputs that run at once.

        Returns
        -------
        values, gradients
            The scalar of each input, and its gradient at each site, shaped as `capture` gives the site.

        Raises
        ------
        UserError
            As `capture`; and when `of` gives no number for each input.
        """
        asked, sites = self.asked(at), self.resolve(at)
        named, total = self._counted(inputs, batch)
        self._see_once(sites, named)
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
        return values, self._activations(held, asked, total, at)

    def jacobian(
        self, inputs: Inputs, source: str | Site | Sequence[str | Site], target: str | Site, *, batch: int = 16
    ) -> Jacobian:
        """The Jacobian from what one module gives to what another does, input by input; all features of each are one axis.

        Parameters
        ----------
        inputs
            As for `capture`.
        source, target
            Sites, mostly `module:PATH`.
        batch
            Inputs that run at once; the graph of a single batch is kept, those of several are made again for each product.

        Raises
        ------
        UserError
            As `capture`; for a target that does not depend on the source, or on that of other inputs.

        >>> import torch
        >>> net = Network(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)))
        >>> net.jacobian(torch.ones(5, 3), "module:0", "module:2").matrix().shape
        (5, 2, 4)
        """
        named, total = self._counted(inputs, batch)
        named = {name: value.detach().clone() for name, value in named.items()}  # products may be taken after it has changed
        self._see_once([*self.resolve(source), *self.resolve(target)], named)

        def run(go: Callable[..., None], start: int, stop: int) -> None:
            part = self._arguments({name: value[start:stop] for name, value in named.items()})
            with self._running(start, stop):
                go(part[""]) if "" in part else go(**part)

        return Jacobian.over(plan_jacobian_of_inputs(self, run, total, source, target, batch))

    @contextmanager
    def _running(self, start: int, stop: int) -> Iterator[None]:
        """Announce the pass over some inputs to the edits that are installed."""
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
        """The inputs by their names, and how many there are; there must be some, and the size of a batch must be one."""
        if isinstance(batch, bool) or not isinstance(batch, (int, np.integer)) or batch < 1:
            raise UserError(f"batch is {described(batch)}; it must be a whole number, 1 or more.")
        named = self._named(inputs)
        total = len(next(iter(named.values())))
        if not total:
            raise UserError("There is no input: the tensor has no rows.")
        return named, total

    def _see_once(self, sites: Sequence[Site], named: Mapping[str, Tensor]) -> None:
        """See on two inputs that modules run once in a pass."""

        def run() -> None:
            part = self._arguments({name: value[:2] for name, value in named.items()})
            self.module(part[""]) if "" in part else self.module(**part)

        self.see_once(sites, run)

    def _named(self, inputs: Inputs) -> Mapping[str, Tensor]:
        named = inputs if isinstance(inputs, Mapping) else {"": inputs}
        if not named or not all(isinstance(v, Tensor) and v.dim() for v in named.values()):
            raise UserError("A network takes a tensor with one row an input, or keyword arguments to such tensors.")
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

    def _activations(self, held: dict[Site, np.ndarray], asked: list[Site], total: int, at: Any) -> Activations:
        return Activations(
            rows=PerSite((s, held[s]) for s in dict.fromkeys(asked)),
            tokens=Tokens.parse("last"),
            offsets=np.arange(total + 1),
            positions=np.zeros(total, dtype=np.int64),
            model=self.fingerprint,
            single=names_one(at),
            asked=tuple(asked),
        )


def per_row(scores: Any, rows: int) -> Float[Tensor, "row"]:
    """The scores, one a row.

    Raises
    ------
    UserError
        When they are anything else.
    """
    if not isinstance(scores, Tensor) or scores.shape != (rows,):
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"The function to differentiate gave {shape} for {rows} inputs; it must give one number each.")
    return scores


def _write(held: dict[Site, np.ndarray], site: Site, total: int, start: int, value: Tensor) -> None:
    if value.is_complex():
        raise UserError(f"{site} holds complex numbers, and real ones are kept; choose another module.")
    rows = as_float(value.detach()).cpu().numpy()
    held.setdefault(site, np.empty((total, *rows.shape[1:]), rows.dtype))[start : start + len(rows)] = rows


def _embedding(module: nn.Module) -> nn.Module | None:
    """The input embedding that a Hugging Face model names."""
    named = getattr(module, "get_input_embeddings", None)
    try:
        found = named() if callable(named) else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None
