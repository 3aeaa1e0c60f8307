"""Mistakes on the command line: one sentence on standard error, exit code 2, nothing on standard output, nothing written."""

import os

import pandas as pd
import pytest

from families import build, build_tokenizer
from repscope import disk
from repscope.cli import app, register, run
from repscope.cli.shared import Dtype
from repscope.models.loading.sources import Dtype as DtypeOfSources

LONG = " ".join(["word"] * 1200)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a model, one without, tables and other files."""
    folder = tmp_path_factory.mktemp("mistakes")
    build("llama").save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    (folder / "bare").mkdir()
    names = pd.DataFrame({"name": [f"City {i}" for i in range(40)], "kind": ["a", "b"] * 20})
    names.to_csv(folder / "towns.csv", index=False)
    (folder / "other").mkdir()
    names.to_csv(folder / "other" / "towns.csv", index=False)
    pd.DataFrame({"text": [f"text {i}" for i in range(40)], "label": ["yes", "no"] * 20}).to_csv(folder / "texts.csv", index=False)
    pairs = {"subject": [f"thing {i}" for i in range(11)], "object": ["red", "green"] * 5 + ["red"]}
    pd.DataFrame(pairs).to_csv(folder / "few.csv", index=False)
    (folder / "empty.csv").touch()
    (folder / "empty.txt").touch()
    return folder


def mistaken(here, monkeypatch, capsys, words):
    """Run a command in that folder; the sentence that it prints."""
    monkeypatch.chdir(here)
    before = {p for p in here.rglob("*") if ".lock" not in p.name}
    code = run([LONG + word.removeprefix("LONG") if word.startswith("LONG") else word for word in words])
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    (sentence,) = said.err.strip().splitlines()
    assert {p for p in here.rglob("*") if ".lock" not in p.name} == before, "something was written"
    return sentence.removeprefix("repscope: ")


TINY = ["study", "entities", "--tiny"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        # options that all studies share are checked, tiny or not
        ([*TINY, "--dtype", "flaot16"], '"flaot16" for --dtype. Choose from: "float32", "bfloat16", "float16". Did you mean'),
        (["study", "relations", "--dtype", "float64"], '"float64" for --dtype'),
        (["study", "discover", "--tiny", "--dtype", ""], "--dtype"),
        ([*TINY, "--device", "meta"], "There is no device 'meta'"),
        ([*TINY, "--device", "cpu:3"], "There is no device 'cpu:3'"),
        ([*TINY, "--device", "cuad"], "did you mean 'cuda'"),
        ([*TINY, "--device", "auto"], "The tiny model fits one device"),
        ([*TINY, "--model", "model"], "--tiny brings its own model, with random weights; omit --model."),
        (["study", "contrast", "--tiny", "--revision", "main"], "omit --revision"),
        ([*TINY, "--short"], "--short and --tiny are two sizes"),
        ([*TINY, "--seed", "-1"], "--seed -1: input should be greater than or equal to 0."),
        (["study", "paths", "--tiny", "--seed", "x"], '--seed: unable to convert "x" into int'),
        ([*TINY, "--batch-tokens", "0"], "--batch-tokens 0"),
        ([*TINY, "--modle", "x"], "--modle"),
        # decimals where whole numbers are meant, in options of studies (one, perhaps none, several) and of other commands
        (["study", "discover", "--tiny", "--vectors", "2.5"], "Invalid value for --vectors: 2.5 is not a whole number."),
        (["study", "discover", "--tiny", "--source", "0.5"], "--source: 0.5 is not a whole number"),
        (["study", "relations", "--tiny", "--ranks", "4", "7.9"], "--ranks: 7.9 is not a whole number"),
        ([*TINY, "--seed", "1.5"], "--seed: 1.5 is not a whole number"),
        (["bench", "discovery", "--tiny", "--seeds", "1.2"], "--seeds: 1.2 is not a whole number"),
        (["train", "--out", "t", "--runs", "2.5"], "--runs: 2.5 is not a whole number"),
        (["steer", "model", "sentiment", "--prompt", "hi", "--tokens", "1.5"], "--tokens: 1.5 is not a whole number"),
        (["harvest", "t", "--at", "resid_post.1", "--rows", "1.0e400"], "--rows: 1.0e400 is not a whole number"),
        (["tour", "--seed=0.1"], "--seed: 0.1 is not a whole number"),
        # numbers beyond any machine
        (["study", "drift", "--tiny", "--seeds", "1000000000"], "less than or equal to 1000"),
        (["study", "brain", "--tiny", "--repeats", "1000000000", "--plan"], "less than or equal to 1000"),
        (["study", "paths", "--tiny", "--pretrainings", "1000000000", "--plan"], "less than or equal to 1000"),
        (["study", "bayes", "--tiny", "--values", "1000000000", "--plan"], "years; give smaller numbers"),
        (["study", "discover", "--subject", "gan", "--tiny", "--images", "1000000000"], "of memory and this machine has"),
        (["study", "discover", "--subject", "gan", "--tiny", "--images", "1000000000", "--plan"], "of memory and this machine has"),
        ([*TINY, "--seed", "1", "--seed", "2"], "--seed specified multiple times"),
        (["study", "paths", "--dtype", "float32"], "--dtype"),
        # options that would be ignored are refused
        ([*TINY, "--tokens", "mean"], "--tokens goes with --data FILE"),
        ([*TINY, "--name", "city"], "--name needs a file of your own"),
        ([*TINY, "--entities", "elements", "--per-class", "9"], "--per-class goes with --entities cities"),
        ([*TINY, "--data", "texts.csv", "--text", "text", "--label", "label", "--template", "{}"], "--template goes with a set"),
        ([*TINY, "--data", "texts.csv", "--text", "text", "--label", "label", "--entities", "cities"], "--entities goes with"),
        (["study", "discover", "--tiny", "--scale", "1", "--damage", "0.2"], "give only one of them"),
        (["study", "paths", "--tiny", "--clusters", "texts.csv"], "--clusters needs --published"),
        (["study", "relations", "--tiny", "--template", "a {}", "b {}"], "Each relation has one template"),
        # files and names
        ([*TINY, "--entities"], "No set of entities was named"),
        ([*TINY, "--entities", "town.csv"], "There is no table town.csv; did you mean 'towns.csv'?"),
        ([*TINY, "--entities", "zebra.csv"], "There is no table zebra.csv; check the path."),
        ([*TINY, "--entities", "empty.csv"], "empty.csv is empty"),
        ([*TINY, "--entities", "."], "is a folder"),
        ([*TINY, "--entities", "towns.csv", "other/towns.csv"], "Two of the sets have the name 'towns'"),
        ([*TINY, "--data", "texts.csv", "--text", "txt", "--label", "label"], "did you mean 'text'?"),
        (["study", "discover", "--tiny", "--prompts", "empty.txt"], "0 different prompts"),
        (["study", "relations", "--relations", "few.csv", "--model", "model"], "11 usable samples; with 5 examples it needs 12"),
        (["study", "relations", "--tiny", "--ranks", "0"], "--ranks needs at least one rank"),
        (["study", "paths", "--tiny", "--rates", "-1"], "A learning rate of -1 is not possible"),
        (["train", "--out", "t", "--rate", "nan"], "A learning rate of nan is not possible"),
        # models
        (["study", "entities", "--model", "bare"], "bare holds no config.json"),
        (["sites", "texts.csv"], "neither a .gguf file nor a folder"),
        (["verify", "./nowhere"], "There is no folder or .gguf file nowhere"),
        (["verify", "model", "--dtype", "fp16"], 'Choose from: "float32", "bfloat16", "float16"'),
        (["lens", "model", "hello", "--dtype", "double"], "Choose from"),
        (["steer", "model", "sentiment", "--prompt", "hi", "--dtype", "float64"], "Choose from"),
        # the network's context is not the table's fault
        ([*TINY, "--template", "LONG {}"], "tiny takes 1024 tokens, but every prompt of cities has more"),
        # texts without quotation marks, numbers that are none
        (["lens", "model", "The", "capital", "of"], "'capital of' is one argument too many"),
        (["lens", "model", ""], "it has no token"),
        (["lens", "model", "hi", "--top", "0"], "--top 0: input should be greater than or equal to 1"),
        (["lens", "model", "hi", "--last", "0"], "--last 0: input should be greater than or equal to 1"),
        (["steer", "model", "sentiment", "--prompt", "hi", "--tokens", "0"], "Must be >= 1"),
        (["steer", "model", "sentiment", "--prompt", "hi", "--temperature", "-1"], "Must be >= 0"),
        (["steer", "model", "sentiment", "--prompt", "hi", "--scale", "nan"], "Must be a finite number"),
        (["steer", "model", "sentiment", "--prompt", "hi", "--seed", "-1"], "Must be >= 0"),
        (["tour", "--seed", "-1"], "Must be >= 0"),
        (["frobnicate"], "Unknown command"),
    ],
)
def test_a_mistake_is_one_sentence(here, monkeypatch, capsys, words, says):
    assert says in mistaken(here, monkeypatch, capsys, words)


@pytest.mark.parametrize("number", ["2", "2.0", "+2", "0x2"])
def test_whole_numbers_may_be_written_in_any_way(number):
    register(["bench", "discovery"])
    _, bound, _ = app.parse_args(["bench", "discovery", "--tiny", "--seeds", number], exit_on_error=False, print_error=False)
    assert bound.kwargs["seeds"] == 2


def test_a_device_that_is_not_here_is_refused_by_tiny_too(here, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch sees no cuda device here" in mistaken(here, monkeypatch, capsys, [*TINY, "--device", "cuda"])


@pytest.mark.parametrize(
    "words",
    [
        ["study", "entities", "--tiny"],
        ["tour"],
        ["verify", "nowhere"],
        ["lens", "nowhere", "hi"],
        ["compare", "a", "b"],
        ["connect", "a", "b"],
        ["bench", "discovery", "--tiny"],
        ["train"],
        ["runs"],
        ["show", "x"],
        ["query", "select 1"],
        ["claims"],
    ],
)
@pytest.mark.parametrize("out", ["texts.csv", "texts.csv/deep/runs"])
def test_an_out_that_is_a_file_is_refused_before_anything_else(here, monkeypatch, capsys, words, out):
    assert "texts.csv" in mistaken(here, monkeypatch, capsys, [*words, "--out", out])


def test_json_does_not_change_how_a_mistake_is_told(here, monkeypatch, capsys):
    words = [*TINY, "--entities", "zebra.csv", "--json"]
    assert mistaken(here, monkeypatch, capsys, words) == "There is no table zebra.csv; check the path."


def test_an_out_that_cannot_be_written_is_refused_before_the_network_is_loaded(here, monkeypatch, capsys):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("repscope.worlds.tiny.tiny", lambda *a, **k: pytest.fail("the network was loaded"))
    monkeypatch.setattr(disk.tempfile, "mkdtemp", refused)
    said = mistaken(here, monkeypatch, capsys, [*TINY, "--out", "runs"])
    assert said == "runs cannot be written (Permission denied); choose another folder."


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "The disk is full"),
        (OSError(30, "Read-only file system", "x"), "x cannot be written (Read-only file system)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "The disk is full"),
    ],
)
def test_what_the_disk_says_anywhere_is_the_users_to_mend(monkeypatch, capsys, error, says):
    def failing():
        raise error

    monkeypatch.setattr("repscope.models.loading.sources.cached", failing)
    assert run(["models"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert says in sentence


def test_a_sentence_for_a_full_disk_names_what_was_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    disk.need_folder(tmp_path / "a" / "b")
    assert not os.listdir(tmp_path), "nothing is left behind"


def test_the_command_line_knows_the_types_of_weights_that_load_takes():
    assert Dtype == DtypeOfSources


def test_values_are_text_and_never_json(here, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[a].csv").write_text((here / "towns.csv").read_text())
    words = ["--entities", "[a].csv", "--template", "{}", "--plan", "--json", "--out", "runs"]
    assert run([*TINY, *words]) == 0, capsys.readouterr().err
