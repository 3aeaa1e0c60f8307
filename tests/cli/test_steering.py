"""`repscope steer` and `repscope directions`: what is printed, what is written, and mistakes in one sentence."""

import json

import numpy as np
import pytest

from repscope.cli import run
from repscope.directions import Direction, DirectionSet
from repscope.report.terminal import side_by_side
from repscope.worlds.tiny import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    lm, at = tiny(), tmp_path_factory.mktemp("model") / "tiny-llama"
    lm.model.save_pretrained(at)
    lm.tokenizer.save_pretrained(at)
    return at


@pytest.fixture
def kept(tmp_path):
    weights = 6 * np.random.default_rng(0).standard_normal(32)
    return DirectionSet.of(Direction.of(weights, "resid_post.2", "pushed"), architecture="llama", blocks=4).save(
        tmp_path / "pushed.safetensors"
    )


def test_text_with_and_without_stands_side_by_side(folder, kept, capsys):
    asked = ["steer", str(folder), str(kept), "--prompt", "The map", "--tokens", "5"]
    assert run([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (texts,) = said["continuations"]
    assert texts["prompt"] == "The map"
    assert texts["unsteered"] != texts["steered"]
    assert run([*asked, "--prompt", "We"]) == 0
    out = capsys.readouterr().out
    assert "unsteered" in out
    assert "steered" in out
    assert "resid_post.2" in out
    assert out.index("The map") < out.index("We")


def test_a_file_is_shown_and_converted(kept, tmp_path, capsys):
    for ending in ("gguf", "pt", "safetensors"):
        target = tmp_path / f"out.{ending}"
        assert run(["directions", str(kept), "--to", str(target)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(target)
        again = DirectionSet.load(target)
        np.testing.assert_array_equal(again[0].weights, DirectionSet.load(kept)[0].weights)
    assert run(["directions", str(kept)]) == 0
    assert "resid_post.2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["steer", "x", "sentimnt", "--prompt", "a"], "did you mean 'sentiment'"),
        (["steer", "x", "none.gguf", "--prompt", "a"], "no file 'none.gguf'"),
        (["steer", "x", "sentiment"], "--prompt"),
        (["directions", "none.pt"], "no file 'none.pt'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says, capsys):
    assert run(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1


def test_what_does_not_fit_the_model_is_refused(folder, kept, tmp_path, capsys):
    wide = DirectionSet.of(Direction.of(np.ones(48), "resid_post.2", "wide")).save(tmp_path / "wide.safetensors")
    other = DirectionSet.of(Direction.of(np.ones(32), "resid_post.2", "d"), model="another").save(tmp_path / "o.safetensors")
    for path, says in ((wide, "has 48 features"), (other, "made for the model with fingerprint another")):
        assert run(["steer", str(folder), str(path), "--prompt", "We"]) == 2
        assert says in capsys.readouterr().err
    assert run(["steer", str(folder), str(other), "--prompt", "We", "--anyway", "--scale", "20", "--json"]) == 0
    assert run(["directions", str(kept), "--to", str(tmp_path / "d.onnx")]) == 2
    assert "format of directions" in capsys.readouterr().err
    assert not (tmp_path / "d.onnx").exists()
    bare = DirectionSet.of(Direction.of(np.ones(32), "resid_post.2", "d")).save(tmp_path / "bare.safetensors")
    assert run(["directions", str(bare), "--to", str(tmp_path / "d.pt")]) == 2
    assert "--blocks" in capsys.readouterr().err
    assert run(["directions", str(bare), "--to", str(tmp_path / "d.pt"), "--blocks", "4"]) == 0
    assert run(["directions", str(kept), "--to", str(tmp_path)]) == 2
    capsys.readouterr()
    assert run(["directions", str(kept), "--name", "pulled"]) == 2
    assert "no direction 'pulled'" in capsys.readouterr().err


def test_a_pair_is_shown_once_where_there_is_no_terminal(capsys):
    import sys

    with side_by_side(sys.stdout) as told:
        for i in range(4):
            told.grow("A prompt", "left" * i, "right" * i)
        told.grow("Another", "x", "y")
    out = capsys.readouterr().out
    assert out.count("A prompt") == 1
    assert out.count("leftleftleft") == 1
    assert "Another" in out
