"""Commands of directions: steer, directions."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from repscope.cli.shared import Count, Decimal, Dtype, Finite, Index, Json, ModelName, Na, Quote, Seed, app, print_notes, say
from repscope.errors import UserError


@app.command
def steer(
    model: ModelName,
    direction: str,
    *,
    prompt: Annotated[tuple[str, ...], Parameter(consume_multiple=False)] = (),
    scale: Finite | None = None,
    times: Finite = 1.0,
    name: str = "",
    block: Index | None = None,
    tokens: Count = 40,
    temperature: Annotated[float, Parameter(validator=Number(gte=0, lt=float("inf")))] = 0.0,
    seed: Seed = 0,
    chat: bool = False,
    anyway: bool = False,
    revision: str | None = None,
    device: str | None = None,
    dtype: Dtype = "float32",
    decimal: Decimal = None,
    na: Na = None,
    quote: Quote = None,
    json: Json = False,
) -> None:
    """Continue prompts without and with a direction, side by side, as they are written.

    Parameters
    ----------
    direction
        A file (.safetensors, llama.cpp's .gguf, a .pt matrix), or a contrast to learn one from now: sentiment, formality, refusal,
        language, honesty, or a file of texts.
    prompt
        What to continue; several make several answers.
    scale
        Length of what is added, in the site's own units; the direction's own when not given. Negative steers the other way.
    times
        A factor on that.
    name
        Which direction of a file with several; all of them when not given.
    block
        Where a .pt file with a single vector acts.
    tokens
        Most new tokens.
    temperature
        0 takes the most likely token.
    chat
        Whether prompts are a user's turn in the model's chat template.
    anyway
        Use a direction that was made for other weights; its width must fit.
    revision
        Branch, tag or commit of a hub id.
    device
        Device to run on; cuda where there is one, else cpu.
    dtype
        Precision of the weights: float32, bfloat16 or float16.
    """
    from repscope.cli.steering import directions_of, shown
    from repscope.models.loading.sources import load
    from repscope.report.terminal import side_by_side

    if not prompt:
        raise UserError("There is nothing to continue; give --prompt 'I went to the new restaurant and'.")
    held = directions_of(direction, name, block, decimal=decimal, na=na, quote=quote)
    print_notes(getattr(held, "notes", ()))
    lm = load(model, revision=revision, device=device, dtype=dtype)
    with side_by_side(None if json else sys.stdout) as told:
        said = shown(
            lm,
            held,
            prompt,
            scale=scale,
            times=times,
            tokens=tokens,
            temperature=temperature,
            seed=seed,
            chat=chat,
            anyway=anyway,
            told=told,
        )
    if json:
        print(jsonlib.dumps(said | {"notes": list(getattr(held, "notes", ()))}))


@app.command
def directions(
    path: Path,
    *,
    to: Path | None = None,
    name: str = "",
    block: Index | None = None,
    blocks: Count | None = None,
    json: Json = False,
) -> None:
    """Show what a file of directions holds, a card each; with --to write them in another format.

    Parameters
    ----------
    path
        A .safetensors file of directions, llama.cpp's control vector (.gguf), or a .pt matrix.
    to
        A file to write: .safetensors, .gguf or .pt.
    name
        Only the direction of that name.
    block
        Where a .pt file with a single vector acts.
    blocks
        How many blocks the model has, for a .pt file of directions that do not tell.
    """
    from repscope.cli.steering import converted, held_in
    from repscope.disk import need_folder

    if to is not None:
        need_folder(to.expanduser().absolute().parent)
    held = held_in(path, name, block)
    if to is not None:
        converted(held, to, blocks)
    if json:
        print(jsonlib.dumps({"model": held.model, "directions": list(held.names), "written": str(to) if to else None}))
        return
    say(held.card())
    if to is not None:
        say(to)
