"""Numbers of pairs of cells from files: matrices and lists, what is absent, and mistakes."""

import numpy as np
import pandas as pd
import pytest

from repscope.data.connectomes import microns_folder, read_pairs, symmetric
from repscope.errors import UserError

NAMES = ["AVA", "AVB", "RIM"]


@pytest.fixture
def frame():
    return pd.DataFrame([[0, 3.5, 0], [1, 0, np.nan], [2, 0, 0]], index=NAMES, columns=NAMES)


def test_a_frame_as_pandas_writes_it_is_read_again(frame, tmp_path):
    for name, separator in (("m.csv", ","), ("m.tsv", "\t")):
        frame.to_csv(tmp_path / name, sep=separator)
        pd.testing.assert_frame_equal(read_pairs(tmp_path / name), frame.astype(float), check_names=False)
    frame.iloc[:2].to_csv(tmp_path / "rows.csv")
    assert list(read_pairs(tmp_path / "rows.csv").index) == NAMES[:2], "a cell without a row was not examined"


def test_lists_of_pairs_are_counted_or_summed_and_absent_pairs_are_what_they_mean(tmp_path):
    (tmp_path / "synapses.csv").write_text("pre,post\nAVA,AVB\nAVA,AVB\nRIM,AVA\n")
    assert read_pairs(tmp_path / "synapses.csv").at["AVA", "AVB"] == 2
    (tmp_path / "edges.csv").write_text("pre,post,n\nAVA,AVB,2\nRIM,AVA,1\n")
    found = read_pairs(tmp_path / "edges.csv")
    assert (found.at["AVA", "AVB"], found.at["RIM", "AVB"]) == (2, 0)
    measured = read_pairs(tmp_path / "edges.csv", absent=np.nan)
    assert np.isnan(measured.at["RIM", "AVB"]), "a pair that is not listed was not measured"
    pd.DataFrame({"pre": [1, 1], "post": [2, 3], "weight": [4.0, 5.0]}).to_parquet(tmp_path / "edges.parquet")
    assert read_pairs(tmp_path / "edges.parquet").at["1", "3"] == 5


def test_a_similarity_that_lists_each_pair_once_is_completed(frame):
    once = pd.DataFrame([[0.5, 0.2]], index=["a"], columns=["b", "c"])
    found = symmetric(once)
    assert found.at["b", "a"] == 0.5
    assert np.isnan(found.at["b", "c"])
    with pytest.raises(UserError, match=r"of 'AVA' and 'AVB' is 3.5 and 1; similarity is symmetric"):
        symmetric(frame)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (",a,b\na,0,x\nb,1,0\n", "has 'x' from 'a' to 'b'"),
        (",a,b\nc,0,1\nd,1,0\n", "no name in common"),
        ("pre,post,n,type\na,b,1,x\n", "2 columns besides pre and post"),
        ("pre,post,n\na,b,many\n", "has 'many' from 'a' to 'b'"),
        ("pre,post,n\na,,1\n", "without a name"),
        ("pre,post,n\n", "no rows"),
        ("pre,post,n\na,b,1\na,b,1\n", "more than once; give one number per pair, or pairs without numbers"),
        (",a,b\na,0,none\nb,1,0\n", "has 'none' from 'a' to 'b'"),
        (",a,a\na,0,1\na,1,0\n", "more than one"),
    ],
)
def test_mistakes_are_one_sentence(text, said, tmp_path):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_pairs(tmp_path / "m.csv")
    assert "\n" not in str(error.value)


def test_pairs_listed_twice_have_no_one_measure_and_missing_files_are_named(tmp_path):
    (tmp_path / "m.csv").write_text("pre,post,r\na,b,1\na,b,2\n")
    with pytest.raises(UserError, match="more than once"):
        read_pairs(tmp_path / "m.csv", absent=np.nan)
    with pytest.raises(UserError, match="no connectome"):
        read_pairs(tmp_path / "n.csv")
    with pytest.raises(UserError, match="is a folder; give the file of the connectome"):
        read_pairs(tmp_path)


def test_the_tables_of_microns_are_found_in_a_folder(tmp_path):
    pd.DataFrame({"pre": [1], "post": [2], "n_synapses": [3], "dend_len": [9.0]}).to_csv(tmp_path / "edge_data.csv", index=False)
    with pytest.raises(UserError, match="0 tables of nodes"):
        microns_folder(tmp_path)
    pd.DataFrame({"nucleus_id": [1, 2], "r": [0.1, 0.2]}).to_csv(tmp_path / "node_data.csv", index=False)
    assert microns_folder(tmp_path).synapses.at["1", "2"] == 3
    (tmp_path / "old_edges.csv").write_text("pre,post\n")
    with pytest.raises(UserError, match=r"2 tables of edges \(edge_data.csv, old_edges.csv\)"):
        microns_folder(tmp_path)
    with pytest.raises(UserError, match="folder of MICrONS"):
        microns_folder(tmp_path / "nothing")
