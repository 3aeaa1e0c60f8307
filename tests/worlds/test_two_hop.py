"""Two-hop worlds: facts and queries, the tree of prefixes equal to whole rows, probes and patches of planted states."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.worlds.small_lm import Training, train_by, transformer
from repscope.worlds.small_lm.transformer import Shape
from repscope.worlds.two_hop import KINDS, FactWorlds, evaluate, fact_logits, loss
from repscope.worlds.two_hop.facts import FIRST_OOD, HELD_OUT, OOD, SECOND_OOD, TRAINED

WORLDS = FactWorlds((0, 1), (1, 3), entities=8, relations=6, ood=0.15, held_out=20)
SHAPE = Shape(WORLDS.vocabulary, 3, 16, 3, 4)


def initial():
    return transformer.initial(SHAPE, [seed for _, seed in WORLDS.networks])


def test_kinds_of_queries_are_what_they_say():
    asked = {kind: WORLDS.queries(kind, 15) for kind in KINDS}
    trained_lists, counts = WORLDS.second_hops
    for network in range(4):
        tails, outside = WORLDS.tails[network], WORLDS.outside[network]
        trained = {
            (fact // 6, fact % 6, int(r))
            for fact in range(WORLDS.facts)
            for r in trained_lists[network, fact, : counts[network, fact]]
        }
        assert len(trained) == round(WORLDS.networks[network][0] * WORLDS.facts)
        for kind, q in asked.items():
            for h, r1, r2, b, a in zip(*(part[network].tolist() for part in (q.head, q.first, q.second, q.bridge, q.answer))):
                assert (b, a) == (int(tails[h, r1]), int(tails[b, r2]))
                assert (bool(outside[h, r1]), bool(outside[b, r2])) == (kind in (FIRST_OOD, OOD), kind in (SECOND_OOD, OOD))
                assert ((h, r1, r2) in trained) == (kind == TRAINED)
    same = {k: torch.equal(asked[k].head[0], asked[k].head[2]) for k in (HELD_OUT, OOD)}
    assert all(same.values()), "networks of one seed share their graph, whatever phi is"
    assert bool((WORLDS.second_hops[1][2:] >= WORLDS.second_hops[1][:2]).all())


def test_the_tree_gives_the_logits_of_whole_rows_and_their_gradients():
    generator = torch.Generator().manual_seed(0)
    batch = WORLDS.batch(10, 3, generator)
    head, first, second = batch.head, batch.first + 8, batch.second + 8
    rows = torch.stack(
        [part.flatten(1) for part in (head[..., None].expand_as(second), first[..., None].expand_as(second), second)], -1
    )
    found = []
    for way in ("tree", "rows"):
        state = {k: v.double().requires_grad_() for k, v in initial().items()}
        if way == "tree":
            one, two = fact_logits(SHAPE, state, 8, head, first, second)
        else:
            whole = transformer.logits(SHAPE, state, rows)
            one = whole[:, :, 1].view(4, 10, 3, -1)[:, :, 0]
            two = whole[:, :, 2].view(4, 10, 3, -1)
        (one.square().sum() + (two * torch.linspace(0, 1, two.shape[-1], dtype=torch.float64)).sum()).backward()
        found.append((one, two, {k: v.grad for k, v in state.items()}))
    for a, b in zip(found[0][:2], found[1][:2]):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for name, grad in found[0][2].items():
        torch.testing.assert_close(grad, found[1][2][name], rtol=1e-8, atol=1e-10)


def test_weights_of_a_batch_make_every_trained_query_count_alike():
    generator = torch.Generator().manual_seed(1)
    sums = torch.zeros(4, WORLDS.facts, 6)
    for _ in range(400):
        batch = WORLDS.batch(WORLDS.facts, 4, generator)
        facts = (batch.head * 6 + batch.first)[..., None] * 6 + batch.second
        sums.view(4, -1).scatter_add_(1, facts.flatten(1), batch.weight.flatten(1))
    lists, counts = WORLDS.second_hops
    for network in range(4):
        trained = torch.zeros(WORLDS.facts, 6, dtype=torch.bool)
        for fact in range(WORLDS.facts):
            trained[fact, lists[network, fact, : counts[network, fact]]] = True
        assert float(sums[network][~trained].sum()) == 0
        expected = 400 / int(trained.sum())
        np.testing.assert_allclose(sums[network][trained].mean(), expected, rtol=1e-4)
        assert float(sums[network][trained].std()) < 0.2 * expected


def test_stacked_networks_train_as_alone():
    def batch(step):
        return WORLDS.batch(12, 2, torch.Generator().manual_seed(step))

    schedule = Training(6, 1e-3, warm_up=2, final=1.0, decay=0.1)
    together = train_by(lambda w, s: loss(SHAPE, 8, w, batch(s)), initial(), schedule).losses
    for network in (0, 3):
        alone = {k: v[network : network + 1] for k, v in initial().items()}
        losses = train_by(lambda w, s, i=network: loss(SHAPE, 8, w, batch(s).of(i)), alone, schedule).losses
        np.testing.assert_allclose(losses[:, 0], together[:, network], atol=1e-5)
    visits = []
    again = train_by(
        lambda w, s: loss(SHAPE, 8, w, batch(s)), initial(), schedule, visit=lambda s, w: visits.append((s, w)), at=(0, 2, 6)
    )
    np.testing.assert_array_equal(again.losses, together)
    assert [s for s, _ in visits] == [0, 2, 6]
    assert all(torch.equal(visits[-1][1][k], v) for k, v in again.state.items())
    assert not torch.equal(visits[1][1]["transformer.wte.weight"], visits[2][1]["transformer.wte.weight"])


def test_an_untrained_network_knows_nothing_and_a_planted_bridge_is_found():
    found = evaluate(SHAPE, WORLDS, initial(), {kind: WORLDS.queries(kind, 15) for kind in KINDS})
    assert set(found.hits) == {"facts", "facts OOD", *KINDS}
    assert found.hits[HELD_OUT].shape == (4, 15)
    assert all(abs(v.mean() - np.log(14)) < 0.2 for v in found.nats.values()), "close to uniform over the vocabulary"
    assert set(found.patches) == {(s, t) for s in ("embed", "resid_post.0", "resid_post.1") for t in ("h", "r1")}
    from repscope.worlds.two_hop.evaluation import _probed

    labels = torch.randint(8, (2, 200), generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.one_hot(labels, 16).float() + 0.1 * torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(1))
    assert (_probed(x, labels, 8) > 0.95).all()
    assert (_probed(x, labels[:, torch.randperm(200, generator=torch.Generator().manual_seed(2))], 8) < 0.4).all()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"ratios": (50,)}, "needs more queries"),
        ({"ood": 0.6}, "leaves no queries"),
        ({"entities": 1}, "two entities"),
        ({"ratios": ()}, "a phi above 0"),
        ({"ood": 0.02, "entities": 6, "relations": 5}, "fewer than two queries"),
    ],
)
def test_mistakes_are_one_sentence(sizes, said):
    with pytest.raises(UserError, match=said):
        FactWorlds(**({"seeds": (0,), "ratios": (1,), "entities": 8, "relations": 6, "held_out": 20} | sizes))
