"""Tasks: what a file holds comes out as it is or is refused in a sentence; prompts have the spans that they say."""

import json

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from repscope.data.tasks import Shots, Task, Template, encode_task, of_pairs, task, task_names, tokenization_differences
from repscope.data.tasks.built_in import TASKS
from repscope.errors import UserError
from repscope.worlds.tiny import byte_tokenizer

WORDS = [
    "big",
    "tall",
    "slow",
    "warm",
    "loud",
    "cold",
    "deep",
    "dark",
    "hard",
    "kind",
    "long",
    "mild",
    "neat",
    "old",
    "poor",
    "quick",
    "rare",
    "safe",
    "thin",
    "wide",
]
PAIRS = tuple((word, f"{word}er") for word in WORDS)
COMPARATIVE = Task("comparative", PAIRS, "here")


@pytest.mark.parametrize("name", [*TASKS, "country-capital"])
def test_what_is_built_in_has_enough_items_for_ten_examples(name):
    found = task(name)
    parts = found.split()
    assert len(parts.train) > 10
    inputs = [x for part in (parts.train, parts.dev, parts.test) for x, _ in part]
    assert sorted(inputs) == sorted(found.inputs)
    assert parts == task(name).split()
    assert parts != found.split(seed=1)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("singular-plural", "child", "children"),
        ("present-past", "go", "went"),
        ("present-gerund", "run", "running"),
        ("adjective-superlative", "good", "best"),
        ("capitalize", "apple", "Apple"),
        ("uppercase", "apple", "APPLE"),
        ("first-letter", "apple", "a"),
        ("word-length", "apple", "5"),
        ("next-item", "Sunday", "Monday"),
        ("previous-item", "three", "two"),
        ("country-capital", "Peru", "Lima"),
    ],
)
def test_some_pairs_of_what_is_built_in(name, x, y):
    assert dict(task(name).pairs)[x] == y


def test_files(tmp_path):
    items = [{"input": x, "output": y} for x, y in PAIRS]
    (tmp_path / "a.json").write_text(json.dumps([*items, {"input": "two", "output": 2}]))
    assert task(tmp_path / "a.json").pairs == (*PAIRS, ("two", "2"))
    (tmp_path / "lre.json").write_text(json.dumps({"name": "x", "prompt_templates": ["{}:"], "samples": []}))
    with pytest.raises(UserError, match="no sample"):
        task(tmp_path / "lre.json")
    frame = pd.DataFrame([(x, y, 1) for x, y in PAIRS], columns=["adjective", "form", "n"])
    frame.to_csv(tmp_path / "b.csv", index=False)
    frame[["adjective", "form"]].to_parquet(tmp_path / "c.parquet")
    assert task(tmp_path / "b.csv", columns=("adjective", "form")).pairs == PAIRS
    assert task(tmp_path / "c.parquet").pairs == PAIRS
    with pytest.raises(UserError, match="columns adjective, form, n; name those"):
        task(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("{}", "must be a list"),
        ('[{"input": "a"}]', "item 0 must have"),
        ('[{"input": "a", "output": ["b"]}]', "item 0 must have"),
        ('[{"input": " ", "output": "b"}]', "no usable pair"),
        ('[{"input": "a", "output": "x"}, {"input": "b", "output": "x"}]', "one label"),
    ],
)
def test_a_file_that_is_no_task(tmp_path, text, says):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(UserError, match=says):
        task(tmp_path / "t.json")


def test_names_and_copies():
    assert set(TASKS) < set(task_names())
    with pytest.raises(UserError, match="did you mean 'present-past'"):
        task("presentpast")
    found = of_pairs("t", [("a", "x"), (" a ", "x"), ("b", "y"), ("c", "x"), ("c", "y"), ("", "x")], "here")
    assert found.pairs == (("a", "x"), ("b", "y"))
    assert [note.split(":")[1].strip().split()[0] for note in found.notes] == ["1", "1", "1"]
    with pytest.raises(UserError, match="twice"):
        Task("t", (("a", "x"), ("a", "y")), "here")
    with pytest.raises(UserError, match="fewer than two"):
        Task("t", (("a", "x"), ("b", "y")), "here").split()


@pytest.mark.parametrize("blank", ["", " "])
def test_spans_are_exact_in_characters_and_tokens(tokenizer, blank):
    shots = Shots(PAIRS[:2], PAIRS[2], Template(before="Answer.\n"), blank)
    asked = shots.prompt("slower")
    assert asked.text == "Answer.\nQ: big\nA: biger\n\nQ: tall\nA: taller\n\nQ: slow\nA: slower"
    parts = {name: asked.text[a:b] for name, (a, b) in asked.spans.items()}
    assert parts.pop("question") == "Answer.\nQ: big\nA: biger\n\nQ: tall\nA: taller\n\nQ: slow\nA:" + blank
    assert parts.pop("tail") == (" slower" if blank else ": slower")
    assert parts == {
        "input0": "big",
        "output0": "biger",
        "input1": "tall",
        "output1": "taller",
        "query": "slow",
        "answer": "slower",
    }


def test_the_template_holds_both_fields():
    for text in ("{input}", "{output} {input}", "{input} {input} {output}"):
        with pytest.raises(UserError, match="must hold"):
            Template(text)


def test_examples_are_drawn_from_train_without_the_query():
    held = encode_task(byte_tokenizer(), COMPARATIVE, shots=5, seed=3)
    queries = held.queries("train", 10)
    true, false = held.few_shot(queries), held.few_shot(queries, shuffled=True)
    for query, a, b in zip(queries, true, false):
        assert a.query == b.query == query
        assert set(a.examples) <= set(held.split.train) - {query}
        assert [x for x, _ in a.examples] == [x for x, _ in b.examples]
        assert sorted(y for _, y in a.examples) == sorted(y for _, y in b.examples)
        assert all(y != z for (_, y), (_, z) in zip(a.examples, b.examples))
    assert held.few_shot(queries) == true
    assert held.few_shot(queries, stream=1) != true
    assert len(set(held.queries("test", 99))) == len(held.split.test)
    with pytest.raises(UserError, match="1 examples of 'comparative' cannot be shuffled"):
        encode_task(byte_tokenizer(), COMPARATIVE, shots=1).few_shot(queries, shuffled=True)


def test_too_many_examples_and_answers_that_cannot_be_told_apart():
    with pytest.raises(UserError, match="10 items for training prompts, and 10 examples with one query need 11"):
        encode_task(byte_tokenizer(), COMPARATIVE, shots=10)
    same = Task("same", tuple((x, f"x{x}") for x, _ in PAIRS), "here")
    with pytest.raises(UserError, match="begin with the token 'x', which cannot separate"):
        encode_task(byte_tokenizer(), same, shots=2)


def test_answers_begin_after_the_blank_where_it_is_a_token_of_its_own(tokenizer):
    held = encode_task(byte_tokenizer(), COMPARATIVE, shots=2)
    assert held.blank == " "
    assert bytes(held.answers["biger"]) != b""
    assert byte_tokenizer().decode(held.answers["biger"]) == "biger"
    assert held.zero_shot([("big", "biger")])[0].prompt().text == "Q: big\nA: "
    assert any("share their first token" in note for note in held.notes)
    other = encode_task(tokenizer, COMPARATIVE, shots=2)
    ids = tokenizer(other.zero_shot([("big", "biger")])[0].prompt().text)["input_ids"]
    assert tokenizer.decode([*ids, *other.answers["biger"]]) == "Q: big\nA: biger"


def test_other_tokens_inside_a_prompt_are_reported(tokenizer):
    assert tokenization_differences(tokenizer, COMPARATIVE) == ()
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("▁ QA:\nabcdefghijklmnopqrstuvwxyz")}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Metaspace()  # a blank before every text
    found = tokenization_differences(PreTrainedTokenizerFast(tokenizer_object=core), COMPARATIVE)
    assert [note.split(" are ")[0] for note in found] == ["comparative: 20 of 20 examples", "comparative: 20 of 20 queries"]
