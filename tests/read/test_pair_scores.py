"""Minimal pairs: files, conventions, and the same scores as a loop over sentences, one at a time."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from families import build
from repscope.cli import run
from repscope.conditions import ESTIMATE, FEWER_TOKENS, RANDOM_WEIGHTS
from repscope.data.minimal_pairs import MinimalPairs, read_pairs
from repscope.errors import UserError
from repscope.models.engine.contexts import distinct_contexts
from repscope.models.language import LanguageModel
from repscope.models.prompts import Ragged
from repscope.read.pair_scores import ALL, MEAN, SUM, accuracy_rows, credit, minimal_pairs, score_pairs
from repscope.studies.catalogue import study
from repscope.studies.minimal_pairs.task import pairs_of
from repscope.studies.run.runner import Run
from repscope.worlds.tiny import tiny

GOOD = ("The cats sleep.", "The cat that dogs see sleeps.", "She hurts herself.", "No dog ever barks.")
BAD = ("The cats sleeps.", "The cat that dogs see sleep.", "She hurts himself.", "A dog ever barks.")
PAIRS = MinimalPairs("mine", GOOD, BAD, ("agreement", "agreement", "anaphor", "npi"))


def alone(lm, row, first):
    """The slow twin: one row per call, in float64."""
    with torch.no_grad():
        logits = lm.model(torch.tensor(row[None])).logits[0].double()
    chosen = torch.tensor(row[1:])
    return logits[:-1].log_softmax(-1).gather(1, chosen[:, None])[first - 1 :, 0].numpy()


def related(seed, n=40, vocabulary=200):
    """Rows that share prefixes of every length: pairs, equal rows, rows that begin others."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n):
        shared = [3, *rng.integers(0, vocabulary, rng.integers(0, 12)).tolist()]
        tails = [rng.integers(0, vocabulary, rng.integers(1, 8)).tolist() for _ in range(rng.integers(1, 4))]
        rows += [shared + tail for tail in tails] + ([shared] if len(shared) > 1 else [])
    return Ragged.of(rows + rows[:3])


@pytest.mark.parametrize("budget", [None, 40, 200, 5000])
def test_scores_are_those_of_each_row_alone_wherever_packs_are_cut(llama, budget):
    rows = related(1)
    first = np.minimum(np.random.default_rng(0).integers(1, 5, len(rows)), rows.lengths - 1)
    for row, start, found in zip(rows, first, llama.sequence_scores(rows, first, budget), strict=True):
        np.testing.assert_allclose(found, alone(llama, row, start), atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "gemma2", "opt", "bloom", "mamba"])
def test_every_family_scores_as_alone(name, tokenizer):
    lm = LanguageModel(build(name), tokenizer, name)
    rows = related(2, n=8, vocabulary=60)
    for row, found in zip(rows, lm.sequence_scores(rows, np.ones(len(rows), dtype=np.int64), 64), strict=True):
        np.testing.assert_allclose(found, alone(lm, row, 1), atol=5e-5)


def test_a_pair_shares_every_common_token(llama):
    rows = Ragged.of([np.array([3, *range(20, 30), 7, 8]), np.array([3, *range(20, 30), 9, 8, 5])])
    many = Ragged.of([np.concatenate([[3, i], row[1:-1]]) for i in range(40, 60) for row in rows])
    assert llama.planned(many, 1000, [llama.last], family=96).tokens == 1 + 20 * (11 + 1 + 2)


def test_under_an_edit_scores_are_those_of_the_edited_network(llama):
    from repscope.models.edits import Edit

    rows = related(3, n=3)
    first = np.ones(len(rows), dtype=np.int64)
    before = llama.sequence_scores(rows, first)
    with llama.edit(Edit.replace("mlp_out.1", 0.0, tokens="all")):
        edited = llama.sequence_scores(rows, first)
        one = llama.sequence_scores(Ragged.of([rows[4]]), first[:1])[0]
    np.testing.assert_allclose(edited[4], one, atol=2e-5)
    assert max(np.abs(a - b).max() for a, b in zip(before, edited)) > 1e-4


def with_specials(lm):
    lm.tokenizer.add_special_tokens({"eos_token": "Ā"})
    return lm


def test_conventions_differ_by_what_stands_before_and_by_the_first_token():
    lm = with_specials(tiny())
    eos, byte = lm.tokenizer.eos_token_id, {c: lm.tokenizer(c)["input_ids"] for c in (GOOD[0], " " + GOOD[0])}
    expected = {
        "lm-eval": alone(lm, np.array([eos, *byte[" " + GOOD[0]]]), 1),
        "plain": alone(lm, np.array([eos, *byte[GOOD[0]]]), 1),
        "minicons": alone(lm, np.array(byte[GOOD[0]]), 1),
    }
    for name, each in expected.items():
        scored = score_pairs(lm, PAIRS, name)
        assert scored.good[0] == pytest.approx(each.sum(), abs=1e-4)
        assert scored.good_tokens[0] == len(each)
        mean = scored.good / scored.good_tokens - scored.bad / scored.bad_tokens
        np.testing.assert_allclose(scored.margin(MEAN), mean)


def test_table_has_estimate_baseline_control_and_gain():
    found = minimal_pairs(tiny(), PAIRS, "minicons", control=True)
    table = found.table
    scored = score_pairs(tiny(), PAIRS, "minicons")
    own = table[(table["condition"] == ESTIMATE) & (table["definition"] == SUM)].set_index("item")["value"]
    assert own["agreement"] == scored.right()[:2].mean()
    assert own[ALL] == pytest.approx((own["agreement"] + own["anaphor"] + own["npi"]) / 3)
    assert set(table["condition"]) == {ESTIMATE, FEWER_TOKENS, RANDOM_WEIGHTS, f"over {FEWER_TOKENS}"}
    assert list(found.side["pairs"]["right_sum"]) == list(scored.right())
    # "The cats sleep." has a token less, "No dog …" one more, anaphors of this pair are equally long
    np.testing.assert_array_equal(scored.fewer, [1, 0, 0.5, 0])


def test_a_tie_is_half_right():
    np.testing.assert_array_equal(credit(np.array([0.2, 0.0, -1.0])), [1, 0.5, 0])
    rows = accuracy_rows(["a", "a"], {SUM: np.array([1.0, 0.5])})
    assert [(r.item, r.value) for r in rows] == [("a", 0.75)]


def blimp(path, uid="anaphor", n=4):
    rows = []
    for i in range(n):
        good, bad = (f"{column[i % 4][:-1]} {i}." for column in (GOOD, BAD))
        rows.append({"sentence_good": good, "sentence_bad": bad, "UID": uid, "linguistics_term": "term", "pairID": str(i)})
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_files_of_blimp_tables_and_folders(tmp_path):
    one = read_pairs(blimp(tmp_path / "one.jsonl"))
    assert one.phenomena == ("anaphor",)
    assert one.groups == (("anaphor", "term"),)
    (tmp_path / "two.csv").write_text("good,bad\nA cat sleeps.,A cat sleep.\nA cat sleeps.,A cat sleep.\n")
    two = read_pairs(tmp_path / "two.csv")
    assert two.phenomena == ("two",)  # the file's name
    assert len(two.good) == 1
    assert "1 of 2 pairs are copies" in two.notes[0]
    both = read_pairs(tmp_path)
    assert both.phenomena == ("anaphor", "two")
    assert len(both.good) == 5
    (tmp_path / "own.tsv").write_text("ok\tno\twhat\nA b.\tA c.\tx\n")
    assert read_pairs(tmp_path / "own.tsv", good="ok", bad="no", phenomenon="what").phenomena == ("x",)
    (tmp_path / "blank.csv").write_text("good,bad,phenomenon\na b,a c,x\na d,a e,\n")
    with pytest.raises(UserError, match=r"line 3 of blank\.csv names no phenomenon"):
        read_pairs(tmp_path / "blank.csv")
    (tmp_path / "equal.csv").write_text("good,bad\nA.,A.\nA b.,A c.\n")
    equal = read_pairs(tmp_path / "equal.csv")
    assert equal.good == ("A b.",)
    assert "left out: line 2 of equal.csv." in equal.notes[0]
    drawn = both.chosen(["anaphor"], 2)
    assert len(drawn.good) == 2
    assert drawn == both.chosen(["anaphor"], 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("good,bad\nA.,A.\n", r"every pair are equal \(line 2 of a.csv\)"),
        ("good,bad\nA.,\n", "line 2 of a.csv is empty"),
        ("good,worse\nA.,B.\n", "no column of bad sentences"),
    ],
)
def test_files_that_are_no_pairs_are_refused(tmp_path, text, says):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        read_pairs(tmp_path / "a.csv")


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no phenomenon in mine 'agrement'; did you mean 'agreement'"):
        PAIRS.chosen(["agrement"])
    with pytest.raises(UserError, match="no BOS and no EOS"):
        score_pairs(tiny(), PAIRS)
    with pytest.raises(UserError, match="no convention 'lm_eval'"):
        score_pairs(tiny(), PAIRS, "lm_eval")
    with pytest.raises(UserError, match="one token, which has nothing before it"):
        score_pairs(tiny(), MinimalPairs("m", ("A",), ("BC",), ("x",)), "minicons")
    with pytest.raises(UserError, match="two equal sentences"):
        MinimalPairs("m", ("A",), ("A",), ("x",))
    with pytest.raises(UserError, match="no table of pairs"):
        read_pairs(tmp_path)
    with pytest.raises(UserError, match="none to score"):
        tiny().sequence_scores(Ragged.of([np.array([1, 2])]), np.array([2]))


def test_study_of_a_model_and_of_a_series(tmp_path, capsys):
    file = blimp(tmp_path / "pairs.jsonl", n=8)
    found = study("minimal-pairs")
    made = Run(found, found.options(file=file, convention="minicons"), out=tmp_path / "runs", lm=tiny())
    page = made.answer().read_text()
    assert "Minimal pairs" in page
    assert made.verdict is not None
    assert made.verdict.reply in ("Yes", "No", "Partly", "Cannot tell")
    for step in (10, 2):
        lm = tiny(step)
        lm.model.save_pretrained(tmp_path / "series" / f"step-{step}")
        lm.tokenizer.save_pretrained(tmp_path / "series" / f"step-{step}")
    words = ["minimal-pairs", str(tmp_path / "series"), str(file), "--convention", "minicons", "--out", str(tmp_path / "runs")]
    assert run(words) == 0
    told = capsys.readouterr().out
    assert "Accuracy on minimal pairs" in told
    table = Run(found, found.options(model=str(tmp_path / "series"), file=file, convention="minicons"), out=tmp_path / "runs")
    steps = [s.name for s in found.steps(table.setup)]
    assert steps == ["scores step-2", "scores step-10"]
    assert run([*words, "--phenomena", "nothing"]) == 2
    assert "no phenomenon" in capsys.readouterr().err


def test_verdict_of_each_kind():
    from repscope.results import Row, table_of
    from repscope.studies.minimal_pairs.verdict import verdict

    def rows(lo, hi, gain):
        at = {"definition": SUM, "item": ALL}
        gained = {"metric": "gain", "item": ALL, "definition": f"accuracy, {SUM}", "condition": f"over {FEWER_TOKENS}"}
        return table_of(
            [
                Row(metric="pair accuracy", value=(lo + hi) / 2, lo=lo, hi=hi, **at),
                Row(**gained, value=gain, lo=gain - 0.1, hi=gain + 0.1),
            ]
        )

    replies = [verdict(rows(*of)) for of in ((0.7, 0.9, 0.3), (0.7, 0.9, 0.05), (0.1, 0.4, 0.0), (0.4, 0.6, 0.0))]
    assert [v.reply for v in replies] == ["Yes", "Partly", "No", "Cannot tell"]
    assert max(len(v.sentence.split()) for v in replies) <= 30


def test_each_distinct_context_is_read_once(llama):
    """A pair that differs in its third word reads what is common once, and the head sees each context once."""
    rows = Ragged.of([np.array([3, 7, 8, 20, 21]), np.array([3, 7, 8, 22, 21, 4]), np.array([3, 7]), np.array([3, 7, 8, 20, 9])])
    first = np.ones(4, dtype=np.int64)
    read = distinct_contexts(Ragged.of(row[:-1] for row in rows), first - 1, rows.lengths - 1, share=True)
    # 3 | 3 7 | 3 7 8 | 3 7 8 20 | 3 7 8 22 | 3 7 8 22 21
    assert read.count == int((read.encoded.stop - read.encoded.start).sum()) == 6
    assert len(read.context) == 4 + 5 + 1 + 4
    assert sorted(np.bincount(read.context).tolist()) == [1, 1, 2, 3, 3, 4]
    seen = []
    handle = llama.model.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(len(out)))
    try:
        found = llama.sequence_scores(rows, first)
    finally:
        handle.remove()
    assert sum(seen) == 6
    for row, each in zip(rows, found):
        np.testing.assert_allclose(each, alone(llama, row, 1), atol=2e-5)


def test_tiny_form_brings_its_own_pairs_and_a_short_form_takes_few(tmp_path, capsys):
    out = ["--out", str(tmp_path / "runs")]
    assert run(["minimal-pairs", "--tiny", *out]) == 0
    assert "Accuracy on minimal pairs, convention minicons" in capsys.readouterr().out
    file = blimp(tmp_path / "pairs.jsonl", n=24)
    found = study("minimal-pairs")
    assert len(pairs_of(Run(found, found.options(file=file, short=True), out=tmp_path).setup).good) == 20
    assert len(pairs_of(Run(found, found.options(file=file, short=True, pairs=7), out=tmp_path).setup).good) == 7
    assert run(["minimal-pairs", "smollm", *out]) == 2
    assert "name a file or a folder" in capsys.readouterr().err
    assert run(["minimal-pairs", "--tiny", "--file", str(file), *out]) == 2
    assert "--tiny brings its own pairs" in capsys.readouterr().err


def test_a_stopped_series_goes_on_where_it_was(tmp_path, monkeypatch):
    file, scored = blimp(tmp_path / "pairs.jsonl", n=8), []
    for step in (10, 2, 30):
        lm = tiny(step)
        lm.model.save_pretrained(tmp_path / "series" / f"step-{step}")
        lm.tokenizer.save_pretrained(tmp_path / "series" / f"step-{step}")
    found = study("minimal-pairs")
    options = found.options(model=str(tmp_path / "series"), file=file, convention="minicons", control=False)

    def scores(lm, *given, **options):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(lm.fingerprint)
        return minimal_pairs(lm, *given, **options)

    monkeypatch.setattr(sys.modules["repscope.studies.minimal_pairs.steps"], "minimal_pairs", scores)
    with pytest.raises(KeyboardInterrupt):
        Run(found, options, out=tmp_path / "runs").answer()
    before = list(scored)
    scored.clear()
    again = Run(found, options, out=tmp_path / "runs")
    again.answer()
    assert len(scored) == 1
    assert not set(scored) & set(before)
    whole = Run(found, options, out=tmp_path / "other")
    scored.clear()
    monkeypatch.setattr(sys.modules["repscope.studies.minimal_pairs.steps"], "minimal_pairs", minimal_pairs)
    whole.answer()
    assert again.table.equals(whole.table)


def test_a_lora_in_a_series_is_its_base_with_the_adapter_merged(tmp_path):
    lm, file, home = tiny(1), blimp(tmp_path / "pairs.jsonl", n=8), tmp_path / "series"
    lm.model.save_pretrained(home / "base")
    lm.tokenizer.save_pretrained(home / "base")
    torch.manual_seed(0)
    q, a, b = lm.model.model.layers[1].self_attn.q_proj.weight, torch.randn(2, 32), torch.randn(32, 2)
    at = "base_model.model.model.layers.1.self_attn.q_proj"
    (home / "step-5").mkdir()
    save_file({f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b}, home / "step-5" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "../base", "bias": "none"}
    (home / "step-5" / "adapter_config.json").write_text(json.dumps(config))
    found = study("minimal-pairs")
    options = found.options(model=str(home), file=file, convention="minicons", control=False)
    made = Run(found, options, out=tmp_path / "runs")
    made.answer()
    assert [s.name for s in found.steps(made.setup)] == ["scores base", "scores step-5"]
    rows = made.results["scores step-5"].side["pairs-step-5"]
    pairs = read_pairs(file)
    before = score_pairs(lm, pairs, "minicons")
    with torch.no_grad():
        q += 2 * b @ a
    after = score_pairs(LanguageModel(lm.model, lm.tokenizer), pairs, "minicons")
    np.testing.assert_allclose(rows["good_logprob"], after.good, atol=1e-4)
    assert np.abs(after.good - before.good).max() > 1e-2
    (home / "step-5" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 8}))
    again = Run(found, options, out=tmp_path / "runs")
    assert again.folder != made.folder
