"""Two checkpoints compared: weights, and on prompts the representations and the next tokens."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike
from repscope.models.sites import Site
from repscope.results import Result, concat
from repscope.trace.drift.networks import networks, tuned_network
from repscope.trace.drift.next_tokens import next_tokens
from repscope.trace.drift.pair import Pair
from repscope.trace.drift.representations import representations
from repscope.trace.drift.seed_floor import seed_floor
from repscope.trace.drift.weights import weight_drift

Given = str | Path | LanguageModel


def compare(
    base: Given | None,
    tuned: Given,
    prompts: Iterable[PromptLike] | None = None,
    *,
    other: Given | None = None,
    at: str | Site | Sequence[str | Site] = "resid_post",
    new_tokens: int = 32,
    spectra: bool = True,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "float32",
) -> Result:
    """What tuning changed: weights, and on prompts representations and next tokens.

    Parameters
    ----------
    base, tuned
        Folders, hub ids, aliases, `.gguf` or safetensors files, LoRA folders, or loaded language models. `base` is None for a LoRA
        folder that names it.
    prompts
        At least 16; None compares weights alone, and loads no network.
    other
        A checkpoint tuned the same way with another seed: the noise floor.
    at
        Sites of the representations.
    new_tokens
        Longest answer for the next tokens.
    spectra
        Whether to compute the singular values of the change of every matrix.
    seed
        Of intervals and the order of prompts.
    device, dtype
        Of the networks, as for `rs.load`.

    Returns
    -------
    Result
        Rows of `weights.weight_drift`, `seed_floor`, `representations` and `next_tokens`, and their side tables.

    Raises
    ------
    UserError
        For checkpoints that cannot be compared, as `Pair.open` and `networks`.
    """
    pair = _pair(base, tuned)
    floor = None if other is None else _pair(base, other)
    parts = [weight_drift(pair, spectra=spectra, rounding=True, seed=seed)]
    if floor is not None:
        parts.append(seed_floor(pair, floor, seed=seed))
    if prompts is not None:
        held = list(prompts)
        if isinstance(base, LanguageModel) and isinstance(tuned, LanguageModel):
            before, after = base, tuned
        else:
            before, after = networks(pair, device=device, dtype=dtype)
        third = other if isinstance(other, LanguageModel) else None
        if floor is not None and third is None:
            third = tuned_network(floor, before, device=device, dtype=dtype)
        parts.append(representations(before, after, held, at=at, other=third, seed=seed))
        parts.append(next_tokens(before, after, held, new_tokens=new_tokens, other=third, seed=seed))
    return concat(parts)


def _pair(base: Given | None, tuned: Given) -> Pair:
    if isinstance(base, LanguageModel) and isinstance(tuned, LanguageModel):
        return Pair.of(*(dict(lm.model.named_parameters()) for lm in (base, tuned)))
    if isinstance(base, LanguageModel) or isinstance(tuned, LanguageModel):
        raise UserError("One of the checkpoints is a loaded model and the other a path; give two models or two paths.")
    return Pair.open(base, tuned)
