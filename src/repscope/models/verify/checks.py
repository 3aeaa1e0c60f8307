"""Checks that the engine reads and edits the user's network correctly on this machine.

A few short prompts of different lengths run in plain transformers and in the engine, or in the engine in two ways that must agree:

1. hidden states, logits            captured = returned by transformers, one prompt at a time
2. block identities                 resid_pre + attn_out + mlp_out = resid_post, and the sites are unchanged
3. padded batch, shared prefix      = each prompt alone, where the engine uses them
4. generation, plain and edited     every step = a plain pass over the text so far; edited, with a cache = without
5. forks                            = one edited pass each
6. edit and restore                 after an edit = before it, bit for bit, and the module is unmodified

Checks 1 to 4 also use prompts one token shorter and longer than every length at which the network's behaviour changes (windows,
rotary scaling), up to a length that takes minutes.

The error at a site is the root mean square over rows (one vector per token) of ‖a - b‖ / ‖b‖; that of a check is the maximum over
sites. Each comparison has a control that must differ (rows shifted by one, edited compared with unedited), with the minimum over
sites. If the control is within the tolerance, the check fails. Checks that do not apply to a network are listed with the reason.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.engine.anatomy import resolve
from repscope.models.engine.hooks import unhooked
from repscope.models.language import LanguageModel
from repscope.models.prompts import PromptLike, Ragged
from repscope.models.sites import Site
from repscope.models.variants.prompt_variants import PromptVariant, run_variants
from repscope.models.verify.fixture import Fixture, Inapplicable, New, state
from repscope.models.verify.report import Check, Verification
from repscope.progress import progress

#: How far two ways to one vector may differ, relative. A step of float32 is 1e-7, of float16 1e-3, of bfloat16 8e-3, and roundings
#: add up over blocks. Rows are kept in float32, so that float64 gains little.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
_STEPS = 3  #: new tokens whose logits are compared
_Vectors = Float[Tensor, "row feature"]


@dataclass(frozen=True)
class _Measured:
    """error, control: relative. n: rows compared. detail: further information. broken: why it fails regardless of the error."""

    error: float
    control: float
    n: int
    detail: str = ""
    broken: str = ""


@dataclass(frozen=True)
class _Kind:
    """One check: its name, what it and its control compare, the function, and whether the error must be 0."""

    name: str
    compared: str
    against: str
    measure: "Callable[[Fixture], _Measured]"
    exact: bool = False


def verify(lm: LanguageModel, prompts: Iterable[PromptLike] | None = None) -> Verification:
    """Check the engine on a model: against plain transformers, padded against alone, cached against not, edited then restored.

    Parameters
    ----------
    lm
        The model. Left as it is; that is one of the checks.
    prompts
        At least two, of unequal lengths and two tokens or more; four built-in ones when not given. A few short ones say as much as
        many.

    Returns
    -------
    Verification
        `.passed`, and a record for each check: what was compared, its relative error, its control.

    Raises
    ------
    UserError
        For prompts that are too few or of one length, and inside `lm.edit`. A check that fails is no error.

    >>> import repscope as rs
    >>> from repscope.worlds.tiny import tiny
    >>> rs.verify(tiny()).passed
    True
    """
    if lm.installed:
        raise UserError(f"{lm.name} is being edited; verify it outside of `lm.edit`.")
    started = time.perf_counter()
    subject = Fixture(lm, prompts)
    checks = []
    with progress("Checking the engine", len(CHECKS)) as advance:
        for kind in CHECKS:
            checks.append(_checked(kind, subject))
            advance(1)
    return Verification(
        lm.name,
        lm.fingerprint,
        str(lm.model.dtype).removeprefix("torch."),
        str(lm.device),
        tuple(checks),
        time.perf_counter() - started,
    )


def _checked(kind: _Kind, subject: "Fixture") -> Check:
    tolerance = 0.0 if kind.exact else TOLERANCE.get(subject.lm.model.dtype, max(TOLERANCE.values()))
    nan = float("nan")
    try:
        found = kind.measure(subject)
    except Inapplicable as reason:
        return Check(kind.name, kind.compared, nan, tolerance, nan, kind.against, 0, "not applicable", str(reason))
    except Exception as error:  # a network that stops half-way is what the check is there to tell
        said = f"stopped with {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        return Check(kind.name, kind.compared, nan, tolerance, nan, kind.against, 0, "failed", said)
    told = [found.broken]
    if not found.error <= tolerance:  # also where it is not a number
        told.append(f"the error {found.error:.1e} is beyond {tolerance:.0e}")
    if not found.control > tolerance:
        told.append(f"the control ({kind.against}) is within the tolerance, so nothing was tested")
    faults = "; ".join(t for t in told if t)
    state = "failed" if faults else "passed"
    detail = "; ".join(t for t in (faults, found.detail) if t)
    return Check(kind.name, kind.compared, found.error, tolerance, found.control, kind.against, found.n, state, detail)


def _hidden_states(subject: Fixture) -> _Measured:
    lm, posts = subject.lm, subject.posts
    acts = lm.capture(subject.lengths, [Site("resid_pre", 0), *posts, lm.last], "all")
    returned = [getattr(out, "hidden_states", None) or () for out in subject.plain]
    if any(len(states) != len(posts) + 1 for states in returned):
        raise Inapplicable("transformers returns no hidden state a block for it")
    theirs = [torch.cat([states[k][0] for states in returned]).cpu() for k in range(len(posts) + 1)]
    ours = {site: torch.from_numpy(np.asarray(acts[site])) for site in acts.sites}
    detail = []
    # Entry k is the input of block k, and the last one comes after the final norm; but Mamba's entry k is the output of block k.
    before, after = (_relative([ours[site]], theirs[:1]).max() for site in (Site("resid_pre", 0), posts[0]))
    if lm.last.kind == "final_norm" and after < before:
        pairs = list(zip([*posts, lm.last], theirs))
        detail.append("transformers gives outputs of blocks here, not inputs")
    else:
        pairs = [*zip(posts[:-1], theirs[1:-1]), (lm.last, theirs[-1])]
    if pairs[-1][1].shape != ours[lm.last].shape:
        detail.append(f"the last entry of transformers has another width than {lm.last} and was left out")
        pairs.pop()
    read, reference = [ours[site] for site, _ in pairs], [there for _, there in pairs]
    if lm.last.kind == "final_norm" and len(pairs) == len(posts):  # the last block is seen through the norm only
        with unhooked(lm.model):
            norm, block = lm.module.get_submodule(lm.tap(lm.last).path), ours[posts[-1]]
            read.append(norm(block.to(lm.device, lm.model.dtype)).cpu())
        reference.append(theirs[-1])
    if subject.beyond:
        detail.append(f"not tried at {', '.join(map(str, subject.beyond))} tokens, where it changes its behaviour")
    found = _agreement(read, reference)
    return replace(found, detail="; ".join(detail))


def _logits(subject: Fixture) -> _Measured:
    subject.head()
    ours = torch.from_numpy(subject.lm.logits(subject.lengths, "all"))
    return _agreement([ours], [torch.cat([out.logits[0] for out in subject.plain]).cpu()])


def _identities(subject: Fixture) -> _Measured:
    lm, anatomy, posts = subject.lm, subject.lm.anatomy, subject.posts
    assert anatomy is not None
    if anatomy.form == "residual only":
        reasons = [anatomy.refused[kind] for kind in ("attn_out", "mlp_out") if kind in anatomy.refused]
        raise Inapplicable("; ".join(dict.fromkeys(reasons)) or "its blocks are of several forms")
    now = resolve(lm.module, lm.model.get_input_embeddings(), {"input_ids": lm.probe, **lm.plain()})
    lost = [str(site) for site in anatomy.taps if now is None or now.taps.get(site) != anatomy.taps[site]]
    broken = f"{lost[0]} is no longer found where it was at load ({len(lost)} sites)" if lost else ""
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    acts = lm.capture(subject.ids, [Site(kind, site.layer) for site in posts for kind in kinds], "all")
    parts = [[torch.from_numpy(np.asarray(acts[Site(kind, s.layer)])).double() for kind in kinds] for s in posts]
    without = _relative([pre + attn for pre, attn, _, _ in parts], [post for *_, post in parts])
    if anatomy.form == "post-norm":  # norms stand between the sums, so the proof on the probe is all there is
        error, n = float("nan") if now is None else now.error, lm.probe.numel()
    else:
        errors = _relative([pre + attn + mlp for pre, attn, mlp, _ in parts], [post for *_, post in parts])
        error, n = max(float(errors.max()), 0.0 if now is None else now.error), sum(len(post) for *_, post in parts)
    return _Measured(error, float(without.min()), n, f"the blocks are {anatomy.form}", broken)


def _padded(subject: Fixture) -> _Measured:
    lm, sites = subject.lm, subject.sites
    below, why = lm.batched_below(max(map(len, subject.lengths)))
    ids = [row for row in subject.lengths if len(row) < below]
    if len(ids) < 2:
        raise Inapplicable(f"its prompts run one at a time: {why}")
    found = _agreement(subject.rows(sites, ids), _alone(subject, sites, ids))
    return replace(found, detail=f"prompts of {below} tokens or more run one at a time: {why}" if why else "")


def _prefix(subject: Fixture) -> _Measured:
    sites = subject.sites
    if not subject.lm.causal:
        raise Inapplicable("it is not causal: later tokens reach earlier ones, so no prefix is shared")
    if why := subject.lm.prefix_refused(max(map(len, subject.ids))):
        raise Inapplicable(f"no prefix is shared: {why}")
    prefix = max(1, len(subject.longest) // 2)
    found, detail = [], ""
    ids = [np.concatenate([subject.longest[:prefix], row[: 1 + i]]) for i, row in enumerate(subject.ids)]
    found.append((subject.rows(sites, ids, prefix), _alone(subject, sites, ids)))
    for row in subject.lengths[len(subject.ids) :]:
        if why := subject.lm.prefix_refused(len(row)):
            detail = f"no prefix is shared by prompts of {len(row)} tokens: {why}"
            break
        for cut in (len(row) // 2, len(row) - 1):
            found.append((subject.rows(sites, [row, row[: cut + 1]], cut), _alone(subject, sites, [row, row[: cut + 1]])))
    ours, theirs = ([torch.cat(parts) for parts in zip(*side)] for side in zip(*found))
    return replace(_agreement(ours, theirs), detail=detail)


def _packed(subject: Fixture) -> _Measured:
    sites = subject.sites
    half = subject.longest[: len(subject.longest) // 2]
    ids = [np.concatenate([half, row]) for row in subject.ids] + [np.append(row, row[0]) for row in subject.lengths]
    detail = ""
    if why := subject.lm.unpackable(Ragged.of(ids), sites):
        detail = f"longer prompts are not packed: {why}"
        ids = ids[: 2 * len(subject.ids)]
    return replace(_agreement(subject.packed(sites, ids), _alone(subject, sites, ids)), detail=detail)


def _alone(subject: Fixture, sites: Sequence[Site], ids: list[Int[np.ndarray, "token"]]) -> list[_Vectors]:
    each = [subject.rows(sites, [row]) for row in ids]
    return [torch.cat(parts) for parts in zip(*each)]


def _generation(subject: Fixture) -> _Measured:
    subject.generates()
    lm, ours, theirs, ways = subject.lm, [], [], []
    levels: dict[int, list[Int[np.ndarray, token]]] = {}
    for row in subject.lengths:
        levels.setdefault(lm.proofs.level(len(row) + _STEPS), []).append(row)
    for rows in levels.values():
        way = lm.generation(max(map(len, rows)) + _STEPS)
        ways.append(way.name)
        new = np.stack(lm.trial([_STEPS] * len(rows)))
        for row, given, logits in zip(rows, new, lm.forced(way, rows, new), strict=True):
            ours.append(logits.double().cpu())
            theirs.append(torch.stack([lm.next_logits(np.append(row, given[:step])) for step in range(_STEPS)]).double().cpu())
    found = _agreement([torch.cat(ours)], [torch.cat(theirs)])
    return replace(found, detail=f"texts go on {' or '.join(dict.fromkeys(ways))}")


def _edited(tokens: str) -> Callable[[Fixture], _Measured]:
    def measure(subject: Fixture) -> _Measured:
        subject.generates()
        if not subject.lm.shares_prefix(max(map(len, subject.ids)) + _STEPS + 1):
            raise Inapplicable("edits run without a cache in it, since its cache does not tell how long it is")
        with subject.lm.edit(Edit.add(subject.middle, subject.vector, tokens=tokens)):
            cached, uncached = (subject.generated(use_cache=use_cache) for use_cache in (True, False))
        return _steps(cached, uncached, subject.unedited)

    return measure


def _steps(cached: New, uncached: New, unedited: New | None = None) -> _Measured:
    """Compare logits of each step up to the first difference of two texts: there two tokens tie, or the logits differ."""
    ours, theirs, edited, otherwise, same = [], [], [], [], 0
    for i, (a, b) in enumerate(zip(cached[0], uncached[0])):
        both = min(len(a), len(b))
        apart = np.flatnonzero(a[:both] != b[:both])
        same += not len(apart)
        for step in range(int(apart[0]) + 1 if len(apart) else both):
            ours.append(cached[1][step][i])
            theirs.append(uncached[1][step][i])
            if unedited is not None and 0 < step < len(unedited[1]):  # before the first token, none is generated
                edited.append(ours[-1])
                otherwise.append(unedited[1][step][i])
    if unedited is not None and not edited:
        raise Inapplicable("every text ends after its first new token")
    found = _agreement([torch.stack(ours)], [torch.stack(theirs)])
    if edited:
        found = replace(found, control=float(_relative([torch.stack(edited)], [torch.stack(otherwise)]).min()))
    told = f"{same} of {len(cached[0])} texts are the same token by token"
    if same < len(cached[0]):
        told += "; the others are compared up to the step at which they part"
    return replace(found, detail=told)


def _forks(subject: Fixture) -> _Measured:
    lm, ids = subject.lm, subject.longest
    first, middle, vector = subject.posts[0], subject.middle, 4 * subject.vector  # felt at later tokens too
    if not lm.causal:
        raise Inapplicable("it is not causal: later tokens reach earlier ones, so its prompts cannot be forked")
    kinds = [Site(kind, middle.layer) for kind in ("attn_out", "mlp_out")]
    sites = [first, *(site for site in kinds if lm.anatomy and site in lm.anatomy.taps), middle]
    # A change at the last block's output stays at its own position.
    places = (len(ids) // 2, len(ids) - 1) if middle != subject.posts[-1] else (len(ids) - 1,)
    cells = [(site, at) for site in dict.fromkeys(sites) for at in places]

    def moved(there: Tensor) -> Tensor:
        return there.float() + vector.to(there.device)

    together = run_variants(lm, ids, [PromptVariant(site, at, at + 1, moved) for site, at in cells])
    each = []
    for site, at in cells:
        with lm.edit(Edit.add(site, vector, tokens=at)):
            each.append(torch.from_numpy(np.asarray(lm.capture([ids], lm.last, "last")[lm.last])))
    apart, whole = torch.cat(each), torch.from_numpy(np.asarray(lm.capture([ids], lm.last, "last")[lm.last]))
    error, control = _relative([together.cpu(), apart], [apart, whole.expand_as(apart)])
    return _Measured(float(error), float(control), len(apart))


def _restored(subject: Fixture) -> _Measured:
    lm = subject.lm
    _ = subject.posts
    try:
        subject.head()
        what = "logits"
    except Inapplicable:
        what = str(lm.last)

    def read() -> list[_Vectors]:
        rows = lm.logits(subject.ids) if what == "logits" else lm.capture(subject.ids, lm.last)[lm.last]
        return [torch.from_numpy(np.asarray(rows))]

    before = read()
    with lm.edit(Edit.add(subject.middle, subject.vector)):
        edited = read()
    error, control = _relative([*read(), *edited], [*before, *before])
    now = state(lm)
    changed = [name for name in {**subject.before, **now} if subject.before.get(name) != now.get(name)]
    named = f"changed since the first check: {', '.join(changed[:3])}{' …' if len(changed) > 3 else ''}"
    return _Measured(float(error), float(control), len(before[0]), f"read at the {what}", named if changed else "")


def _agreement(ours: Sequence[_Vectors], theirs: Sequence[_Vectors]) -> _Measured:
    """Compare one pair of tables per site; the control shifts the rows of each."""
    shifted = _relative([there.roll(1, 0) for there in theirs], theirs)
    return _Measured(float(_relative(ours, theirs).max()), float(shifted.min()), sum(map(len, theirs)))


def _relative(ours: Sequence[_Vectors], theirs: Sequence[_Vectors]) -> Float[Tensor, "site"]:
    """Root mean square over the rows of each pair of tables of ‖a - b‖ / ‖b‖; NaN if either contains NaN."""
    parts = [((a.double() - b.double()).norm(dim=-1), b.double().norm(dim=-1)) for a, b in zip(ours, theirs)]
    return torch.stack([(gap / size.clamp_min(1e-30)).square().mean().sqrt().cpu() for gap, size in parts])


_SHIFTED, _EDITED = "rows shifted by one", "edited compared with unedited"
CHECKS = (
    _Kind(
        "hidden states",
        "every block and the final norm, against output_hidden_states of transformers, one prompt at a time",
        _SHIFTED,
        _hidden_states,
    ),
    _Kind("logits", "logits at every token, against those of transformers, one prompt at a time", _SHIFTED, _logits),
    _Kind(
        "block identities",
        "a block's input plus what attention and MLP add, against its output",
        "sum without the MLP",
        _identities,
    ),
    _Kind("padded batch", "every block in one padded batch, against each prompt alone", _SHIFTED, _padded),
    _Kind("shared prefix", "every block after a prefix that ran once, against each prompt alone", _SHIFTED, _prefix),
    _Kind("packed prompts", "every block of a tree of packed prompts, against each alone", _SHIFTED, _packed),
    _Kind(
        "cached generation", "logits of each step of a generation, against plain passes over the text so far", _SHIFTED, _generation
    ),
    _Kind("cached generation, all tokens edited", "the same with all tokens edited", _EDITED, _edited("all")),
    _Kind("cached generation, new tokens edited", "the same with new tokens edited", _EDITED, _edited("generated")),
    _Kind("forks", "variants of a prompt in shared passes, against one edited pass each", _EDITED, _forks),
    _Kind(
        "edit and restore",
        "after an edit against before, bit for bit; hooks, modes, gradients, precision, attention and modules as handed in",
        _EDITED,
        _restored,
        exact=True,
    ),
)
