"""The glossary defines each metric and each condition of each study's table."""

import pytest

from repscope.conditions import CONDITIONS
from repscope.report.glossary import GlossaryEntry, entries_for, load_glossary
from repscope.studies.catalogue import ALL
from repscope.trace.barriers import HEIGHTS


def test_metrics_that_no_tiny_run_measures():
    """Metrics of `connect`, published tables, patching, known relations and the trigger; `test_report` has those of tiny runs."""
    from repscope.bench.methods import BENCH_METRICS
    from repscope.discovery.comparison import DISCOVERY_METRICS
    from repscope.discovery.generators.comparison import IMAGE_METRICS
    from repscope.discovery.generators.judges import GENERATOR_METRICS
    from repscope.steer.effects import DEFINITIONS
    from repscope.steer.patching.result import DEFINITIONS as PATCHING
    from repscope.studies.compare.names import OF_SITES, OF_TOKENS, OF_WEIGHTS, SHARED
    from repscope.studies.connect.names import RISE, metric_of
    from repscope.studies.relations.pooled import METRICS

    connect = [metric_of(loss, how) for loss in ("loss", "ood error") for how in (*HEIGHTS, RISE)]
    connect += ["loss", "ood error", "distance", "mantel rho of ood error", "mantel p of ood error", "AUC of loss", "ARI", "ratio"]
    measured = {
        "compare": [*OF_WEIGHTS, SHARED, *OF_SITES, *OF_TOKENS],
        "connect": connect,
        "paths": ["mean", "auc", "p", "spearman", "bic", "components", "heaps", "sarle"],
        "relations": [*METRICS.values(), *(f"{m}: rank" for m in METRICS.values())],
        "bench-discovery": [*BENCH_METRICS, "planted"],
        "discover": [*DISCOVERY_METRICS, *IMAGE_METRICS, *GENERATOR_METRICS],
        "contrast": list(DEFINITIONS),
        "lens": ["probability"],
        "": [*PATCHING, "through", "writes", "uᵀJv"],
    }
    for name, metrics in measured.items():
        for metric in metrics:
            assert [e for e in load_glossary() if e.defines(metric, name)], (name, metric)


def test_within_a_study_a_metric_has_one_meaning():
    for name in ALL:
        for entry in load_glossary():
            for metric in (m for m in entry.metrics if "*" not in m and m != "height" and entry.defines(m, name)):
                assert [e.term for e in load_glossary() if metric in e.metrics and e.defines(metric, name)] == [entry.term], metric


def test_no_entry_repeats_a_condition_or_names_no_study():
    assert not {e.term for e in load_glossary()} & set(CONDITIONS)
    assert {s for e in load_glossary() for s in e.studies} <= {*ALL, "bench"}


def test_conditions_are_explained_by_their_own_sentences_once():
    over = entries_for([], ["estimate", "over rank 8", "rank 4", "over random direction", "random direction"])
    assert [e.term for e in over] == ["estimate", "rank 8", "random direction"]
    assert over[2].definition == CONDITIONS["random direction"].meaning
    with pytest.raises(ValueError, match="There is no condition"):
        entries_for([], ["randm direction"])


def test_words_of_a_page_are_explained_and_unknown_metrics_are_left_out():
    assert [e.term for e in entries_for(["no such metric"], words=["within: convexity gap", "resid_post.3"])] == [
        "site",
        "convexity gap",
    ]


def test_an_invalid_glossary_names_the_fault(tmp_path):
    path = tmp_path / "g.toml"
    path.write_text('[[entries]]\nterm = "x"\ndefinition = "no capital, no stop"')
    with pytest.raises(RuntimeError, match=r"wrong at definition"):
        load_glossary(path)
    path.write_text("[[other]]")
    with pytest.raises(RuntimeError, match="not a glossary"):
        load_glossary(tmp_path / "g.toml")
    with pytest.raises(ValueError, match="definition"):
        GlossaryEntry(term="x", definition="")
