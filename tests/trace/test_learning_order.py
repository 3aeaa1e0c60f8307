"""Orders of learning: definitions against slow twins, nulls that find nothing, and the invalid null that does."""

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, spearmanr
from sklearn.metrics import cohen_kappa_score

from repscope.errors import UserError
from repscope.trace import learning_order as order
from repscope.worlds import digits


def learners(rng, networks=6, steps=20, examples=80, shared=1.0):
    """Networks that learn example i at about step d_i: `shared` of the difficulty is common to all."""
    common = rng.standard_normal(examples)
    own = rng.standard_normal((networks, examples))
    difficulty = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
    return np.linspace(-2, 2, steps)[None, :, None] > difficulty[:, None]


def test_agreement_and_accessibility_by_hand():
    correct = np.array([[[1, 0], [1, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]]])
    np.testing.assert_allclose(order.accessibility(correct), [[1, 0.5], [0.5, 0.5], [0.5, 0.5]])


def test_order_correlation_is_the_mean_of_scipys_and_its_groups_pairs_across():
    values = np.random.default_rng(0).standard_normal((5, 30)).round(1)
    each = np.array([[spearmanr(a, b)[0] for b in values] for a in values])
    assert order.order_correlation(values).value == pytest.approx(each[np.triu_indices(5, 1)].mean())
    across = order.order_correlation(values, ["a", "a", "b", "b", "b"])
    assert across.value == pytest.approx(each[:2, 2:].mean())


def test_order_that_is_shared_is_found_and_one_that_is_not_is_not():
    rng = np.random.default_rng(1)
    for shared, low, high in ((0.8, 0.7, 1.0), (0.0, -0.1, 0.1)):
        correct = learners(rng, shared=shared)
        found = order.order_correlation(order.accessibility(correct))
        assert low < found.value < high
        own, null, p = order.bimodality_test(correct)
        assert (own < null.lo and p < 0.05) if shared else null.lo < own


def test_classes_that_differ_in_difficulty_alone_leave_no_order_within():
    rng = np.random.default_rng(2)
    classes = np.repeat(np.arange(8), 40)
    values = np.repeat(rng.standard_normal(8), 40) + 0.5 * rng.standard_normal((6, 320))
    assert order.order_correlation(values).value > 0.6
    assert abs(order.order_correlation(values, classes=classes).value) < 0.05


def test_kendall_with_ties_is_friedmans():
    values = np.random.default_rng(3).integers(0, 5, (6, 9)).astype(float)
    chi = friedmanchisquare(*values.T)[0]
    w, _ = order.kendall_w(values)
    assert w.value == pytest.approx(chi / (6 * 8), abs=0.03)  # ties enter by run here, by total there
    exact = np.random.default_rng(3).permuted(np.tile(np.arange(9.0), (6, 1)), axis=1)
    assert order.kendall_w(exact)[0].value == pytest.approx(friedmanchisquare(*exact.T)[0] / (6 * 8))
    assert order.kendall_w(np.tile(np.arange(9.0), (4, 1)) + 0.0)[1] < 0.05


def test_kappas():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 3, (2, 200))
    assert order.cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))
    # Fleiss 1971: the example of 14 raters, 10 subjects and 5 categories has kappa 0.210
    counts = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]]
    counts += [[7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    ratings = np.array([np.repeat(np.arange(5), row) for row in counts]).T
    assert order.fleiss_kappa(ratings) == pytest.approx(0.210, abs=5e-4)
    assert np.isnan(order.fleiss_kappa(np.zeros((3, 4), dtype=int)))


def test_matched_interpolates_and_refuses_losses_that_a_run_never_had():
    losses = np.array([[3.0, 2.0, 1.0], [4.0, 3.0, 1.5]])
    values = np.arange(6.0).reshape(2, 3, 1)
    found = order.matched(values, losses, [2.5, 1.5])
    np.testing.assert_allclose(found[:, :, 0], [[0.5, 1.5], [4 + 1 / 3, 5.0]])
    assert order.common_losses(losses, 2).tolist() == [2.25, 1.5]
    with pytest.raises(UserError, match=r"passes the losses 3 to 1\.5"):
        order.matched(values, losses, [1.0])


def test_first_component_of_one_dimension_and_of_noise():
    rng = np.random.default_rng(5)
    line = np.outer(rng.standard_normal(30), rng.standard_normal(12))
    share, null = order.first_component(line + 0.05 * rng.standard_normal((30, 12)))
    assert share > 0.95 > null.hi
    share, null = order.first_component(rng.standard_normal((30, 12)))
    assert null.lo <= share <= null.hi


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: order.order_correlation(np.ones((1, 9))), "One network has no order"),
        (lambda: order.order_correlation(np.ones((3, 9))), "do not vary"),
        (lambda: order.order_correlation(np.ones((3, 3))), "3 items says little"),
        (lambda: order.order_correlation(np.full((3, 9), np.nan)), "not a number"),
        (lambda: order.accessibility(np.full((2, 2, 2), 7)), "other values than right and wrong"),
        (lambda: order.accessibility(np.ones((1, 2, 2))), "at least 2 networks"),
        (lambda: digits.learn("MLP 65", digits.orthogonal(30), 2), "did you mean 'MLP 64'"),
        (lambda: digits.learn("CNN", digits.orthogonal(30), 2), "reads images of 64"),
        (lambda: digits.learn("MLP 16", digits.orthogonal(30), 1), "train at least 2"),
    ],
)
def test_what_has_no_order_is_refused(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_networks_in_a_stack_train_as_alone():
    import torch

    images = digits.digits()
    both = digits.learn("MLP 16", images, 2, steps=12, every=3)
    generator = torch.Generator().manual_seed(1)
    weights = [w.requires_grad_() for w in digits._initial(digits.KINDS["MLP 16"].shapes(64), [generator])]
    sgd = torch.optim.SGD(weights, lr=0.05, momentum=0.5)
    for step in range(12):
        if step % 3 == 0:
            shown = digits.KINDS["MLP 16"].forward(weights, images.inputs[images.test][None]).argmax(-1)[0]
            np.testing.assert_array_equal(both.predicted[1, step // 3], shown)
        some = images.train[torch.randint(len(images.train), (32,), generator=generator)]
        loss = torch.nn.functional.cross_entropy(
            digits.KINDS["MLP 16"].forward(weights, images.inputs[some][None])[0], images.labels[some]
        )
        sgd.zero_grad()
        loss.backward()
        sgd.step()


def test_digits_share_an_order_orthogonal_inputs_have_none_and_shared_random_labels_mislead():
    images = digits.digits()

    def within(kind, held, classes=False, **how):
        found = digits.learn(kind, held, 4, **how)
        return order.order_correlation(order.accessibility(found.correct), classes=found.labels if classes else None).value

    assert within("MLP 64", images) > 0.4
    assert within("MLP 64", images, classes=True) > 0.4
    long = {"steps": 500, "every": 20, "rate": 0.2}
    assert abs(within("MLP 64", digits.orthogonal(200), **long)) < 0.1
    noisy = {"steps": 1200, "every": 40, "rate": 0.1}
    assert within("MLP 64", digits.shared_random_labels(images, 150, 0), **noisy) > 0.5
    assert within("MLP 64", digits.own_random_labels(images, 150, 4, 0), **noisy) < 0.3
