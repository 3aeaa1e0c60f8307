"""Linear relational embeddings beside `linear-relational`, in its own environment (.venv-relations: see the Makefile).

    python benchmarks/relations.py [--rounds 3] [--relation city-country] [--quick] [--write]

The same five prompts, each with the other four as examples; the peer's one pair of layers (block 12 to 29), as it is and with its
cache copied before each forward, against repscope's same pair, all subject layers at once, and a sweep over layers, ranks and β.
Each job is a process of its own (two torch threads); times are of the job alone, rounds interleave.
"""

import argparse
import copy
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".venv-relations" / "bin" / "python"
SOURCE, TARGET = 12, 29
RANKS, BETAS = (4, 8, 16, 32, 64, 128), tuple(np.linspace(0.5, 5, 20))
JOBS = {
    "peer": "`linear-relational`, L12 → 29",
    "patched": "the same, cache copied",
    "one": "**repscope**, L12 → 29",
    "all": "**repscope**, embedding and 29 layers → 29",
    "sweep": "**repscope**, the same, and 29 layers × 6 ranks × 20 β of it",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--relation", action="append", help="built-in relations; city-country and country-capital")
    parser.add_argument("--quick", action="store_true", help="two prompts, one round")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.child:
        return child(options.child[0], Path(options.child[1]))
    if options.write and options.quick:
        parser.error("--write takes a real run: without --quick")
    if not PEER.exists():
        parser.error(f"{PEER} is missing; `make bench` makes that environment")
    rounds = 1 if options.quick else options.rounds
    parts = [measured(name, rounds, options.quick) for name in options.relation or ("city-country", "country-capital")]
    head = (
        f"## Relations\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}, {rounds} rounds. {machine.describe()}. "
        f"{machine.versions(('torch', 'transformers', 'repscope'))}; the peer: linear-relational 0.6.2 with transformers 4.57.6. "
        "SmolLM2-135M-Instruct, float32, two threads; each job a process of its own, times without loading. Peak memory is of the "
        "process, weights and libraries included. Error: of W (block 12 → 29), Frobenius, against "
        "`torch.autograd.functional.jacobian` over whole prompts without a cache."
    )
    text = "\n\n".join([head, *parts])
    print(text)
    if options.write:
        machine.write_section("relations", text)


def measured(name: str, rounds: int, quick: bool) -> str:
    """One relation's table."""
    import repscope as rs

    lm = rs.load()
    relation = rs.relation(name)
    seen: set[str] = set()
    pairs = [p for p in relation.samples if not (p[1] in seen or seen.add(p[1]))][: 2 if quick else 5]
    prompts = [relation.prompt(s, [p for p in pairs if p[0] != s]) for s, _ in pairs]
    weight, after = reference(lm, prompts)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "work.json").write_text(
            json.dumps(
                {
                    "relation": name,
                    "path": str(lm.source.path),
                    "pairs": pairs,
                    "texts": [p.text for p in prompts],
                    "theta": float(lm.model.config.rope_parameters["rope_theta"]),
                }
            )
        )
        found: dict[str, list[dict[str, float]]] = {job: [] for job in JOBS}
        errors: dict[str, tuple[float, float]] = {}
        rates = []
        for turn in range(rounds):
            for job in JOBS:
                python = str(PEER) if job in ("peer", "patched") else sys.executable
                rates.append(machine.sgemm_rate(machine.linear_shapes(lm.module.layers[0]), repeats=30))
                done = subprocess.run([python, __file__, "--child", job, folder], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{job} failed:\n{done.stderr[-3000:]}")
                found[job].append(json.loads(done.stdout.strip().splitlines()[-1]))
                if job != "sweep" and turn == 0:
                    theirs = np.load(Path(folder) / f"{job}.npy").astype(np.float64)
                    cosine = float((theirs * weight).sum() / np.linalg.norm(theirs) / np.linalg.norm(weight))
                    errors[job] = cosine, float(np.linalg.norm(theirs - weight) / np.linalg.norm(weight))
                print(f"  {name} {turn + 1}/{rounds} {job}: {found[job][-1]}", file=sys.stderr, flush=True)
    shapes = machine.linear_shapes(lm.module.layers[0])
    block, width = sum(2 * i * o for i, o in shapes), lm.anatomy.width
    floors = {job: width * sum(after) * blocks * block / max(rates) for job, blocks in (("one", 17), ("all", 30), ("sweep", 30))}
    lines = [
        f"### {name}\n\n{len(pairs)} prompts of {min(len(lm.tokens(p.text)) for p in prompts)}–"
        f"{max(len(lm.tokens(p.text)) for p in prompts)} tokens, {sum(after)} of them from the subjects' last on. sgemm "
        f"{min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f} GFLOP/s in this run; floor: {width} products × these tokens × blocks "
        "between, at the best rate.\n",
        "| | CPU s, median (range) | wall s | CPU × the patched peer | of the floor | peak MB | cosine of W | error of W |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for job, title in JOBS.items():
        cpu, wall = ([r[k] for r in found[job]] for k in ("cpu", "wall"))
        ratio = [a["cpu"] / b["cpu"] for a, b in zip(found[job], found["patched"])]
        share = f"{100 * floors[job] / statistics.median(wall):.0f} %" if job in floors else ""
        cosine, error = errors.get(job, (float("nan"), float("nan")))
        quality = f"{cosine:.4f} | {error:.1e}" if job in errors else " | "
        lines.append(
            f"| {title} | {spread(cpu)} | {spread(wall)} | {spread(ratio, '.2f')} | {share} | "
            f"{max(r['peak'] for r in found[job]):,.0f} | {quality} |"
        )
    whole = [29 * a["cpu"] / b["cpu"] for a, b in zip(found["patched"], found["sweep"])]
    lines.append(
        f"\nThe sweep against looping the peer over 29 layers (its one pair × 29, extrapolated, without ranks and β): "
        f"{spread(whole, '.0f')} × in CPU time."
    )
    return "\n".join(lines)


def reference(lm, prompts) -> tuple[np.ndarray, list[int]]:
    """The mean Jacobian by torch over each whole prompt, no cache, plain hooks; and tokens from the subject on."""
    total, after = 0.0, []
    model = copy.deepcopy(lm.model)
    model.set_attn_implementation("eager")
    for prompt in prompts:
        held = lm.tokenizer(prompt.text, return_tensors="pt", return_offsets_mapping=True)
        end = prompt.spans["subject"][1]
        at = max(i for i, (a, b) in enumerate(held["offset_mapping"][0].tolist()) if a < end and b > a)
        after.append(held["input_ids"].shape[1] - at)
        seen: dict[str, torch.Tensor] = {}

        def of(x: torch.Tensor | None, at: int = at, ids: torch.Tensor = held["input_ids"], seen: dict = seen) -> torch.Tensor:
            def put(module, inputs, output):
                value = output[0] if isinstance(output, tuple) else output
                seen["s"] = value[0, at].detach()
                if x is None:
                    return output
                new = value.clone()
                new[0, at] = x
                return (new, *output[1:]) if isinstance(output, tuple) else new

            def keep(module, inputs, output):
                seen["o"] = (output[0] if isinstance(output, tuple) else output)[0, -1]

            hooks = [model.model.layers[SOURCE].register_forward_hook(put), model.model.layers[TARGET].register_forward_hook(keep)]
            model.model(input_ids=ids, use_cache=False)
            for hook in hooks:
                hook.remove()
            return seen["o"]

        with torch.no_grad():
            of(None)
        point = seen["s"].clone()
        total = total + torch.autograd.functional.jacobian(of, point, vectorize=True).double().numpy() / len(prompts)
    return total, after


def child(job: str, folder: Path) -> None:
    """One job in a process of its own: CPU and wall seconds and peak memory to stdout, W to a file."""
    work = json.loads((folder / "work.json").read_text())
    run = by_peer if job in ("peer", "patched") else by_repscope
    go = run(job, work)
    cpu, wall = time.process_time(), time.perf_counter()
    weight = go()
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "peak": machine.rss_mb("VmHWM")}
    np.save(folder / f"{job}.npy", weight)
    print(json.dumps(spent))


def by_peer(job: str, work: dict):
    import transformers
    from linear_relational import Prompt
    from linear_relational.training.train_lre import train_lre

    path = Path(work["path"])
    # Its transformers reads the base of the rotary embedding under its old name only.
    config = transformers.AutoConfig.from_pretrained(path, rope_theta=work["theta"])
    model = transformers.AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), pad_token="<|im_end|>")
    if job == "patched":
        forward = model.forward

        def copied(*args, past_key_values=None, **kwargs):
            return forward(*args, past_key_values=copy.deepcopy(past_key_values), **kwargs)

        model.forward = copied
    prompts = [Prompt(text, o, subject=s) for text, (s, o) in zip(work["texts"], work["pairs"])]
    return lambda: train_lre(
        model, tokenizer, "model.layers.{num}", work["relation"], SOURCE, TARGET, prompts, "first_token"
    ).weight.numpy()


def by_repscope(job: str, work: dict):
    import repscope as rs

    lm = rs.load(work["path"])
    relation = rs.relation(work["relation"])
    pairs = [tuple(p) for p in work["pairs"]]
    sites = [f"resid_post.{SOURCE}"] if job == "one" else None

    def go() -> np.ndarray:
        fits = rs.read.lre(lm, relation, examples=pairs, sites=sites)
        if job == "sweep":
            held = fits.subjects(lm, [s for s, _ in pairs])
            for site, fit in fits.items():
                if site != "embed":
                    lm.unembed(np.concatenate([fit(held[site], float(beta)) for beta in BETAS]))
                    for rank in RANKS:
                        fit.inverse(rank)
        return fits[f"resid_post.{SOURCE}"].weight

    return go


def spread(values: list[float], form: str = ".1f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
