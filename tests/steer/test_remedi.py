"""REMEDI: loss and gradient against the formulas in float64 over whole passes, training, files, evaluation, inspection."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from repscope.data.relations import Relation
from repscope.errors import UserError
from repscope.models.engine.hooks import unhooked
from repscope.models.prompts import Prompt, encode
from repscope.models.sites import Tokens
from repscope.read.known_facts import encode_facts
from repscope.steer.remedi import (
    Change,
    Editor,
    Weights,
    changed_logits,
    edit_facts,
    edit_losses,
    essence,
    held_already,
    outcomes,
    prepare,
    random_editor,
    train_editor,
)
from repscope.steer.remedi.evaluation import equal_norm, with_context
from repscope.steer.remedi.objective import head_of
from repscope.worlds.tiny import tiny

PAIRS = (("Peru", "Lima"), ("Togo", "Bay"), ("Iraq", "Oslo"), ("Cuba", "Rome"), ("Mali", "Cork"), ("Fiji", "Graz"))
RELATION = Relation("capital", ("The capital of {} is", "In {} sits", "{} and"), PAIRS)
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def lm():
    return tiny(0)


@pytest.fixture(scope="module")
def facts(lm):
    held = encode_facts(lm, RELATION)
    return [f for t in range(3) for f in edit_facts(held, range(4), held.relation.objects, template=t)]


def _statement(lm, facts, weight, weights):
    """The loss as its formulas say, fact by fact, in float64, by whole passes with a hook; and its terms."""
    model = copy.deepcopy(lm.model).double()
    terms = []
    for fact in facts:
        entity = encode(lm.tokenizer, [fact.prompt], Tokens("all", "subject"), causal=True)
        said = encode(lm.tokenizer, [fact.context], Tokens("all", "attribute"), causal=True)
        ids = torch.from_numpy(entity.ids[0])[None]
        start, stop = int(entity.start[0]), int(entity.stop[0])
        with torch.no_grad():
            hidden = model(torch.from_numpy(said.ids[0])[None], output_hidden_states=True).hidden_states[2][0]
            plain = model(ids).logits[0].log_softmax(-1)
        d = weight @ hidden[int(said.start[0]) : int(said.stop[0])].mean(0)

        def add(module, args, output, d=d, start=start, stop=stop):
            h = output[0] if isinstance(output, tuple) else output
            mask = torch.zeros(h.shape[1], 1, dtype=h.dtype)
            mask[start:stop] = 1
            return (h + mask * d, *output[1:]) if isinstance(output, tuple) else h + mask * d

        handle = model.model.layers[1].register_forward_hook(add)
        edited = model(ids).logits[0].log_softmax(-1)
        handle.remove()
        between = range(stop - 1, ids.shape[1] - 1)
        kl = sum((plain[p].exp() * (plain[p] - edited[p])).sum() for p in between) / max(len(between), 1)
        terms.append((-edited[-1, fact.target], -torch.log1p(-edited[-1, fact.original].exp()), torch.as_tensor(kl)))
    loss = sum(weights.mediated * m + weights.unmediated * u + weights.kl * k for m, u, k in terms) / len(terms)
    return loss, terms


@pytest.mark.parametrize(("weights", "shared"), [(Weights(), False), (Weights(), True), (Weights(0.5, 2.0, 1.0), True)])
def test_loss_and_gradient_are_the_formulas(lm, facts, weights, shared):
    """Facts of three templates and lengths in one padded batch, or of one template, whose words before the entity run once; the KL
    is of all facts, not of the last.
    """
    facts = facts[:4] if shared else facts
    prepared = prepare(lm, facts, SITE)
    assert len(set(prepared.lengths.tolist())) == (1 if shared else 3)
    start = 0.7 * torch.randn(32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slow = start.clone().requires_grad_()
    wanted, terms = _statement(lm, facts, slow, weights)
    quick = start.float().requires_grad_()
    rows = np.arange(len(facts))
    before = len(prepared.before(0)) if shared else 0
    assert prepared.calls(prepared.before(0), int(prepared.lengths.max()) - before) is not None
    with unhooked(lm.model, differentiable=True):
        found = edit_losses(prepared, rows, prepared.attributes @ quick.T, head_of(lm))
        loss = found.total(weights)
    for at, name in enumerate(("mediated", "unmediated", "kl")):
        assert torch.allclose(getattr(found, name).double(), torch.stack([t[at] for t in terms]), rtol=1e-3, atol=1e-5), name
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    theirs, ours = torch.autograd.grad(wanted, slow)[0], torch.autograd.grad(loss, quick)[0].double()
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    assert float(found.kl.min()) > 0
    assert len({round(float(k), 9) for k in found.kl}) == len(facts), "each fact has a KL of its own"


def test_a_question_that_ends_with_its_entity_has_no_kl(lm):
    held = encode_facts(lm, RELATION)
    made = edit_facts(held, range(3), held.relation.objects)
    bare = [replace(f, prompt=Prompt.fill("Capital of {subject}", subject=f.subject)) for f in made]
    prepared = prepare(lm, bare, SITE)
    ones = torch.ones(3, 32)
    assert edit_losses(prepared, np.arange(3), ones, head_of(lm)).kl.tolist() == [0, 0, 0]


def test_training_lowers_the_loss_of_held_out_subjects_and_keeps_the_best(lm):
    held = encode_facts(lm, RELATION)
    make = lambda rows: edit_facts(held, rows, held.relation.objects[:2], per_subject=2)  # noqa: E731
    train, validation = make(range(2, 5)), make([5])
    trained = train_editor(lm, train, validation, SITE, epochs=12, batch=3, learning_rate=3e-3, seed=1)
    losses = trained.losses[trained.losses["split"] == "validation"]["total"].to_numpy()
    prepared = prepare(lm, validation, SITE)
    zero = edit_losses(prepared, np.arange(len(prepared)), torch.zeros(len(prepared), 32), head_of(lm)).total(Weights()).detach()
    assert trained.best == losses.min() < float(zero)
    changes = torch.from_numpy(trained.editor(prepared.attributes.numpy()))
    again = edit_losses(prepared, np.arange(len(prepared)), changes, head_of(lm)).total(Weights()).detach()
    assert float(again) == pytest.approx(trained.best, rel=1e-3), "the editor is that of the best epoch"
    assert not trained.editor.bias.any()
    same = train_editor(lm, train, validation, SITE, epochs=12, batch=3, learning_rate=3e-3, seed=1)
    assert np.array_equal(same.editor.weight, trained.editor.weight)
    affine = train_editor(lm, train, validation, SITE, kind="affine", epochs=2, batch=3)
    assert affine.editor.bias.any()
    stopped = train_editor(lm, train, validation, SITE, epochs=9, patience=2, batch=3, learning_rate=1e-30)
    assert stopped.losses["epoch"].max() <= 4, "nothing improves, beyond rounding"


def test_what_cannot_be_trained_is_refused(lm, facts):
    with pytest.raises(UserError, match="is in training and validation"):
        train_editor(lm, facts, facts, SITE)
    with pytest.raises(UserError, match="linear or affine"):
        train_editor(lm, facts[:2], facts[3:4], SITE, kind="cubic")
    with pytest.raises(UserError, match="each must be 1 or more"):
        train_editor(lm, facts[:2], facts[3:4], SITE, epochs=0)
    with pytest.raises(UserError, match="below the last one"):
        prepare(lm, facts, "resid_post.3")
    with pytest.raises(UserError, match="at least one"):
        prepare(lm, [], SITE)
    with pytest.raises(UserError, match="no facts to train on"):
        train_editor(lm, [], facts[3:4], SITE)
    with pytest.raises(UserError, match="no facts for validation"):
        train_editor(lm, facts[:2], [], SITE)
    for row in (99, -1, 6):
        with pytest.raises(UserError, match=f"no sample {row}; there are 6"):
            edit_facts(encode_facts(lm, RELATION), [0, row], RELATION.objects)
    with pytest.raises(UserError, match="no object of 'capital' 'Limo'; did you mean 'Lima'"):
        edit_facts(encode_facts(lm, RELATION), [0], ["Limo"])
    with pytest.raises(UserError, match="No sample"):
        edit_facts(encode_facts(lm, RELATION), [0], ["Lima"])


def test_a_new_object_is_never_the_old_one(facts):
    for fact in facts:
        assert fact.new != fact.old
        assert fact.target != fact.original
        assert fact.context.text.endswith(f" {fact.new}")
        a, b = fact.context.spans["attribute"]
        assert fact.context.text[:a].endswith(fact.subject)
        assert b == len(fact.context.text)


def test_an_editor_is_a_file(tmp_path, lm, facts):
    rng = np.random.default_rng(0)
    made = Editor(SITE, rng.standard_normal((32, 32)).astype(np.float32), np.ones(32, np.float32), "affine", "abc", {"facts": 3})
    read = Editor.load(made.save(tmp_path / "editor.safetensors"))
    assert np.array_equal(read.weight, made.weight)
    assert np.array_equal(read.bias, made.bias)
    assert (read.site, read.kind, read.model, dict(read.notes)) == (SITE, "affine", "abc", {"facts": 3})
    (tmp_path / "other.safetensors").write_bytes((tmp_path / "editor.safetensors").read_bytes()[:100])
    for name, says in (("other.safetensors", "is no REMEDI editor"), ("none", "There is no file")):
        with pytest.raises(UserError, match=says):
            Editor.load(tmp_path / name)
    with pytest.raises(UserError, match="square weight"):
        Editor(SITE, np.ones((3, 2)), np.ones(3))
    with pytest.raises(UserError, match="not finite"):
        Editor(SITE, np.full((2, 2), np.nan), np.zeros(2))


def test_changes_of_a_question_are_edits_of_the_engine(lm, facts):
    editor = random_editor(Editor(SITE, np.eye(32, dtype=np.float32), np.zeros(32, np.float32)), 0)
    attributes = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    prompts = [facts[0].prompt, facts[5].prompt]
    with lm.edit(editor.edit(attributes)):
        slow = lm.logits(prompts)
    for i, prompt in enumerate(prompts):
        found = changed_logits(lm, prompt, [Change(SITE, editor(attributes)[i]), Change(SITE, editor(attributes)[i], "last")])
        assert np.allclose(found[0], lm.logits([prompt])[0], atol=1e-4)
        assert np.allclose(found[1], slow[i], atol=1e-4)
        assert np.abs(found[2] - found[1]).max() > 1e-4, "the last token alone is another edit"


def test_attributes_that_do_not_fit_an_editor_are_refused(lm, facts):
    editor = Editor(SITE, np.eye(32, dtype=np.float32), np.zeros(32, np.float32))
    for attributes, said in (
        (np.ones((1, 31)), "the editor takes"),
        (np.ones(32), "give .fact, feature."),
        (np.ones((2, 3, 32)), "give .fact, feature."),
        ("x", "attribute vectors"),
    ):
        with pytest.raises(UserError, match=said):
            editor.edit(attributes)
    with pytest.raises(UserError, match="2 vectors for 1 prompts"), lm.edit(editor.edit(np.ones((2, 32)))):
        lm.logits([facts[0].prompt])


def test_outcomes_are_of_the_first_row():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]))
    found = outcomes(logits, 1, 0)
    assert found.said.tolist() == [0, 1]
    assert np.allclose(np.exp(found.log_target), [0.2, 0.8])
    assert np.allclose(np.exp(found.log_original), [0.7, 0.1])
    assert found.kl[1] == pytest.approx(0.7 * np.log(7) + 0.2 * np.log(1 / 4))
    assert found.kl[0] == pytest.approx(0)


def test_a_sentence_before_a_prompt_moves_its_spans(facts):
    told = with_context(facts[0].prompt, facts[0].context)
    a, b = told.spans["subject"]
    assert told.text[a:b] == facts[0].subject
    assert told.text.startswith(facts[0].context.text + "\n")


def test_equal_norms():
    x = equal_norm(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[0.0, 10.0], [1.0, 0.0]]))
    assert x.tolist() == [[6.0, 8.0], [0.0, 0.0]]


def test_essence_is_one_without_a_change_and_less_with_one(lm, facts):
    prompts = [Prompt.fill("About {subject}:", subject=f.subject) for f in facts[:2]]
    assert essence(lm, prompts, prompts, new_tokens=4).tolist() == pytest.approx([1, 1])
    editor = random_editor(Editor(SITE, 500 * np.eye(32, dtype=np.float32), np.zeros(32, np.float32)), 1)
    changed = essence(lm, prompts, editor.edit(np.ones((2, 32), np.float32)), new_tokens=4)
    assert changed.min() < 0.9
    with pytest.raises(UserError, match="at least one"):
        essence(lm, [], [])


def test_a_planted_attribute_is_held_already():
    """Half of the subjects hold their object's direction, the others do not."""
    rng = np.random.default_rng(0)
    objects = rng.standard_normal((12, 40))
    own = rng.integers(0, 12, 80)
    holds = np.arange(80) % 2 == 0
    subjects = rng.standard_normal((80, 40)) + 1.5 * holds[:, None] * objects[own]
    others = objects[(own[:, None] + np.array([1, 2, 5])) % 12]
    found = held_already(subjects, objects[own], others)
    assert (found[holds][:, None] > found[~holds]).mean() > 0.95
    mixed = held_already(subjects, objects[rng.permutation(own)], others)
    assert (mixed[holds][:, None] > mixed[~holds]).mean() < 0.7
    with pytest.raises(UserError, match="3 or more"):
        held_already(subjects[:2], objects[:2], others[:2])
