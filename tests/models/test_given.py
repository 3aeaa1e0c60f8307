"""What users hand in as prompts, sites, tokens and sizes: read as it is meant, or refused in one sentence."""

import numpy as np
import pandas as pd
import pytest
import torch

from families import build, build_tokenizer
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.network import Network
from repscope.models.prompts import Prompt, Ragged
from repscope.models.sites import Site
from repscope.steer.patching.methods import ablation, activation_patching, attribution_patching

TEXTS = ["A map", "that shows Paris"]
AT = "resid_post.1"


def whole(error):
    """A message of one sentence."""
    said = str(error.value)
    assert "\n" not in said
    assert said.endswith((".", "?"))
    assert not said.startswith("a ") or "names" in said
    return said


@pytest.mark.parametrize(
    "prompts",
    [
        tuple(TEXTS),
        (text for text in TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS, index=[7, 3]),
        dict.fromkeys(TEXTS),
        map(str, TEXTS),
        [np.str_(text) for text in TEXTS],
        [Prompt(text) for text in TEXTS],
    ],
    ids=["tuple", "generator", "array", "objects", "series", "keys", "map", "numpy's strings", "prompts"],
)
def test_texts_in_any_list(llama, prompts):
    prompts = prompts.keys() if isinstance(prompts, dict) else prompts
    np.testing.assert_array_equal(llama.capture(prompts, AT).numpy(), llama.capture(TEXTS, AT).numpy())


@pytest.mark.parametrize(
    "rows",
    [
        [[5, 6, 7], [8, 9, 10]],
        np.array([[5, 6, 7], [8, 9, 10]], dtype=np.uint16),
        torch.tensor([[5, 6, 7], [8, 9, 10]]),
        [torch.tensor([[5, 6, 7]]), np.array([8, 9, 10], dtype=np.int8)],
        (range(5, 8), (8, 9, 10)),
        [[np.int64(5), torch.tensor(6), 7], [8, 9, 10]],
    ],
    ids=["lists", "array", "tensor", "as a tokenizer returns one text", "ranges", "mixed"],
)
def test_rows_of_ids_in_any_list(llama, rows):
    want = torch.tensor([[5, 6, 7], [8, 9, 10]])
    with torch.no_grad():
        theirs = llama.model(want).logits[:, -1].numpy()
    np.testing.assert_allclose(llama.logits(rows), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (None, "and None was given"),
        (5, "and 5 was given"),
        (b"Paris", "bytes were given"),
        ([b"Paris"], "Prompt 0 is bytes"),
        ([None], "Prompt 0 is None"),
        (["a", float("nan")], "Prompt 1 is nan"),
        ([5, 6, 7], r"Prompt 0 is 5, .* write \[\[…\]\]"),
        (np.array([5, 6]), r"write \[\[…\]\]"),
        (torch.tensor([5, 6]), r"write \[\[…\]\]"),
        (torch.tensor(5), "a Tensor was given"),
        ([[5.0, 6.0]], "type float64"),
        (torch.ones(2, 3), "type float32"),
        (np.ones((2, 2), dtype=np.float16), "type float16"),
        ([[True, False]], "type bool"),
        ([[5, True]], "type bool"),
        ([torch.tensor([True])], "type bool"),
        ([[5, -1]], "token id -1"),
        ([[5, None]], "whole numbers"),
        ([[5, 2**70]], "whole numbers"),
        ([["a", "b"]], "Prompt 0 is a list of texts"),
        ([("a", "b")], "Prompt 0 is a list of texts"),
        ({"a", "b"}, "no order"),
        (pd.DataFrame({"text": TEXTS}), "name its column"),
        ({"text": TEXTS}, "a mapping was given"),
        ([{"role": "user", "content": "a"}], r"put them in \[\[ \]\]"),
        ([np.ones((2, 3), dtype=int)], r"shape \(2, 3\)"),
        ([[[1, 2], [3]]], "no row of token ids"),
        ([object()], "Prompt 0 is a object"),
        (["\ud800"], "surrogate"),
        (iter([]), "the list is empty"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(llama, prompts, says):
    with pytest.raises(UserError, match=says) as error:
        llama.capture(prompts, AT)
    whole(error)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize("rows", [[[5, 6, 0], [5, 6, 7]], [[5, 0, 0], [6, 0, 0]], [[0, 5, 6], [7, 5, 6]], [[5, 6, 7], [0, 0, 7]]])
def test_padded_arrays_are_refused(llama, kind, rows):
    for call in (llama.generate, llama.logits, lambda p: llama.capture(p, AT), llama.plan):
        with pytest.raises(UserError, match="padding token 0"):
            call(kind(rows))


def test_a_token_of_padding_that_ends_every_text_is_no_padding(llama):
    for rows in ([[5, 6, 0], [7, 8, 0]], [[0, 5], [0, 6]], [[5, 0]]):
        np.testing.assert_array_equal(llama.logits(np.array(rows)), llama.logits(rows))


def test_padded_lists_are_refused_or_warned_of():
    lm = LanguageModel(build("llama"), build_tokenizer(), "own")
    rows = lm.tokenizer(TEXTS, padding=True)["input_ids"]
    with pytest.warns(UserWarning, match="Prompt 0 ends with the padding token 0"):
        lm.logits(rows)
    lm.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    rows = [[5, 6, lm.tokenizer.pad_token_id], [5, 6, 7]]
    with pytest.raises(UserError, match="Prompt 0 ends with the padding token"):
        lm.logits(rows)
    assert len(lm.logits([[5, 6], [5, 6, 7]])) == 2


def test_rows_that_a_network_read_or_generated_may_have_the_padding_token_anywhere():
    lm = LanguageModel(build("llama"), build_tokenizer(), "own")
    lm.tokenizer.pad_token = lm.tokenizer.convert_ids_to_tokens(9)
    rows = [[5, 6, 9], [5, 6, 7]]
    with pytest.raises(UserError, match="Prompt 0 ends with the padding token 9"):
        lm.logits(rows)
    expected = np.concatenate([lm.model(input_ids=torch.tensor([row])).logits[0].detach().numpy() for row in rows])
    np.testing.assert_allclose(lm.logits(Ragged.of(map(np.array, rows)), "all"), expected, rtol=1e-4, atol=1e-5)


def test_ids_are_copied(llama):
    rows = [np.array([5, 6, 7])]
    with llama.edit(Edit.add(AT, np.arange(32.0))):
        jac = llama.jacobian(rows, "resid_post.0", "resid_post.3")
        want = jac.matrix()
        rows[0][:] = 9
        for group in jac._shared.groups:
            group.held = None  # made again from the prompts for each product
        np.testing.assert_allclose(jac.matrix(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ({"s": (0, 6)}, "has 5 characters"),
        ({"s": (7, 9)}, "has 5 characters"),
        ({"s": (-2, 3)}, "not inside"),
        ({"s": (2, 2)}, "no character"),
        ({"s": (4, 2)}, "no character"),
        ({"s": (0, 2.0)}, "in characters"),
        ({"s": (0, 1, 2)}, "in characters"),
        ({"s": 3}, "in characters"),
        ({"s": "ab"}, "in characters"),
        ([(0, 1)], "give {name"),
    ],
)
def test_a_span_is_inside_its_text(spans, says):
    with pytest.raises(UserError, match=says) as error:
        Prompt("A map", spans)
    whole(error)
    assert Prompt("A map", {"s": (0, 5)}).spans["s"] == (0, 5)


def test_a_text_is_a_text():
    for text in (None, 5, b"a", ["a"]):
        with pytest.raises(UserError, match="text of a prompt is a string"):
            Prompt(text)


@pytest.mark.parametrize(
    ("template", "values", "says"),
    [
        ("{a} is in {b}", {"a": "x"}, r"the place {b} and no value"),
        ("{} is in {b}", {"a": "x"}, r"the place {b} and no value"),
        ("{a} {}", {"a": "x", "b": "y"}, "no place {b}"),
        ("{a} {0}", {"a": "x"}, r"the place \{0\} and no value"),
        ("{a} { b }", {"a": "x"}, r"the place { b } and no value"),
        ("a {b}", {}, r"the place {b} and no value"),
        ("{a}", {"a": 5}, "give it as a text"),
        ("{a}", {"a": None}, "give it as a text"),
        (None, {"a": "x"}, "A template is a text"),
    ],
)
def test_every_place_of_a_template_is_filled(template, values, says):
    with pytest.raises(UserError, match=says) as error:
        Prompt.fill(template, **values)
    whole(error)


def test_a_template_is_quoted_as_it_was_written():
    with pytest.raises(UserError, match=r"template '\{city\} \{\} \{x\}' has the place"):
        Prompt.fill("{city} {} {x}", city="Paris")


@pytest.mark.parametrize("tokens", ["generated", "prompt"])
def test_tokens_of_edits_are_no_choice_of_rows(llama, tokens):
    with pytest.raises(UserError, match=f"'{tokens}' is a choice of tokens for edits only"):
        llama.logits(["Paris"], tokens)


def test_a_folder_that_cannot_be_made_is_refused(llama):
    with pytest.raises(UserError, match="choose another folder"):
        llama.capture(["Paris"], "embed", out="/proc/nothing/rows")


def test_braces_that_are_no_place_are_text():
    assert Prompt.fill("f({a}) = {'k': 1}; {x, y}", a="{b}").text == "f({b}) = {'k': 1}; {x, y}"


@pytest.mark.parametrize("tokens", [0, 0.5, True, None, "8"])
def test_sizes_are_whole_numbers(llama, tokens):
    calls = {
        "batch_tokens": [
            lambda **o: llama.capture(TEXTS, AT, **o),
            lambda **o: llama.logits(TEXTS, **o),
            lambda **o: llama.plan(TEXTS, **o),
            lambda **o: llama.generate(TEXTS, 2, **o),
            lambda **o: llama.score(TEXTS, TEXTS, **o),
            lambda **o: llama.gradient(TEXTS, lambda z: z[:, 1], AT, **o),
        ],
        "max_new_tokens": [lambda **o: llama.generate(TEXTS, **o)],
    }
    for name, some in calls.items():
        for call in some:
            if tokens is None and name == "batch_tokens":
                call(batch_tokens=None)
                continue
            with pytest.raises(UserError, match=name) as error:
                call(**{name: tokens})
            whole(error)
    net = Network(torch.nn.Sequential(torch.nn.Linear(3, 2)))
    for call in (net.capture, lambda x, at, **o: net.gradient(x, lambda y: y.sum(1), at, **o)):
        with pytest.raises(UserError, match="batch is"):
            call(torch.ones(2, 3), "module:0", batch=tokens)


def test_sizes_of_numpy_are_numbers(llama):
    assert llama.capture(TEXTS, AT, batch_tokens=np.int64(4)).numpy().shape == (2, 32)


@pytest.mark.parametrize("at", [None, 5, 1.5, b"resid_post.1", {}, {"resid_post.1"}, [None], [5], [], "", torch.tensor(1)])
def test_what_is_no_site_is_refused(llama, at):
    for call in (lambda: llama.capture(TEXTS, at), lambda: llama.plan(TEXTS, at), lambda: llama.jacobian(TEXTS, at, AT)):
        with pytest.raises(UserError):
            call()
    for call in (lambda: llama.capture(TEXTS, AT)[at], lambda: Edit.add(at, np.ones(32))):
        with pytest.raises(UserError):
            call()


def test_sites_stand_in_the_order_asked_for(llama, tmp_path):
    asked = ["resid_post.3", "embed", "z.1", "resid_post.0", "resid_post.-1"]
    acts = llama.capture(TEXTS, [s for s in asked if s != "z.1"])
    for i, site in enumerate([s for s in asked if s != "z.1"]):
        where = "resid_post.3" if site == "resid_post.-1" else site
        np.testing.assert_array_equal(acts.numpy()[:, i], llama.capture(TEXTS, where).numpy())
    assert [str(s) for s in acts.sites] == ["resid_post.3", "embed", "resid_post.0"]
    disk = llama.capture(TEXTS, ["resid_post.3", "embed"], "all", out=tmp_path / "rows")
    assert [str(s) for s in disk.sites] == ["resid_post.3", "embed"]
    for site in disk.sites:
        np.testing.assert_array_equal(disk[site], llama.capture(TEXTS, site, "all")[site])
    _, grads = llama.gradient(TEXTS, lambda z: z[:, 5], ["resid_post.2", "resid_post.0"], "last")
    for i, site in enumerate(("resid_post.2", "resid_post.0")):
        np.testing.assert_array_equal(grads.numpy()[:, i], grads[site])
    kinds = llama.capture(TEXTS, ["resid_post", "embed"]).numpy()
    np.testing.assert_array_equal(kinds[:, :4], llama.capture(TEXTS, "resid_post").numpy())
    net = Network(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)))
    x = torch.randn(4, 3)
    both = net.capture(x, ["module:2", "module:0"]).numpy()
    np.testing.assert_array_equal(both[:, 1], net.capture(x, "module:0").numpy())
    np.testing.assert_array_equal(both[:, 0], net.capture(x, "module:2").numpy())


def test_stars_are_read_everywhere(llama):
    z = llama.capture(TEXTS, "z").numpy()  # (prompt, block, head, d_head)
    np.testing.assert_array_equal(llama.capture(TEXTS, "z.*.*").numpy(), z.reshape(2, -1, 8))
    np.testing.assert_array_equal(llama.capture(TEXTS, "z.1.*").numpy(), z[:, 1])
    np.testing.assert_array_equal(llama.capture(TEXTS, "z.-1.*").numpy(), z[:, -1])
    np.testing.assert_array_equal(llama.capture(TEXTS, "z.*.2").numpy(), z[:, :, 2])
    np.testing.assert_array_equal(llama.capture(TEXTS, "z.*").numpy(), z)
    for at in ("resid_post.*", ["resid_post.*"]):
        np.testing.assert_array_equal(llama.capture(TEXTS, at).numpy(), llama.capture(TEXTS, "resid_post").numpy())
    _, grads = llama.gradient(TEXTS, lambda x: x[:, 5], "z.*.*", "last")
    assert grads.numpy().shape == (2, 16, 8)
    assert "16" in str(llama.plan(TEXTS, "z.*.*"))
    jac = llama.jacobian(TEXTS, "z.*.*", "resid_post.2")
    assert jac.matrix()["z.0.1"].shape == (2, 32, 8)
    for wrong in ("resid_post.*.*", "*.1", "z.9.*", "z.*.9", "z.x.*"):
        with pytest.raises(UserError):
            llama.capture(TEXTS, wrong)


def test_results_of_several_sources_are_found_by_name(llama):
    jac = llama.jacobian(TEXTS, ["resid_post.1", "resid_post.0"], "resid_post.2")
    u = np.eye(32)[:3]
    for held in (jac.vjp(u), jac.matrix(), jac.mean().vjp(u), jac.mean().matrix(), jac.mean().affine()):
        assert set(held) == {Site("resid_post", 0), Site("resid_post", 1)}
        assert held["resid_post.0"] is held[Site("resid_post", 0)] is held["blocks.0.hook_resid_post"]
        assert "resid_post.1" in held
        assert "resid_post.3" not in held
        assert held.get("resid_post.3") is None
        with pytest.raises(UserError, match=r"nothing for resid_post.3; there is resid_post"):
            held["resid_post.3"]
    acts = llama.capture(TEXTS, ["resid_post.1", "embed"])
    assert acts.rows["embed"] is acts["embed"]


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ("city", "write city.last, city.first, city.mean or city.all"),
        ("subject.city", "subject.city.last"),
        ("lst", "'last'"),
        (None, "no choice of tokens None"),
        (2.0, "no choice of tokens 2.0"),
        (True, "no choice of tokens True"),
        ([0, 1], "no choice of tokens"),
        ("", "no choice of tokens"),
        ("city.", "no choice of tokens"),
    ],
)
def test_a_choice_of_tokens_says_how_it_is_written(llama, tokens, says):
    with pytest.raises(UserError, match=says):
        llama.capture([Prompt.fill("{} is here", city="Paris")], AT, tokens)


@pytest.mark.parametrize("dtype", ["float33", "bfloat16", None, 16])
def test_types_of_rows_are_known(llama, dtype):
    for call in (llama.plan, lambda p, **o: llama.capture(p, AT, **o)):
        with pytest.raises(UserError, match="no type of rows"):
            call(TEXTS, dtype=dtype)


def test_a_plan_under_an_edit_is_that_of_the_run(llama):
    prompts = ["A map that shows " + word for word in ("Paris", "Lagos", "Lagos")] * 8
    with llama.edit(Edit.add(AT, np.ones(32), tokens=0)):
        first = llama.plan(prompts)
        llama.capture(prompts, AT, 0)
        assert str(llama.plan(prompts)) == str(first), "what ran before changes nothing"
        assert first.plan.prefix == 0
    with llama.edit(Edit.add(AT, np.ones(32), tokens="last")):
        llama.plan(prompts)  # runs nothing, so the edit need not have acted
    with pytest.raises(UserError, match="tokens 'city'"), llama.edit(Edit.add(AT, np.ones(32), tokens="city")):
        llama.plan(prompts)


def test_one_scalar_is_read_at_one_site(llama):
    with pytest.raises(UserError, match="names 4; name one"):
        llama.gradient(TEXTS, lambda x: x[:, 1], "resid_post.0", of_at="resid_post")


@pytest.mark.parametrize(
    ("prompts", "tails", "says"),
    [
        (TEXTS, "ab", "put it in"),
        ("ab", ["c"], "one prompt"),
        (TEXTS, [None, "a"], "A continuation is a text"),
        (TEXTS, ["", "a"], "covers no token"),
        ([[5, 6]], ["a"], "give the text"),
        (TEXTS, ["a"], "2 prompts and 1 continuations"),
        ([Prompt("ab", {"continuation": (0, 1)})], ["c"], "another name"),
    ],
)
def test_continuations_are_texts_after_texts(llama, prompts, tails, says):
    with pytest.raises(UserError, match=says):
        llama.score(prompts, tails)


def test_scores_take_any_lists(llama):
    want = llama.score(TEXTS, [" a", " b"]).logprob
    np.testing.assert_array_equal(llama.score((t for t in TEXTS), (t for t in (" a", " b"))).logprob, want)
    np.testing.assert_array_equal(llama.score(pd.Series(TEXTS), pd.Series([" a", " b"])).logprob, want)


class Twice(torch.nn.Module):
    """Runs one linear map twice, directly and in a list, and another once."""

    def __init__(self):
        super().__init__()
        self.shared, self.once = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.listed = torch.nn.ModuleList([torch.nn.Linear(3, 3)])

    def forward(self, x):
        x = self.shared(torch.tanh(self.shared(x)))
        for _ in range(3):
            for layer in self.listed:
                x = layer(x)
        return self.once(x)


@pytest.mark.parametrize(("path", "count"), [("shared", 2), ("listed.0", 3), ("shared#in", 2)])
def test_a_module_that_runs_several_times_is_refused(path, count):
    net, x, at = Network(Twice()), torch.randn(4, 3), f"module:{path}"
    calls = [
        lambda: net.capture(x, at),
        lambda: net.capture(x, ["module:once", at]),
        lambda: net.gradient(x, lambda y: y.sum(1), at),
        lambda: net.jacobian(x, at, "module:once"),
        lambda: net.jacobian(x, "module:once", at),
    ]
    for call in calls:
        with pytest.raises(UserError, match=f"runs {count} times in one forward pass"):
            call()
    assert net.capture(x, "module:once").numpy().shape == (4, 3)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.module.modules())


def test_a_module_of_a_language_model_that_runs_several_times_is_refused(tokenizer):
    model = build("llama")
    shared = torch.nn.Identity()
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Sequential(shared, layer.mlp.act_fn)
    lm = LanguageModel(model, tokenizer)
    at = "module:layers.0.mlp.act_fn.0"
    calls = [
        lambda: lm.capture(TEXTS, at),
        lambda: lm.gradient(TEXTS, lambda z: z[:, 1], at),
        lambda: lm.jacobian(TEXTS, at, "resid_post.3"),
    ]
    for call in calls:
        with pytest.raises(UserError, match="runs 4 times in one forward pass"):
            call()
    assert lm.capture(TEXTS, "module:layers.0.mlp.act_fn").numpy().shape[0] == 2
    with lm.edit(Edit.add(AT, np.ones(32))):
        lm.capture(TEXTS, "module:layers.2.mlp.act_fn")


def test_a_network_without_inputs_says_so():
    net = Network(torch.nn.Sequential(torch.nn.Linear(3, 2)))
    with pytest.raises(UserError, match="no input"):
        net.capture(torch.ones(0, 3), "module:0")


@pytest.mark.parametrize("tokens", [1.0, True, ["last"]])
def test_edits_and_jacobians_take_the_same_choices_of_tokens(llama, tokens):
    with pytest.raises(UserError, match="choice of tokens"):
        Edit.add(AT, np.ones(32), tokens=tokens)
    with pytest.raises(UserError, match="choice of tokens"):
        llama.jacobian(TEXTS, "resid_post.0", AT, source_tokens=tokens)


@pytest.mark.parametrize(("u", "says"), [("a", "is not a numeric array"), (None, "shape"), (np.full((1, 32), 1e300), "beyond")])
def test_vectors_of_products_are_numbers(llama, u, says):
    with pytest.raises(UserError, match=says):
        llama.jacobian(TEXTS, "resid_post.0", AT).vjp(u)


def test_patching_takes_any_list(llama):
    clean, corrupt = [[5, 6, 7]], [[5, 8, 7]]

    def metric(logits, pair):
        return logits[:, 5]

    for run in (activation_patching, attribution_patching):
        want = run(llama, clean, corrupt, metric, at="resid_post").effect
        got = run(llama, (t for t in clean), (t for t in corrupt), metric, at="resid_post").effect
        np.testing.assert_array_equal(got, want)
        for wrong in (None, "A map"):
            with pytest.raises(UserError, match=r"Prompts are|is one prompt"):
                run(llama, wrong, corrupt, metric, at="resid_post")
    want = ablation(llama, clean, metric, at="resid_post").effect
    np.testing.assert_array_equal(ablation(llama, (t for t in clean), metric, at="resid_post").effect, want)


@pytest.mark.parametrize("options", [{"temperature": "x"}, {"temperature": None}, {"top_p": True}, {"max_new_tokens": None}])
def test_options_of_generation_are_numbers(llama, options):
    with pytest.raises(UserError, match=next(iter(options))):
        llama.generate(TEXTS, **options)
