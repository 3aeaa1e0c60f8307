"""`discover` on a GAN of digits: classes in place of factors, the page, names of runs, mistakes in a sentence, the index."""

import json
import re

import numpy as np
import pytest
import torch

from repscope.cli import run as command
from repscope.directions import DirectionSet
from repscope.discovery.generators.digit_material import DigitSetting
from repscope.discovery.generators.judges import KNOWN
from repscope.results import select
from repscope.studies.discover import STUDY as DISCOVER
from repscope.studies.discover.options import DiscoverOptions
from repscope.studies.index import write_index
from repscope.studies.run.runner import Run
from repscope.worlds.digit_classifier import CLASS_NAMES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = Run(DISCOVER, DiscoverOptions(subject="gan", data="digits", tiny=True), out=tmp_path_factory.mktemp("runs"))
    made.answer()
    return made


def test_numbers_are_those_of_the_saved_directions(run):
    """Images edited one by one with the vectors of the run, classes read again."""
    o = run.setup.options
    setting = DigitSetting(o.samples, o.images, tiny=True)
    material = setting.material(run.results["generator"].arrays)
    arrays, bed = run.results["L2"].arrays, material.bed
    scale = arrays["scale"][0]
    for k, vector in enumerate(arrays["vectors"][0]):
        moved = []
        for z in bed.z[len(bed.z) // 2 :]:
            ends = [
                material.judge.read(bed.generator.images((z + s * scale * torch.from_numpy(vector))[None])).numpy() for s in (1, -1)
            ]
            moved.append((ends[0] - ends[1])[0] / 2 / 0.3)
        np.testing.assert_allclose(np.mean(moved, 0), arrays["matrix"][0][k], atol=1e-4)


def test_the_table_and_the_page(run):
    table = run.results["generator"].table
    known = KNOWN["digits"]
    for metric in known.each:
        assert list(select(table, metric=metric)["item"]) == list(CLASS_NAMES)
    for metric in known.whole:
        assert set(select(table, metric=metric)["condition"]) == {"estimate", "images of the data", "permuted pixels"}
    assert "sprites explained" not in set(run.table["metric"])
    page = (run.folder / "report.html").read_text()
    for text in ("digit 7", "Filmstrips", "share explained by digits", "10 classes", "Is the generator good enough"):
        assert text in page
    assert "six known factors" not in page
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["model"] == "digits-gan"
    held = DirectionSet.load(run.artifact("L2.safetensors"))
    assert set(held[0].does) == {"selectivity", *CLASS_NAMES}
    strips = run.results["filmstrips"].side["strips"]
    assert strips["pixel"].max() == 63


def test_runs_on_sprites_keep_their_names(tmp_path):
    plain, named = (
        Run(DISCOVER, DiscoverOptions(subject="gan", tiny=True, **more), out=tmp_path) for more in ({}, {"data": "sprites"})
    )
    assert plain.run_folder.path == named.run_folder.path
    assert "data" not in plain.options.key()
    assert DiscoverOptions(subject="gan", data="digits").key()["data"] == "digits"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--subject", "diffusion", "--data", "digits"], "--data digits goes with --subject gan"),
        (["--data", "digits"], "belongs to an image generator"),
        (["--subject", "gan", "--data", "faces"], "--data"),
        (["--subject", "gan", "--data", "digits", "--methods", "NoiseCLR"], "does not run on a GAN"),
    ],
)
def test_mistakes_are_one_sentence(words, says, tmp_path, capsys):
    assert command(["study", "discover", "--tiny", *words, "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_the_index_has_an_entry_per_generator(run):
    heads = re.findall(r"<h2>(.*?)</h2>", write_index(run.folder.parent).read_text())
    at = [i for i, head in enumerate(heads) if head.endswith("(digits-gan)")]
    assert len(at) == 1
    assert heads[at[0]].startswith(heads[at[0] - 1]), "after the question itself, which has no run"
