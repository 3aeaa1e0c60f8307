"""Benchmarks on planted truth run and have their controls; what they must find is tested with the methods themselves."""

import numpy as np

from repscope.bench import sharing
from repscope.bench.twins import TwinBench, twin_bench
from repscope.results import table_of


def test_a_bench_of_twins_has_its_controls():
    sizes = TwinBench(neurons=5, held_out=3, trials=200, test=40, repeats=6, size=12, rate=4.0, epochs=2, amounts=(50, 150))
    table = twin_bench(sizes).table
    assert {"CCnorm", "FEVE", "centres within one pixel", "signal correlation recovered", "CCnorm of held-out neurons"} <= set(
        table.metric
    )
    held = table[table.metric == "CCnorm of held-out neurons"]
    assert set(held.condition) == {"estimate", "LN model", "untrained core"}
    assert set(held.split) == {"0.833 min", "2.5 min"}
    assert np.isfinite(table.value).all()


def test_a_bench_of_sharing_tells_the_kinds_apart():
    rows = [row for kind in sharing.KINDS for row in sharing.of_kind(kind, 3, permutations=20, trials_per_draw=160)]
    rows = [row for row in rows if row.metric == "sharing found"] + sharing.wiring_of_sharing(3, permutations=20)
    table = table_of(rows).set_index(["metric", "item", "split"]).value
    assert table["sharing found", "shared", "all trials"] == 1
    assert table["sharing found", "separate", "all trials"] < 1
    found = table["wiring predicts shared coding"]
    assert set(found.index.get_level_values(0)) == {"wired", "not wired", "another network's synapses"}
    assert found["wired"].iloc[0] == 1
