"""Edits: each kind is its formula, at the tokens it names and nowhere else, whatever batch, prefix or order surrounds it."""

import numpy as np
import pytest
import torch

from families import build
from repscope.directions import Direction, DirectionSet
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt
from repscope.models.sites import Site
from repscope.models.variants.prompt_variants import PromptVariant, run_variants

# Lengths out of order, so that no batch keeps the order given; the same text twice, which a plan without edits would merge.
PROMPTS = [
    Prompt.fill("The place called {} lies north of Lagos", subject="San Francisco"),
    Prompt.fill("{} of", subject="Zürich"),
    Prompt.fill("A map that shows {}, hydrogen, helium and lithium; the name", subject="Paris"),
    Prompt.fill("{} of", subject="Zürich"),
    Prompt.fill("do you know {}", subject="São Paulo"),
]
SMALL = 24  #: padded tokens of a batch, so that these prompts take several
WIDTH, HEADS, D_HEAD = 32, 4, 8
KINDS = ["add", "replace", "project_out", "affine", "clamp"]
TOKENS = ["all", "last", "first", 1, -2, "subject", "subject.last", "subject.first", "subject.-1", "prompt"]
# Every site of llama with the module and the side where a plain hook finds the same tensor, and which features of it they are.
PLAIN = {
    "embed": ("embed_tokens", "out", slice(None)),
    "resid_pre.2": ("layers.2", "in", slice(None)),
    "v.1.1": ("layers.1.self_attn.v_proj", "out", slice(8, 16)),
    "z.1.2": ("layers.1.self_attn.o_proj", "in", slice(16, 24)),
    "z.3": ("layers.3.self_attn.o_proj", "in", slice(None)),
    "attn_out.0": ("layers.0.self_attn", "out", slice(None)),
    "mlp_act.1": ("layers.1.mlp.down_proj", "in", slice(None)),
    "mlp_out.1": ("layers.1.mlp", "out", slice(None)),
    "resid_post.1": ("layers.1", "out", slice(None)),
    "resid_post.3": ("layers.3", "out", slice(None)),
    "final_norm": ("norm", "out", slice(None)),
    "module:layers.2.mlp.up_proj": ("layers.2.mlp.up_proj", "out", slice(None)),
}


@pytest.fixture(scope="module")
def exact(tokenizer):
    """Llama in float64: what is left of an error is an error."""
    return LanguageModel(build("llama").double(), tokenizer, "llama64")


def operands(size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=size), rng.normal(size=(size, size)) / size**0.5, rng.normal(size=(3, size))


def made(kind, site, shape, tokens="all", seed=0):
    """An edit at a site whose features have a shape, and its formula over rows (position, feature) in float64."""
    size = int(np.prod(shape))
    v, w, several = operands(size, seed)
    if kind == "add":
        return Edit.add(site, v.reshape(shape), scale=-1.5, tokens=tokens), lambda x: x - 1.5 * v
    if kind == "replace":
        return Edit.replace(site, v.reshape(shape), tokens=tokens), lambda x: np.broadcast_to(v, x.shape)
    if kind == "project_out":
        given = np.concatenate([several, 2 * several[:1] - several[1:2]])  # four directions that span three
        onto = np.linalg.pinv(several) @ several
        return Edit.project_out(site, given.reshape(4, *shape), tokens=tokens), lambda x: x - x @ onto
    if kind == "affine":
        return Edit.affine(site, w, v, tokens=tokens), lambda x: np.einsum("ij,nj->ni", w, x) + v
    u = v / np.linalg.norm(v)
    low, high = 0.031, 0.0417  # narrow, so that it acts on nearly every row
    clamp = Edit.clamp(site, 3 * v.reshape(shape), low=low, high=high, tokens=tokens)
    return clamp, lambda x: x + np.outer(np.clip(x @ u, low, high) - x @ u, u)


def positions(lm, prompt, tokens):
    """Which positions of a prompt a choice means, told a second way: from the characters that each token covers."""
    given = lm.tokenizer(prompt.text, return_offsets_mapping=True)
    every = list(range(len(given["input_ids"])))
    span, _, pick = str(tokens).rpartition(".")
    if str(tokens) == "subject":
        span, pick = "subject", "all"
    if span:
        a, b = prompt.spans[span]
        every = [i for i, (start, end) in enumerate(given["offset_mapping"]) if set(range(start, end)) & set(range(a, b))]
    return every if pick in ("all", "prompt") else [every[{"last": -1, "first": 0}.get(pick) if pick.isalpha() else int(pick)]]


def plain_logits(lm, ids, changes):
    """One forward of the Hugging Face model, changed by plain hooks: (site, positions, formula over float64 rows) each."""
    hooks = []
    for site, at, formula in changes:
        path, side, features = PLAIN[site]
        module = lm.module.get_submodule(path)

        def change(x, at=at, formula=formula, features=features):
            new = x.clone()
            new[:, at, features] = torch.from_numpy(np.ascontiguousarray(formula(x[0, at, features].double().numpy())))[None].to(x)
            return new

        if side == "in":
            hooks.append(module.register_forward_pre_hook(lambda _, a, change=change: (change(a[0]), *a[1:])))
        else:
            hooks.append(
                module.register_forward_hook(
                    lambda _, a, o, change=change: (change(o[0]), *o[1:]) if isinstance(o, tuple) else change(o)
                )
            )
    try:
        with torch.no_grad():
            return lm.model(input_ids=torch.as_tensor(np.asarray(ids))[None]).logits[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()


def close(a, b, tolerance=1e-12):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), np.linalg.norm(a - b) / np.linalg.norm(b)


def ids_of(lm, prompts=PROMPTS):
    return [lm.tokenizer(p.text)["input_ids"] for p in prompts]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_its_formula_at_every_site(exact, kind):
    sites = [str(s) for s in exact.anatomy.taps if s.kind not in ("pattern", "head_out") and s.layer in (None, 2)]
    for site in [*sites, "z.2.1", "q.1.3", "v.0.1", "k.3.0"]:
        plain = exact.capture(PROMPTS, site, "all", dtype="float64")[site]
        edit, formula = made(kind, site, plain.shape[1:])
        with exact.edit(edit):
            edited = exact.capture(PROMPTS, site, "all", dtype="float64", batch_tokens=SMALL)[site]
        close(edited, formula(plain.reshape(len(plain), -1)).reshape(plain.shape))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_choice_of_tokens_is_changed_and_no_other(exact, kind, tokens):
    site = "resid_post.1"
    plain = exact.capture(PROMPTS, site, "all", dtype="float64")
    edit, formula = made(kind, site, (WIDTH,), tokens)
    with exact.edit(edit):
        edited = exact.capture(PROMPTS, site, "all", dtype="float64", batch_tokens=SMALL)[site]
    for prompt, a, b in zip(PROMPTS, plain.offsets[:-1], plain.offsets[1:]):
        at = positions(exact, prompt, tokens)
        close(edited[a:b][at], formula(plain[site][a:b][at]))
        others = np.setdiff1d(np.arange(b - a), at)
        close(edited[a:b][others], plain[site][a:b][others])


@pytest.mark.parametrize("site", PLAIN)
def test_what_follows_is_what_a_plain_hook_gives(exact, site):
    shape = exact.capture(PROMPTS[:1], site)[site].shape[1:]
    every = list(zip(KINDS, ["all", "subject", "last", -2, "prompt"]))
    for kind, tokens in every[list(PLAIN).index(site) % 2 :: 2]:
        edit, formula = made(kind, site, shape, tokens)
        with exact.edit(edit):
            ours = exact.logits(PROMPTS, "all", batch_tokens=SMALL)
        theirs = [
            plain_logits(exact, ids, [(site, positions(exact, prompt, tokens), formula)])
            for prompt, ids in zip(PROMPTS, ids_of(exact))
        ]
        close(ours, np.concatenate(theirs), 1e-6)  # Llama's norms are in float32 whatever the weights


def test_edits_at_one_site_act_in_the_order_given_and_sites_in_the_order_of_the_pass(exact):
    site = "resid_post.1"
    plain = exact.capture(PROMPTS, site, "all", dtype="float64")[site]
    steps = [made(kind, site, (WIDTH,), seed=i) for i, kind in enumerate(["affine", "project_out", "add", "clamp", "affine"])]
    for order in (steps, steps[::-1]):
        expected = plain
        for _, formula in order:
            expected = formula(expected)
        with exact.edit(*(edit for edit, _ in order)):
            close(exact.capture(PROMPTS, site, "all", dtype="float64")[site], expected)
    late, early = made("affine", "resid_post.3", (WIDTH,), "last"), made("affine", "mlp_out.1", (WIDTH,), "subject")
    with exact.edit(late[0], early[0]):
        ours = exact.logits(PROMPTS[:1], "all")
    changes = [
        ("resid_post.3", positions(exact, PROMPTS[0], "last"), late[1]),
        ("mlp_out.1", positions(exact, PROMPTS[0], "subject"), early[1]),
    ]
    close(ours, plain_logits(exact, ids_of(exact)[0], changes), 1e-6)


def test_contexts_nest_and_the_outer_acts_first(exact):
    site = "z.2"
    plain = exact.capture(PROMPTS, site, "all", dtype="float64")[site]
    (outer, f), (inner, g) = (made(kind, site, (HEADS, D_HEAD), seed=3) for kind in ("affine", "clamp"))

    def rows():
        return exact.capture(PROMPTS, site, "all", dtype="float64")[site]

    flat = plain.reshape(len(plain), -1)
    with exact.edit(outer):
        close(rows(), f(flat).reshape(plain.shape))
        with exact.edit(inner):
            close(rows(), g(f(flat)).reshape(plain.shape))
        close(rows(), f(flat).reshape(plain.shape))
        with pytest.raises(ZeroDivisionError), exact.edit(inner):
            assert rows().size / 0  # not hidden behind a complaint about the edit
        close(rows(), f(flat).reshape(plain.shape))
    np.testing.assert_array_equal(rows(), plain)
    assert not exact.installed


@pytest.mark.parametrize("tokens", ["all", "last", "subject"])
def test_each_prompt_gets_its_own_vector_in_any_batch(exact, tokens):
    vectors = np.random.default_rng(5).normal(size=(len(PROMPTS), HEADS, D_HEAD))
    plain = exact.capture(PROMPTS, "z.1", "all", dtype="float64")
    for edit, put in (
        (Edit.add("z.1", vectors, scale=2.0, tokens=tokens, per_prompt=True), lambda x, v: x + 2 * v),
        (Edit.replace("z.1", vectors, tokens=tokens, per_prompt=True), lambda x, v: np.broadcast_to(v, x.shape)),
    ):
        for budget in (1, SMALL, 1024):
            with exact.edit(edit):
                edited = exact.capture(PROMPTS, "z.1", "all", dtype="float64", batch_tokens=budget)["z.1"]
            for i, prompt in enumerate(PROMPTS):
                rows = slice(plain.offsets[i], plain.offsets[i + 1])
                at = positions(exact, prompt, tokens)
                close(edited[rows][at], put(plain["z.1"][rows][at], vectors[i]))


def test_a_prefix_ends_where_prompts_begin_to_differ_by_their_vectors(exact):
    prompts = [[5] * 40 + [i, i + 1] for i in range(6)]
    vectors = np.random.default_rng(6).normal(size=(6, WIDTH))
    with exact.edit(Edit.add("resid_post.0", vectors, tokens=30, per_prompt=True)):
        together = exact.capture(prompts, "final_norm").numpy()
    for prompt, vector, row in zip(prompts, vectors, together):
        with exact.edit(Edit.add("resid_post.0", vector, tokens=30)):
            close(exact.capture([prompt], "final_norm").numpy()[0], row, 1e-6)


def test_a_prompt_comes_out_the_same_alone_in_a_batch_and_behind_a_shared_prefix(family):
    _, lm = family
    rng = np.random.default_rng(1)
    stem = rng.integers(1, 320, 40).tolist()
    prompts = [stem + rng.integers(1, 320, n).tolist() for n in (9, 2, 31, 5, 2)]
    vector = rng.normal(size=lm.anatomy.width)
    mixed = [
        Edit.add("resid_post.0", vector, scale=-1.5, tokens=30),  # inside the stem: what runs once ends before it
        Edit.add("resid_post.0", vector, scale=2.0, tokens=-2),
        Edit.project_out("resid_pre.1", vector, tokens="last"),
        Edit.clamp("resid_post.1", vector, low=3.0, tokens="last"),
    ]
    if "z" not in lm.anatomy.refused:
        mixed.append(Edit.replace("z.2.1", 0.5, tokens="last"))
        mixed.append(Edit.add("v.1", 0.7, tokens=-2))
        mixed.append(Edit.affine("q.2", np.eye(lm.anatomy.heads * 8) * 0.5, 0.1, tokens="last"))
    everywhere = [Edit.add("resid_post.0", vector), Edit.affine("resid_pre.2", np.roll(np.eye(lm.anatomy.width), 1, 0))]
    mlp = "mlp_out" not in lm.anatomy.refused
    everywhere += [Edit.replace("mlp_out.1", 0.3, tokens="prompt"), Edit.project_out("attn_out.1", vector)] if mlp else []
    for edits in (mixed, everywhere):
        ran = []
        count = lm.module.register_forward_pre_hook(lambda _, a, k, ran=ran: ran.append(k["input_ids"].numel()), with_kwargs=True)
        try:
            with lm.edit(*edits):
                lm.capture(prompts, lm.last, "all", batch_tokens=4096)  # what is tried once (proofs, that edits act) is tried here
                ran.clear()
                together = lm.capture(prompts, lm.last, "all", batch_tokens=4096)
                ran_together = sum(ran)
                singly = [lm.capture([p], lm.last, "all")[lm.last] for p in prompts]
        finally:
            count.remove()  # the model is shared with other tests
        close(together[lm.last], np.concatenate(singly), 1e-5)
        if edits is mixed and lm.shares_prefix():
            assert ran_together < 0.8 * sum(map(len, prompts)), "the prefix that no edit touches runs once"
    plain = lm.capture(prompts, lm.last, "all")[lm.last]
    assert np.linalg.norm(together[lm.last] - plain) > 1e-2 * np.linalg.norm(plain)


def test_weights_of_attention_are_edited_alike_alone_and_in_a_batch(exact):
    for edit in (Edit.replace("pattern.1", 0.25), Edit.add("pattern.2.1", 0.125), Edit.replace("pattern.1.0", 0, tokens="last")):
        with exact.edit(edit):
            together = exact.logits(PROMPTS)
            close(together, np.concatenate([exact.logits([p]) for p in PROMPTS]), 1e-6)


def test_one_kind_in_all_blocks(exact):
    vector = operands(WIDTH)[0]
    with exact.edit(Edit.project_out("resid_post", vector)):
        rows = exact.capture(PROMPTS, "resid_post", dtype="float64")
        assert all(np.abs(rows[site] @ vector).max() < 1e-10 for site in rows.sites)
    with exact.edit(Edit.project_out("resid_post", vector)):
        exact.capture(PROMPTS, "resid_post.1")  # blocks above are not run, and the edit is not void for that
    coordinates = exact.capture(PROMPTS, "resid_post", "all", dtype="float64")
    heights = [(coordinates[s] @ vector / np.linalg.norm(vector)).max() for s in coordinates.sites]
    with exact.edit(Edit.clamp("resid_post", vector, high=float(max(heights)) - 1e-3)):
        exact.logits(PROMPTS, "all")  # a clamp that acts in one block only is no mistake either


def test_what_is_given_may_be_a_number_a_list_a_tensor_or_a_direction(exact):
    v = operands(WIDTH)[0]
    found = [Direction.of(v, "resid_post.1", "up"), Direction.of(v[::-1], "resid_post.1", "down")]
    edit = Edit.add("resid_post.1", v)
    with exact.edit(edit):
        expected = exact.logits(PROMPTS)
    for given in (v.tolist(), torch.tensor(v), torch.tensor(v, requires_grad=True), torch.tensor(v).bfloat16(), found[0]):
        with exact.edit(Edit.add("blocks.1.hook_resid_post", given)):
            close(exact.logits(PROMPTS), expected, 2e-2 if getattr(given, "dtype", None) == torch.bfloat16 else 1e-6)
    with exact.edit(Edit.add("resid_post.1", found[0], scale=2 * found[0].scale)):  # one that is given goes before its own
        doubled = exact.logits(PROMPTS)
    with exact.edit(Edit.add("resid_post.1", 2 * v)):
        close(exact.logits(PROMPTS), doubled, 1e-6)
    rows = []
    for span in (DirectionSet(found, "any"), found, np.stack([v, v[::-1]])):
        with exact.edit(Edit.project_out("resid_post.1", span)):
            rows.append(exact.capture(PROMPTS, "resid_post.1", dtype="float64").numpy())
    close(rows[1], rows[2], 1e-6)
    np.testing.assert_array_equal(rows[0], rows[1])
    v[:] = 0  # the caller's array is the caller's
    with exact.edit(edit):
        np.testing.assert_array_equal(exact.logits(PROMPTS), expected)


UP = np.ones(WIDTH)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Edit.add("resid_post.1", UP * np.nan), "not finite"),
        (lambda: Edit.add("resid_post.1", UP, scale=float("nan")), "not finite"),
        (lambda: Edit.replace("resid_post.1", [1.0, float("inf")]), "not finite"),
        (lambda: Edit.affine("resid_post.1", np.eye(WIDTH), np.inf), "not finite"),
        (lambda: Edit.clamp("resid_post.1", UP, low=float("nan")), "nan"),
        (lambda: Edit.clamp("resid_post.1", UP, low=1, high=0), "low must not be above high"),
        (lambda: Edit.clamp("resid_post.1", UP * 0), "has zero norm"),
        (lambda: Edit.project_out("resid_post.1", np.zeros((2, WIDTH))), "span nothing"),
        (lambda: Edit.project_out("resid_post.1", []), "span nothing|empty|0 parts"),
        (lambda: Edit.add("resid_post.1", UP, tokens="mean"), "average"),
        (lambda: Edit.add("resid_post.1", UP, tokens="subject.mean"), "average"),
        (lambda: Edit.add("resid_post.1", UP, tokens="subject."), "choice of tokens"),
        (lambda: Edit.add("resid_post.1", UP, tokens=""), "choice of tokens"),
        (lambda: Edit.add("resid_post.1", UP, per_prompt=True), "one per prompt"),
        (lambda: Edit.add("resid_pots.1", UP), "did you mean 'resid_post'"),
        (lambda: Edit.add("resid_post.1", [[1.0, 2.0], [1.0]]), "shape"),
        (lambda: Edit.add("resid_post.1", "up"), "give a number"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused_where_it_is_made(make, says):
    with pytest.raises(UserError, match=says):
        make()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Edit.add("resid_post.9", UP), "blocks 0 to 3"),
        (Edit.replace("z.1.7", 0), "heads 0 to 3"),
        (Edit.replace("k.1.2", 0), "heads 0 to 1"),
        (Edit.replace("head_out.1", 0), "can be read but not changed.*edit z"),
        (Edit.add("resid_post.1", np.ones(31)), r"vector \(31,\).*features are \(32,\)"),
        (Edit.add("resid_post.1", np.ones((8, WIDTH))), r"vector \(8, 32\)"),  # fits a prompt of eight tokens by chance
        (Edit.add("resid_post.1", np.ones((1, WIDTH))), r"vector \(1, 32\)"),
        (Edit.add("resid_post.1", np.ones(1)), r"vector \(1,\)"),
        (Edit.add("z.1", np.ones((D_HEAD, HEADS))), r"vector \(8, 4\)"),
        (Edit.add("z.1", np.ones(D_HEAD)), r"vector \(8,\)"),
        (Edit.project_out("resid_post.1", np.ones(31)), "31"),
        (Edit.affine("resid_post.1", np.ones((31, 32))), "31"),
        (Edit.affine("resid_post.1", np.ones((1, 32))), "32"),
        (Edit.clamp("resid_post.1", np.ones(31)), "31"),
        (Edit.add("resid_post.1", np.ones((1, WIDTH)), per_prompt=True), "1 vectors for 2 prompts"),
        (Edit.add("resid_post.1", np.ones((3, WIDTH)), per_prompt=True), "3 vectors for 2 prompts"),
        (Edit.add("resid_post.1", np.ones((2, 31)), per_prompt=True), "31"),
        (Edit.add("resid_post.1", UP, tokens="sbject"), "did you mean 'subject'"),
        (Edit.add("resid_post.1", UP, tokens="sbject.last"), "did you mean 'subject'"),
        (Edit.add("resid_post.1", UP, tokens="lst"), "did you mean .*'last'"),
        (Edit.add("resid_post.1", UP, tokens=-99), "no token -99"),
        (Edit.add("resid_post.1", UP, tokens=99), "no token 99"),
    ],
)
def test_an_edit_that_does_not_fit_the_model_or_its_prompts_is_refused(llama, edit, says):
    prompts = [Prompt.fill("{} is here", subject="Paris"), Prompt("A map of it", {"subject": (2, 5)})]
    assert {len(llama.tokenizer(p.text)["input_ids"]) for p in prompts} == {8}, "so that (8, 32) fits by chance"
    with pytest.raises(UserError, match=says), llama.edit(edit):
        llama.logits(prompts)
    assert not llama.installed


@pytest.mark.parametrize(
    "edit",
    [
        Edit.add("resid_post.1", UP, scale=0.0),
        Edit.affine("resid_post.1", np.eye(WIDTH)),
        Edit.clamp("resid_post.1", UP),
        Edit.add("resid_post.3", UP, tokens=-2),
        Edit.add("resid_post.3", UP, tokens="first"),
        Edit.replace("q.3", 0, tokens="first"),
        Edit.add("resid_post.1", UP, tokens="generated"),
    ],
)
def test_an_edit_that_changes_no_logit_is_an_error(llama, edit):
    with pytest.raises(UserError, match="changes no logit"), llama.edit(edit):
        llama.logits(PROMPTS, "last")
    assert not llama.installed
    with pytest.raises(UserError, match="changes no logit"), llama.edit(edit):
        llama.generate(PROMPTS, max_new_tokens=1)


def test_each_request_inside_a_context_is_held_to_change_something(llama):
    with llama.edit(Edit.add("resid_post.3", UP, tokens="first")):
        llama.logits(PROMPTS, "all")
        with pytest.raises(UserError, match="changes no logit"):
            llama.logits(PROMPTS, "last")
    with llama.edit(Edit.add("resid_post.1", UP, tokens="generated")):
        llama.generate(PROMPTS, max_new_tokens=2)
        with pytest.raises(UserError, match="changes no logit"):
            llama.generate(PROMPTS, max_new_tokens=1)
    with pytest.raises(UserError, match=r"nothing at resid_post.1"), llama.edit(Edit.add("resid_post.2", UP)):
        llama.capture(PROMPTS, "resid_post.1")
    with pytest.raises(UserError, match="was never reached"), llama.edit(Edit.add("resid_post.2", UP)):
        pass
    both = [Edit.add("resid_post.1", UP), Edit.add("resid_post.2", UP, scale=0.0)]
    with pytest.raises(UserError, match=r"at resid_post\.2.*changed nothing"), llama.edit(*both):
        llama.logits(PROMPTS)
    with pytest.raises(UserError, match="No edit was given"), llama.edit():
        pass


def test_an_edit_that_shows_in_one_prompt_of_many_is_no_mistake(llama):
    prompts = [[3] * n for n in (2, 3, 4, 5, 6)] + [[9, 8, 7, 6, 5, 4, 3, 2]]  # the longest, tried last if at all
    rows = llama.capture(prompts, "resid_post.1", "all")
    heights = rows["resid_post.1"] @ UP / np.linalg.norm(UP)
    others = heights[: rows.offsets[-2]]
    low = float(heights[rows.offsets[-2] :].min() + others.min()) / 2
    assert heights.min() < low < others.min()
    vectors = np.zeros((6, WIDTH))
    vectors[-1] = UP
    plain = llama.logits(prompts)
    for edit in (Edit.clamp("resid_post.1", UP, low=low), Edit.add("resid_post.1", vectors, per_prompt=True)):
        with llama.edit(edit):
            edited = llama.logits(prompts)
        close(edited[:-1], plain[:-1], 1e-5)
        assert np.abs(edited[-1] - plain[-1]).max() > 1e-3


def test_forks_are_of_no_prompt_so_an_edit_of_positions_is_refused(llama):
    prompt = [5, 6, 7, 8, 9, 10]

    def forks():
        return run_variants(llama, np.array(prompt), [PromptVariant(Site("resid_post", 1), 3, 4, lambda x: x * 1.0)])[0].numpy()

    with llama.edit(Edit.add("resid_post.0", UP)):
        close(forks(), llama.capture([prompt], "final_norm").numpy()[0], 1e-5)
    with llama.edit(Edit.add("resid_post.0", UP, tokens="last")):
        with pytest.raises(UserError, match="positions"):
            forks()
        llama.capture([prompt[:3]], "final_norm")  # now it is aimed, at another prompt
        with pytest.raises(UserError, match="positions"):
            forks()


def test_a_plain_call_inside_a_context(llama):
    ids = torch.tensor([llama.tokenizer(PROMPTS[0].text)["input_ids"]])
    for edit in (Edit.add("resid_post.1", UP), Edit.replace("z.1.2", 0), Edit.add("q.1", 0.5)):
        with llama.edit(edit):
            expected = llama.logits(PROMPTS[:1], "all")
            with torch.no_grad():
                close(llama.model(input_ids=ids).logits[0], expected, 1e-6)
                close(llama.model(ids.expand(3, -1), use_cache=False).logits[1], expected, 1e-6)
    for edit in (Edit.add("resid_post.1", UP, tokens="last"), Edit.add("resid_post.1", UP[None], per_prompt=True)):
        with llama.edit(edit):
            llama.logits(PROMPTS[:1])
            with pytest.raises(UserError, match="plain call"):
                llama.model(input_ids=ids)


def test_rows_and_tokens_as_one_axis(tokenizer):
    """Experts are given (row × token, feature); a prompt of one token must not be read as one of many."""
    lm = LanguageModel(build("mixtral"), tokenizer, "mixtral")
    prompts = [[5], [7], [9, 11, 3], [4]]
    plain = lm.capture(prompts, "module:layers.1.mlp.experts#in", "all").rows
    (site,) = plain
    for tokens, at in (("last", [0, 1, 4, 5]), ("all", list(range(6))), ("first", [0, 1, 2, 5])):
        with lm.edit(Edit.replace(site, UP, tokens=tokens)):
            edited = lm.capture(prompts, site, "all", batch_tokens=3)[site]
        np.testing.assert_array_equal(edited[at], np.ones((len(at), WIDTH)))
        others = np.setdiff1d(np.arange(6), at)
        close(edited[others], plain[site][others], 1e-6)
