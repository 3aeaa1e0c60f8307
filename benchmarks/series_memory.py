"""Memory of curves over a series of checkpoints: one model, whatever their number.

    python benchmarks/series_memory.py --write

1. A series of 20 checkpoints of the default model is written to a temporary folder: one matrix per block with noise that shrinks.
2. Fresh processes: one loads the model, one asks it everything too, one asks the whole series: a table of probes, a task and
   minimal pairs. Peak anonymous memory (`RssAnon`, sampled every 20 ms; mapped files are the
   kernel's to drop). A model that is only loaded is such a mapped file, so what it takes is libraries: the ratio is what the series
   takes beyond that, over the bytes of the weights.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CHECKPOINTS = 20
os.environ.setdefault("OMP_NUM_THREADS", "1")


def anonymous() -> float:
    """MB of anonymous memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def peak_of(work) -> float:
    """Largest anonymous memory while work runs."""
    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    peak[0] = max(peak[0], anonymous())
    done.set()
    watcher.join()
    return peak[0]


def written(folder: Path, checkpoints: int) -> None:
    """The series."""
    import torch

    import repscope as rs

    lm = rs.load("smollm2-135m-instruct-q4")
    start = {k: v.clone() for k, v in lm.model.state_dict().items()}
    for step in range(1, checkpoints + 1):
        generator = torch.Generator().manual_seed(step)
        for name, value in lm.model.state_dict().items():
            if name.endswith("down_proj.weight"):
                value.copy_(start[name] + start[name].std() / step * torch.randn(value.shape, generator=generator))
        lm.model.save_pretrained(folder / f"step-{step}")
        lm.tokenizer.save_pretrained(folder / f"step-{step}")


def one_process(kind: str, folder: Path) -> None:
    """Print the peak and the seconds of one kind of process."""
    import torch

    import repscope as rs
    from repscope.data.minimal_pairs import MinimalPairs
    from repscope.trace.emergence.curves import answered, probe_curves
    from repscope.trace.emergence.probes import Probes

    torch.set_num_threads(1)
    task = Probes.of_task(rs.task("singular-plural"), most=2)
    table = Probes(("capital",) * 2, ("The capital of France is", "The capital of Italy is"), (" Paris", " Rome"), ("", ""))
    probes = Probes.joined([table, task])
    pairs = MinimalPairs(
        "two", ("The dogs run.", "She sees herself."), ("The dogs runs.", "She sees himself."), ("verb", "reflexive")
    )
    checkpoints = rs.CheckpointSet.open(folder)
    work = {
        "nothing": lambda: None,
        "load": lambda: rs.load(folder / "step-1"),
        "one": lambda: answered(rs.load(folder / "step-1"), probes, pairs),
        "series": lambda: probe_curves(checkpoints, probes, pairs),
    }[kind]
    began = time.perf_counter()
    peak = peak_of(work)
    print(json.dumps({"peak": peak, "seconds": time.perf_counter() - began}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS)
    parser.add_argument("--folder", type=Path, help="of the series; written if it is not there, and kept")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write RESULTS-series-memory.md beside this file")
    options = parser.parse_args()
    if options.process:
        one_process(options.process, options.folder)
        return
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            subprocess.run(
                [sys.executable, __file__, "--process", "nothing", "--folder", "/dev/null"], check=False, capture_output=True
            )
            written(folder, options.checkpoints)
        size = (folder / "step-1" / "model.safetensors").stat().st_size / 2**20
        found = {}
        for kind in ("nothing", "load", "one", "series"):
            done = subprocess.run(
                [sys.executable, __file__, "--process", kind, "--folder", str(folder)], check=True, capture_output=True, text=True
            )
            found[kind] = json.loads(done.stdout.strip().splitlines()[-1])
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    base = found["nothing"]["peak"]
    lines = [
        f"{options.checkpoints} checkpoints of {size:.0f} MB in float32. Peak anonymous memory above that of a process that "
        "imports the same modules.",
        "",
        "| process | MB | models |",
        "|---|---|---|",
    ]
    titles = {"load": "one model, loaded", "one": "one model, asked everything", "series": "the whole series"}
    for kind, title in titles.items():
        peak = found[kind]["peak"] - base
        lines.append(f"| {title} | {peak:.0f} | {peak / size:.2f} |")
    ratio = (found["series"]["peak"] - found["load"]["peak"]) / size
    lines.append("")
    lines.append(
        f"The series beyond a process whose model is a mapped file: {ratio:.2f} models. "
        f"{found['series']['seconds'] / options.checkpoints:.1f} s per checkpoint."
    )
    print("\n".join(lines))
    if options.write:
        (Path(__file__).parent / "RESULTS-series-memory.md").write_text("# Memory of a series\n\n" + "\n".join(lines) + "\n")
    assert ratio <= 1.3


if __name__ == "__main__":
    main()
