"""Training of TopK autoencoders: rows per CPU-second compared with SAELens and dictionary_learning, memory, and equal losses.

d = 576, 9,216 latents, k = 32, batches of 4,096 rows (rank 64 plus noise), float32, one thread. Every job is a process of its own,
and the jobs take turns. A job: the sgemm rate of one encoder product (rows × d × latents), some steps of training, the same sgemm
again.

1. SAELens 6.54.12: `TopKTrainingSAE` and `SAETrainer.step`, its defaults (latents in units of the decoder's norm, clipping, dead
   latents counted, auxiliary loss).
2. dictionary_learning 0.1.0: `TopKTrainer.update`, its defaults (unit decoder rows, gradient along them removed, clipping, dead
latents
   counted, auxiliary loss). Its unused imports (nnsight, wandb) are replaced by empty modules.
3. repscope, as each of the two, from the peer's own initial weights on the same batches: losses of equal steps are compared.

The roofline is one product of rows and encoder, which selection cannot avoid. Seconds are CPU seconds of the process, of the
fastest step and of the fastest product: other work on the machine only adds. Memory is the
highest resident size in training minus that before the trainer was made.

    make bench runs it; alone: python benchmarks/sae_training.py --peers .venv-sae/bin/python --write
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import machine
import torch
from safetensors.torch import load_file, save_file

D, LATENTS, K, ROWS, RATE = 576, 9216, 32, 4096, 3e-4
RESULTS = Path(__file__).with_name("RESULTS-features.md")
PEERS = {"SAELens 6.54.12": "saelens", "dictionary_learning 0.1.0": "dictionary_learning"}
TARGETS = {"saelens": 5.0, "dictionary_learning": 4.5}
Step = Callable[[torch.Tensor], float]


def data() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, D, generator=generator) / 8
    return [torch.randn(ROWS, 64, generator=generator) @ mixing + 0.1 * torch.randn(ROWS, D, generator=generator) for _ in range(4)]


def saelens(batches: list[torch.Tensor], start: Path) -> Step:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=LATENTS, k=K, device="cpu", dtype="float32"))
    settings = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=ROWS, lr=RATE, lr_end=RATE, device="cpu")
    trainer = SAETrainer(cfg=settings, sae=sae, data_provider=iter(batches))
    encoder = sae.W_enc.detach().T.contiguous()
    save_file({"encoder": encoder, "decoder": sae.W_dec.detach().clone(), "b_dec": sae.b_dec.detach().clone()}, start)

    def step(x: torch.Tensor) -> float:
        out = trainer.step(x)
        trainer.n_training_steps += 1
        return float(out.losses["mse_loss"])

    return step


def dictionary_learning(batches: list[torch.Tensor], start: Path) -> Step:
    class Empty(types.ModuleType):
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in ("nnsight", "wandb", "nnsight.intervention", "nnsight.modeling"):
        sys.modules.setdefault(name, Empty(name))
    from dictionary_learning.trainers.top_k import TopKTrainer, geometric_median

    made = TopKTrainer(
        steps=10**6, activation_dim=D, dict_size=LATENTS, k=K, layer=0, lm_name="-", lr=RATE, warmup_steps=0, seed=0, device="cpu"
    )
    encoder, decoder = (t.detach().clone().contiguous() for t in (made.ae.encoder.weight, made.ae.decoder.weight.T))
    save_file({"encoder": encoder, "decoder": decoder, "b_dec": geometric_median(batches[0])}, start)
    count = iter(range(10**9))
    return lambda x: float(made.update(next(count), x))


def ours(norm: str) -> Callable[[list[torch.Tensor], Path], Step]:
    def make(batches: list[torch.Tensor], start: Path) -> Step:
        from repscope.read.sae.training import Recipe, TopK, Trainer
        from repscope.read.sae.training.layout import Layout

        recipe = Recipe(
            TopK(K), LATENTS, steps=10**6, batch=ROWS, learning_rate=RATE, decoder_norm=norm, normalize=False, bias="zero"
        )  # type: ignore[arg-type]
        layout = Layout(("x",), ("x",), (D,), (D,), (1.0,), (1.0,))
        weights = {name: tensor.clone() for name, tensor in load_file(start).items()}
        trainer = Trainer(recipe, layout, {**weights, "b_enc": torch.zeros(LATENTS)})
        return lambda x: trainer.step({"x": x}).losses["squared_error"]

    return make


JOBS = {
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
    "ours-saelens": ours("rescale"),
    "ours-dictionary_learning": ours("unit"),
}


def sgemm_seconds(repeats: int = 3) -> float:
    """CPU seconds of one product (ROWS × D)(D × LATENTS); the best of `repeats`."""
    a, b, out = torch.randn(ROWS, D), torch.randn(D, LATENTS), torch.empty(ROWS, LATENTS)
    best = float("inf")
    for _ in range(repeats + 1):
        began = time.process_time()
        torch.mm(a, b, out=out)
        best = min(best, time.process_time() - began)
    return best


def job(name: str, folder: Path, steps: int) -> dict[str, object]:
    torch.set_num_threads(1)
    batches = data()
    gemm = sgemm_seconds()
    start = folder / f"{name.removeprefix('ours-')}.safetensors"
    # What a trainer imports counts for nobody.
    import importlib

    importlib.import_module("repscope.read.sae.training" if name.startswith("ours") else "torch.optim")
    if name == "saelens":
        importlib.import_module("sae_lens.training.sae_trainer")
    Path("/proc/self/clear_refs").write_text("5")
    before = machine.rss_mb()
    step = JOBS[name](batches, start)
    losses, seconds = [], []
    for i in range(steps):
        began = time.process_time()
        losses.append(step(batches[i % 4]))
        seconds.append(time.process_time() - began)
    peak = machine.rss_mb("VmHWM") - before
    gemm = min(gemm, sgemm_seconds())
    return {"losses": losses, "seconds": min(seconds[2:]), "gemm": gemm, "memory": peak, "versions": versions()}


def versions() -> str:
    return machine.versions(("torch", "sae-lens", "dictionary-learning", "repscope"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(__file__).parents[1] / ".venv-sae/bin/python", help="their Python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="the first two are for warming up")
    parser.add_argument("--only", choices=[*JOBS], action="append", help="these jobs alone (ours need a peer's start)")
    parser.add_argument("--folder", type=Path, help="for the peers' initial weights; a temporary one by default")
    parser.add_argument("--job", choices=[*JOBS], help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(options.job, options.folder, options.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        rounds = [run_round(options, folder, turn) for turn in range(options.rounds)]
    text = report(rounds, options)
    print(text)
    if options.write:
        machine.write_section("sae training", text, RESULTS)


def run_round(options: argparse.Namespace, folder: Path, turn: int) -> dict[str, dict[str, object]]:
    out = {}
    for name in options.only or JOBS:
        python = sys.executable if name.startswith("ours") else str(options.peers)
        command = [python, __file__, "--job", name, "--folder", str(folder), "--steps", str(options.steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        out[name] = json.loads(done.stdout.splitlines()[-1])
        shown = {k: v for k, v in out[name].items() if k != "losses"}
        print(f"  round {turn + 1}: {name} {shown}", file=sys.stderr, flush=True)
    return out


def report(rounds: list[dict[str, dict[str, object]]], options: argparse.Namespace) -> str:
    def number(turn: dict[str, dict[str, object]], name: str, key: str) -> float:
        return float(turn[name][key])  # type: ignore[arg-type]

    names = list(rounds[0])
    lines = [
        f"## Training of TopK autoencoders\n\n`python {' '.join(sys.argv)}`, {datetime.date.today()}, {len(rounds)} rounds, "
        f"{options.steps - 2} timed steps each. {machine.describe()}. {versions()}. d = {D}, {LATENTS} latents, k = {K}, "
        f"{ROWS} rows per batch, float32, 1 thread. Medians over rounds (range).\n",
        "| | rows per CPU-second | share of the one-product roofline | memory over base, MB |",
        "|---|---|---|---|",
    ]
    for name in names:
        rate = [ROWS / number(r, name, "seconds") for r in rounds]
        share = [100 * number(r, name, "gemm") / number(r, name, "seconds") for r in rounds]
        memory = [number(r, name, "memory") for r in rounds]
        label = next((k for k, v in PEERS.items() if v == name), f"**repscope**, as {name.removeprefix('ours-')}")
        lines.append(f"| {label} | {spread(rate, '.0f')} | {spread(share, '.0f')} % | {spread(memory, '.0f')} |")
    lines.append(
        "\n| | times the rows per CPU-second | in units of each process's own product "
        "| largest relative difference of the loss at equal steps |\n|---|---|---|---|"
    )
    for peer in TARGETS:
        if peer in names and f"ours-{peer}" in names:
            ratio = [number(r, peer, "seconds") / number(r, f"ours-{peer}", "seconds") for r in rounds]
            relative = [a * number(r, f"ours-{peer}", "gemm") / number(r, peer, "gemm") for a, r in zip(ratio, rounds)]
            theirs, mine = (rounds[0][name]["losses"] for name in (peer, f"ours-{peer}"))
            worst = max(abs(a - b) / abs(a) for a, b in zip(theirs, mine))  # type: ignore[call-overload]
            cells = [f"compared with {peer} (goal {TARGETS[peer]})", spread(ratio, ".2f"), spread(relative, ".2f"), f"{worst:.1e}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    middle = statistics.median(values)
    return f"{middle:{form}} ({min(values):{form}}–{max(values):{form}})"


if __name__ == "__main__":
    main()
