"""Steered models: checks and addition of directions, and steered next to unsteered text.

1. A set of directions records its model; another model, another width or a missing block is refused.
2. Each direction adds scale × vector at its site and tokens. Several are summed.
3. Side by side: each prompt is in one batch twice, steered and unsteered, so that both texts are generated in parallel with the
   same random numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from repscope.directions import Direction, DirectionSet
from repscope.directions.architectures import agree
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt
from repscope.models.sites import Site

Directions = Direction | DirectionSet | Sequence[Direction] | str | Path


@contextmanager
def steering(
    lm: LanguageModel, directions: Directions, *, scale: float | None = None, times: float = 1.0, anyway: bool = False
) -> Iterator[LanguageModel]:
    """Add directions to the model's activations in all passes inside the context.

    Parameters
    ----------
    lm
        The model.
    directions
        A direction, several, a set, or the path of a file with one.
    scale
        Norm of the added vector, in the site's own units; default: each direction's own scale. Negative values reverse it.
    times
        A factor on the scale.
    anyway
        Whether to accept directions of other weights, such as on a fine-tuned model; their width must fit.

    Raises
    ------
    UserError
        For directions of another model or width, a missing site, or a norm that is 0 or not finite.

    >>> import numpy as np
    >>> from repscope.worlds.tiny import tiny
    >>> lm = tiny()
    >>> with steering(lm, Direction.of(np.ones(32), "resid_post.2", "ones"), scale=3.0):
    ...     lm.logits(["A map of Paris"]).shape
    (1, 256)
    """
    with lm.edit(*edits(lm, directions, scale=scale, times=times, anyway=anyway)):
        yield lm


def edits(
    lm: LanguageModel, directions: Directions, *, scale: float | None = None, times: float = 1.0, anyway: bool = False
) -> list[Edit]:
    """The edits that `steering` makes, after its checks. Arguments and errors as there."""
    held = check(lm, directions, anyway=anyway)
    made = []
    for one in held:
        length = (one.scale if scale is None else scale) * times
        if not np.isfinite(length) or length == 0:
            raise UserError(f"The direction {one.name!r} would be added at length {length:g}, which steers nothing.")
        made.append(Edit.add(one.site, one, scale=length, tokens=one.tokens))
    return made


def check(lm: LanguageModel, directions: Directions, *, anyway: bool = False) -> list[Direction]:
    """The directions, checked against this model's weights, architecture, depth, sites and widths.

    Raises
    ------
    UserError
        If they do not fit; names the model they were made for. For a file without directions.
    """
    if isinstance(directions, str | Path):
        directions = DirectionSet.load(directions)
    given = directions if isinstance(directions, DirectionSet) else DirectionSet.of(*_listed(directions))
    if not len(given):
        raise UserError("There is no direction to steer with; give one at least.")
    if anyway:
        given = DirectionSet.of(*(replace(one, model="") for one in given))
    kind = _kind(lm, given.architecture)
    given.belongs(lm.fingerprint, lm.blocks, kind)  # check the model before the sites
    widths: dict[str, int] = {}
    for one in given:
        if not Site.parse(one.site).single:
            raise UserError(f"The direction {one.name!r} lives at {one.site}; name one place, such as {one.site}.0.")
        (site,) = lm.resolve(one.site)  # says which blocks there are
        widths[one.site] = _width(lm, site)
    given.fits(lm.fingerprint, widths, lm.blocks, kind)
    return list(given)


def _kind(lm: LanguageModel, wanted: str) -> str:
    """The model's type, or that of its text part if the directions were made for such a one."""
    config = lm.model.config
    text = str(getattr(config.get_text_config(), "model_type", ""))
    return text if agree(wanted, text) else str(getattr(config, "model_type", ""))


def _listed(directions: Direction | Sequence[Direction]) -> list[Direction]:
    held = [directions] if isinstance(directions, Direction) else list(directions)
    if wrong := [one for one in held if not isinstance(one, Direction)]:
        raise UserError(f"{str(wrong[0])[:60]!r} is no direction; give a Direction, a DirectionSet or the path of a file.")
    return held


@dataclass(frozen=True)
class SideBySide:
    """Continuations of a prompt: unsteered, steered."""

    prompt: str
    unsteered: str
    steered: str


def side_by_side(
    lm: LanguageModel,
    directions: Directions,
    prompts: Sequence[str | Prompt],
    *,
    scale: float | None = None,
    times: float = 1.0,
    anyway: bool = False,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    told: Callable[[int, str, str], None] | None = None,
) -> list[SideBySide]:
    """Continue each prompt with and without the directions.

    Parameters
    ----------
    lm, directions, scale, times, anyway
        As for `steering`.
    prompts
        Prompts to continue.
    max_new_tokens, temperature, seed
        As for `lm.generate`; both continuations use the same random numbers.
    told
        Called at every new token with the prompt's number and both texts so far.

    Raises
    ------
    UserError
        As `steering` and `lm.generate`.
    """
    done = []
    for number, prompt in enumerate(prompts):
        so_far = ["", ""]

        def grow(row: int, text: str, number: int = number, so_far: list[str] = so_far) -> None:
            so_far[row] = text
            if told is not None:
                told(number, *so_far)

        pair = [_half_steered(one) for one in edits(lm, directions, scale=scale, times=times, anyway=anyway)]
        with lm.edit(*pair):
            texts = lm.generate(
                [prompt, prompt], max_new_tokens, temperature=temperature, seed=seed, on_token=grow, share_random_numbers=True
            )
        shown = prompt.text if isinstance(prompt, Prompt) else prompt
        done.append(SideBySide(shown, texts[0].text, texts[1].text))
    return done


def _half_steered(edit: Edit) -> Edit:
    """The edit for a pair of prompts, applied to the second."""
    vector = edit.arrays["vector"].numpy()
    return Edit.add(edit.site, np.stack([0 * vector, vector]), tokens=edit.tokens, per_prompt=True)


def _width(lm: LanguageModel, site: Site) -> int:
    probe = lm.capture([lm.probe[0].cpu().numpy()], site)
    return int(np.prod(probe[site].shape[1:]))
