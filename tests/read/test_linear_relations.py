"""LRE and LRC against torch's own derivative and against planted truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from families import build
from repscope.data.relations import Relation, relation
from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.models.linear.low_rank import LowRank
from repscope.models.prompts import encode
from repscope.models.sites import Tokens
from repscope.read.concept_directions import by_means, by_probe, class_means, concepts, cross_validated, mean_of_inverses
from repscope.read.known_facts import distinct, encode_facts, select_known, starts_with
from repscope.read.linear_relations import LRE, at_subject_and_end, best_beta, lre, ridge_map, translation
from repscope.worlds.tiny import tiny

HELD = Relation(
    "capital",
    ("The capital of {} is", "{} has the capital"),
    (("Chile", "Santiago"), ("Peru", "Lima"), ("Italy", "Rome"), ("France", "Paris"), ("Upper Volta", "Ouaga"), ("Cuba", "Havana")),
)


def reference(lm, prompt, source, target):
    """J and o by torch's own functional jacobian over the whole padded-left prompt, the model as it is, no cache."""
    encoded = encode(lm.tokenizer, [prompt], Tokens("last", "subject"), None)
    ids, at = encoded.ids[0], int(encoded.start[0])
    (begin,), (end,) = lm.resolve(source), lm.resolve(target)
    seen, got = [], []
    row = torch.tensor(np.asarray(ids))[None]
    with torch.no_grad(), lm.taps.hooked([(lm.write_tap(begin), lambda v: seen.append(v))]):
        lm.module(input_ids=row, **lm.plain())
    point = seen[0][0, at]

    def of(x):
        def put(value):
            new = value.clone()
            new[:, at] = x
            return new

        got.clear()
        with lm.taps.hooked([(lm.write_tap(begin), put), (lm.tap(end), lambda v: got.append(v[0, -1]))]):
            lm.module(input_ids=row, **lm.plain())
        return got[0]

    with torch.enable_grad():
        j = torch.autograd.functional.jacobian(of, point).double().numpy()
    return j, of(point).detach().double().numpy() - j @ point.detach().double().numpy()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("template", [0, 1])
def test_weight_and_bias_are_the_mean_of_torchs(family, template, tokenizer):
    """Template 1 without examples would put the subject at index 0; here the examples are the shared beginning."""
    lm = LanguageModel(build(family), tokenizer, family)
    tokenizer.padding_side = "left"  # what broke the peer's batches
    try:
        fits, words, end = (
            lre(lm, HELD, examples=HELD.samples[:4], template=template),
            encode_facts(lm, HELD),
            f"resid_post.{lm.blocks - 1}",
        )
        for site in ("embed", "resid_post.0", "resid_post.1"):
            pairs = [
                reference(lm, words.prompt(s, [p for p in HELD.samples[:4] if p[0] != s], template), site, end)
                for s, _ in HELD.samples[:4]
            ]
            weight, bias = (np.mean([pair[i] for pair in pairs], 0) for i in (0, 1))
            for ours, theirs in ((fits[site].weight, weight), (fits[site].bias, bias)):
                assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs)
    finally:
        tokenizer.padding_side = "right"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_a_subject_at_index_0(family, tokenizer):
    lm = LanguageModel(build(family), tokenizer, family)
    prompts = [HELD.prompt(s, (), 1) for s in ("C", "P")]  # one token each, the first of the prompt
    end = f"resid_post.{lm.blocks - 1}"
    ((weight, bias),) = lm.jacobian(prompts, ["resid_post.1"], end, source_tokens="subject.last").mean().affine().values()
    pairs = [reference(lm, p, "resid_post.1", end) for p in prompts]
    assert np.linalg.norm(weight - np.mean([p[0] for p in pairs], 0)) <= 1e-4 * np.linalg.norm(weight)
    assert np.linalg.norm(bias - np.mean([p[1] for p in pairs], 0)) <= 1e-4 * np.linalg.norm(bias)


def test_the_map_meets_the_network_at_its_own_example(llama):
    """With one prompt, β = 1, W s + b is exactly the state there."""
    prompt = HELD.prompt("Peru", HELD.samples[:1])
    ((weight, bias),) = (
        llama.jacobian([prompt], ["resid_post.1"], "resid_post.3", source_tokens="subject.last").mean().affine().values()
    )
    s = llama.capture([prompt], "resid_post.1", "subject.last").numpy()[0]
    o = llama.capture([prompt], "resid_post.3", "last").numpy()[0]
    assert np.allclose(weight @ s + bias, o, atol=1e-4 * np.abs(o).max())


def test_mean_over_the_objects_tokens(llama):
    """The state is averaged over the places from which each token of the object is said."""
    fits = lre(llama, HELD, examples=HELD.samples[:3], sites=["resid_post.1"], tokens="mean")
    words = encode_facts(llama, HELD)
    prompt = words.answering(llama, "Chile", "Santiago", HELD.samples[1:3])
    acts = llama.capture([prompt], "resid_post.3", "answering.all")
    tail = llama.tokenizer(" Santiago", add_special_tokens=False)["input_ids"]
    assert len(acts["resid_post.3"]) == len(tail) - len(words.blank)
    assert fits["resid_post.1"].weight.shape == (32, 32)
    assert np.allclose(fits.states(llama, [("Chile", "Santiago")])[0], acts["resid_post.3"].mean(0), atol=1e-5)
    other = lre(llama, HELD, examples=HELD.samples[:3], sites=["resid_post.1"])
    kept = lre(llama, HELD, examples=HELD.samples[:3], sites=["resid_post.0", "resid_post.1"], each=True)
    assert np.allclose(kept["resid_post.1"].weight, other["resid_post.1"].weight, atol=1e-6)
    assert np.allclose(kept["resid_post.1"].bias, other["resid_post.1"].bias, atol=1e-6)
    prompts = [kept.prompt(s) for s, _ in kept.examples]
    alone = llama.jacobian(prompts, "resid_post.1", "resid_post.3", source_tokens="subject.last").matrix()
    assert np.allclose(kept.each["resid_post.1"], alone, atol=1e-6)
    assert other.each is None
    assert other.states(llama, HELD.samples[:2]).shape == (2, 32)
    assert not np.allclose(fits["resid_post.1"].weight, other["resid_post.1"].weight)


def test_the_inverse_of_a_rank():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 12)).astype(np.float32)
    fit = LRE("a", "b", weight, np.zeros(12, np.float32))
    assert np.allclose(fit.inverse(12) @ weight, np.eye(12), atol=1e-3)
    assert np.linalg.matrix_rank(fit.inverse(3)) == 3
    projected = fit.inverse(3) @ weight
    assert np.allclose(projected @ projected, projected, atol=1e-4)
    wide = LRE("a", "b", (rng.normal(size=(1600, 8)) @ rng.normal(size=(8, 1600))).astype(np.float32), np.zeros(1600, np.float32))
    assert np.allclose(wide.triplets(5)[1], np.linalg.svd(wide.weight)[1][:5], rtol=1e-3)
    with pytest.raises(UserError, match="no rank 13"):
        fit.inverse(13)
    assert np.allclose(mean_of_inverses(weight[None], 5), fit.inverse(5), atol=1e-4)
    states = rng.normal(size=(4, 12))
    assert np.allclose(fit.pulled_back(states, 5), states @ fit.inverse(5).T, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_subject_and_end_from_one_pass_are_those_of_two(family, tokenizer):
    lm = LanguageModel(build(family), tokenizer, family)
    prompts = [HELD.prompt(s, HELD.samples[:2], k) for s, _ in HELD.samples for k in (0, 1)]
    sites, ends = ["embed", "resid_post"], ["resid_post.1", f"resid_post.{lm.blocks - 1}"]
    at, end = at_subject_and_end(lm, prompts, sites, ends)
    for found, alone in ((at, lm.capture(prompts, sites, "subject.last")), (end, lm.capture(prompts, ends, "last"))):
        assert list(found) == [str(s) for s in alone.sites]
        for site, rows in found.items():
            assert np.allclose(rows, alone[site], atol=1e-5)


def test_a_map_of_low_rank_is_kept_as_factors_everywhere(llama):
    """At full rank predictions, inverses and concepts are those of the whole map."""
    whole = lre(llama, HELD, examples=HELD.samples[:4], sites=["resid_post.1"])
    low = lre(llama, HELD, examples=HELD.samples[:4], sites=["resid_post.1"], rank=32)
    a, b = whole["resid_post.1"], low["resid_post.1"]
    assert isinstance(b.weight, LowRank)
    assert isinstance(b.inverse(6), LowRank)
    assert whole.certificate is None
    assert low.certificate.rank == 32
    names = [s for s, _ in HELD.samples]
    held = whole.subjects(llama, names)
    assert np.allclose(a(held["resid_post.1"]), b(held["resid_post.1"]), atol=1e-3 * np.abs(a.bias).max())
    assert np.allclose(np.asarray(b.inverse(6)), a.inverse(6), atol=1e-3 * np.abs(a.inverse(6)).max())
    both = [concepts(fit, held["target"], [o for _, o in HELD.samples], 6).vectors for fit in (a, b)]
    assert np.allclose(*both, atol=1e-3 * np.abs(both[0]).max())
    with pytest.raises(UserError, match="no rank 2"):
        lre(llama, HELD, examples=HELD.samples[:4], sites=["resid_post.1"], rank="auto")["resid_post.1"].inverse(2)
    rng = np.random.default_rng(0)
    factors = [LowRank(rng.normal(size=(9, 4)), rng.normal(size=(4, 8))) for _ in range(3)]
    slow = mean_of_inverses(np.stack([np.asarray(f) for f in factors]), 3)
    assert np.allclose(np.asarray(mean_of_inverses(factors, 3)), slow)


def test_ridge_and_translation_find_what_was_planted():
    rng = np.random.default_rng(1)
    s, w, b = rng.normal(size=(200, 6)), rng.normal(size=(6, 6)), rng.normal(size=6)
    fit = ridge_map(s, s @ w.T + b, "a", "b")
    assert np.allclose(fit.weight, w, atol=1e-2)
    assert np.allclose(fit.bias, b, atol=1e-2)
    assert np.allclose(translation(s, s + b, "a", "b")(s), s + b, atol=1e-5)


def planted(seed=0, objects=5, each=12, noise=0.3):
    """Subjects whose object moves the state through a known map of low rank, with noise that the map does not see."""
    rng = np.random.default_rng(seed)
    weight = (
        np.linalg.qr(rng.normal(size=(20, 20)))[0] @ np.diag([3.0] * 6 + [1e-3] * 14) @ np.linalg.qr(rng.normal(size=(20, 20)))[0]
    )
    _, _, v = np.linalg.svd(weight)
    centres = rng.normal(size=(objects, 6)) @ v[:6]
    names = [f"o{i}" for i in range(objects) for _ in range(each)]
    s = (
        np.repeat(centres, each, 0)
        + noise * rng.normal(size=(objects * each, 6)) @ v[:6]
        + 2.0 * rng.normal(size=(objects * each, 14)) @ v[6:]
    )
    bias = rng.normal(size=20)
    return (LRE("resid_post.1", "resid_post.3", weight.astype(np.float32), bias.astype(np.float32)), s, s @ weight.T + bias, names)


def test_concepts_find_planted_directions_at_the_right_rank_only():
    fit, s, states, names = planted()
    train, test = np.arange(len(names)) % 2 == 0, np.arange(len(names)) % 2 == 1
    truth = np.array(names)[test]

    def accuracy(rank):
        made = concepts(fit, states[train], list(np.array(names)[train]), rank)
        return float((np.array(made.classify(s[test])) == truth).mean())

    assert accuracy(6) > 0.9
    assert accuracy(20) < accuracy(6) - 0.15  # noise along the small singular values
    table = cross_validated({"resid_post.1": fit}, {"resid_post.1": s}, states, names, ranks=(2, 6, 20))
    assert table.argmax() == 1
    shuffled = concepts(fit, states[train], list(np.random.default_rng(0).permutation(np.array(names)[train])), 6)
    assert (np.array(shuffled.classify(s[test])) == truth).mean() < 0.6


def test_a_change_moves_a_subject_to_the_new_object():
    fit, s, states, names = planted()
    made = concepts(fit, states, names, 6)
    step = made.change("o0", "o3")
    moved = made.classify(s[np.array(names) == "o0"] + step)
    assert moved.count("o3") >= 10
    with pytest.raises(UserError, match="no concept"):
        made.change("o0", "nowhere")
    kept = made.directions("f", "planted")
    assert kept["o3"].site == "resid_post.1"
    assert np.isclose(np.linalg.norm(kept["o3"].vector), 1, atol=1e-5)


def test_the_other_classifiers():
    rng = np.random.default_rng(0)
    names = ["x", "y", "z"] * 20
    rows = np.eye(3)[[0, 1, 2] * 20] @ rng.normal(size=(3, 8)) * 4 + rng.normal(size=(60, 8))
    for said in (
        by_means(rows[:30], names[:30], rows[30:], others=False),
        by_means(rows[:30], names[:30], rows[30:], others=True),
        by_probe(rows[:30], names[:30], rows[30:], kind="ridge"),
        by_probe(rows[:30], names[:30], rows[30:], kind="logistic"),
    ):
        assert np.mean([a == b for a, b in zip(said, names[30:])]) > 0.8
    assert by_means(rows[:30] + 50, names[:30], rows[30:] + 50, others=True) == by_means(
        rows[:30], names[:30], rows[30:], others=True
    )
    labels, means = class_means(rows, names)
    assert labels == ("x", "y", "z")
    assert np.allclose(means[1], rows[1::3].mean(0))


class Plain:
    """A head that says the largest entry."""

    words = ("Paris", "Rome", "Berlin", "Madrid", "wrong")

    def __init__(self):
        self.tokenizer, self.device = self, torch.device("meta")

    def unembed(self, states, normed=False):
        return states

    def decode(self, ids):
        return self.words[ids[0]]


def test_beta_is_chosen_for_what_is_right():
    """A map whose W is too short by half beside its bias wants β = 2 or more; of equals the one nearest to 1 is taken."""
    fit = LRE("a", "b", 0.5 * np.eye(5, dtype=np.float32), np.array([0, 0, 0, 0, 0.9], dtype=np.float32))
    tuned, rate = best_beta(Plain(), fit, np.eye(5)[:4], Plain.words[:4])
    assert (tuned.beta, rate) == (2.0, 1.0)
    assert best_beta(Plain(), replace(fit, bias=np.zeros(5, np.float32)), np.eye(5)[:4], Plain.words[:4])[0].beta == 1.0


def test_first_tokens_and_examples():
    assert starts_with(" Lond", "London")
    assert starts_with("lon", "London")
    assert not starts_with(" ", "London")
    assert not starts_with(" Paris", "London")
    pairs = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")]
    assert distinct(pairs, range(4), 3) == [0, 2, 3]
    assert distinct(pairs, range(4), 4) == [0, 2, 3, 1]


def test_known_facts_by_both_rules(smollm):
    held = relation("country-capital").sample(40, 0)
    found = select_known(smollm, held, trials=2)
    assert 0.4 < found.first.mean() < 0.9
    assert (found.full <= found.first).all()
    # by hand: the same prompt, the model's own greedy text
    i = int(found.rows[0])
    subject, obj = found.facts.relation.samples[i]
    order = np.random.default_rng([0, 0]).permutation(len(held))
    samples = found.facts.relation.samples
    sets = [distinct(samples, order, 5), distinct(samples, order[::-1], 5)]
    shots = [samples[j] for j in (sets[1] if i in sets[0] else sets[0])]
    said = smollm.generate([found.facts.prompt(subject, shots)], 1)[0].text
    assert starts_with(said, obj)


def test_digits_after_a_lone_blank(smollm):
    """The tokenizer writes " 17" as a blank and digits: the blank goes with the question, so that the next token tells."""
    words = encode_facts(smollm, relation("element-group"))
    assert words.blank == " "
    assert words.prompt("iron").text.endswith(" ")
    assert smollm.tokenizer.decode([words.first["8"]]) == "8"


def test_mistakes_are_told_in_a_sentence(llama):
    one = Relation("one", ("{} is",), tuple((s, "Rome") for s in "abcdefgh"))
    with pytest.raises(UserError, match="one object"):
        lre(llama, one)
    with pytest.raises(
        UserError, match="9 examples were asked for; the relation 'capital' has 4 usable samples: give n from 2 to 4"
    ):
        lre(llama, HELD, n=9)
    with pytest.raises(UserError, match="at least 2 examples"):
        lre(llama, HELD, examples=HELD.samples[:1])
    with pytest.raises(UserError, match="there is no number 7"):
        lre(llama, HELD, template=7)
    with pytest.raises(UserError, match="subject layer"):
        lre(llama, HELD, n=3)["resid_post.9"]
    with pytest.raises(UserError, match="usable samples"):
        select_known(llama, HELD)
    with pytest.raises(UserError, match="give one for each"):
        concepts(LRE("a", "b", np.eye(3), np.zeros(3)), np.zeros((2, 3)), ["x"], 2)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rank": 0}, "not 0"),
        ({"rank": -2}, "not -2"),
        ({"rank": 2.5}, "not 2.5"),
        ({"rank": True}, "not True"),
        ({"rank": "all"}, "not 'all'"),
        ({"sites": []}, "empty list"),
        ({"n": 2.5}, "give n from 2 to 4"),
        ({"examples": [("Peru", "Lima", "x"), ("Italy", "Rome")]}, "give pairs"),
    ],
)
def test_what_is_no_rank_site_or_example_is_refused(llama, how, said):
    with pytest.raises(UserError, match=said):
        lre(llama, HELD, **how)


def test_one_site_as_a_text_and_what_answers_refuse(llama):
    fits = lre(llama, HELD, n=3, sites="resid_post.1")
    assert list(fits) == ["resid_post.1"]
    subject = HELD.subjects[0]
    assert fits.answers(llama, [subject], "resid_post.1", 2.0) == fits.answers(llama, (subject,), "resid_post.1", np.float32(2))
    for names, said in (
        (subject, "give a list"),
        ([], "no subject"),
        ([""], "A subject is empty"),
        ([subject, " "], "A subject is empty"),
        ([3], "is no text"),
    ):
        with pytest.raises(UserError, match=said):
            fits.answers(llama, names, "resid_post.1")
    for beta in (float("nan"), float("inf"), 0, -1.0, "2", True):
        with pytest.raises(UserError, match="give a positive number"):
            fits.answers(llama, [subject], "resid_post.1", beta)
    with pytest.raises(UserError, match="give a positive number"):
        LRE("a", "b", np.eye(3), np.zeros(3), beta=float("nan"))(np.ones((1, 3)))
    with pytest.raises(UserError, match="each must be 1 or more"):
        select_known(llama, HELD, trials=0)


def test_concepts_of_what_is_not_finite_are_refused():
    whole, states = LRE("a", "b", np.eye(3), np.zeros(3)), np.ones((2, 3))
    concepts(whole, states, ["x", "y"], 2)
    for fit, at, said in (
        (whole, np.full((2, 3), np.nan), "states"),
        (replace(whole, bias=np.full(3, np.inf)), states, "bias"),
        (replace(whole, weight=np.full((3, 3), np.nan)), states, "weight"),
        (replace(whole, weight=LowRank(np.full((3, 1), np.nan), np.ones((1, 3)))), states, "weight"),
    ):
        with pytest.raises(UserError, match=f"{said}.* not finite"):
            concepts(fit, at, ["x", "y"], 1)


def test_an_object_that_the_tokenizer_cannot_spell(tokenizer):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "is", "a", "b", "c", "Rome"])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    lm = LanguageModel(build("llama"), PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>"), "words")
    held = Relation("r", ("{} is",), (("a", "Rome"), ("b", "Лима"), ("c", "Oslo")))
    with pytest.raises(UserError, match="cannot spell 'Лима'"):
        encode_facts(lm, held)


def test_ten_lines_of_a_user():
    import repscope as rs

    fits = rs.read.lre(tiny(), rs.relation("country-capital"), n=3)
    assert fits.answers(tiny(), ["France"], "resid_post.2")
