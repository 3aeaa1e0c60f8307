"""Generation beside transformers' `generate` as users write it, on the same prompts in one run.

1. Unequal: 16 prompts of 4 to 64 tokens; equal: 16 prompts of 24 tokens; both continued greedily. transformers gets a batch padded
   on the left with a mask. The texts must be the same.
2. Edited: the unequal prompts with a vector added to a block's output, by a bare hook and by `lm.edit`. The texts must be the same.
3. Continuations: 16 sampled continuations of one prompt of 100 tokens, beside `num_return_sequences=16`. There the texts differ by
   their random numbers; repscope's must be those that it samples by transformers' `generate` with the same random streams.
4. Floor: the linear maps of all new tokens, one step at a time at the rows of a step, and those of the distinct prompts' tokens, as
   bare matrix products in the same run.

Rounds rotate; the table gives the median and the range, ratios are paired within a round. On one thread, times are of the
processor, which another job on the machine disturbs less than those of the clock.

    python benchmarks/generation.py --write       # about five minutes on two idle cores
"""

import argparse
import datetime
import time
from pydoc_data.topics import topics

import machine
import numpy as np
import torch
from edits import raced, spread
from torch import Tensor, nn

import repscope as rs
from repscope.models.engine import generating_network

ROWS, NEW_TOKENS, BLOCK, SCALE = 16, 16, 10, 6.0
CLOCK = [time.perf_counter]


def prompts_of(lm: rs.LanguageModel, lengths: list[int]) -> list[list[int]]:
    """Beginnings of articles of Python's documentation, as token ids; each is what the tokenizer makes of its own text."""
    found, articles = [], iter(sorted(topics))
    for length in lengths:
        while len(ids := lm.tokenizer(" ".join(topics[next(articles)].split()))["input_ids"]) < length:
            pass
        found.append(ids[:length])
    return found


def padded(lm: rs.LanguageModel, prompts: list[list[int]]) -> dict[str, Tensor]:
    """A batch padded on the left, as the tokenizer makes it of texts."""
    lm.tokenizer.padding_side = "left"
    return lm.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")


def theirs(lm: rs.LanguageModel, batch: dict[str, Tensor], **options: object) -> list[str]:
    with torch.no_grad():
        out = lm.model.generate(**batch, max_new_tokens=NEW_TOKENS, **options)
    return lm.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def ours(lm: rs.LanguageModel, prompts: list[list[int]], **options: float) -> list[str]:
    return [c.text for c in lm.generate(prompts, NEW_TOKENS, **options)]


def floor(lm: rs.LanguageModel, tokens: int, rows: int, steps: int) -> float:
    """Seconds of the bare products of `tokens` of prompts and of `steps` steps of so many rows, heads of the latter included."""
    linear = [m.weight for m in lm.module.layers.modules() if isinstance(m, nn.Linear)]
    head = lm.model.get_output_embeddings().weight

    def run() -> None:
        for n, maps, times in ((tokens, linear, 1), (rows, [*linear, head], steps)):
            xs = {w.shape[1]: torch.randn(n, w.shape[1]) for w in maps}
            for _ in range(times):
                for w in maps:
                    xs[w.shape[1]] @ w.T

    with torch.no_grad():
        _, seconds = raced({"floor": run}, 3, clock=CLOCK[0])
    return float(np.median(seconds["floor"]))


def table(name: str, jobs: dict, rounds: int, base: str) -> tuple[str, dict[str, list[str]]]:
    texts, seconds = raced(jobs, rounds, clock=CLOCK[0])
    lines = ["| method | s, median (range) | speed of the first, median (range) |", "|---|---|---|"]
    lines += [
        f"| {k} | {spread(t, '.2f')} | {spread([b / s for b, s in zip(seconds[base], t)], '.2f')}× |" for k, t in seconds.items()
    ]
    return f"### {name}\n\n" + "{said}\n\n" + "\n".join(lines), texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="unequal,equal,edited,continuations", help="parts, comma-separated")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    if o.threads == 1:
        CLOCK[0] = time.process_time
    lm = rs.load()
    parts, asked = [], o.only.split(",")
    unequal = prompts_of(lm, [int(n) for n in np.linspace(4, 64, ROWS)])
    equal = prompts_of(lm, [24] * ROWS)
    peer, own = "transformers `generate`", "`lm.generate`"
    for name, prompts in (("unequal", unequal), ("equal", equal)):
        if name not in asked:
            continue
        batch = padded(lm, prompts)
        jobs = {peer: lambda: theirs(lm, batch, do_sample=False), own: lambda: ours(lm, prompts)}  # noqa: B023
        text, made = table(f"{ROWS} prompts of {name} length", jobs, o.rounds, peer)
        lengths = [len(p) for p in prompts]
        said = f"{min(lengths)} to {max(lengths)} tokens, {sum(lengths)} together, {batch['input_ids'].numel()} padded; " + (
            f"{NEW_TOKENS} new tokens, greedy. Texts are {same(made[peer], made[own])}. "
            f"Floor: {floor(lm, sum(lengths), ROWS, NEW_TOKENS - 1):.2f} s."
        )
        parts.append(text.format(said=said))
    if "edited" in asked:
        parts.append(edited(lm, unequal, o.rounds))
    if "continuations" in asked:
        parts.append(continuations(lm, o.rounds))
    head = (
        f"## Generation\n\n`python benchmarks/generation.py --threads {o.threads} --rounds {o.rounds} --write`, "
        f"{datetime.date.today()}. {machine.describe()}. {machine.versions(('torch', 'transformers', 'repscope'))}. "
        f"Model {lm.name}, float32, {o.threads} thread(s){', seconds of the processor' if o.threads == 1 else ''}."
    )
    text = "\n\n".join([head, *parts])
    print(text)
    if o.write:
        machine.write_section("generation", text)


def same(a: list[str], b: list[str]) -> str:
    differing = sum(x != y for x, y in zip(a, b, strict=True))
    return "the same" if not differing else f"NOT the same in {differing} of {len(a)} rows"


def edited(lm: rs.LanguageModel, prompts: list[list[int]], rounds: int) -> str:
    direction = nn.functional.normalize(torch.randn(lm.anatomy.width, generator=torch.Generator().manual_seed(0)), dim=0)
    vector, batch = SCALE * direction, padded(lm, prompts)

    def hooked() -> list[str]:
        handle = lm.module.layers[BLOCK].register_forward_hook(
            lambda m, a, o: o + vector if isinstance(o, Tensor) else (o[0] + vector, *o[1:])
        )
        try:
            return theirs(lm, batch, do_sample=False)
        finally:
            handle.remove()

    def steered() -> list[str]:
        with lm.edit(rs.Edit.add(f"resid_post.{BLOCK}", vector)):
            return ours(lm, prompts)

    plain, bare, own = "`lm.generate`", "transformers `generate` with a bare hook", "`lm.generate` in `lm.edit`"
    ours(lm, prompts)  # so that what is proved without edits is proved
    started = CLOCK[0]()
    steered()
    first = CLOCK[0]() - started
    text, made = table("With an edit", {plain: lambda: ours(lm, prompts), own: steered, bare: hooked}, rounds, plain)
    moved = sum(a != b for a, b in zip(made[plain], made[own]))
    said = (
        f"The prompts of unequal length; a vector of norm {SCALE:g} is added at resid_post.{BLOCK}, all tokens, and changes "
        f"{moved} of {len(prompts)} texts. That it changes a logit is checked within the time, in each call. The first edited call "
        f"of the process, with the proof of edits of this kind, took {first:.2f} s. Edited and hooked texts are "
        f"{same(made[bare], made[own])}."
    )
    return text.format(said=said)


def continuations(lm: rs.LanguageModel, rounds: int) -> str:
    prompt = prompts_of(lm, [100])[0]
    batch, many = padded(lm, [prompt]), [prompt] * ROWS

    def by_transformers() -> list[str]:
        ways, generating_network.WAYS = generating_network.WAYS, generating_network.WAYS[1:]
        try:
            return ours(lm, many, temperature=1.0)
        finally:
            generating_network.WAYS = ways

    peer, own = "transformers `generate`, `num_return_sequences`", "`lm.generate`, the prompt 16 times"
    jobs = {
        peer: lambda: theirs(lm, batch, do_sample=True, top_k=0, num_return_sequences=ROWS),
        own: lambda: ours(lm, many, temperature=1.0),
    }
    text, made = table(f"{ROWS} continuations of one prompt", jobs, rounds, peer)
    alike = same(made[own], by_transformers())
    said = (
        f"{len(prompt)} tokens; {NEW_TOKENS} new tokens, sampled at temperature 1. repscope's texts are {alike} "
        f"as by transformers' `generate` with the same random streams. Floor: {floor(lm, len(prompt), ROWS, NEW_TOKENS - 1):.2f} s."
    )
    return text.format(said=said)


if __name__ == "__main__":
    main()
