import json
from dataclasses import replace

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
            Direction.of(rng.normal(size=4), "mlp_act.1", "latitude", norm=3.5, works=(0.1, 2.0), tokens="last"),
            Direction.of(rng.normal(size=8), "resid_post.3", "continent=Africa", trained_on="entities"),
        ],
        "abc",
        "probes",
        "llama",
        4,
    )


def residual(*rows, block=3):
    return DirectionSet.of(*(Direction.of(np.array(r, float), f"resid_post.{block}", f"d{i}") for i, r in enumerate(rows)))


def fields(direction):
    return {k: "nan" if v != v else v for k, v in vars(direction).items() if k != "vector"}


def test_saved_is_loaded_bit_for_bit_whatever_the_widths(tmp_path):
    before = made()
    after = DirectionSet.load(before.save(tmp_path / "d.safetensors"))
    assert (after.model, after.note, after.architecture, after.blocks, len(after)) == ("abc", "probes", "llama", 4, 3)
    for a, b in zip(before, after):
        assert a.vector.tobytes() == b.vector.tobytes()
        assert a.weights.tobytes() == b.weights.tobytes()
        assert fields(a) == fields(b)
    assert "NaN" not in (tmp_path / "d.safetensors").read_bytes().decode("latin1")


def test_files_of_the_first_format_with_float32_and_few_fields_are_read(tmp_path):
    rows = [{"site": "resid_post.1", "name": "x", "scale": 2.0, "offset": 0.0, "found_by": "", "does": {}}]
    header = {"format": "repscope-directions-1", "model": "m", "note": "", "directions": json.dumps(rows)}
    save_file({"resid_post.1": np.array([[0.6, 0.8]], np.float32)}, tmp_path / "old", metadata=header)
    held = DirectionSet.load(tmp_path / "old")
    assert (held.blocks, held.architecture, held[0].tokens, held[0].works) == (0, "", "all", None)
    np.testing.assert_array_equal(held[0].vector, np.array([0.6, 0.8], np.float32))


def test_names_and_places_are_found_or_offered():
    held = made()
    assert held["latitude"].site == held[1].site == held[-2].site == "mlp_act.1"
    assert held.names == ("continent=Asia", "latitude", "continent=Africa")
    with pytest.raises(UserError, match="did you mean 'continent=Asia'"):
        held["continent=Aisa"]
    with pytest.raises(UserError, match="this set holds 3"):
        held[3]


def test_algebra_of_a_set():
    held = residual([3, 4, 0], [0, 2, 0], [0, -1, -1])
    np.testing.assert_allclose(held.cosines(), [[1, 0.8, -0.8 / 2**0.5], [0.8, 1, -(0.5**0.5)], [-0.8 / 2**0.5, -(0.5**0.5), 1]])
    near = held.nearest(Direction.of(np.array([0, -1.0, 0]), "resid_post.3", "x"), k=2)
    assert near == [("d1", pytest.approx(-1)), ("d0", pytest.approx(-0.8))]
    right = held.orthogonalised()
    np.testing.assert_allclose(right.cosines(), np.eye(3), atol=1e-12)
    assert right.names == held.names
    assert right[0] is not None
    assert right[0].weights.tobytes() == held[0].weights.tobytes()
    rows = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(held.coordinates(rows), np.stack([d.coordinates(rows) for d in held], 1))
    pair = residual([3, 4, 0], [0, 2, 0], [3, 0, 0])
    left = pair.project_out(rows)
    np.testing.assert_allclose(left, rows * [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(pair.project_out(left), left, atol=1e-12)
    with pytest.raises(UserError, match="lies in their span"):
        pair.orthogonalised()


def test_widths_and_sites_must_agree():
    held, rows = made(), np.zeros((2, 8))
    assert held.coordinates(rows, "resid_post.3").shape == (2, 2)
    for wrong, words in (
        (held.cosines, "4 to 8 features"),
        (held.orthogonalised, "4 to 8 features"),
        (lambda: held.coordinates(rows), "4 to 8 features"),
        (lambda: held.project_out(rows), "4 to 8"),
        (lambda: held.coordinates(rows, "resid_post.2"), "it holds resid_post.3, mlp_act.1"),
        (lambda: held.project_out(rows[:, :3], "resid_post.3"), r"shape \(2, 3\)"),
        (lambda: held.nearest(held[0]), "must be the same"),
        (DirectionSet.of().cosines, "no direction"),
    ):
        with pytest.raises(UserError, match=words):
            wrong()


def test_another_network_is_refused():
    held = made()
    for model in ("abc", "", "sampled:abd"):  # one's own, unknown, and one fingerprinted in another way
        held.fits(model, {"resid_post": 8, "mlp_act.1": 4}, 4)
        held.fits(model, 8, 4)
    DirectionSet.of(*(replace(d, model="") for d in held)).fits("any", 8, 4)
    with pytest.raises(UserError, match="made for the model with fingerprint"):
        DirectionSet(held.directions).fits("any", 8, 4)  # each of them knows
    for args, words in (
        (("abd", 8, 4), "made for the model with fingerprint abc, and this is abd"),
        (("abc", 9, 4), "'continent=Asia' has 8 features, and resid_post.3 of this model has 9"),
        (("abc", {"mlp_act": 5}, 4), "'latitude' has 4 features"),
        (("abc", 8, 3), "made for a model of 4 blocks, and this one has 3"),
    ):
        with pytest.raises(UserError, match=words):
            held.fits(*args)


def test_what_cannot_be_written_is_refused_and_nothing_remains(tmp_path):
    one = Direction.of(np.ones(3), "resid_post.1", "x", does={"effect": float("nan")})
    two = Direction.of(np.ones(4), "resid_post.1", "y")
    with pytest.raises(UserError, match="the does of the direction 'x' is not numbers by name"):
        DirectionSet.of(one).save(tmp_path / "d")
    with pytest.raises(UserError, match="one site has one width"):
        DirectionSet.of(Direction.of(np.ones(3), "resid_post.1", "x"), two).save(tmp_path / "d")
    assert not list(tmp_path.iterdir())
    numpy_numbers = Direction.of(np.ones(4), "resid_post.1", "y", does={"effect": np.float32(0.5)}, works=(np.float32(1), 2))
    assert DirectionSet.load(DirectionSet.of(numpy_numbers).save(tmp_path / "d"))[0].works == (1.0, 2.0)


def stranger(path, array=None, header=None, **fields):
    row = {"site": "resid_post.1", "name": "x", **fields}
    array = np.array([[0.6, 0.8]]) if array is None else array
    held = {"format": "repscope-directions-1", "directions": json.dumps([row]), **(header or {})}
    save_file({"resid_post.1": array}, path, metadata=held)
    return path


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": "1"},
        {"scale": -1},
        {"scale": float("nan")},
        {"scale": float("inf")},
        {"scale": True},
        {"scale": 10**400},
        {"scale": None},
        {"offset": []},
        {"name": 5},
        {"site": ["resid_post.1"]},
        {"site": "gone"},
        {"does": {"effect": "big"}},
        {"does": [1]},
        {"does": {"x": {}}},
        {"works": [1]},
        {"works": [2, 1]},
        {"works": "12"},
        {"norm": -1},
        {"tokens": ""},
        {"tokens": 3},
        {"trained_on": None},
        {"found_by": {}},
        {"vector": [1, 0]},
        {"other": 1},
        {"array": np.array([[3.0, 4.0]])},
        {"array": np.array([[np.nan, 1.0]])},
        {"array": np.array([[1e300, 1.0]])},
        {"array": np.array([0.6, 0.8])},
        {"array": np.array([[1, 0]])},
        {"array": np.zeros((0, 2))},
        {"array": np.array([[0.6, 0.8]] * 2)},
        {"header": {"directions": "[" * 100_000}},
        {"header": {"directions": "{}"}},
        {"header": {"directions": "[1]"}},
        {"header": {"blocks": "-3"}},
        {"header": {"blocks": "9" * 5000}},
        {"header": {"directions": "1" * 5000}},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_hostile_headers_end_in_one_sentence(tmp_path, wrong):
    with pytest.raises(UserError, match="cannot be read as a set of directions"):
        DirectionSet.load(stranger(tmp_path / "d", **wrong))


def test_files_of_strangers(tmp_path):
    assert DirectionSet.load(stranger(tmp_path / "good"))[0].name == "x"
    with pytest.raises(UserError, match="no file"):
        DirectionSet.load(tmp_path / "none")
    for junk in (b"not safetensors at all", b"", b"\x80\x02legacy pickle", b"\x01" * 8 + b"{"):
        (tmp_path / "junk").write_bytes(junk)
        with pytest.raises(UserError, match="cannot be read"):
            DirectionSet.load(tmp_path / "junk")
    save_file({"a": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(UserError, match="no set of directions"):
        DirectionSet.load(tmp_path / "other")
    lying = [{"site": "resid_post.9", "name": "x"}]
    header = {"format": "repscope-directions-1", "directions": json.dumps(lying)}
    save_file({"a": np.zeros((1, 2))}, tmp_path / "lying", metadata=header)
    with pytest.raises(UserError, match="cannot be read"):
        DirectionSet.load(tmp_path / "lying")
