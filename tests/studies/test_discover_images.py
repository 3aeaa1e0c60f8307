"""`discover` on a GAN and a diffusion model of sprites: methods with their controls, the page, resume, mistakes in a sentence."""

import json

import numpy as np
import pytest

from repscope.bench.generators import generator_benchmark, violations
from repscope.cli import run as command
from repscope.conditions import RANDOM, over
from repscope.directions import DirectionSet
from repscope.discovery.generators import LatentDirections
from repscope.discovery.generators.comparison import DIFFUSION_ONLY, GAN_ONLY, IMAGE_METRICS, METHODS
from repscope.discovery.generators.judges import KNOWN
from repscope.discovery.generators.sprite_material import SpriteMaterial, SpriteSetting
from repscope.results import Row, select, table_of
from repscope.studies.discover import STUDY as DISCOVER
from repscope.studies.discover import image_names as names
from repscope.studies.discover.options import IMAGE_METHODS, DiscoverOptions
from repscope.studies.run.runner import Run, load_record
from repscope.worlds.sprites import FACTORS
from repscope.worlds.sprites import cached as kept


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    run = Run(DISCOVER, DiscoverOptions(subject="gan", tiny=True), out=tmp_path_factory.mktemp("runs"))
    run.answer()
    return run


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    run = Run(DISCOVER, DiscoverOptions(subject="diffusion", tiny=True), out=tmp_path_factory.mktemp("runs"))
    run.answer()
    return run


@pytest.mark.parametrize("name", ["gan", "diffusion"])
def test_every_method_has_every_number_beside_its_controls(name, request):
    run = request.getfixturevalue(name)
    table = run.results["summary"].table
    for method in run.setup.options.methods:
        rows = table[(table["item"] == method) & (table["metric"] != names.GAIN)]
        assert set(rows["metric"]) == set(IMAGE_METRICS) - {"digits explained"}
        assert set(rows["condition"]) == {METHODS[method].condition}
        assert (rows["n"] == 2).all()
    gains = select(table, metric=names.GAIN, definition="selectivity", condition=over(RANDOM))
    assert len(gains) == len(run.setup.options.methods) - 1
    seeds = {
        m: select(run.results[m].table, metric="selectivity")["value"].to_numpy() for m in ("contrastive", "random directions")
    }
    row = select(gains, item="contrastive: selectivity")
    assert row["value"].iloc[0] == pytest.approx((seeds["contrastive"] - seeds["random directions"]).mean())
    assert run.table["row_id"].is_unique
    assert run.verdict is None, "a tiny run gives none"


def test_the_generator_is_judged_beside_sprites_and_permuted_pixels(gan):
    table = gan.results["generator"].table
    explained = select(table, metric=KNOWN["sprites"].readable)
    assert set(explained["condition"]) == {"estimate", "images of the data", "permuted pixels"}
    for metric in KNOWN["sprites"].each:
        assert set(select(table, metric=metric)["item"]) == set(FACTORS)


def test_numbers_are_those_of_the_saved_directions(gan):
    """Images edited one by one with the vectors of the run, factors read again."""
    o = gan.setup.options
    setting = SpriteSetting("gan", samples=o.samples, images=o.images, tiny=True)
    material = SpriteMaterial(setting, gan.results["generator"].arrays)
    arrays = gan.results["L2"].arrays
    scale = arrays["scale"][0]
    bed = material.bed
    assert scale == pytest.approx(bed.scale)
    import torch

    for k, vector in enumerate(arrays["vectors"][0]):
        moved = []
        for z in bed.z[len(bed.z) // 2 :]:
            ends = [
                material.judge.read(bed.generator.images((z + s * scale * torch.from_numpy(vector))[None])).numpy() for s in (1, -1)
            ]
            moved.append((ends[0] - ends[1])[0] / 2 * 3**0.5)
        np.testing.assert_allclose(np.mean(moved, 0), arrays["matrix"][0][k], atol=1e-4)


def test_files_of_directions_and_of_functions_of_z(gan):
    kept_set = DirectionSet.load(gan.artifact("LatentCLR-MLP.safetensors"))
    assert len(kept_set) == 3
    assert kept_set[0].site == "module:#in"
    assert set(kept_set[0].does) == {"selectivity", *FACTORS}
    function = LatentDirections.load(gan.artifact("LatentCLR-MLP-of-z.safetensors"))
    np.testing.assert_allclose(function.mean().numpy()[0, 1], kept_set[1].vector, atol=1e-5)
    assert not gan.artifact("L2-of-z.safetensors").exists()


@pytest.mark.parametrize("name", ["gan", "diffusion"])
def test_the_page(name, request):
    run = request.getfixturevalue(name)
    page = (run.folder / "report.html").read_text()
    for text in ("Filmstrips", "Factors by direction", "Is the generator good enough", "Key numbers", "share explained by sprites"):
        assert text in page
    assert run.headline().lines
    strips = run.results["filmstrips"].side["strips"]
    assert set(strips["dose"]) == {-1.0, -0.5, 0.0, 0.5, 1.0}
    facts = json.loads((run.folder / "run.json").read_text())
    assert facts["model"] == names.model(name)
    assert ("diffusers" in facts["versions"]) == (name == "diffusion")
    assert load_record(DISCOVER, run.run_folder).options.methods == run.setup.options.methods, "the page can be drawn again"


def test_a_killed_run_goes_on_and_trains_no_second_generator(tmp_path, monkeypatch):
    from repscope.studies.discover import image_steps

    options = DiscoverOptions(subject="gan", tiny=True, methods=("random directions", "L2"), steps=1)
    real = image_steps.search

    def killed(bed, name, *rest, **more):
        if name == "L2":
            raise KeyboardInterrupt
        return real(bed, name, *rest, **more)

    monkeypatch.setattr(image_steps, "search", killed)
    with pytest.raises(KeyboardInterrupt):
        Run(DISCOVER, options, out=tmp_path).answer()
    monkeypatch.undo()
    monkeypatch.setattr(kept, "train_gan", lambda *a, **k: pytest.fail("the generator was there"))
    again = Run(DISCOVER, options, out=tmp_path)
    again.answer()
    assert set(again.took) == {"L2", "summary", "filmstrips"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--subject", "gan", "--methods", "NoiseCLR"], "does not run on a GAN"),
        (["--subject", "diffusion", "--methods", "SeFa"], "does not run on a diffusion model"),
        (["--subject", "diffusion", "--site", "h", "--methods", "factor regression"], "which h has not"),
        (["--subject", "gan", "--methods", "L3"], "no method 'L3'"),
        (["--subject", "gan", "--site", "h"], "--site belongs to --subject diffusion"),
        (["--subject", "gan", "--damage", "1"], "--damage belongs to a language model"),
        (["--images", "8", "--samples", "4"], "--samples and --images belong to an image generator"),
        (["--subject", "gan", "--methods"], "--methods names no method"),
        (["--subject", "gan", "--data", "digits", "--methods", "factor regression, orthogonal"], "vary apart"),
        (["--subject", "gan", "--images", "3"], "greater than or equal to 4"),
        (["--subject", "vae"], "--subject"),
    ],
)
def test_mistakes_are_one_sentence(words, says, tmp_path, capsys):
    assert command(["study", "discover", "--tiny", *words, "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_runs_on_language_models_keep_their_names():
    assert not {"subject", "data", "site", "samples", "images"} & set(DiscoverOptions(tiny=True).key())
    assert DiscoverOptions(subject="gan", tiny=True).key()["subject"] == "gan"


def test_default_methods_run_on_their_generator():
    assert not set(IMAGE_METHODS["gan"]) & set(DIFFUSION_ONLY)
    assert not set(IMAGE_METHODS["diffusion"]) & set(GAN_ONLY)
    assert {m for some in IMAGE_METHODS.values() for m in some} <= set(METHODS)


def test_the_plan_trains_nothing(tmp_path, capsys):
    for subject, *site in (("gan",), ("diffusion",), ("diffusion", "--site", "h")):
        assert command(["study", "discover", "--subject", subject, *site, "--short", "--plan", "--out", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert "generator" in shown
        assert "filmstrips" in shown
        assert ("factor regression" in shown) == (not site), "the bottleneck has no words"


def test_the_bench_and_its_own_control(tmp_path, monkeypatch):
    monkeypatch.setenv("REPSCOPE_CACHE", str(tmp_path))
    found = generator_benchmark("gan", 2, methods=("random directions", "L2", "factor regression"), n=3, steps=1, tiny=True)
    assert set(found.table["metric"]) == set(IMAGE_METRICS) - {"digits explained"}
    assert set(found.table["item"]) == {"random directions", "L2", "factor regression"}

    def table(labelled):
        rows = [
            Row(metric="selectivity", item=i, value=v) for i, v in (("random directions", 0.3), ("factor regression", labelled))
        ]
        from repscope.results import Result

        return Result(table_of(rows))

    assert not violations(table(0.5))
    assert "cannot be told apart" in violations(table(0.2))[0]
