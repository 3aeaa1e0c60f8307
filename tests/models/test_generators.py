"""Generators: adapters leave the module as it was; DDIM equals diffusers' schedulers, inverts, and refuses what it cannot do."""

import json

import diffusers
import pytest
import torch
from torch import nn

from repscope.errors import UserError
from repscope.models.generators import DiffusionGenerator, LatentGenerator, open_pipeline
from repscope.models.generators.ddim import descending, epsilon, predicted_image


def unconditional():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()


def schedule(**more):
    return diffusers.DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2", clip_sample=False, **more)


@pytest.fixture(scope="module")
def made():
    return DiffusionGenerator(unconditional().requires_grad_(False), schedule())


class Upsampled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(6, 4, 4)
        self.second = nn.ConvTranspose2d(4, 1, 4, 2, 1)
        self.calls = []

    def forward(self, z):
        x = self.first(z).relu()
        self.calls.append("second")
        return self.second(x)


def test_a_generator_of_convolutions():
    torch.manual_seed(0)
    module = Upsampled()
    made = LatentGenerator(module, 6, "first", (6, 1, 1))
    z = made.latents(3, 0)
    torch.testing.assert_close(made.images(z), module(z[:, :, None, None]).flatten(1))
    module.calls.clear()
    torch.testing.assert_close(made.features(z), module.first(z[:, :, None, None]).flatten(1))
    assert not module.calls, "what comes after the features does not run"
    assert not module._forward_hooks
    assert not module.first._forward_hooks
    torch.testing.assert_close(made.projection() @ z[0] + module.first.bias.repeat_interleave(16), made.features(z)[0])
    torch.testing.assert_close(made.latents(3, 0), z)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"latent": 5}, "does not run on latents of shape"),
        ({"latent": 6}, "does not run on latents of shape"),
        ({"latent": 6, "shape": (6, 2)}, "must agree"),
        ({"latent": 6, "shape": (6, 1, 1), "features_at": "frist"}, "did you mean 'first'"),
    ],
)
def test_latents_of_the_wrong_size(given, says):
    with pytest.raises(UserError, match=says) as error:
        LatentGenerator(Upsampled(), **given)
    assert "\n" not in str(error.value)


def test_a_latent_of_another_width_and_a_generator_without_a_projection():
    made = LatentGenerator(nn.Sequential(nn.Tanh(), nn.Linear(3, 4)), 3)
    with pytest.raises(UserError, match="takes \\(row, 3\\)"):
        made.images(torch.zeros(2, 4))
    with pytest.raises(UserError, match="SeFa needs one"):
        LatentGenerator(nn.Tanh(), 3).projection()
    with pytest.raises(UserError, match="no image per row"):
        LatentGenerator(nn.Flatten(0), 3)


class Stirred(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(3, 8), how

    def forward(self, z):
        return self.how(self.layer(z))


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)), "in training mode"),
        (nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5)), "in training mode"),
        (Stirred(lambda h: h - h.mean(0)), "other images beside others|another image"),
        (Stirred(lambda h: h + torch.randn_like(h)), "other images beside others|another image"),
        (Stirred(lambda h: h / 0 * 0), "not numbers"),
        (torch.tanh, "is a torch module"),
    ],
)
def test_a_generator_whose_images_depend_on_more_than_their_latents(module, says):
    with pytest.raises(UserError, match=says):
        LatentGenerator(module, 3)
    if isinstance(module, nn.Sequential) and isinstance(module[1], nn.BatchNorm1d):
        assert not module[1].running_mean.any(), "the module is as it was"
        LatentGenerator(module.eval(), 3)


def test_predicted_images_are_clipped_where_the_scheduler_does():
    unet = unconditional().requires_grad_(False)
    made = DiffusionGenerator(unet, diffusers.DDPMScheduler(num_train_timesteps=20, clip_sample_range=0.7))
    theirs = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    theirs.set_timesteps(5)
    x = noise = made.noise(2, 0)
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(unet(x.reshape(2, 1, 8, 8), t).sample.flatten(1), t, x).prev_sample
    torch.testing.assert_close(made.sample(noise, 5), x, atol=1e-5, rtol=1e-5)
    assert float((made.sample(noise, 5) - DiffusionGenerator(unet, schedule()).sample(noise, 5)).abs().max()) > 0.1
    with pytest.raises(UserError, match="thresholding"):
        DiffusionGenerator(unet, diffusers.DDPMScheduler(thresholding=True))


def test_ddim_is_that_of_diffusers(made):
    theirs = diffusers.DDIMScheduler.from_config(made.scheduler.config, clip_sample=False)
    theirs.set_timesteps(5)
    x = noise = made.noise(2, 0)
    assert [t for t, _ in descending(made.levels, 5)] == theirs.timesteps.tolist()
    with torch.no_grad():
        for t in theirs.timesteps:
            eps = made.unet(x.reshape(2, 1, 8, 8), t).sample.flatten(1)
            x = theirs.step(eps, t, x).prev_sample
    torch.testing.assert_close(made.sample(noise, 5), x, atol=1e-5, rtol=1e-5)
    back = diffusers.DDIMInverseScheduler.from_config(made.scheduler.config, clip_sample=False)
    back.set_timesteps(5)
    y = x
    with torch.no_grad():
        for t in back.timesteps:
            y = back.step(made.unet(y.reshape(2, 1, 8, 8), t).sample.flatten(1), int(t), y).prev_sample
    torch.testing.assert_close(made.invert(x, 5), y, atol=1e-4, rtol=1e-4)


def test_ddim_from_the_last_time_is_that_of_diffusers():
    """Trailing spacing and predicted v, as pipelines with little signal at their last time have them."""
    made = DiffusionGenerator(
        unconditional().requires_grad_(False), schedule(timestep_spacing="trailing", prediction_type="v_prediction")
    )
    theirs = diffusers.DDIMScheduler.from_config(made.scheduler.config, clip_sample=False)
    theirs.set_timesteps(5)
    assert [t for t, _ in descending(made.levels, 5, "trailing")] == theirs.timesteps.tolist() == [19, 15, 11, 7, 3]
    x = noise = made.noise(2, 0)
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(made.unet(x.reshape(2, 1, 8, 8), t).sample.flatten(1), t, x).prev_sample
    torch.testing.assert_close(made.sample(noise, 5), x, atol=1e-5, rtol=1e-5)


def test_inversion_comes_closer_with_more_steps():
    long = DiffusionGenerator(
        unconditional().requires_grad_(False), diffusers.DDPMScheduler(num_train_timesteps=200, clip_sample=False)
    )
    images = 0.5 * long.noise(2, 1)
    errors = [float((long.sample(long.invert(images, n), n) - images).norm() / images.norm()) for n in (10, 100)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("site", ["h", "x_t"])
def test_vectors_change_a_pass_and_nothing_of_the_network(made, site):
    x, t = made.noise(2, 0), torch.tensor([3, 9])
    before = made.predicted(x, t)
    vectors = torch.randn(2, made.width(site), generator=torch.Generator().manual_seed(1))
    moved = made.predicted(x, t, site, vectors)
    assert float((moved - before).abs().max()) > 1e-4
    torch.testing.assert_close(made.predicted(x, t), before, rtol=0, atol=0)
    if site == "x_t":
        torch.testing.assert_close(moved, made.predicted(x + vectors, t))
    else:
        held = []
        handle = made.unet.mid_block.register_forward_hook(lambda m, a, out: held.append(out) or out + vectors.reshape(out.shape))
        torch.testing.assert_close(moved, made.unet(x.reshape(2, 1, 8, 8), t).sample.flatten(1))
        handle.remove()
        torch.testing.assert_close(made.bottleneck(x, t), held[0].flatten(1))
    assert not made.unet.mid_block._forward_hooks


def test_asymmetric_sampling_edits_the_predicted_image_alone(made):
    """One step by hand: P from the edited noise, the direction from the plain one."""
    noise, t = made.noise(1, 0), torch.tensor([0])
    vectors = torch.randn(1, made.width("h"), generator=torch.Generator().manual_seed(1))
    level = made.levels[0]
    plain, edited = made.predicted(noise, t), made.predicted(noise, t, "h", vectors)
    image = (noise - (1 - level).sqrt() * edited) / level.sqrt()
    torch.testing.assert_close(made.sample(noise, 1, "h", vectors, asymmetric=True), image)  # abar is 1 at the end
    both = made.sample(noise, 4, "h", vectors), made.sample(noise, 4, "h", vectors, asymmetric=True)
    assert float((both[0] - both[1]).abs().max()) > 1e-4
    assert float((plain - edited).abs().max()) > 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_gives_the_same_noise(prediction):
    image, noise, level = torch.randn(3), torch.randn(3), torch.tensor(0.3)
    x = level.sqrt() * image + (1 - level).sqrt() * noise
    output = {"epsilon": noise, "v_prediction": level.sqrt() * noise - (1 - level).sqrt() * image, "sample": image}[prediction]
    torch.testing.assert_close(epsilon(prediction, output, x, level), noise)
    torch.testing.assert_close(predicted_image(prediction, output, x, level), image)


def test_what_a_diffusion_model_lacks(made):
    with pytest.raises(UserError, match="no DDIM inversion"):
        DiffusionGenerator(made.unet, diffusers.FlowMatchEulerDiscreteScheduler())
    with pytest.raises(UserError, match="no conditioning"):
        made.width("conditioning")
    with pytest.raises(UserError, match="no site"):
        made.width("hh")
    with pytest.raises(UserError, match="take 1 to 20"):
        made.sample(made.noise(1, 0), 21)
    with pytest.raises(UserError, match="takes \\(row, 64\\)"):
        made.predicted(torch.zeros(1, 63), torch.zeros(1, dtype=torch.long))
    with pytest.raises(UserError, match="must agree"):
        made.predicted(made.noise(1, 0), torch.zeros(1, dtype=torch.long), "h", torch.zeros(1, 3))
    with pytest.raises(UserError, match="at x_t give \\(1, 64\\)"):
        made.predicted(made.noise(1, 0), torch.zeros(1, dtype=torch.long), "x_t", torch.zeros(1, 3))
    with pytest.raises(UserError, match="attends to no words"):
        DiffusionGenerator(made.unet, schedule(), torch.zeros(1, 4))


def test_a_pipeline_from_a_folder(tmp_path, made):
    diffusers.DDPMPipeline(unet=unconditional(), scheduler=schedule()).save_pretrained(tmp_path / "p")
    again = open_pipeline(tmp_path / "p")
    noise = made.noise(2, 3)
    torch.testing.assert_close(again.sample(noise, 4), made.sample(noise, 4))
    index = tmp_path / "p" / "model_index.json"
    held = json.loads(index.read_text())
    index.write_text(
        json.dumps({k: v for k, v in held.items() if k != "unet"} | {"transformer": ["diffusers", "DiTTransformer2DModel"]})
    )
    with pytest.raises(UserError, match="has no U-Net \\(scheduler, transformer\\)"):
        open_pipeline(tmp_path / "p")
    index.write_text("[]")
    with pytest.raises(UserError, match="no index of a pipeline"):
        open_pipeline(tmp_path / "p")
    with pytest.raises(UserError, match="no pipeline index"):
        open_pipeline(tmp_path / "nothing")
    index.write_text(json.dumps(held))
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "p" / "scheduler")
    index.write_text(json.dumps(held | {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}))
    with pytest.raises(UserError, match="no DDIM inversion"):
        open_pipeline(tmp_path / "p")
    for name in ("DiffusionPipeline", "DDPMPipeline", "no_such_class", "utils", 5, None):  # the first would unpickle weights
        index.write_text(json.dumps(held | {"scheduler": ["diffusers", name]}))
        with pytest.raises(UserError, match="no scheduler that diffusers knows"):
            open_pipeline(tmp_path / "p")
    index.write_text(json.dumps(held))
    next((tmp_path / "p" / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        open_pipeline(tmp_path / "p")


@pytest.mark.parametrize(
    "parts",
    [
        {"tokenizer": "CLIPTokenizer"},
        {"tokenizer": "RagRetriever", "text_encoder": "CLIPTextModel"},  # which unpickles an index
        {"tokenizer": "pipeline", "text_encoder": "CLIPTextModel"},
        {"tokenizer": "CLIPTokenizer", "text_encoder": "AutoModel"},
        {"tokenizer": "CLIPTokenizer", "text_encoder": "NoSuchModel"},
    ],
)
def test_parts_of_a_pipeline_are_of_known_kinds(tmp_path, parts):
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",), "layers_per_block": 1}
    unet = diffusers.UNet2DConditionModel(
        8, 1, 1, block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4, **blocks
    )
    unet.save_pretrained(tmp_path / "unet")
    schedule().save_pretrained(tmp_path / "scheduler")
    known = {"unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    index = known | {part: ["transformers", name] for part, name in parts.items()}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="no text encoder"):
        open_pipeline(tmp_path)


def test_without_diffusers(monkeypatch):
    import sys

    from repscope.worlds.sprites.diffusion import DiffusionSizes, noise_schedule

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install 'repscope\\[images\\]'"):
        noise_schedule(DiffusionSizes())
