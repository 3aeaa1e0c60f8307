"""Folders that SAELens, sparsify and dictionary_learning write themselves, and what they read of ours; run in a process of its own.

`python peers.py FOLDER` writes, per library and case, the library's folder `LIBRARY/CASE` and ours `CASE-ours` (opened and saved by
repscope), and `CASE.npz`: rows x, the library's latents and reconstructions, and those that it gives for ours.

The packages are imported without their `__init__`, which pulls in trackers, datasets and plots; of transformer_lens, transformers
and accelerate the classes of autoencoders use only the names below.
"""

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

PEERS = Path(__file__).parents[3] / ".peers"
D, L, ROWS = 8, 24, 40


def module(name, **names):
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(names)
    return sys.modules[name]


def package(name, **names):
    module(name, __path__=[str(PEERS / name.replace(".", "/"))], **names)


class HookPoint(torch.nn.Identity):
    pass


class HookedRootModule(torch.nn.Module):
    def setup(self):
        pass


def drawn(scale=1.0, seed=0, rows=ROWS, d=D):
    return scale * torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)) + 0.5


def randomised(module, seed=1, threshold=0.6):
    """Weights of a model that was trained: none at its first value, decoder norms unequal."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.dim() > 1 else 0.3))
            if "threshold" in name:
                p.copy_(threshold + 0.2 * torch.rand(p.shape, generator=g))
    return module.eval()


def numpy(**tensors):
    return {name: t.detach().numpy() for name, t in tensors.items()}


@torch.no_grad()
def saelens(out):
    import logging

    package("sae_lens", __version__="6.54.12", logger=logging.getLogger("sae_lens"))
    module("transformer_lens")
    module("transformer_lens.hook_points", HookPoint=HookPoint)
    module("transformer_lens.HookedTransformer", HookedRootModule=HookedRootModule)
    from repscope.read import sae as ours

    saes = importlib.import_module("sae_lens.saes")
    registry = importlib.import_module("sae_lens.registry")
    Scaler = importlib.import_module("sae_lens.training.activation_scaler").ActivationScaler
    kinds = {"standard": "StandardSAE", "topk": "TopKSAE", "jumprelu": "JumpReLUSAE", "gated": "GatedSAE"}
    kinds |= {"transcoder": "Transcoder", "skip_transcoder": "SkipTranscoder", "jumprelu_transcoder": "JumpReLUTranscoder"}
    kinds |= {"jumprelu_skip_transcoder": "JumpReLUSkipTranscoder"}
    for name, kind in kinds.items():
        registry.register_sae_class(name, getattr(saes, kind), getattr(saes, f"{kind}Config"))
    load = saes.SAE.load_from_disk

    def meta(hook):
        return saes.sae.SAEMetadata(model_name="tiny", hook_name=hook)

    def make(kind, hook="blocks.3.hook_resid_post", threshold=0.6, **how):
        config = getattr(saes, f"{kind}Config")(d_in=D, d_sae=L, metadata=meta(hook), **how)
        return randomised(getattr(saes, kind)(config), threshold=threshold)

    def case(name, peer, x, save="save_model", acts=None, recon=None, scaler=None):
        folder = out / name
        getattr(peer, save)(folder)
        if scaler is not None:
            scaler.save(str(folder / "activation_scaler.json"))
        acts = peer.encode(x) if acts is None else acts
        recon = peer.decode(acts) if recon is None else recon
        written = numpy(x=x, acts=acts, recon=recon.reshape(len(x), -1))
        ours.save(ours.open(folder), out / f"{name}-ours")
        back = load(out / f"{name}-ours")
        again = back.encode(x)
        written |= numpy(acts_ours=again, recon_ours=back(x).reshape(len(x), -1))
        np.savez(out / f"{name}.npz", **written)

    x = drawn()
    case("standard", make("StandardSAE"), x)
    case("bias_not_subtracted", make("StandardSAE", apply_b_dec_to_input=False), x)
    case("layer_norm", make("StandardSAE", normalize_activations="layer_norm"), drawn(3.0))
    case("constant_norm", make("StandardSAE", normalize_activations="constant_norm_rescale"), drawn(3.0))
    case("topk", make("TopKSAE", k=4), x)
    case("topk_rescaled", make("TopKSAE", k=4, rescale_acts_by_decoder_norm=True), x)
    case("jumprelu", make("JumpReLUSAE"), x)
    case("jumprelu_training", make("JumpReLUTrainingSAE"), x)
    case("gated", make("GatedSAE"), x)
    heads = make("StandardSAE", hook="blocks.2.attn.hook_z", reshape_activations="hook_z")
    case("heads", heads, x.reshape(ROWS, 2, D // 2))
    for kind in ("Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"):
        peer = make(
            kind, hook="blocks.3.hook_resid_mid", d_out=D - 3, apply_b_dec_to_input=False, normalize_activations="layer_norm"
        )
        case(kind, peer, drawn(2.0), recon=peer(drawn(2.0)))

    # Training checkpoints: scale and whitening stand beside the weights, and the network sees activations through them.
    big = drawn(7.0)
    scaler = Scaler(scaling_factor=0.13)
    for name, kind, how in (("scaled", "TopKTrainingSAE", {"k": 4}), ("scaled_jumprelu", "JumpReLUTrainingSAE", {})):
        peer = make(kind, normalize_activations="expected_average_only_in", **how)
        acts = peer.encode(scaler.scale(big))
        case(name, peer, big, acts=acts, recon=scaler.unscale(peer.decode(acts)), scaler=scaler)
    whitener = Scaler()
    whitener.estimate_whitening(D, iter([drawn(5.0, seed=i) for i in range(4)]), n_batches_for_norm_estimate=4)
    for name, kind, subtract in (("whitened", "StandardTrainingSAE", True), ("whitened_gated", "GatedTrainingSAE", False)):
        peer = make(kind, normalize_activations="covariance_whitening", apply_b_dec_to_input=subtract)
        acts = peer.encode(whitener.scale(big))
        case(name, peer, big, acts=acts, recon=whitener.unscale(peer.decode(acts)), scaler=whitener)

    # BatchTopK: the library itself cannot open its checkpoint, so the truth is the JumpReLU that it saves for inference.
    for name, how in (("batchtopk", {}), ("matryoshka_batchtopk", {"matryoshka_widths": [8, L]})):
        kind = {"batchtopk": "BatchTopKTrainingSAE", "matryoshka_batchtopk": "MatryoshkaBatchTopKTrainingSAE"}[name]
        peer = make(kind, k=4.0, **how)
        peer.topk_threshold.fill_(0.7)
        peer.save_inference_model(out / "inference")
        inference = load(out / "inference")
        acts = inference.encode(x)
        case(name, peer, x, acts=acts, recon=inference.decode(acts))
        case(f"{name}_inference", inference, x)
    peer = make("BatchTopKTrainingSAE", k=4.0)
    peer.save_model(out / "refused_untrained")
    make("StandardTrainingSAE", normalize_activations="expected_average_only_in").save_model(out / "refused_scale")
    make("MatchingPursuitSAE", residual_threshold=1.0).save_model(out / "refused_matching_pursuit")
    config = json.loads((out / "standard/cfg.json").read_text()) | {"architecture": "temporal"}
    shutil.copytree(out / "standard", out / "refused_temporal")
    (out / "refused_temporal/cfg.json").write_text(json.dumps(config))


@torch.no_grad()
def sparsify(out):
    package("sparsify")
    module("accelerate")
    module("accelerate.utils", send_to_device=None)
    from repscope.read import sae as ours

    coder = importlib.import_module("sparsify.sparse_coder").SparseCoder
    config = importlib.import_module("sparsify.config").SparseCoderConfig

    def run(peer, x):
        values, indices, _ = peer.encode(x)
        return torch.zeros(len(x), L).scatter(1, indices, values), peer(x).sae_out

    def case(name, hookpoint="layers.5", foreign=None, **how):
        peer = randomised(coder(D, config(num_latents=L, k=4, **how)))
        folder = out / name / hookpoint
        peer.save_to_disk(folder)
        x = drawn()
        acts, recon = run(peer, x)
        ours.save(ours.open(folder), out / f"{name}-ours", "sparsify")
        acts_ours, recon_ours = run(coder.load_from_disk(out / f"{name}-ours"), x)
        np.savez(out / f"{name}.npz", **numpy(x=x, acts=acts, recon=recon, acts_ours=acts_ours, recon_ours=recon_ours))

    case("topk")
    case("groupmax", activation="groupmax")
    case("transcoder", "layers.5.mlp", transcode=True)
    case("skip_transcoder", "layers.5.mlp", transcode=True, skip_connection=True)
    case("skip", skip_connection=True)
    # One of ours that is not in its form: scaled, rescaled, b_dec not subtracted.
    g = torch.Generator().manual_seed(3)
    w = [torch.randn(*s, generator=g) for s in ((D, L), (L,), (L, D), (D,))]
    made = ours.SparseAutoencoder(*w, ours.TopK(4), ours.Scale(0.3), rescale_by_decoder_norm=True)
    ours.save(made, out / "folded-ours", "sparsify")
    x = drawn()
    acts, recon = run(coder.load_from_disk(out / "folded-ours"), x)
    np.savez(
        out / "folded.npz", **numpy(x=x, acts=made.encode(x).dense(), recon=made.reconstruct(x), acts_ours=acts, recon_ours=recon)
    )


@torch.no_grad()
def dictionary_learning(out):
    package("dictionary_learning")
    package("dictionary_learning.trainers")
    plain = importlib.import_module("dictionary_learning.dictionary")

    def case(name, made, kind, folder=None, file="ae.pt", threshold=0.7, **settings):
        peer = randomised(made)
        if hasattr(peer, "threshold") and not isinstance(peer.threshold, torch.nn.Parameter):
            peer.threshold.fill_(threshold)
        folder = out / (folder or name)
        path = folder / file
        path.parent.mkdir(parents=True)
        torch.save(peer.state_dict(), path)
        trainer = {"dict_class": kind, "activation_dim": D, "dict_size": L, "lm_name": "tiny", **settings}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
        x = drawn()
        acts = peer.encode(x)
        np.savez(out / f"{name}.npz", **numpy(x=x, acts=acts, recon=peer.decode(acts)))

    case("standard", plain.AutoEncoder(D, L), "AutoEncoder", layer=4, submodule_name="resid_post_layer_4")
    case("new", plain.AutoEncoderNew(D, L), "AutoEncoderNew")
    case("gated", plain.GatedAutoEncoder(D, L), "GatedAutoEncoder")
    case("jumprelu", plain.JumpReluAutoEncoder(D, L), "JumpReluAutoEncoder")
    trainers = {name: importlib.import_module(f"dictionary_learning.trainers.{name}") for name in ("top_k", "batch_top_k")}
    case("topk", trainers["top_k"].AutoEncoderTopK(D, L, 4), "AutoEncoderTopK", k=4)
    batch = trainers["batch_top_k"].BatchTopKSAE
    case("batchtopk", batch(D, L, 4), "BatchTopKSAE", k=4)
    nested = importlib.import_module("dictionary_learning.trainers.matryoshka_batch_top_k").MatryoshkaBatchTopKSAE
    case("matryoshka", nested(D, L, 4, [8, 16]), "MatryoshkaBatchTopKSAE", k=4)
    case("checkpoint", batch(D, L, 4), "BatchTopKSAE", file="checkpoints/ae_2000.pt", k=4)
    case("untrained", batch(D, L, 4), "BatchTopKSAE", folder="refused_untrained", threshold=-1.0, k=4)


if __name__ == "__main__":
    module("transformers", PreTrainedModel=object, PreTrainedTokenizerBase=object)
    for library in (saelens, sparsify, dictionary_learning):
        folder = Path(sys.argv[1]) / library.__name__
        folder.mkdir()
        library(folder)
