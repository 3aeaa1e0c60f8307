import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from repscope.data.published import Clusters
from repscope.errors import UserError
from repscope.results import Result
from repscope.studies.paths.published import LEFT, published

SMALL = (3, 8, 11, 19, 25, 30, 36, 41)
COLUMNS = ("MNLI dev acc.", "Lexical (nonent)", "by id", "heaps", "piled", "flat")


def table(path, n=50, seed=0, columns=COLUMNS):
    """A table as published. Clusters differ in every score: one of its own, one by way of accuracy alone, one in two modes."""
    rng, small = np.random.default_rng(seed), np.isin(np.arange(n), SMALL)
    accuracy = 0.844 + 0.002 * rng.normal(size=n) - 0.004 * small
    held = {
        "MNLI dev acc.": accuracy,
        "Lexical (nonent)": 0.3 + 0.1 * rng.normal(size=n) - 0.2 * small,
        "by id": 20 * (accuracy - 0.8) + 0.05 * rng.normal(size=n),
        "heaps": np.where(rng.random(n) < 0.5, 0.2, 0.8) + 0.03 * rng.normal(size=n),
        "piled": np.where(rng.random(n) < 0.1, 0.9, 1.0),
        "flat": np.ones(n),
    }
    lines = [",".join(("Run", *columns))]
    lines += [",".join([f"Run {i}", *(f"{held[c][i]:.6g}" for c in columns)]) for i in range(n)]
    lines += ["Mean" + ",0.5" * len(columns), "," * len(columns)]
    path.write_bytes("\r\n".join([*lines, ""]).encode("utf-8-sig"))
    return path


CLUSTERS = Clusters(dict.fromkeys(SMALL, "odd"), "rest", "a test")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return published(table(tmp_path_factory.mktemp("published") / "a.csv"), CLUSTERS)


def one(result, **equal):
    rows = result.select(**equal)
    assert len(rows) == 1
    return rows.iloc[0]


def test_auc_and_means_are_the_tables(found):
    wide = found.side["scores"].pivot(index="run", columns="score", values="ood")
    rest = ~np.isin(wide.index, SMALL)
    auc = one(found, item="Lexical (nonent)", metric="auc", condition="estimate")
    assert auc["value"] == pytest.approx(roc_auc_score(rest, wide["Lexical (nonent)"]))
    assert auc["lo"] < auc["value"] <= auc["hi"]
    assert auc["definition"] == "P(a run of 'rest' scores above one of 'odd')"
    assert (auc["n"], auc["unit"]) == (50, "run")
    mean = one(found, item="Lexical (nonent)", metric="mean", definition="of the runs of cluster 'odd'")
    assert mean["value"] == pytest.approx(wide["Lexical (nonent)"][~rest].mean())
    assert mean["n"] == len(SMALL)
    control = one(found, item="MNLI dev acc.", metric="auc")
    assert control["condition"] == "in-domain accuracy"
    assert control["lo"] > 0.5


def test_what_accuracy_explains_is_gone_and_the_rest_is_not(found):
    assert one(found, item="by id", metric="auc", condition="estimate")["lo"] > 0.5
    for condition in LEFT:
        explained = one(found, item="by id", metric="auc", condition=condition)
        assert explained["lo"] < 0.5 < explained["hi"]
        assert one(found, item="Lexical (nonent)", metric="auc", condition=condition)["lo"] > 0.5
    assert one(found, item="by id", metric="spearman", definition="with in-domain accuracy")["lo"] > 0
    within = one(found, item="Lexical (nonent)", metric="spearman", definition="with in-domain accuracy, within 'rest'")
    assert within["lo"] < 0 < within["hi"]
    assert within["n"] == 42


def test_heaps_are_counted(found):
    components = found.select(metric="components").set_index("item")["value"]
    assert components["heaps"] == 2
    assert components["Lexical (nonent)"] == 1
    told = {d.split()[0]: v for d, v in found.select(item="heaps", metric="bic")[["definition", "value"]].to_numpy()}
    assert told["two"] < told["one"]
    assert one(found, item="heaps", metric="sarle")["value"] > 0.556


def test_scores_that_do_not_vary_or_hardly_do(found):
    assert set(found.select(item="flat")["metric"]) == {"mean"}
    assert set(found.select(item="piled", metric="auc")["condition"]) == {"estimate"}


def test_notes_say_what_holds(found):
    told = "\n".join(found.notes)
    assert "50 runs, 8 in cluster 'odd' and 42 in 'rest'; source: a test." in told
    assert "Constant over all runs, and therefore not analysed: 'flat'." in told
    assert "cluster and quality are confounded" in told
    assert "the residual still separates the clusters" in told
    assert "'Lexical (nonent)': one Gaussian is better by BIC" in told
    assert "it is unimodal" in told
    assert "and therefore no regression: 'piled'." in told


def test_one_row_an_id_and_a_side_table_that_survive_the_disk(found, tmp_path):
    assert found.table["row_id"].is_unique
    assert set(found.table["study"]) == {"paths"}
    assert set(found.table["step"]) == {"published"}
    side = found.side["scores"]
    assert list(side.columns) == ["run", "cluster", "id", "score", "ood"]
    assert len(side) == 50 * 5
    assert set(side["cluster"][side["run"].isin(SMALL)]) == {"odd"}
    back = Result.load(found.save(tmp_path / "kept"))
    pd.testing.assert_frame_equal(back.table, found.table)
    assert back.notes == found.notes


def test_columns_spread_over_files_and_another_column_in_domain(tmp_path):
    whole = published(table(tmp_path / "a.csv", columns=COLUMNS[:3]), CLUSTERS, id_column="by id")
    parts = [table(tmp_path / "b.csv", columns=COLUMNS[:2]), table(tmp_path / "c.csv", columns=COLUMNS[2:3])]
    joined = published(parts, CLUSTERS, id_column="by id")
    pd.testing.assert_frame_equal(whole.table, joined.table)
    assert one(whole, item="by id", metric="auc")["condition"] == "in-domain accuracy"
    (tmp_path / "odd.txt").write_text(", ".join(map(str, SMALL)))
    listed = published(parts, tmp_path / "odd.txt", id_column="by id")
    np.testing.assert_array_equal(listed.table["value"], whole.table["value"])


def test_a_table_in_which_nothing_separates_says_so(tmp_path):
    path, rng = tmp_path / "a.csv", np.random.default_rng(2)
    pd.DataFrame({"run": range(40), "id": rng.normal(size=40), "ood": rng.normal(size=40)}).to_csv(path, index=False)
    told = "\n".join(published(path, Clusters(dict.fromkeys(range(20), "a"), "b", "a test")).notes)
    assert "In-domain accuracy does not separate the clusters" in told
    assert "the residual does not separate the clusters" in told
    pd.DataFrame({"run": range(40), "id": 0.5, "ood": rng.normal(size=40)}).to_csv(path, index=False)
    flat = published(path, Clusters(dict.fromkeys(range(20), "a"), "b", "a test"))
    assert "spearman" not in set(flat.table["metric"])
    assert "not analysed: 'id'" in "\n".join(flat.notes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p: published([], CLUSTERS), "No table of accuracies"),
        (lambda p: published(table(p / "a.csv"), Clusters({1: "a"}, "a", "mine")), "into 1 clusters; give two"),
        (lambda p: published(table(p / "a.csv"), Clusters({1: "a", 2: "b"}, "c", "mine")), "into 3 clusters"),
        (lambda p: published(table(p / "a.csv"), Clusters({99: "a"}, "b", "mine")), "run 99, which the table of 50"),
        (lambda p: published(table(p / "a.csv")), "names runs 56, 61"),
        (lambda p: published(table(p / "a.csv", columns=COLUMNS[2:])), "not the table of the BERTs of a feather"),
        (lambda p: published(table(p / "a.csv", columns=COLUMNS[:1]), CLUSTERS), "has only the score"),
        (lambda p: published(table(p / "a.csv"), CLUSTERS, id_column="MNLI"), "no column of a.csv 'MNLI'"),
        (lambda p: published([table(p / "a.csv"), table(p / "b.csv")], CLUSTERS), "both have 'Lexical"),
        (lambda p: published([table(p / "a.csv"), table(p / "b.csv", 49)], CLUSTERS), "run 49 is in one of them"),
        (lambda p: published(table(p / "a.csv", 3), Clusters({1: "a"}, "b", "mine")), "has 3 runs"),
    ],
)
def test_mistakes_are_told(tmp_path, call, says):
    with pytest.raises(UserError, match=says):
        call(tmp_path)
