import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError

SITE = "resid_post.3"


def direction(*weights, name="a", **rest):
    return Direction.of(np.array(weights, dtype=float), SITE, name, **rest)


def test_importing_it_brings_in_nothing_heavy():
    code = "import repscope.directions, sys; print({'torch', 'gguf', 'pandas', 'sklearn'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays(np.float32, array_shapes(max_dims=1, max_side=40), elements=floats))
@example(np.full(2, np.finfo(np.float32).max))
def test_weights_come_back_bit_for_bit_at_any_magnitude(w):
    if not w.any():
        return
    d = Direction.of(w, SITE, "w")
    assert d.weights.tobytes() == w.tobytes()
    assert np.linalg.norm(d.vector) == pytest.approx(1, abs=1e-12)
    again = Direction.of(d.weights, SITE, "w")
    assert again.vector.tobytes() == d.vector.tobytes()


@given(st.integers(-120, 120), st.integers(0, 2**23 - 1), st.integers(1, 64))
def test_one_step_of_float32_is_not_lost(exponent, mantissa, n):
    near = np.float32(np.ldexp(1 + mantissa / 2**23, exponent))
    w = np.array([near, np.nextafter(near, np.float32(np.inf)), -np.nextafter(near, np.float32(0))] * n, np.float32)
    assert Direction.of(w, SITE, "w").weights.tobytes() == w.tobytes()


def test_many_random_weights_come_back():
    rng = np.random.default_rng(0)
    for width in (1, 7, 576, 4096):
        w = (rng.normal(size=width) * 10.0 ** rng.uniform(-20, 20, width)).astype(np.float32)
        assert Direction.of(w, SITE, "w").weights.tobytes() == w.tobytes()


def test_what_is_no_direction_is_refused():
    for weights, words in (
        (np.zeros(3), "finite norm above zero"),
        (np.array([1, np.nan]), "finite norm above zero"),
        (np.array([]), "finite norm above zero"),
        (np.array([1e39, 0]), "float32"),
        (np.ones((2, 2)), r"shape \(2, 2\)"),
        (["a", "b"], "weights of 'w' are of"),
        ([[1.0], [1.0, 2.0]], "no array of numbers"),
        (None, "weights of 'w' are of NoneType"),
    ):
        with pytest.raises(UserError, match=words):
            Direction.of(weights, SITE, "w")
    with pytest.raises(UserError, match=r"Direction\.of"):
        Direction(np.array([3.0, 4.0]), SITE, "w")
    for scale in (0, -1, math.inf, math.nan):
        with pytest.raises(UserError, match="positive and finite"):
            Direction(np.array([0.6, 0.8]), SITE, "w", scale=scale)
    with pytest.raises(UserError, match="did you mean 'resid_post'"):
        Direction(np.array([0.6, 0.8]), "resid_pst.3", "w")
    assert Direction(np.array([0.6, 0.8]), "blocks.3.hook_resid_post", "w").site == SITE


def test_the_vector_is_its_own():
    w = np.array([0.6, 0.8])
    d = Direction(w, SITE, "w")
    w[:] = 0
    assert d.vector.tolist() == [0.6, 0.8]
    with pytest.raises(ValueError, match="read-only"):
        d.vector[0] = 1


def test_arithmetic_is_that_of_weights_and_of_scores():
    rng = np.random.default_rng(1)
    a, b = (
        Direction.of(
            rng.normal(size=6), SITE, name, offset=o, norm=10.0, works=(1.0, 3.0), does={"effect": 1.0}, trained_on=2 * name
        )
        for name, o in (("a", 0.5), ("b", -2.0))
    )
    rows = rng.normal(size=(5, 6))
    for made, weights, scores, name in (
        (a + b, a.weights + b.weights, a.score(rows) + b.score(rows), "a + b"),
        (a - b, a.weights - b.weights, a.score(rows) - b.score(rows), "a - b"),
        (-a, -a.weights, -a.score(rows), "-a"),
        (2 * a, 2 * a.weights, 2 * a.score(rows), "2 * a"),
        (np.float64(2) * a, 2 * a.weights, 2 * a.score(rows), "2 * a"),
        (a * -1.5, -1.5 * a.weights, -1.5 * a.score(rows), "-1.5 * a"),
        (a / 2, a.weights / 2, a.score(rows) / 2, "a / 2"),
        (a - (a + b), -b.weights, -b.score(rows), "a - (a + b)"),
        (3 * (a + b), 3 * (a.weights + b.weights), 3 * (a.score(rows) + b.score(rows)), "3 * (a + b)"),
    ):
        np.testing.assert_allclose(made.weights, weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(made.score(rows), scores, rtol=1e-9, atol=1e-12)
        assert (made.name, made.does, made.site, made.norm) == (name, {}, SITE, 10.0)
    assert (2 * a).works == (a / 2).works == (1.0, 3.0)
    assert (a + b).works is (-a).works is (-2 * a).works is None
    assert (2 * a).vector.tobytes() == a.vector.tobytes()
    back = -a
    assert (-back).weights.tobytes() == a.weights.tobytes()
    assert (a + b).trained_on == "aa; bb"
    assert "sum" in (a + b).found_by
    for wrong, words in (
        (lambda: a - a, "finite norm above zero"),
        (lambda: 0 * a, "norm zero or infinity"),
        (lambda: a / 0, "by zero"),
        (lambda: a + Direction.of(np.ones(6), "resid_post.4", "far"), "one site"),
        (lambda: a + Direction.of(np.ones(5), SITE, "narrow"), "must be the same"),
    ):
        with pytest.raises(UserError, match=words):
            wrong()
    with pytest.raises(TypeError):
        a * b
    with pytest.raises(TypeError):
        a + 1


def test_geometry():
    a, b, c = direction(3, 4, 0), direction(0, 2, 0, name="b"), direction(0, 0, -1, name="c")
    assert a.cosine(b) == pytest.approx(0.8)
    assert a.cosine(a) <= 1
    left = a.without(b, c, 2 * b)
    np.testing.assert_allclose(left.weights, [3, 0, 0], atol=1e-12)
    assert left.name == "a without b, c, 2 * b"
    assert a.without() is a
    np.testing.assert_allclose(a.coordinates(np.array([[5, 5, 9], [0, 0, 1]])), [7, 0], atol=1e-12)
    with pytest.raises(UserError, match="Nothing of the direction 'a' remains"):
        a.without(b, direction(1, 0, 0, name="x"))
    with pytest.raises(UserError, match="must be the same"):
        a.cosine(direction(1, 1))
    with pytest.raises(UserError, match=r"shape \(1, 2\)"):
        a.coordinates(np.ones((1, 2)))


def test_the_card_says_what_is_known_and_no_more():
    plain = direction(3, 4)
    assert plain.card() == "a at resid_post.3, added at all tokens\n  scale       5"
    full = direction(
        3,
        4,
        norm=50.0,
        works=(2.0, 8.0),
        found_by="exponential DCT",
        trained_on="12 prompts",
        tokens="prompt",
        does={"effect": 0.4, "effect_lo": 0.3, "effect_hi": 0.5, "damage": 0.02, "accuracy": 0.9},
    )
    assert full.card().splitlines() == [
        "a at resid_post.3, added at prompt tokens",
        "  scale       5, 0.1 of the median length 50 there",
        "  works       from 2 to 8 (0.04 to 0.16 of the median length)",
        "  effect      0.4 nats [0.3, 0.5]",
        "  damage      0.02 nats",
        "  accuracy    0.9",
        "  found by    exponential DCT",
        "  trained on  12 prompts",
    ]
    assert str(full) == full.card()
    assert "<script>" not in direction(1, 0, name="<script>")._repr_html_()
    assert repr(full) == "Direction('a' at resid_post.3, 2 features, scale 5)"
    both = DirectionSet.of(full, plain, model="f00", architecture="llama", blocks=4, note="found today")
    assert both.card().splitlines()[:2] == ["2 directions of llama, f00, 4 blocks", "found today"]
    assert both.card().endswith(plain.card())


def test_rows_and_weights_may_be_tensors_and_lists():
    torch = pytest.importorskip("torch")
    rows, w = np.random.default_rng(0).normal(size=(3, 2)), [3.0, 4.0]
    made = Direction.of(torch.tensor(w, requires_grad=True), SITE, "w", offset=1.0)
    assert made.weights.tolist() == w
    for some in (torch.from_numpy(rows), rows.tolist()):
        np.testing.assert_array_equal(made.score(some), made.score(rows))
        np.testing.assert_array_equal(DirectionSet.of(made).coordinates(some), DirectionSet.of(made).coordinates(rows))
        np.testing.assert_array_equal(DirectionSet.of(made).project_out(some), DirectionSet.of(made).project_out(rows))
    for ask in (made.score, made.coordinates, DirectionSet.of(made).coordinates):
        with pytest.raises(UserError, match="2 features"):
            ask(np.zeros((2, 3)))
