"""Contrasts: what is built in is balanced and keeps its promises; what a file holds comes out as it is or is refused."""

import json
import re
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from repscope.data.contrasts import Choice, Contrast, contrast, contrast_names
from repscope.data.contrasts.built_in import openings
from repscope.errors import UserError

EIGHT = [(f"The soup was good, said guest {i}.", f"The soup was bad, said guest {i}.") for i in range(8)]


def words(text):
    return re.findall(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*", text.lower())


def own(texts, others):
    """Words of each text that are not in the other one of its pair."""
    return [set(words(a)) - set(words(b)) - {"a", "an"} for a, b in zip(texts, others, strict=True)]


@pytest.fixture(params=contrast_names())
def built(request):
    return contrast(request.param)


def test_what_is_built_in_is_large_enough(built):
    assert len(built.pairs) >= 96
    assert len(built.groups) >= 16
    assert len(built.choices) >= 48
    assert len({c.group for c in built.choices}) >= 12
    assert len(built.openings) == 32
    assert max(Counter(built.yes_groups).values()) <= len(built.pairs) / 10
    assert all(built.instructions)


def test_what_is_built_in_is_clean(built):
    assert built == contrast(built.name)
    assert len(set(built.pairs)) == len(built.pairs)
    assert len(set(built.choices)) == len(built.choices)
    texts = [*built.yes, *built.no, *built.openings, *(c.prompt + c.yes for c in built.choices)]
    texts += [c.prompt + c.no for c in built.choices]
    for text in texts:
        assert text == " ".join(text.split())
        assert not re.search(r"[{}|\[\]]", text)
        assert built.name == "language" or not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeiouh]", text), text
    assert not {*built.yes} & {*built.no}


def test_both_poles_are_alike_in_length_and_end_alike(built):
    lengths = [len(" ".join(texts)) for texts in (built.yes, built.no)]
    assert 0.75 < lengths[0] / lengths[1] < 1 / 0.75
    continued = [sum(len(getattr(c, side)) for c in built.choices) for side in ("yes", "no")]
    assert 0.6 < continued[0] / continued[1] < 1 / 0.6  # formal words are the longer ones
    assert all(yes[-1] == no[-1] for yes, no in built.pairs)
    assert all(c.yes[0].isspace() == c.no[0].isspace() for c in built.choices)


def test_no_choice_is_a_text_of_training(built):
    texts = {*built.yes, *built.no}
    for choice in built.choices:
        for continuation in (choice.yes, choice.no):
            assert not any(t in choice.prompt + continuation or choice.prompt in t for t in texts)
            assert continuation.strip() not in texts


def test_no_group_shares_the_words_that_make_the_difference(built):
    """Otherwise a direction learned on one half would be judged on its own words in the other."""
    if built.name in ("honesty", "language"):
        return  # a persona is asked to lie, and a sentence is French, by words that recur
    found = {}
    for group, *sides in zip(built.yes_groups, own(built.yes, built.no), own(built.no, built.yes), strict=True):
        for word in set().union(*sides):
            found.setdefault(word, set()).add(group)
    if built.name == "sentiment":
        assert all(len(groups) == 1 for groups in found.values())
    counts = Counter(word for word, groups in found.items() for _ in groups)
    assert max(counts.values()) <= len(built.groups) * 0.75, counts.most_common(3)


def test_halves_share_no_group_and_hold_everything(built):
    for seed in (0, 1, 2):
        first, second = built.halves(seed)
        sides = [{*h.yes_groups, *h.no_groups, *(c.group for c in h.choices)} for h in (first, second)]
        assert not sides[0] & sides[1]
        assert {*first.pairs} | {*second.pairs} == {*built.pairs}
        assert len(first.pairs) + len(second.pairs) == len(built.pairs)
        assert sorted(map(str, first.choices + second.choices)) == sorted(map(str, built.choices))
        for half in (first, second):
            assert len(half.pairs) >= len(built.pairs) * 0.4
            assert len(half.choices) >= len(built.choices) * 0.35
    assert built.halves(0) == built.halves(0)
    assert built.halves(0)[0].pairs != built.halves(1)[0].pairs


@pytest.mark.parametrize("name", [n for n in ("sentiment", "formality") if n in contrast_names()])
def test_no_word_of_a_continuation_is_in_the_texts(name):
    found = contrast(name)
    taught = {w for text in found.yes + found.no for w in words(text)}
    asked = {w for c in found.choices for side in (c.yes, c.no) for w in words(side)}
    assert not taught & asked


def test_a_pair_of_sentiment_differs_in_one_word():
    found = contrast("sentiment")
    for yes, no in found.pairs:
        assert len(yes.split()) == len(no.split())
        assert sum(a != b for a, b in zip(yes.split(), no.split(), strict=True)) <= 2  # with its article


def test_french_is_french_and_english_is_not():
    found = contrast("language")
    french = {
        "le",
        "la",
        "les",
        "l",
        "un",
        "une",
        "des",
        "du",
        "de",
        "d",
        "au",
        "aux",
        "à",
        "en",
        "il",
        "elle",
        "on",
        "ils",
        "je",
        "j",
        "ne",
        "nous",
        "vous",
        "et",
        "est",
        "a",
        "pour",
        "sur",
        "ma",
        "mes",
        "mon",
        "ton",
        "qui",
    }
    shared = {"a", "on"}  # English words as well
    sides = [(*found.yes, *(c.yes for c in found.choices)), (*found.no, *(c.no for c in found.choices))]
    for text in sides[0]:
        assert {*re.findall(r"[^\W\d_]+", text.lower())} & french, text
    assert sum(not text.isascii() for text in sides[0]) > len(sides[0]) / 2
    for text in sides[1]:
        assert text.isascii()
        assert not {*words(text)} & (french - shared), text
    assert all(c.prompt.isascii() for c in found.choices)


def test_every_answer_of_honesty_is_as_often_true_as_false():
    found = contrast("honesty")
    assert len(found.choices) >= 60
    for group in {c.group for c in found.choices}:
        held = [c for c in found.choices if c.group == group]
        assert Counter(c.yes for c in held) == Counter(c.no for c in held)
    # Both texts of a pair end with the same statement, and none of these is asked.
    for yes, no in found.pairs:
        said = re.split(r'[.:] "?|"', yes)[-1]
        assert no.endswith(said)
        assert len(said.split()) >= 2
        assert not any(c.prompt.startswith(said) for c in found.choices)


def test_refusal_is_a_turn_of_the_user():
    found = contrast("refusal")
    assert found.chat
    assert found.openings == openings(chat=True)
    assert not any(c.yes[0].isspace() or c.no[0].isspace() for c in found.choices)
    assert len({c.yes for c in found.choices}) >= 24
    assert not any(contrast(name).chat for name in contrast_names() if name != "refusal")


def test_openings_are_all_different():
    assert len({*openings(), *openings(chat=True)}) == 64


def test_groups_with_one_name_stay_together_and_lone_halves_are_refused():
    choices = (Choice("a", " b", " c", "g0"), Choice("d", " e", " f", "g1"))
    held = Contrast("c", "p", "n", ("a", "b"), ("c", "d"), ("g0", "g1"), ("g0", "g1"), choices)
    for half in held.halves(3):
        assert half.yes_groups[0] == half.choices[0].group
    torn = Contrast("c", "p", "n", ("a", "b"), ("c",), ("x", "x"), ("y",), paired=False)
    with pytest.raises(UserError, match="groups stay whole"):
        torn.halves()


def test_some_texts_are_taken():
    held = contrast("sentiment")
    some = held.sample(10, 1)
    assert len(some.pairs) == 10
    assert {*some.pairs} <= {*held.pairs}
    assert some == held.sample(10, 1) != held.sample(10, 2)
    assert held.sample(1000) is held
    loose = replace(held, paired=False)
    taken = loose.take([2, 0], [1])
    assert (taken.yes, taken.no) == ((held.yes[2], held.yes[0]), (held.no[1],))
    with pytest.raises(UserError, match="no pairs"):
        loose.pairs  # noqa: B018


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"negative": "p"}, "two names"),
        ({"yes": ()}, "no p text"),
        ({"yes": ("a", " ")}, "empty"),
        ({"yes": ("a",)}, "no pairs"),
        ({"yes": ("c", "b")}, "Both texts"),
        ({"yes_groups": ("x",)}, "given for 2 texts"),
        ({"yes_groups": ("x", "y"), "no_groups": ("x", "z")}, "one group"),
        ({"choices": (Choice("a", " b", " b"),)}, "two different"),
        ({"instructions": ("a",)}, "two instructions"),
    ],
)
def test_what_is_no_contrast_is_told_in_a_sentence(change, said):
    held = {"name": "c", "positive": "p", "negative": "n", "yes": ("a", "b"), "no": ("c", "d")}
    with pytest.raises(UserError, match=said):
        Contrast(**(held | change))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".json", ".jsonl"])
def test_pairs_of_a_file(tmp_path, suffix):
    path = tmp_path / f"soup{suffix}"
    rows = [{"positive": p, "negative": n, "group": f"g{i // 2}", "id": i} for i, (p, n) in enumerate(EIGHT)]
    rows += [rows[0], rows[0] | {"positive": " "}]
    frame = pd.DataFrame(rows)
    if suffix == ".parquet":
        frame.assign(nested=[[1, 2]] * len(frame)).to_parquet(path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    found = contrast(path)
    assert found.pairs == tuple(EIGHT)
    assert found.groups == ("g0", "g1", "g2", "g3")
    assert (found.name, found.choices, found.instructions, found.chat) == ("soup", (), ("", ""), False)
    assert found.openings == openings()
    assert "1 of 10 pairs are empty" in found.notes[0]
    assert "1 of 10 pairs are copies" in found.notes[1]
    first, second = found.halves()
    assert not {*first.groups} & {*second.groups}
    assert contrast(path, chat=True).openings == openings(chat=True)


def labelled(path, rows):
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    return path


def test_labelled_texts(tmp_path):
    rows = [(f"hot {i}", "hot") for i in range(8)] + [(f"cold {i}", "cold") for i in range(10)]
    path = labelled(tmp_path / "t.csv", [*rows, ("cold 1", "cold"), ("both", "cold"), ("both", "hot"), ("", "cold")])
    found = contrast(path)
    assert (found.positive, found.negative, len(found.yes), len(found.no)) == ("hot", "cold", 8, 10)
    assert not found.paired
    told = " ".join(found.notes)
    assert "'hot', the first label in the file, is the positive one" in told
    assert "1 of 22 rows have an empty" in told
    assert "1 of 22 texts are copies" in told
    assert "1 texts have both labels" in told
    turned = contrast(path, positive="cold")
    assert (turned.yes, turned.no) == (found.no, found.yes)
    halves = turned.halves()
    assert sum(len(h.yes) for h in halves) == 10
    assert all(len(h.no) == 4 for h in halves)


def test_choices_and_instructions_of_the_user(tmp_path):
    path = tmp_path / "asked.csv"
    path.write_text('prompt,yes,no,group\nIt is," good"," bad",a\nIt is, good, bad,a\nIt was,fine,poor,\nIt,x,x,\n')
    found = contrast("sentiment", choices=path, instructions=["Be glad. ", "Be sad. "])
    assert found.choices == (Choice("It is", " good", " bad", "a"), Choice("It was", "fine", "poor", "choice 3"))
    assert found.instructions == ("Be glad. ", "Be sad. ")
    told = " ".join(found.notes)
    assert "1 of 4 choices are empty" in told
    assert "1 of 4 choices are copies" in told
    assert "1 of 2 choices continue their prompt without a space" in told


def test_what_is_asked_wrongly_is_told_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="did you mean 'sentiment'"):
        contrast("sentimant")
    with pytest.raises(UserError, match="3 labels"):
        contrast(labelled(tmp_path / "three.csv", [(f"t{i}", "abc"[i % 3]) for i in range(30)]))
    with pytest.raises(UserError, match="1 labels"):
        contrast(labelled(tmp_path / "one.csv", [(f"t{i}", "a") for i in range(30)]))
    with pytest.raises(UserError, match="7 usable b texts"):
        contrast(labelled(tmp_path / "few.csv", [(f"t{i}", "a" if i < 9 else "b") for i in range(16)]))
    two = labelled(tmp_path / "two.csv", [(f"t{i}", "ab"[i % 2]) for i in range(30)])
    with pytest.raises(UserError, match=r"label in two\.csv"):
        contrast(two, positive="c")
    with pytest.raises(UserError, match="column"):
        contrast("sentiment", choices=two)
    for option in ({"positive": "x"}, {"chat": True}):
        with pytest.raises(UserError, match="for a file of yours"):
            contrast("sentiment", **option)
    with pytest.raises(UserError, match="two texts"):
        contrast("sentiment", instructions="be nice")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("b.json", "[1]"),
        ("c.json", "[]"),
        ("d.json", '{"positive": "a"}'),
        ("e.json", "[" * 200_000),
        ("f.jsonl", '{"text": "a"}\n{'),
        ("g.json", '[{"text": ["a"], "label": "b"}]'),
        ("h.csv", "text,thing\na,b\n"),
        ("i.csv", "positive,negative\na,b\n"),
        ("j.parquet", "no parquet"),
        ("k.json", '[{"thing": 1}]'),
        ("l.pkl", ""),
    ],
)
def test_files_that_are_no_contrasts(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError):
        contrast(tmp_path / name)


def test_files_that_are_not_there(tmp_path):
    for name in ("missing.csv", "missing.json", "missing.parquet"):
        with pytest.raises(UserError):
            contrast(tmp_path / name)
