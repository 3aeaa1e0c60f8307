"""Linear relational embeddings beside `linear-relational` 0.6.2: is W right, and what does it cost?

Five few-shot prompts of a relation, each with the other four as examples. W is the mean Jacobian from resid_post.12 at the
subject's last token to the last block's output where the answer is about to come.

1. linear-relational as it is, on the newest transformers that it admits, in an environment of its own (.venv-relations). Its two
   passes over one prompt share a cache, which the first has filled by the time the second reads it.
2. The same, every pass with a cache of its own (a hook of this script; the package stays as it is): what it means to compute.
3. repscope: that pair of layers; all subject layers at once; these with every β, subject and rank.
4. The reference, made once: torch.autograd over the plain model, whole prompts, no cache.

Every method runs in a fresh process each round, in rotating order, from the same texts; token ids and the subject's place must be
equal. Times begin with the model loaded and one plain forward pass made; for repscope they include what it proves of a network
once. Ratios are paired within a round.

    python benchmarks/relations.py --write    # about half an hour on two idle cores; --quick: two prompts, one round
"""

import argparse
import copy
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
PEER = HERE.parent / ".venv-relations" / "bin" / "python"
PEER_PACKAGES = ("linear-relational", "torch", "transformers")
RELATIONS = ("city-country", "country-capital")
SOURCE, TARGET = 12, 29
SUBJECTS = 20  #: that the sweep predicts for
BETAS = tuple(np.linspace(0.25, 5, 20).tolist())
Task = dict[
    str, Any
]  #: model, threads, source, target, relation, pairs, prompts (text, subject, end, object), subjects
Found = dict[str, Any]  #: cpu, wall, loaded, peak, ids, at and what a method adds; weight


# --- The peer: nothing here may need repscope --------------------------------------------------------------------------


def peer_as_is(task: Task) -> Found:
    return by_peer(task, patched=False)


def peer_patched(task: Task) -> Found:
    return by_peer(task, patched=True)


def by_peer(task: Task, patched: bool) -> Found:
    from linear_relational import Prompt, Trainer
    from linear_relational.lib.token_utils import find_final_word_token_index, find_prompt_answer_data

    model, tokenizer = peer_model(Path(task["model"]))
    if patched:
        model.register_forward_pre_hook(own_cache, with_kwargs=True)
    prompts = [Prompt(text=p["text"], answer=p["object"], subject=p["subject"]) for p in task["prompts"]]
    ids = []
    for prompt in prompts:
        read = find_prompt_answer_data(tokenizer, prompt.text, prompt.answer)
        ids.append(tokenizer(read.full_prompt)["input_ids"][: read.output_answer_token_indices[0] + 1])
    at = [find_final_word_token_index(tokenizer, p.text, p.subject) for p in prompts]
    trainer = Trainer(model, tokenizer)
    with torch.no_grad():
        model(input_ids=torch.tensor(ids[:1]))
    found = timed(
        lambda: trainer.train_lre(
            task["relation"], task["source"], task["target"], prompts, object_aggregation="first_token",
            validate_prompts=False, verbose=False,
        )
    )  # fmt: skip
    said = f"Python {platform.python_version()}, " + ", ".join(f"{n} {metadata.version(n)}" for n in PEER_PACKAGES)
    return found | {"weight": found.pop("made").weight.numpy(), "ids": ids, "at": at, "versions": said}


def peer_model(path: Path) -> tuple[Any, Any]:
    """The same weights and tokenizer in transformers 4.

    transformers 5 wrote the folder. Version 4 does not know its class of tokenizers, and reads past `rope_parameters`: it would
    take θ = 10,000 without a word.
    """
    import transformers

    config = json.loads((path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    assert rope["rope_type"] == "default", "no other is translated here"
    named = json.loads((path / "tokenizer_config.json").read_text())
    special = {k: named[k] for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    model = transformers.LlamaForCausalLM.from_pretrained(
        path, config=transformers.LlamaConfig(**config, rope_theta=rope["rope_theta"]), dtype=torch.float32
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), **special)
    return model.eval(), tokenizer


def own_cache(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before a pass: a copy of the cache, so that the pass does not write into one that the next will read."""
    return args, kwargs | {"past_key_values": copy.deepcopy(kwargs.get("past_key_values"))}


def timed(job: Callable[[], object]) -> Found:
    loaded = machine.rss_mb()
    wall, cpu = time.perf_counter(), time.process_time()
    made = job()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "loaded": loaded, "peak": machine.rss_mb("VmHWM"), "made": made}


# --- repscope and the reference ----------------------------------------------------------------------------------------


def one_layer(task: Task) -> Found:
    return by_repscope(task, [f"resid_post.{task['source']}"], task["target"] - task["source"], sweep=False)


def all_layers(task: Task) -> Found:
    return by_repscope(task, None, task["target"] + 1, sweep=False)


def full_sweep(task: Task) -> Found:
    return by_repscope(task, None, 0, sweep=True)


def by_repscope(task: Task, sites: list[str] | None, blocks: int, sweep: bool) -> Found:
    """blocks: between the lowest source and the target, for the floor; 0 where there is none."""
    import repscope as rs
    from repscope.models.prompts import encode
    from repscope.models.sites import Tokens
    from repscope.read.concepts import RANKS
    from repscope.read.lre import best_beta

    lm = rs.load(task["model"])
    relation = rs.relation(task["relation"])
    pairs = [tuple(p) for p in task["pairs"]]
    names, objects = [s for s, _ in task["subjects"]], [o for _, o in task["subjects"]]
    prompts = questions(relation, pairs)
    texts = [p["text"] for p in task["prompts"]]
    assert texts == [p.text for p in prompts], "the texts have changed on the way"
    ids = [list(map(int, row)) for row in encode(lm.tokenizer, prompts, Tokens.parse("last")).ids]
    at = [last_of_subject(lm.tokenizer, p["text"], p["end"]) for p in task["prompts"]]

    def work() -> Any:
        fit = rs.read.lre(lm, relation, examples=pairs, sites=sites)
        assert [fit.spelt.prompt(s, [p for p in pairs if p[0] != s]).text for s, _ in pairs] == texts
        if sweep:
            held = fit.subjects(lm, names)
            for site, layer in fit.items():
                best_beta(lm, layer, held[site], objects, BETAS)
                for rank in RANKS:
                    layer.inverse(rank)
        return fit

    with torch.no_grad():
        lm.model(input_ids=torch.tensor(ids[:1]))
    shapes = machine.linear_shapes(lm.module.layers[0])
    rate = machine.sgemm_rate(shapes, repeats=30)
    found = timed(work)
    rate = max(rate, machine.sgemm_rate(shapes, repeats=30))
    fit = found.pop("made")
    tokens = [len(row) - i for row, i in zip(ids, at)]
    block = sum(2 * i * o for i, o in shapes)
    return found | {
        "weight": fit[f"resid_post.{task['source']}"].weight, "ids": ids, "at": at, "rate": rate, "layers": len(fit),
        "floor": lm.anatomy.width * sum(tokens) * blocks * block / rate, "ranks": len(RANKS),
    }  # fmt: skip


def reference(task: Task) -> Found:
    """The mean Jacobian from torch's autograd over the plain model: whole prompts, no cache, attention by plain products."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        task["model"], dtype=torch.float32, attn_implementation="eager"
    )
    model.eval().requires_grad_(False)
    ids, at, matrices = [], [], []
    for prompt in task["prompts"]:
        ids.append(tokenizer(prompt["text"])["input_ids"])
        at.append(last_of_subject(tokenizer, prompt["text"], prompt["end"]))
        matrices.append(by_autograd(model, torch.tensor([ids[-1]]), at[-1], task["source"], task["target"]))
    return {"weight": np.mean(matrices, 0), "ids": ids, "at": at}


def by_autograd(model: Any, ids: torch.Tensor, at: int, source: int, target: int) -> np.ndarray:
    """∂ (output of block `target` at the end) / ∂ (output of block `source` at a token)."""
    seen: dict[str, torch.Tensor] = {}

    def moved(delta: torch.Tensor) -> torch.Tensor:
        def add(module: object, args: object, out: Any) -> Any:
            x = (out if isinstance(out, torch.Tensor) else out[0]).clone()
            x[0, at] = x[0, at] + delta
            return x if isinstance(out, torch.Tensor) else (x, *out[1:])

        def read(module: object, args: object, out: Any) -> None:
            seen["end"] = (out if isinstance(out, torch.Tensor) else out[0])[0, -1]

        layers = model.model.layers
        hooks = [layers[source].register_forward_hook(add), layers[target].register_forward_hook(read)]
        try:
            model.model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return seen["end"]

    width = model.config.hidden_size
    return torch.autograd.functional.jacobian(moved, torch.zeros(width), vectorize=True).numpy()


def last_of_subject(tokenizer: Any, text: str, end: int) -> int:
    """The token that holds the subject's last character."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (first, stop) in enumerate(offsets) if first < end and stop > first)


def questions(relation: Any, pairs: list[Any]) -> list[Any]:
    """Each pair's question after the other pairs."""
    return [relation.prompt(s, [p for p in pairs if p[0] != s]) for s, _ in pairs]


# --- The table ---------------------------------------------------------------------------------------------------------

AS_IS, PATCHED, ONE, ALL, SWEEP = "peer_as_is", "peer_patched", "one_layer", "all_layers", "full_sweep"
METHODS: dict[str, Callable[[Task], Found]] = {
    AS_IS: peer_as_is, PATCHED: peer_patched, ONE: one_layer, ALL: all_layers, SWEEP: full_sweep, "reference": reference,
}  # fmt: skip
TIMED = (AS_IS, PATCHED, ONE, ALL, SWEEP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="torch threads of every method")
    parser.add_argument("--only", default=",".join(RELATIONS), help="relations, comma-separated")
    parser.add_argument("--quick", action="store_true", help="two prompts, one round")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "TASK", "ARRAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    asked = options.only.split(",")
    if unknown := set(asked) - set(RELATIONS):
        parser.error(f"there is no relation {', '.join(unknown)} here; there are {', '.join(RELATIONS)}")
    if options.write and options.quick:
        parser.error("--write takes a real run: without --quick")
    if not PEER.exists():
        parser.error(f"{PEER} is not there; the first lines of requirements-relations.txt say how to make it")
    rounds = 1 if options.quick else options.rounds
    folder, count = model_folder(), 2 if options.quick else 5
    tasks = [task_of(name, folder, count, options.threads) for name in RELATIONS if name in asked]
    runs = [measured(task, rounds) for task in tasks]
    rates = [f["rate"] for run in runs for name in (ONE, ALL, SWEEP) for f in run[name]]
    head = (
        f"## Linear relational embeddings\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}, {rounds} rounds. "
        f"{machine.describe()}. repscope's side and the reference: {machine.versions(('torch', 'transformers', 'repscope'))}. "
        f"The peer's: {runs[0][PATCHED][0]['versions']}. Model {Path(tasks[0]['model']).name}, float32, {options.threads} "
        f"threads; sgemm at its shapes {min(rates) / 1e9:.0f}–{max(rates) / 1e9:.0f} GFLOP/s in this run.\n\n"
        "W is the mean Jacobian of the prompts named below, each with the others as examples, from the subject's last token to "
        f"the prompt's last at resid_post.{TARGET}. Each method in a fresh process each round; times are of the fit alone, model "
        "loaded. Token ids and subjects' places were equal on all sides. *Cache patched*: every pass of the peer gets a copy of "
        "its cache (it gives one cache to two passes, and transformers of today write into it). The peer stands on torch's "
        "fused attention, as it comes. Peak memory: interpreter, libraries and weights included, in brackets what was there "
        "before the fit."
    )
    text = "\n\n".join([head, *(table(task, run) for task, run in zip(tasks, runs))])
    print(text)
    if options.write:
        machine.write_section("relations" if set(asked) == set(RELATIONS) else "relations, again", text)


def child(method: str, task_path: str, array_path: str) -> None:
    """Run one method; W goes to a file, the figures are the last line printed."""
    task = json.loads(Path(task_path).read_text())
    torch.set_num_threads(task["threads"])
    found = METHODS[method](task)
    np.save(array_path, found.pop("weight"))
    print(json.dumps(found))


def model_folder() -> Path:
    """Where the default model lies; made from its file when it is not there yet."""
    import repscope as rs

    path = rs.load().source.path
    assert path is not None
    return path


def task_of(name: str, folder: Path, count: int, threads: int) -> Task:
    """The first samples of different objects, and the next ones for the sweep to predict."""
    import repscope as rs

    relation = rs.relation(name)
    by_object = {o: (s, o) for s, o in reversed(relation.samples)}
    pairs = [p for p in relation.samples if p in by_object.values()][:count]
    subjects = [p for p in relation.samples if p not in pairs][:SUBJECTS]
    prompts = [
        {"text": p.text, "subject": s, "end": p.spans["subject"][1], "object": o}
        for p, (s, o) in zip(questions(relation, pairs), pairs)
    ]
    return {
        "model": str(folder), "threads": threads, "source": SOURCE, "target": TARGET, "relation": name, "pairs": pairs,
        "prompts": prompts, "subjects": subjects,
    }  # fmt: skip


def measured(task: Task, rounds: int) -> dict[str, list[Found]]:
    """What every method found, round by round; "reference" once."""
    runs: dict[str, list[Found]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "task.json").write_text(json.dumps(task))
        runs["reference"] = [in_child("reference", Path(folder), task)]
        for turn in range(rounds):
            first = turn % len(TIMED)
            for name in TIMED[first:] + TIMED[:first]:
                found = in_child(name, Path(folder), task)
                for what in ("ids", "at"):
                    if found[what] != runs["reference"][0][what]:
                        sys.exit(
                            f"{name} has other {what} than the reference: the two sides do not see the same prompts."
                        )
                runs[name].append(found)
                said = f"{found['cpu']:.2f} CPU s, {found['wall']:.2f} s"
                print(f"  {task['relation']} {turn + 1}/{rounds}: {name} {said}", file=sys.stderr, flush=True)
    return runs


def in_child(method: str, folder: Path, task: Task) -> Found:
    python = str(PEER) if method in (AS_IS, PATCHED) else sys.executable
    array = folder / "weight.npy"
    done = subprocess.run(
        [python, __file__, "--child", method, str(folder / "task.json"), str(array)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(task["threads"]), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{method} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"weight": np.load(array)}


def table(task: Task, runs: dict[str, list[Found]]) -> str:
    true, sample = runs["reference"][0], runs[SWEEP][0]
    tokens = [len(ids) - at for ids, at in zip(true["ids"], true["at"])]
    pair, layers = f"{SOURCE} → {TARGET}", TARGET
    names = {
        AS_IS: f"linear-relational 0.6.2 as it is, {pair}",
        PATCHED: f"the same, cache patched, {pair}",
        ONE: f"**repscope**, {pair} alone",
        ALL: f"**repscope**, all {sample['layers']} subject layers (embed, resid_post.0–{layers - 1}) at once",
        SWEEP: f"**repscope**, full sweep: those layers × {len(BETAS)} β on {len(task['subjects'])} subjects × "
        f"{sample['ranks']} ranks of W†. Beside it {layers} × the patched peer's pair, *extrapolated*, without β and ranks",
    }
    lines = [
        f"### {task['relation']}\n\n{len(tokens)} prompts ({', '.join(s for s, _ in task['pairs'])}) of "
        f"{min(map(len, true['ids']))}–{max(map(len, true['ids']))} tokens, {min(tokens)}–{max(tokens)} of them from the "
        f"subject's last on ({sum(tokens)} together).\n",
        "| method | CPU s, median (range) | wall s, median (range) | faster than the patched peer, CPU | … wall | of its floor "
        f"| peak RSS MB (loaded) | W of {pair}: cosine | relative error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in TIMED:
        found = runs[name]
        times = layers if name == SWEEP else 1
        ratios = [spread([times * p[c] / f[c] for p, f in zip(runs[PATCHED], found)], ".2f") for c in ("cpu", "wall")]
        share = spread([100 * f["floor"] / f["wall"] for f in found], ".0f") + " %" if found[0].get("floor") else "–"
        peak = f"{max(f['peak'] for f in found):,.0f} ({statistics.median(f['loaded'] for f in found):,.0f})"
        worst = max(found, key=lambda f: relative(f["weight"], true["weight"]))["weight"]
        cells = [
            names[name], *(spread([f[c] for f in found], ".2f") for c in ("cpu", "wall")), *(f"{r}×" for r in ratios),
            share, peak, f"{cosine(worst, true['weight']):.6f}", f"{relative(worst, true['weight']):.1e}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours * theirs).sum() / (np.linalg.norm(ours) * np.linalg.norm(theirs)))


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
