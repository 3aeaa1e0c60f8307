"""C. elegans: do synapses predict signals, and do connected cells respond alike? Real data, numbers beside those of naive tests.

    pip install 'repscope[worm]'
    python benchmarks/worm.py [--permutations 2000] [--write]

1. Signals: share of pairs whose stimulation has an effect (q < .05), with a synapse, in contact without a synapse, not in contact.
   By kind of synapse, with the control of contact and without.
2. Like-to-like: slope of synapse counts on the similarity of response profiles, with and without contact as exposure, with effects
   of presynaptic cells alone and of both.
3. Names, pairs and orientation: what does not match, and how often the atlas equals cect's copy as read and transposed.
"""

import argparse
import datetime
import time

import machine
import numpy as np
from scipy.stats import spearmanr

from repscope.align.structure_function import dyads, like_to_like, matched_pairs, rewired, signal_given_synapse
from repscope.align.structure_function.conditional_poisson import fit
from repscope.align.structure_function.signals import APART, NO_EXPOSURE, SYNAPSE
from repscope.data.connectomes import celegans
from repscope.data.connectomes.worm import _kind, _of_package, _read_cect

PAGE = machine.RESULTS.with_name("RESULTS-structure-function.md")
COPY = "WormNeuroAtlasFuncReader"


def signals(worm, white, permutations: int) -> list[str]:
    functional = worm.signals.functional()
    columns = (
        "connectome, kind",
        "contact",
        "with a synapse",
        "Wilson, pairs as independent",
        "in contact, no synapse",
        "no contact",
    )
    columns += ("difference", "p, cells permuted")
    rows = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|---|---|---|"]
    cases = (
        ("White, chemical or gap", white.synapses + white.gap_junctions, None),
        ("White, chemical", white.synapses, None),
        ("Witvliet 8, chemical or gap", worm.synapses + worm.gap_junctions, worm.contact),
        ("Witvliet 8, chemical", worm.synapses, worm.contact),
        ("Witvliet 8, gap junction", worm.gap_junctions, worm.contact),
    )
    for name, synapses, contact in cases:
        d = dyads(synapses, functional, contact)
        found = signal_given_synapse(d, permutations=permutations, ratio=False, unit="neuron")
        groups = [f"{found.groups[g]} (n = {found.sizes[g]:,})" if g in found.groups else "" for g in (SYNAPSE, APART, NO_EXPOSURE)]
        wilson = found.naive[SYNAPSE]
        cells = [name, "yes" if contact is not None else "no", groups[0], f"[{wilson.lo:.3f}, {wilson.hi:.3f}]", *groups[1:]]
        rows.append("| " + " | ".join([*cells, str(found.difference), f"{found.p:.4f}"]) + " |")
        print(rows[-1], flush=True)
    d = dyads(worm.synapses + worm.gap_junctions, functional, worm.contact)
    ratio = signal_given_synapse(d, permutations=permutations, unit="neuron").ratio
    matched = matched_pairs(d, unit="neuron")
    f = d.given[1]
    drawn = [float(f[r.connected].mean() - f[r.pairs & ~r.connected].mean()) for r in (rewired(d, seed=k) for k in range(20))]
    rows += [
        "",
        f"Witvliet 8, chemical or gap, in contact: log ratio with effects of both cells {ratio.slope} (naive {ratio.naive}), p = "
        f"{ratio.permutation.p:.4f}. Compared with {matched.matched:,} pairs of the same stimulated cell and equal contact: "
        f"{matched.difference}. "
        f"Rewired within contact, degrees kept: mean difference {np.mean(drawn):.3f}, range {min(drawn):.3f} to {max(drawn):.3f}.",
    ]
    return rows


def alike(worm, permutations: int) -> list[str]:
    similarity = worm.signals.profile_similarity()
    d = dyads(worm.synapses, similarity, worm.contact)
    rows = [
        "| exposure | effects of | slope, interval over cells | naive Wald interval | Wald z | p, cells permuted | sd of the "
        "null | slope ÷ sd |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for exposure, given in (("none", d.without_exposure()), ("contact", d)):
        for effects in ("pre", "both"):
            found = like_to_like(given, effects=effects, permutations=permutations, unit="neuron")
            error = (found.naive.hi - found.naive.lo) / 2 / 1.96
            sd = found.permutation.null_sd
            cells = [exposure, "presynaptic cells" if effects == "pre" else "both cells", str(found.slope), str(found.naive)]
            z, ours = found.slope.value / error, found.slope.value / sd
            cells += [f"{z:.1f}", f"{found.permutation.p:.4f}", f"{sd:.2f}", f"{ours:.1f}"]
            rows.append("| " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
    drawn = [fit(r.synapses, r.function, r.exposure).slope for r in (rewired(d, seed=k) for k in range(10))]
    matched = matched_pairs(d, unit="neuron")
    axonal = like_to_like(d, scale="axonal", permutations=min(permutations, 200), unit="neuron")
    rows += [
        "",
        f"{int(d.pairs.sum()):,} pairs of {len(d.names)} neurons, {int(d.connected.sum()):,} of them connected. Rewired within "
        f"contact, degrees "
        f"kept: slopes {min(drawn):.2f} to {max(drawn):.2f}. Similarity of connected pairs minus that of {matched.matched:,} "
        f"pairs of the same "
        f"presynaptic cell and equal contact: {matched.difference}. Contact itself (axonal scale, pairs without a synapse): "
        f"{axonal.slope}, "
        f"p = {axonal.permutation.p:.3f}.",
    ]
    return rows


def matching(worm) -> list[str]:
    copy = _kind(_read_cect(_of_package("cect", "cache") / f"{COPY}.json"), "Functional", COPY)
    names = [n for n in copy.index if n in worm.signals.effect.index]
    a, b = copy.loc[names, names].to_numpy(), worm.signals.effect.loc[names, names].to_numpy()
    there = a != 0
    as_is, swapped = (int(np.isclose(a[there], m[there]).sum()) for m in (b, b.T))
    even, odd = (h.to_numpy() for h in worm.signals.halves)
    both = np.isfinite(even)
    q, rho = worm.signals.q, spearmanr(even[both], odd[both])[0]
    return [
        *(f"- {note}" for note in worm.notes),
        f"- Orientation: of {int(there.sum()):,} significant effects in cect's copy of the atlas, {as_is:,} are equal in ours "
        f"as read, "
        f"{swapped:,} if transposed.",
        f"- {int(q.notna().any(axis=1).sum())} neurons were stimulated, {int(q.notna().any(axis=0).sum())} responded to some.",
        f"- Even and odd trials of the {int(both.sum()):,} pairs with four or more: Spearman's rho {rho:.2f}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--permutations", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    args = parser.parse_args()
    started = time.process_time()
    worm, white = celegans(), celegans("white")
    lines = ["Signals:", "", *signals(worm, white, args.permutations), "", "Like-to-like:", "", *alike(worm, args.permutations)]
    lines += ["", "What does not match:", "", *matching(worm)]
    head = f"{datetime.date.today()}, {machine.versions(['cect', 'wormneuroatlas', 'h5py', 'numpy', 'scipy'])}."
    seconds = f"{args.permutations:,} permutations, {time.process_time() - started:.0f} CPU seconds."
    text = "\n".join([f"{head} {seconds}", "", *lines])
    print(text)
    if args.write:
        machine.write_section("C. elegans", text, PAGE)


if __name__ == "__main__":
    main()
