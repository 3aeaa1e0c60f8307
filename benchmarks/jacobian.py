"""Jacobians between two sites: exact, near the floor of their arithmetic, beside torch's own, and by Krylov iteration.

Eight few-shot prompts ask for a capital, each with the other seven as examples. The source is resid_post.10 at the subject's last
token, the target resid_post.28 at the prompt's end.

1. Against `torch.autograd.functional.jacobian` over the plain model with two bare hooks: errors, and the time of three such
   calls.
2. `jac.matrix()` of all prompts, made from nothing in each round. Its floor is d products × tokens from the subject on × blocks
   between × 2 × parameters of a block's linear maps, at the sgemm rate of the same round.
3. All source blocks below 28 at once against the pair 12 → 28.
4. `jac.mean().svd(16)` against the singular values of the whole mean Jacobian.
5. Products needed at d = 2,048: spectra of the measured shape, and a network with random weights.

Rounds rotate; tables give the median and the range, ratios are paired within a round.

    python benchmarks/jacobian.py --write    # about twenty minutes on two idle cores; --quick: two short prompts, one round
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import machine
import numpy as np
import torch
import transformers
from torch import Tensor
from torch.autograd import functional

import repscope as rs
from repscope.models.jacobian import Jacobian
from repscope.models.linear.svd import Triplets, leading

CAPITALS = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Egypt": "Cairo",
    "Austria": "Vienna",
    "Saudi Arabia": "Riyadh",
}
SOURCE, NEAR, TARGET = 10, 12, 28
VALUES = 16
PARTS = ("exact", "floor", "sources", "krylov", "wide")


class Work:
    """The model, the prompts and where their subjects end."""

    def __init__(self, prompts: int) -> None:
        self.lm = rs.load()
        countries = list(CAPITALS)[:prompts]
        self.prompts = [_few_shot(country, countries) for country in countries]
        self.ids, self.at = [], []
        for prompt in self.prompts:
            read = self.lm.tokenizer(prompt.text, return_offsets_mapping=True)
            end = prompt.spans["subject"][1]
            self.ids.append(torch.tensor([read["input_ids"]]))
            self.at.append(max(i for i, (first, _) in enumerate(read["offset_mapping"]) if first < end))
        self.shapes = machine.linear_shapes(self.lm.module.layers[0])
        self.rates: list[float] = []

    @property
    def tokens(self) -> list[int]:
        """Tokens from the subject's last on, of each prompt."""
        return [ids.shape[1] - at for ids, at in zip(self.ids, self.at)]

    def jacobian(self, source: str | list[str] = f"resid_post.{SOURCE}", prompts: int | None = None) -> Jacobian:
        """Of all prompts, or the first few."""
        return self.lm.jacobian(
            self.prompts[:prompts], source, f"resid_post.{TARGET}", source_tokens="subject.last", target_tokens="last"
        )

    def rate(self) -> float:
        """FLOP/s of matrix products right now."""
        self.rates.append(machine.sgemm_rate(self.shapes, repeats=30))
        return self.rates[-1]


def _few_shot(country: str, countries: list[str]) -> rs.Prompt:
    shots = "".join(f"Q: the capital of {c} is\nA: {CAPITALS[c]}\n" for c in countries if c != country)
    return rs.Prompt.fill(shots + "Q: the capital of {subject} is\nA:", subject=country)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--quick", action="store_true", help="two short prompts, one round, no plain loop")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    asked = options.only.split(",")
    if unknown := set(asked) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.write and options.quick:
        parser.error("--write takes a real run: without --quick")
    torch.set_num_threads(2)
    work = Work(2 if options.quick else len(CAPITALS))
    work.rate()
    jobs: dict[str, Callable[[], str]] = {
        "exact": lambda: exact(work, 1, loop=not options.quick),
        "floor": lambda: floor(work, rounds),
        "sources": lambda: sources(work, rounds),
        "krylov": lambda: krylov(work, rounds),
        "wide": lambda: wide(work, options.quick),
    }
    parts = []
    for name in PARTS:
        if name in asked:
            started = time.perf_counter()
            parts.append(jobs[name]())
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    work.rate()
    tokens = work.tokens
    head = (
        f"## Jacobians\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}, {rounds} rounds. "
        f"{machine.describe()}. {machine.versions(('torch', 'transformers', 'repscope'))}. Model {work.lm.name}, float32, two "
        f"threads; sgemm at its shapes {min(work.rates) / 1e9:.0f}–{max(work.rates) / 1e9:.0f} GFLOP/s in this run.\n\n"
        f"{len(tokens)} few-shot prompts of {min(i.shape[1] for i in work.ids)}–{max(i.shape[1] for i in work.ids)} tokens, "
        f"{min(tokens)}–{max(tokens)} of them from the subject's last on ({sum(tokens)} together). Source resid_post.{SOURCE} "
        f"there, target resid_post.{TARGET} at the end, d = {work.lm.anatomy.width}. Peak memory of the whole run "
        f"{machine.rss_mb('VmHWM'):,.0f} MB, interpreter, libraries, weights and torch's own way included."
    )
    text = "\n\n".join([head, *parts])
    print(text)
    if options.write:
        machine.write_section("jacobian" if set(asked) == set(PARTS) else "jacobian, again", text)


def exact(work: Work, rounds: int, loop: bool) -> str:
    """The matrices of two prompts beside torch's own over the plain model; the first prompt's is timed.

    loop: whether also by torch's plain loop of backward passes, a minute and more.
    """
    mine, batched = "`lm.jacobian(…).matrix()`", "`functional.jacobian(vectorize=True)`"
    jobs: dict[str, Callable[[], object]] = {
        mine: lambda: work.jacobian(prompts=1).matrix()[0],
        batched: lambda: by_torch(work, 0, False, True),
        "the same from the subject on, keys and values before it kept by hand": lambda: by_torch(work, 0, True, True),
    }
    if loop:
        jobs["`functional.jacobian`"] = lambda: by_torch(work, 0, False, False)
    work.jacobian(prompts=1)  # what is proved of a network once
    found, seconds = raced(jobs, rounds)
    reference = found["`functional.jacobian`" if loop else batched]
    pairs = [(found[mine], reference), (work.jacobian(prompts=2).matrix()[1], by_torch(work, 1, False, True))]
    errors = " and ".join(f"{relative(ours, theirs):.1e}" for ours, theirs in pairs)
    far = max(np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs)
    lines = [
        "### Beside torch.autograd.functional.jacobian\n\nOver the plain model with two bare hooks; attention by plain products "
        "where vectors go together, as torch's fused kernel has no rule for that. Relative error of two prompts' Jacobians "
        f"(Frobenius) {errors}; the largest difference of an entry is {far:.1e} of the largest entry. "
        f"Times of the first prompt, one round, {work.ids[0].shape[1]} tokens, {work.tokens[0]} from the subject on:\n",
        f"| method | s, median (range) | times repscope's, median (range) | relative difference to {'the last' if loop else 'the second'} |",  # noqa: E501
        "|---|---|---|---|",
    ]
    for name, t in seconds.items():
        ratio = spread([s / b for b, s in zip(seconds[mine], t)], ".1f")
        lines.append(f"| {name} | {spread(t, '.2f')} | {ratio}× | {relative(found[name], reference):.1e} |")
    return "\n".join(lines)


def floor(work: Work, rounds: int) -> str:
    block = sum(2 * i * o for i, o in work.shapes)
    needed = work.lm.anatomy.width * sum(work.tokens) * (TARGET - SOURCE) * block
    work.jacobian(prompts=1).matrix()
    shares, alone, times, made = [], [], [], []
    for turn in range(rounds):
        before = work.rate()
        started = time.perf_counter()
        jac = work.jacobian()
        made.append(time.perf_counter() - started)
        jac.matrix()
        times.append(time.perf_counter() - started)
        rate = max(before, work.rate())
        shares.append(needed / rate / times[-1])
        alone.append(needed / rate / (times[-1] - made[-1]))
        print(f"  floor {turn + 1}/{rounds}: {times[-1]:.2f} s, {shares[-1]:.0%}", file=sys.stderr, flush=True)
    whole = work.lm.anatomy.width * sum(i.shape[1] for i in work.ids) * (TARGET - SOURCE) * block
    return (
        f"### Floor\n\nAll {len(work.prompts)} matrices: {needed / 1e12:.2f} TFLOP in the linear maps of the {TARGET - SOURCE} "
        f"blocks between, {whole / needed:.1f} times that over whole prompts. Rate: the better of two, before and after.\n\n"
        "| | median (range) |\n|---|---|\n"
        f"| `lm.jacobian(…).matrix()`, s | {spread(times, '.2f')} |\n| of which making the passes, s | {spread(made, '.2f')} |\n"
        f"| of its floor | {spread([100 * s for s in shares], '.0f')} % |\n"
        f"| of its floor, products alone | {spread([100 * s for s in alone], '.0f')} % |"
    )


def sources(work: Work, rounds: int) -> str:
    count = min(2, len(work.prompts))
    widths: dict[str, float] = {}

    def every() -> object:
        found = work.jacobian("resid_post", count).matrix()
        widths["sources"] = len(found)
        return found

    jobs: dict[str, Callable[[], object]] = {
        f"{NEAR} → {TARGET}": lambda: work.jacobian(f"resid_post.{NEAR}", count).matrix(),
        f"all below → {TARGET}": every,
    }
    found, seconds = raced(jobs, rounds)
    pair, together = seconds.values()
    alone, all_of_them = found.values()
    same = relative(all_of_them[rs.Site.parse(f"resid_post.{NEAR}")], alone)
    return (
        f"### All source blocks at once\n\n{count} prompts, {widths['sources']:.0f} sources, each matrix kept. Block {NEAR}'s "
        f"differs from that of its own passes by {same:.1e}. Blocks to go back through: {TARGET} against {TARGET - NEAR}, "
        f"{TARGET / (TARGET - NEAR):.2f} to 1.\n\n"
        f"| | s, median (range) |\n|---|---|\n| {NEAR} → {TARGET} | {spread(pair, '.2f')} |\n"
        f"| all {widths['sources']:.0f} → {TARGET} | {spread(together, '.2f')} |\n"
        f"| ratio | {spread([t / p for p, t in zip(pair, together)], '.2f')} |"
    )


def krylov(work: Work, rounds: int) -> str:
    mean = work.jacobian().mean()
    jobs: dict[str, Callable[[], object]] = {
        "whole matrix, then all values": lambda: np.linalg.svd(mean.matrix(), compute_uv=False),
        "`mean().svd(16)`": lambda: mean.svd(VALUES),
    }
    found, seconds = raced(jobs, rounds)
    true, t = found.values()
    full, short = seconds.values()
    global _spectrum
    _spectrum = true
    errors = np.abs(t.s - true[:VALUES]) / true[:VALUES]
    return (
        f"### Leading {VALUES} singular values of the mean Jacobian\n\nThe graphs are there; the times are those of products. "
        f"Values {true[0]:.2f} … {true[VALUES - 1]:.2f}, the next {true[VALUES]:.2f}.\n\n| | |\n|---|---|\n"
        f"| products | {t.products} ({'' if t.converged else 'not '}converged) |\n"
        f"| largest relative error of a value | {errors.max():.1e} |\n"
        f"| the certificate's largest bound, relative | {(t.residual / t.s).max():.1e} |\n"
        f"| s, median (range) | {spread(short, '.2f')} |\n| whole matrix and its values, s | {spread(full, '.2f')} |\n"
        f"| faster by | {spread([f / s for f, s in zip(full, short)], '.1f')}× |"
    )


_spectrum: np.ndarray | None = None  #: the mean Jacobian's, once a part has measured it


def wide(work: Work, quick: bool) -> str:
    """Products at other widths: the iteration sees a spectrum only, so a diagonal matrix stands for any with its values."""
    measured = _spectrum if _spectrum is not None else singular(work.jacobian(prompts=1).matrix()[0])
    d = len(measured)
    lines = [
        "### At d = 2,048\n\nOf the measured spectrum: *stretched*, all of it interpolated to the width, so that leading values "
        "lie closer together; *longer tail*, the leading 32 as they are and the rest interpolated. Up to 192 products.\n",
        "| matrix | d | products | converged | largest relative error | largest bound, relative |",
        "|---|---|---|---|---|---|",
    ]
    for width in (d, 1024, 2048, 4096):
        stretched = np.interp(np.linspace(0, 1, width), np.linspace(0, 1, d), measured)
        tail = np.interp(np.linspace(0, 1, width - 32), np.linspace(0, 1, d - 32), measured[32:])
        for name, s in (("stretched", stretched), ("longer tail", np.concatenate([measured[:32], tail]))):
            t = leading(lambda v, s=s: v * s, lambda u, s=s: u * s, (width, width), VALUES)
            lines.append(row(name, width, t, s))
    torch.manual_seed(0)
    width = 512 if quick else 2048
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=3,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=1000,
    )
    lm = rs.LanguageModel(transformers.LlamaForCausalLM(config).eval(), work.lm.tokenizer, "random")
    jac = lm.jacobian([[5], [6], [7], [8]], "resid_post.0", "resid_post.2")
    true = singular(jac.mean().matrix())
    for most in (192, 384):
        t = jac.mean().svd(VALUES, products=most)
        lines.append(row(f"mean Jacobian, Llama of random weights, up to {most} products", width, t, true))
    ends = f"{true[0]:.3f}, {true[VALUES - 1]:.3f}, {true[width // 2]:.3f} and {true[-1]:.3f}"
    lines.append(f"\nThe random network's 1st, {VALUES}th, middle and last values: {ends}; two blocks, four prompts of one token.")
    return "\n".join(lines)


def row(name: str, d: int, t: Triplets, true: np.ndarray) -> str:
    error = (np.abs(t.s - true[:VALUES]) / true[:VALUES]).max()
    said = "yes" if t.converged else "no"
    return f"| {name} | {d:,} | {t.products} | {said} | {error:.1e} | {(t.residual / t.s).max():.1e} |"


def singular(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)


def relative(ours: object, theirs: object) -> float:
    return float(np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) / np.linalg.norm(np.asarray(theirs)))


def by_torch(work: Work, i: int, kept: bool, vectorize: bool) -> np.ndarray:
    """The Jacobian of a prompt from `torch.autograd.functional.jacobian` over the plain model with two hooks.

    kept: whether keys and values of the tokens before the subject's last come from a cache, so that only the rest is run.
    """
    module, ids, at = work.lm.module, work.ids[i], work.at[i]
    cache = None
    with plain(work.lm, "eager" if vectorize else "sdpa"):
        if kept:
            cache = transformers.DynamicCache(config=module.config)
            with torch.no_grad():
                module(input_ids=ids[:, :at], past_key_values=cache, use_cache=True)
            ids, at = ids[:, at:], 0

        def target(delta: Tensor) -> Tensor:
            seen: list[Tensor] = []

            def add(m: object, a: object, o: Tensor | tuple[Tensor, ...]) -> object:
                x = o if isinstance(o, Tensor) else o[0]
                moved = torch.cat([x[:, :at], x[:, at : at + 1] + delta, x[:, at + 1 :]], 1)
                return moved if isinstance(o, Tensor) else (moved, *o[1:])

            def read(m: object, a: object, o: Tensor | tuple[Tensor, ...]) -> None:
                seen.append((o if isinstance(o, Tensor) else o[0])[0, -1])
                raise Stop

            hooks = [module.layers[SOURCE].register_forward_hook(add), module.layers[TARGET].register_forward_hook(read)]
            try:
                module(input_ids=ids, past_key_values=cache, use_cache=cache is not None)
            except Stop:
                pass
            finally:
                for hook in hooks:
                    hook.remove()
            return seen[0]

        return functional.jacobian(target, torch.zeros(work.lm.anatomy.width), vectorize=vectorize).numpy()


class Stop(Exception):
    """The target has been read."""


@contextmanager
def plain(lm: rs.LanguageModel, attention: str) -> Iterator[None]:
    """The model with this attention and weights that need no gradient, and then as it was."""
    before = lm.model.config._attn_implementation
    needed = [p for p in lm.model.parameters() if p.requires_grad]
    lm.model.set_attn_implementation(attention)
    for p in needed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)
        for p in needed:
            p.requires_grad_(True)


def raced(jobs: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, object], dict[str, list[float]]]:
    """What each job gave and its seconds, round by round, in an order that rotates."""
    gave: dict[str, object] = {}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds):
        names = list(jobs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            gave[name] = jobs[name]()
            seconds[name].append(time.perf_counter() - started)
            print(f"  round {turn + 1}/{rounds}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: gave[name] for name in jobs}, seconds


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
