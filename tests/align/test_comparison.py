"""`compare`: networks with a recording, layer by region, with ceilings, controls, families; mismatches are counted or refused."""

import numpy as np
import pytest
import torch

import repscope as rs
from repscope.align import compare, compare_rdms, crossvalidated_rdm, encode, rdm, region_rdms, split_half
from repscope.conditions import ESTIMATE, LOWER_CEILING, PIXELS, UPPER_CEILING, over
from repscope.data.recordings import Recording
from repscope.errors import UserError
from repscope.results import CHOSEN

NAMES = tuple(f"stimulus {i}" for i in range(30))


def made(seed=0, images=False, texts=False):
    """A recording of two regions that mix two layers of a random network, and that network's layers."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(size=(30, 4, 4, 1))
    first = np.tanh(pixels.reshape(30, -1) @ rng.normal(size=(16, 12)))
    second = np.tanh(first @ rng.normal(size=(12, 10)))
    regions = {
        name: {s: layer @ rng.normal(size=(layer.shape[1], 8)) + rng.normal(size=(3, 30, 8)) for s in ("s1", "s2", "s3")}
        for name, layer in (("early", first), ("late", second))
    }
    words = tuple(f"word{i % 7} and {'thing' * (i % 2)}" for i in range(30)) if texts else None
    held = Recording(NAMES, regions, images=pixels if images else None, texts=words)
    return held, {"first": first, "second": second}


def test_layer_by_region_with_ceiling_and_pixels():
    held, layers = made(images=True)
    found = compare({"net": layers}, held)
    at = found.result.select(metric="similarity", item="net, early", site="first", split="all conditions")
    subjects = np.stack([crossvalidated_rdm(x) for x in held.responses["early"].values()])
    assert at["value"].iloc[0] == pytest.approx(compare_rdms(rdm(layers["first"]), subjects, "pearson").mean())
    for region in held.regions:
        bounds = {c: found.result.select(item=region, condition=c)["value"].iloc[0] for c in (LOWER_CEILING, UPPER_CEILING)}
        assert 0 < bounds[LOWER_CEILING] < bounds[UPPER_CEILING] < 1
        gain = found.result.select(metric="gain", item=f"net, {region}", condition=over(PIXELS), site=CHOSEN)
        assert len(gain) == 1
    assert np.isfinite(found.result.table["value"]).all()
    assert set(found.result.select(metric="similarity", item="pixels, early")["condition"]) == {PIXELS}


def test_rows_are_matched_by_name_and_what_is_missing_is_counted():
    held, layers = made()
    order = np.random.default_rng(0).permutation(30)
    shuffled = {name: np.vstack([x[order], x[:1]]) for name, x in layers.items()}
    named = [*(NAMES[i] for i in order), "unknown"]
    same = compare({"net": shuffled}, held, names=named)
    right = compare({"net": layers}, held)
    np.testing.assert_allclose(same.result.table["value"], right.result.table["value"], rtol=1e-9)
    assert "1 conditions of the network have no counterpart and were left out; 30 are compared." in same.result.notes


def test_encoding_has_r_and_r2_over_the_ceiling():
    held, layers = made()
    found = compare({"net": layers}, held, "encoding", regions=["late"])
    y = np.concatenate([x.mean(0) for x in held.responses["late"].values()], 1)
    at = {"item": "net, late", "site": "second"}
    assert found.result.select(metric="similarity", **at)["value"].iloc[0] == pytest.approx(encode(layers["second"], y).r().mean())
    ceiling = np.concatenate([split_half(x) for x in held.responses["late"].values()])
    r = encode(layers["second"], y).r()
    expected = np.mean((np.sign(r) * r**2 / ceiling)[ceiling > 0])
    assert found.result.select(metric="r²/ceiling", **at)["value"].iloc[0] == pytest.approx(expected)


def test_families_of_networks():
    held, layers = made()
    rng = np.random.default_rng(0)
    networks = {f"near-{i}": {"l": layers["second"] + 0.3 * rng.normal(size=(30, 10))} for i in range(3)}
    networks |= {f"far-{i}": {"l": rng.normal(size=(30, 10))} for i in range(3)}
    found = compare(networks, held)
    groups = {family: [n for n in networks if n.startswith(family)] for family in ("near", "far")}
    families = found.families(groups, "late")
    assert families.winner == "near"
    assert families.similarity["near"].value == pytest.approx(found.scores["late"].value[:3].mean())
    with pytest.raises(UserError, match="no network 'nearest'"):
        found.families({"a": ["nearest", "near-0"], "b": groups["far"]}, "late")


def test_a_language_model_reads_the_texts_and_has_its_twin_and_words(llama):
    held, _ = made(texts=True)
    found = compare({"llama": llama}, held, at=["resid_post.0", "resid_post.1"], regions=["early"])
    assert set(found.conditions) == {ESTIMATE, "random weights", "word counts"}
    gains = found.result.select(metric="gain", item="llama, early")
    assert set(gains["condition"]) == {over("random weights"), over("word counts")}
    assert set(found.result.select(item="llama, early", split="all conditions")["site"]) == {"resid_post.0", "resid_post.1"}


def test_a_vision_model_reads_the_images():
    held, _ = made(images=True)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(12, 5))
    found = compare({"net": rs.Network(module)}, held, at=["module:1", "module:3"])
    x = torch.from_numpy(np.moveaxis(held.images, -1, 1).astype(np.float32))
    expected = compare_rdms(rdm(module(x).detach().numpy()), region_rdms(held, "late")[0], "pearson").mean()
    got = found.result.select(metric="similarity", item="net, late", site="module:3", split="all conditions")["value"].iloc[0]
    assert got == pytest.approx(expected, rel=1e-4)


def test_a_vision_transformer_from_a_folder_gets_prepared_images(tmp_path):
    from transformers import AutoModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **size)).save_pretrained(tmp_path)
    module = AutoModel.from_pretrained(tmp_path).eval()
    held, _ = made(images=True)

    def prepare(images):
        grey = torch.from_numpy(np.moveaxis(images, -1, 1)).float().expand(-1, 3, -1, -1)
        return torch.nn.functional.interpolate(grey, size=(8, 8)) - 0.5

    network = rs.Network(module, example={"pixel_values": prepare(held.images[:2])})
    found = compare({"vit": network}, held, at="resid_post", prepare=prepare)
    with torch.no_grad():
        out = module(pixel_values=prepare(held.images), output_hidden_states=True).hidden_states[1].flatten(1).numpy()
    expected = compare_rdms(rdm(out), region_rdms(held, "late")[0], "pearson").mean()
    rows = found.result.select(metric="similarity", item="vit, late", split="all conditions")
    assert set(rows["site"]) == {"resid_post.0", "resid_post.1"}
    assert rows["value"].iloc[0] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match="prepare= gives 3 inputs for 30 conditions"):
        compare({"vit": network}, held, at="resid_post", prepare=lambda images: prepare(images[:3]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda h, x: compare({}, h), "No network was given"),
        (lambda h, x: compare({"n": x}, h, "cca"), "no method 'cca'"),
        (lambda h, x: compare({"n": x}, h, regions=["V4"]), "no region 'V4'"),
        (lambda h, x: compare({"n": {"l": x["first"][:20]}}, h), "20 rows for 30 conditions; give names="),
        (lambda h, x: compare({"n": x}, h, names=[f"{i}" for i in range(30)]), "0 of the recording's 30 conditions"),
        (lambda h, x: compare({"n": {"l": np.full((30, 3), np.nan)}}, h), "Layer l of n has values that are not finite"),
        (lambda h, x: compare({"n": {}}, h), "has no layer"),
        (lambda h, x: compare({"n": {"l": np.ones((30, 3))}}, h), "represents all conditions in the same way"),
        (lambda h, x: compare({"n": rs.Network(torch.nn.Linear(2, 2))}, h, at="module:"), "the recording has none"),
    ],
)
def test_mistakes_are_told_in_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong(*made())


def test_encoding_of_rdms_alone_is_refused():
    rng = np.random.default_rng(0)
    square = rng.random((1, 30, 30))
    held = Recording(NAMES, rdms={"IT": (square + square.swapaxes(1, 2)) * (1 - np.eye(30))})
    with pytest.raises(UserError, match="RDMs and no responses"):
        compare({"n": {"l": rng.normal(size=(30, 4))}}, held, "encoding")
    assert "one RDM, so there is no noise ceiling" in " ".join(compare({"n": {"l": rng.normal(size=(30, 4))}}, held).result.notes)
