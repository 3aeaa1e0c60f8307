"""`repscope steer` and `repscope directions`: from what a user names to directions, and from directions to text and files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from repscope.data.contrasts import Contrast, contrast, contrast_names
from repscope.data.reading import How
from repscope.data.table_files import SUFFIXES
from repscope.directions import DirectionSet
from repscope.errors import UserError, unknown
from repscope.models.language import LanguageModel
from repscope.report.terminal import PairWriter
from repscope.steer.effects import in_turn
from repscope.steer.quick import cached_path, learn
from repscope.steer.steered_model import check, side_by_side

_WRITERS: dict[str, Callable[[DirectionSet, Path], Path]] = {
    ".safetensors": lambda held, path: held.save(path),
    ".gguf": lambda held, path: held.to_gguf(path),
    ".pt": lambda held, path: held.to_pt(path),
}


def held_in(path: Path, name: str = "", block: int | None = None) -> DirectionSet:
    """The directions in a file, or the one of that name.

    Raises
    ------
    UserError
        For a file that is not there or holds none, or a name that it lacks.
    """
    held = DirectionSet.load(path, block)
    return replace(held, directions=(held[name],)) if name else held


def converted(held: DirectionSet, path: Path, blocks: int | None = None) -> Path:
    """Write directions in the format that the file's ending names.

    Raises
    ------
    UserError
        For another ending, or directions that the format cannot hold.
    """
    if path.suffix.lower() not in _WRITERS:
        raise unknown("format of directions", path.suffix or path.name, _WRITERS)
    if path.suffix.lower() == ".pt" and not blocks and not held.blocks:
        raise UserError(f"{path} needs the model's number of blocks, which these directions do not tell; give it with --blocks.")
    return _WRITERS[path.suffix.lower()](replace(held, blocks=blocks) if blocks else held, path)


def directions_of(asked: str, name: str = "", block: int | None = None, **how: Unpack[How]) -> DirectionSet | Contrast:
    """The directions in a file, or the texts from which one is to be learned.

    Raises
    ------
    UserError
        For what is neither a file of directions nor a contrast.
    """
    if asked in contrast_names() or Path(asked).suffix.lower() in SUFFIXES:
        return contrast(asked, **how).with_choices()
    if not Path(asked).suffix and not Path(asked).exists():
        raise unknown("direction", asked, contrast_names(), "Or give a file of directions: .safetensors, .gguf or .pt.")
    return held_in(Path(asked), name, block)


def shown(
    lm: LanguageModel,
    held: DirectionSet | Contrast,
    prompts: Sequence[str],
    *,
    scale: float | None,
    times: float,
    tokens: int,
    temperature: float,
    seed: int,
    chat: bool,
    anyway: bool,
    told: PairWriter,
) -> dict[str, Any]:
    """Continue prompts with and without; tells the texts as they grow, and returns all that was said.

    Raises
    ------
    UserError
        As `steer.steered_model`; for several directions of one file that cannot all be meant.
    """
    if isinstance(held, Contrast):
        if not cached_path(lm, held).is_file():
            told.say(f"Learning {held.name} ({held.positive} against {held.negative}), once a model …")
        chat = chat or held.chat
        held = learn(lm, held)
    check(lm, held, anyway=anyway)  # a file of another model says so before anything else
    if len(held) > 1 and scale is not None:
        raise UserError(f"This file holds {len(held)} directions ({', '.join(held.names[:4])} …); --scale needs one: add --name.")
    for one in held:
        length = (one.scale if scale is None else scale) * times
        told.say(f"{one.name}: adding length {length:.4g} at {one.site}")
    heads = [in_turn(lm, prompt, chat) for prompt in prompts]
    texts = side_by_side(
        lm,
        held,
        heads,
        scale=scale,
        times=times,
        anyway=anyway,
        max_new_tokens=tokens,
        temperature=temperature,
        seed=seed,
        told=lambda number, plain, steered: told.grow(prompts[number], plain, steered),
    )
    told.done()
    return {
        "directions": [{"name": d.name, "site": d.site, "scale": (d.scale if scale is None else scale) * times} for d in held],
        "continuations": [{"prompt": asked, "unsteered": t.unsteered, "steered": t.steered} for asked, t in zip(prompts, texts)],
    }
