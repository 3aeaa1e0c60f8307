import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError


def made():
    rng = np.random.default_rng(0)
    return DirectionSet(
        [
            Direction.of(rng.normal(size=8), "resid_post.3", "continent=Asia", offset=0.5, does={"accuracy": 0.7}),
            Direction.of(rng.normal(size=4), "mlp_act.1", "latitude"),
            Direction.of(rng.normal(size=8), "resid_post.3", "continent=Africa"),
        ],
        "abc",
        "probes",
    )


def test_saved_is_loaded_bit_for_bit_whatever_the_widths(tmp_path):
    before = made()
    after = DirectionSet.load(before.save(tmp_path / "d.safetensors"))
    assert (after.model, after.note, len(after)) == ("abc", "probes", 3)
    for a, b in zip(before, after):
        np.testing.assert_array_equal(a.vector, b.vector)
        assert {k: v for k, v in vars(a).items() if k != "vector"} == {
            k: v for k, v in vars(b).items() if k != "vector"
        }


def test_a_direction_has_length_one_and_scores_as_its_weights():
    w = np.array([3.0, 4.0])
    d = Direction.of(w, "resid_post.0", "x", offset=1.0)
    assert np.linalg.norm(d.vector) == pytest.approx(1)
    assert d.score(np.array([[1.0, 1.0]]))[0] == pytest.approx(8.0)
    with pytest.raises(UserError, match="points nowhere"):
        Direction.of(np.zeros(2), "resid_post.0", "x")


def test_names_are_found_or_offered():
    assert made()["latitude"].site == "mlp_act.1"
    with pytest.raises(UserError, match="did you mean 'continent=Asia'"):
        made()["continent=Aisa"]


def test_files_of_strangers(tmp_path):
    with pytest.raises(UserError, match="no file"):
        DirectionSet.load(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="cannot be read"):
        DirectionSet.load(tmp_path / "junk")
    save_file({"a": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(UserError, match="no set of directions"):
        DirectionSet.load(tmp_path / "other")
    lying = [{"site": "gone", "name": "x"}]
    header = {"format": "repscope-directions-1", "directions": json.dumps(lying)}
    save_file({"a": np.zeros((1, 2))}, tmp_path / "lying", metadata=header)
    with pytest.raises(UserError, match="cannot be read"):
        DirectionSet.load(tmp_path / "lying")
