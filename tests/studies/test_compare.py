"""`repscope compare`, end to end: the numbers, the page, resumption, and every mistake in a sentence."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpointed import WORDS, saved
from repscope.cli import run
from repscope.studies.catalogue import study
from repscope.studies.run.folder import RunFolder
from repscope.studies.run.runner import load_record
from repscope.trace.drift import weights


def moved(folder, to, scale, seed):
    """A copy of a checkpoint with noise on its matrices."""
    shutil.copytree(folder, to)
    state = load_file(to / "model.safetensors")
    g = torch.Generator().manual_seed(seed)
    for name, value in state.items():
        if value.ndim == 2:
            value.add_(scale * value.std() * torch.randn(value.shape, generator=g))
            assert value.isfinite().all(), name
    save_file(state, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("compared")
    (base,) = saved(home, "llama", [0])
    moved(base, home / "near", 1e-3, 1)
    moved(base, home / "far", 0.5, 2)
    moved(base, home / "other", 0.5, 3)
    texts = [" ".join(words) for words in itertools.islice(itertools.combinations(WORDS[4:14], 4), 0, 60, 3)]
    (home / "prompts.txt").write_text("\n".join(texts))
    return home


def answered(capsys, *words):
    assert run(["compare", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def number(told, metric, item="all weights", condition="estimate"):
    (row,) = [r for r in told["rows"] if (r["metric"], r["item"], r["condition"]) == (metric, item, condition)]
    return row["value"]


def test_a_checkpoint_and_itself_are_identical(home, tmp_path, capsys):
    base = str(home / "llama-0")
    assert run(["compare", base, base, "--weights-only", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "are identical" in said
    assert "No. The weights are identical: every weight has the same bits." in said
    told = answered(capsys, base, base, "--weights-only", "--out", tmp_path)
    assert told["page"] == said.splitlines()[-1], "the same question is the same run"
    for metric, value in {"relative Frobenius norm": 0, "cosine": 1, "unchanged in float32": 1, "effective rank": 0}.items():
        assert number(told, metric) == value
    html = Path(told["page"]).read_text()
    assert "Which weights changed" in html


def test_weights_representations_tokens_and_the_floor(home, tmp_path, capsys):
    words = (home / "llama-0", home / "far", "--floor", home / "other", "--data", home / "prompts.txt", "--new-tokens", 3)
    told = answered(capsys, *words, "--out", tmp_path)
    weights_part = told["verdict"]["parts"]["weights"]
    assert weights_part["reply"] == "Yes", "unrelated changes are √2 times as far apart as from the base"
    assert "the cosine with another seed's change is 0.0" in weights_part["sentence"].replace("-", "")
    assert told["verdict"]["parts"]["next tokens"]["reply"] != "Yes", "no farther from the base than from each other"
    assert "between two seeds" in told["verdict"]["sentence"]
    assert any(line.startswith("cosine of the changes with another seed's") for line in told["answer"])
    assert set(told["verdict"]["parts"]) == {"weights", "representations", "next tokens"}
    found = load_record(study("compare"), RunFolder(Path(told["run"])))
    assert list(found.results) == ["weights", "floor", "representations", "next tokens"]
    floor = found.results["floor"].table
    shared = floor[(floor["metric"] == "cosine of the changes") & (floor["item"] == "all weights")]["value"].iloc[0]
    assert abs(shared) < 0.1, "the two changes were drawn independently"
    assert number(told, "cosine of the changes") == shared
    distance = floor[(floor["metric"] == "relative Frobenius norm") & (floor["item"] == "all weights")]["value"].iloc[0]
    assert distance == pytest.approx(2**0.5 * number(told, "relative Frobenius norm"), rel=0.1)
    conditions = set(found.results["representations"].table["condition"])
    assert {"estimate", "another seed"} <= conditions
    html = Path(told["page"]).read_text()
    for title in (
        "Is the update sparse",
        "Is the change of low rank",
        "seed&#39;s?",
        "representations change",
        "next tokens change",
    ):
        assert title in html, title
    assert run(["show", "compare", "--out", str(tmp_path)]) == 0
    assert "unshifted" in capsys.readouterr().out


def test_equal_weights_of_networks_with_other_settings_are_not_identical(home, tmp_path, capsys):
    other = shutil.copytree(home / "llama-0", tmp_path / "relu")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    words = (home / "llama-0", other, "--out", tmp_path / "runs")
    told = answered(capsys, *words, "--weights-only")
    assert "only weights were compared, and settings differ (hidden_act)" in told["verdict"]["sentence"]
    told = answered(capsys, *words, "--data", home / "prompts.txt", "--new-tokens", 3)
    assert "The weights are identical, representations" in told["verdict"]["sentence"]
    assert set(told["verdict"]["parts"]) == {"weights", "representations", "next tokens"}
    (other / "config.json").write_text(json.dumps(config))
    again = answered(capsys, *words, "--weights-only")
    assert again["verdict"]["sentence"] == "No. The weights are identical: every weight has the same bits.", "no stale answer"
    told = answered(capsys, home / "llama-0", home / "llama-0", "--out", tmp_path / "runs", "--data", home / "prompts.txt")
    assert told["verdict"]["sentence"] == "No. The checkpoints are identical: every weight has the same bits."


def test_spectra_can_be_left_out_and_single_files_are_compared(home, tmp_path, capsys):
    files = [home / name / "model.safetensors" for name in ("llama-0", "near")]
    told = answered(capsys, *files, "--no-spectra", "--out", tmp_path)
    assert number(told, "relative Frobenius norm") == pytest.approx(1e-3, rel=0.2)
    assert not [r for r in told["rows"] if r["metric"] == "effective rank"]
    assert told["verdict"]["reply"] == "No"
    assert "less than rounding them to bfloat16" in told["verdict"]["sentence"]
    assert any("only weights are compared" in note for note in told["notes"])
    assert run(["compare", *map(str, files), "--plan", "--out", str(tmp_path)]) == 0
    assert "weights" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_lora_folder_alone_names_its_base_and_runs(home, tmp_path, capsys):
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(home / "llama-0")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # PEFT draws the factors from torch's global state
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
        )
    tuned.save_pretrained(tmp_path / "lora")
    words = (tmp_path / "lora", "--data", home / "prompts.txt", "--new-tokens", 2, "--out", tmp_path / "runs")
    told = answered(capsys, *words)
    assert number(told, "effective rank") <= 2
    assert number(told, "effective rank", "MLP input") == 0
    from repscope.trace.drift.networks import networks
    from repscope.trace.drift.pair import Pair

    base, after = networks(Pair.open(None, tmp_path / "lora"))
    ids = torch.tensor([[1, 4, 6, 8, 10]])
    with torch.no_grad():
        torch.testing.assert_close(after.model(ids).logits, tuned(ids).logits, rtol=1e-5, atol=1e-5)
        reference = transformers.AutoModelForCausalLM.from_pretrained(home / "llama-0")(ids).logits
        torch.testing.assert_close(base.model(ids).logits, reference)


def test_a_killed_run_goes_on(home, tmp_path, capsys, monkeypatch):
    calls, made = [], weights._one

    def counting(tensor, audit, spectra):
        calls.append(tensor.name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return made(tensor, audit, spectra)

    words = ["compare", str(home / "llama-0"), str(home / "near"), "--weights-only", "--out", str(tmp_path)]
    monkeypatch.setattr(weights, "_one", counting)
    assert run(words) == 130
    monkeypatch.setattr(weights, "_one", lambda *given: calls.append(given[0].name) or made(*given))
    first = calls[:4]
    calls.clear()
    assert run(words) == 0
    assert not set(first) & set(calls)
    calls.clear()
    assert run(words) == 0
    assert not calls
    assert run([*words, "--fresh"]) == 0
    assert set(first) < set(calls)
    capsys.readouterr()


def test_mistakes_are_sentences(home, tmp_path, capsys):
    base, out = str(home / "llama-0"), ["--out", str(tmp_path / "runs")]
    (gpt,) = saved(tmp_path, "gpt2", [0])
    series = tmp_path / "series"
    shutil.copytree(home / "near", series / "step-000012")
    (tmp_path / "few.txt").write_text("the cat\nthe dog")
    capsys.readouterr()
    for words, says in (
        ([base], "is no adapter, so it names no base"),
        ([base, base, base], "3 checkpoints were given"),
        ([base, str(gpt)], "give two checkpoints of one architecture"),
        ([base, str(tmp_path / "nowhere")], "There is no folder"),
        ([base, str(home / "near"), "--data", str(tmp_path / "few.txt")], "has 2 different prompts; give at least 16"),
        ([base, str(home / "near" / "model.safetensors"), "--data", str(home / "prompts.txt")], "so no text can be read"),
        ([base, str(home / "near"), "--weights-only", "--data", "nope.txt"], "--data does not apply to --weights-only"),
        ([base, str(home / "near"), "--weights-only", "--floor", base], "is the base itself"),
        ([base, str(home / "near"), "--weights-only", "--floor", str(home / "near")], "is the tuned checkpoint itself"),
        ([base, str(series)], "is a series of checkpoints; give one of them, such as"),
        ([base, str(home / "near"), "--prompts", "3"], "--prompts 3"),
    ):
        assert run(["compare", *words, *out]) == 2, words
        said = capsys.readouterr()
        assert says in said.err, said.err
        assert len(said.err.strip().splitlines()) == 1
    assert not list((tmp_path / "runs").glob("compare-*")), "nothing is left of runs that could not begin"
