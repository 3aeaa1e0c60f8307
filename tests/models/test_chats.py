"""Chats and what a tokenizer puts around a text: what was put in is found in what comes out, and nothing stands twice."""

import warnings

import numpy as np
import pytest
import torch
from tokenizers import processors

from families import build, build_tokenizer
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt

TEXTS = ["A map that shows", "Paris"]
GENERATION = "{% if add_generation_prompt %}<assistant>{% endif %}"
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}" + GENERATION
STRIPS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}" + GENERATION
MERGES = (
    "{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content ~ ' ' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{% if loop.first %}{{ s }}{% endif %}{{ m.content }}{% endfor %}"
)
LAST = (  # as Mistral's: the instruction stands in the last turn
    "{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = messages[0].content ~ ' ' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{% if loop.last %}{{ s }}{% endif %}{{ m.content }}{% endfor %}"
)
PARTS = "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}{% endfor %}" + GENERATION
EACH_PART = (
    "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endfor %}" + GENERATION
)
RAISES = "{% if messages[0].role == 'system' %}{{ raise_exception('No. Never') }}{% endif %}" + PLAIN
DROPS = "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% endif %}{% endfor %}"
NEWEST = "<user>{{ messages[-1].content }}"
CUTS = "{% for m in messages %}<{{ m.role }}>{{ m.content[:20] }}{% endfor %}"
THINKS = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"
SHOUTS = "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}"
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "user"},  # which stands in the template as well
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": Prompt.fill("Where is {city}?", city="Lagos")},
]


def surrounded(before="", after="<eos>"):
    """The tokenizer of the tests with tokens that it puts around every text."""
    made = build_tokenizer()
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=[("<eos>", 0)]
    )
    return made


def talking(template):
    made = build_tokenizer()
    made.chat_template = template
    return LanguageModel(build("llama"), made, "talking")


@pytest.fixture(scope="module")
def open_and_closed():
    """One network with a tokenizer that appends nothing, and with one that ends every text."""
    model = build("llama")
    return LanguageModel(model, build_tokenizer(), "open"), LanguageModel(model, surrounded(), "closed")


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


@pytest.mark.parametrize(
    "call",
    [
        lambda lm: lm.logits(TEXTS),
        lambda lm: lm.logits(TEXTS, "mean"),
        lambda lm: lm.capture(TEXTS, "resid_post.2").numpy(),
        lambda lm: lm.capture(TEXTS, "resid_post.2", "all")["resid_post.2"],
        lambda lm: lm.capture(TEXTS, "resid_post.2", -2 + 1).numpy(),
        lambda lm: np.concatenate([c.ids for c in lm.generate(TEXTS, 5)]),
        lambda lm: np.concatenate([c.ids for c in lm.generate(TEXTS, 5, temperature=1.0)]),
        lambda lm: lm.score(TEXTS, [" Paris", " and Lagos"]).logprob,
        lambda lm: lm.gradient(TEXTS, lambda z: z[:, 5], "resid_post.1")[1]["resid_post.1"],
        lambda lm: lm.jacobian(TEXTS, "resid_post.0", "resid_post.2").matrix(),
        lambda lm: np.array([lm.plan(TEXTS).given, lm.plan(TEXTS).tokens]),
        lambda lm: np.array([len(lm.tokens(text)) for text in TEXTS]),
        lambda lm: lm.capture([Prompt(TEXTS[0], {"w": (2, 5)})], "resid_post.2", "w.all").numpy(),
    ],
)
def test_what_a_tokenizer_appends_is_left_out_for_a_causal_network(open_and_closed, call):
    without, ended = open_and_closed
    np.testing.assert_array_equal(quietly(lambda: call(ended)), call(without))


def test_edits_at_the_last_token_are_at_the_text_s_own(open_and_closed):
    edit = Edit.add("resid_post.1", np.arange(32.0), tokens="last")
    held = []
    for lm in open_and_closed:
        with lm.edit(edit):
            held.append(quietly(lambda lm=lm: lm.logits(TEXTS)))
    np.testing.assert_array_equal(*held)


def test_a_token_that_the_user_wrote_stays(open_and_closed):
    without, ended = open_and_closed
    texts = ["Paris<eos>", "Paris<eos><eos>", "<eos>Paris", "a<eos>b"]
    for text in texts:
        assert quietly(lambda text=text: ended.tokens(text)) == without.tokens(text)
    np.testing.assert_array_equal(quietly(lambda: ended.logits(texts)), without.logits(texts))
    ids = ended.tokenizer("Paris")["input_ids"]
    np.testing.assert_array_equal(ended.logits([ids]), without.logits([ids]), "rows of ids are as they are, with the end")
    assert not np.allclose(ended.logits([ids]), without.logits(["Paris"]))


def test_it_is_said_once_and_where_the_user_stands():
    lm = LanguageModel(build("llama"), surrounded(), "closed")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        lm.logits(TEXTS)
        lm.capture(TEXTS, "resid_post.1")
        lm.generate(TEXTS, 2)
    assert ["'<eos>'" in str(w.message) for w in seen] == [True]
    assert seen[0].filename == __file__


def test_an_option_that_is_changed_later_is_seen():
    made = build_tokenizer()
    lm = LanguageModel(build("llama"), made, "changed")
    before = lm.tokens("Paris")
    made._tokenizer.post_processor = surrounded()._tokenizer.post_processor
    assert len(made("Paris")["input_ids"]) == len(before) + 1
    assert quietly(lambda: lm.tokens("Paris")) == before


def test_a_network_that_reads_both_ways_keeps_its_separator():
    lm = LanguageModel(build("bert"), surrounded("<eos>"), "bert")
    assert not lm.causal
    assert lm.tokens("Paris")[-1] == "<eos>"
    acts = lm.capture(TEXTS, "resid_post.1")
    assert [int(p) for p in acts.positions] == [len(lm.tokenizer(t)["input_ids"]) - 1 for t in TEXTS]
    row = torch.tensor([lm.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad():
        theirs = lm.model(row, output_hidden_states=True).hidden_states[2][0, -1]
    np.testing.assert_allclose(acts.numpy()[0], theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_what_stands_before_a_text_stays_and_stands_once():
    lm = LanguageModel(build("llama"), surrounded("<eos>", ""), "begun")
    assert lm.tokens("Paris") == ["<eos>", *LanguageModel(lm.model, build_tokenizer(), "open").tokens("Paris")]
    with pytest.raises(UserError, match="begins with '<eos>', which the tokenizer puts there too"):
        lm.logits(["<eos>Paris"])
    assert lm.tokens(Prompt("<eos>Paris", special=False)) == lm.tokens("Paris")
    lm.tokenizer.chat_template = "<eos>" + PLAIN
    ids = lm.tokenizer.apply_chat_template([{"role": "user", "content": "Paris"}], add_generation_prompt=True)["input_ids"]
    assert list(ids).count(0) == 1
    assert [lm.tokenizer.decode([i]) for i in ids] == lm.tokens(lm.chat("Paris"))
    both = LanguageModel(build("llama"), surrounded("<eos>"), "both")
    assert quietly(lambda: both.tokens("Paris")) == lm.tokens("Paris")


@pytest.mark.parametrize("template", [PLAIN, STRIPS, MERGES, LAST, PARTS, EACH_PART])
def test_a_chat_is_a_prompt_with_a_span_for_each_turn(template):
    lm = talking(template)
    prompt = lm.chat(TURNS)
    for i, turn in enumerate(TURNS):
        a, b = prompt.spans[f"turn{i}"]
        assert prompt.text[a:b] == getattr(turn["content"], "text", turn["content"])
    assert [prompt.text[slice(*prompt.spans[name])] for name in ("content", "city")] == ["Where is Lagos?", "Lagos"]
    assert prompt.spans["turn1"][0] > prompt.text.index("user"), "the content and not the word in the template"
    one_at_a_time = lm.capture([prompt, "Paris"], "resid_post.1").numpy()
    np.testing.assert_array_equal(lm.capture([TURNS, "Paris"], "resid_post.1").numpy(), one_at_a_time)


def test_chats_are_inputs_like_any_other():
    lm = talking(PLAIN)
    asked = [{"role": "user", "content": "Where is Lagos?"}]
    prompt = lm.chat("Where is Lagos?")
    assert lm.chat(asked) == prompt
    ids = lm.tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    for given in ([asked, TURNS], (tuple(one) for one in (asked, TURNS))):
        np.testing.assert_array_equal(lm.logits(given)[0], lm.logits([prompt, TURNS])[0])
    np.testing.assert_allclose(lm.logits([asked])[0], lm.logits([list(ids)])[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(lm.generate([asked], 4)[0].ids, lm.generate([prompt], 4)[0].ids)
    np.testing.assert_array_equal(lm.score([asked], ["Yes"]).logprob, lm.score([prompt], ["Yes"]).logprob)
    np.testing.assert_array_equal(
        lm.jacobian([asked], "resid_post.0", "resid_post.2").matrix(),
        lm.jacobian([prompt], "resid_post.0", "resid_post.2").matrix(),
    )
    assert str(lm.plan([asked])) == str(lm.plan([prompt]))
    rows = lm.capture([TURNS], "resid_post.1", "turn2.all")
    words = [lm.tokens(TURNS)[p] for p in rows.positions]
    assert "".join(words) == "Yes."
    with lm.edit(Edit.add("resid_post.0", np.arange(32.0), tokens="city")):
        edited = lm.capture([TURNS], "resid_post.1").numpy()
    with lm.edit(Edit.add("resid_post.0", np.arange(32.0), tokens="city")):
        np.testing.assert_array_equal(edited, lm.capture([lm.chat(TURNS)], "resid_post.1").numpy())


def test_a_chat_that_ends_with_the_assistant_is_continued():
    lm = talking(PLAIN)
    begun = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "It is"}]
    prompt = lm.chat(begun)
    assert prompt.text == "<user>Where?<end><assistant>It is"
    tail = lm.score([begun], [" here"]).each[0]
    whole = lm.score([lm.chat("Where?")], ["It is here"]).each[0]
    np.testing.assert_allclose(tail, whole[-len(tail) :], rtol=1e-5)
    assert lm.tokens(begun)[-1] == lm.tokens("It is")[-1]


def test_white_space_that_a_template_strips_moves_the_spans():
    lm = talking(STRIPS)
    given = Prompt("\n  Where is Lagos? ", {"city": (12, 17), "all": (0, 18)})
    with pytest.warns(UserWarning, match="strips white space"):
        prompt = lm.chat(given, system="Be kind.")
    assert [prompt.text[slice(*prompt.spans[n])] for n in ("city", "all", "content")] == [
        "Lagos",
        "Where is Lagos?",
        "Where is Lagos?",
    ]
    with pytest.raises(UserError, match="strips the span 'gap'"):
        lm.chat(Prompt("  Paris", {"gap": (0, 2)}))
    exact = talking(PLAIN).chat(given)
    assert exact.text[slice(*exact.spans["all"])] == given.text[:18]


@pytest.mark.parametrize(
    ("template", "content", "system", "says"),
    [
        (RAISES, "hello", "Be kind.", r"takes no system turn \(No\); put the instruction into the user's turn"),
        (DROPS, "hello", "Be kind.", r"leaves out or rewrites the system turn \('Be kind.'\)"),
        (
            DROPS,
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            None,
            r"leaves out or rewrites the assistant turn \('b'\)",
        ),
        (NEWEST, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], None, r"the user turn \('a'\)"),
        (CUTS, "hello " * 9, None, "changes the content of the user turn"),
        (SHOUTS, "hello", None, "leaves out or rewrites the user turn"),
        (
            THINKS,
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "<think>b</think>c"},
                {"role": "user", "content": "d"},
            ],
            None,
            "changes the content of the assistant turn",
        ),
        ("{{ messages | tojson }}", 'a "word"', None, "changes the content"),
        ("{{ 1 / 0 }}", "hello", None, "does not take these turns"),
        ("{% for %}", "hello", None, "does not take these turns"),
        (
            "{{ messages[1].content }}{{ messages[0].content }}",
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            None,
            "another order",
        ),
        ("{% for m in messages %}{{ m.content[:6] }}{% endfor %}", "hello world", None, "leaves out or rewrites"),
    ],
)
def test_a_template_that_raises_or_loses_something_is_refused(template, content, system, says):
    lm = talking(template)
    with pytest.raises(UserError, match=says) as error:
        lm.chat(content, system=system)
    assert "\n" not in str(error.value)
    if system is None and not isinstance(content, str):
        with pytest.raises(UserError, match=f"Prompt 1: .*{says}"):
            lm.logits(["Paris", content])


@pytest.mark.parametrize("template", [RAISES, DROPS])
def test_without_a_system_turn_such_a_template_serves(template):
    assert talking(template).chat("hello").text.startswith("<user>hello")


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        ([], "A chat ends with"),
        ([{"role": "system", "content": "a"}], "A chat ends with"),
        ([{"role": "user", "content": " "}], "the user's, is empty"),
        ([{"role": "user"}], "nothing else, and the keys role"),
        ([{"role": "user", "content": "a", "tool_calls": []}], "the keys role, content, tool_calls"),
        ([{"role": "user", "content": None}], "is a text or a Prompt, and None"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "is a text or a Prompt"),
        ([{"role": 1, "content": "a"}], "The role of a turn"),
        (["a"], "A turn of a chat"),
        ([{"role": "user", "content": Prompt("ab", {"content": (0, 1)})}], "'content' of a span .* is taken"),
        (b"a", "A chat is a text"),
        (None, "A chat is a text"),
    ],
)
def test_what_is_no_chat_is_refused(chat, says):
    with pytest.raises(UserError, match=says):
        talking(PLAIN).chat(chat)


def test_a_part_of_text_is_a_text():
    lm = talking(PLAIN)
    assert lm.chat([{"role": "user", "content": [{"type": "text", "text": "Paris"}]}]) == lm.chat("Paris")


def test_a_tokenizer_without_a_template_says_so(llama):
    lm = talking(None)
    with pytest.raises(UserError, match="no chat template"):
        lm.logits([TURNS])
