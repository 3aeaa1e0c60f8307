"""SAELens folders (version 6, and older settings): `cfg.json` and `sae_weights.safetensors`.

Reading follows the library's own arithmetic, and differs from its loader where that loses something:

- A training checkpoint with `normalize_activations="expected_average_only_in"` has unfolded weights, and the scale only in
  `activation_scaler.json`; whitening stands in `activation_whitening.safetensors`. Both are applied. Without them the folder is
  refused, unless the scale is given.
- `rescale_acts_by_decoder_norm` is applied always: its norms are 1 in folders saved for inference and not in checkpoints.
- BatchTopK: a checkpoint has one `topk_threshold`, a folder saved for inference is a JumpReLU with equal thresholds.
- A transcoder's output is not denormalised.

Writing folds what the format cannot say (`folding`), and writes BatchTopK as JumpReLU, as the library does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from repscope.errors import UserError, unknown
from repscope.models.sites import Site
from repscope.read.sae.activations import Activation, BatchTopK, Gated, JumpReLU, ReLU, TopK
from repscope.read.sae.autoencoder import SparseAutoencoder
from repscope.read.sae.files.tensors import Weights, read_safetensors, read_settings
from repscope.read.sae.folding import as_jumprelu, fold
from repscope.read.sae.normalization import ConstantNorm, LayerNorm, Normalization, Scale, Whitening

SETTINGS, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
_VERSION = "6.54.12"  #: of the library whose format is written
_BATCH = ("batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
ARCHITECTURES = ("standard", "topk", *_BATCH, "jumprelu", "gated", *_TRANSCODERS)
_OLD_NAMES = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


@dataclass(frozen=True)
class Overrides:
    """What a user may add to a folder that does not say it: scale of the activations, threshold of BatchTopK."""

    scale: float | None = None
    threshold: float | None = None


def read(folder: Path, dtype: torch.dtype, given: Overrides) -> SparseAutoencoder:
    """The autoencoder in a folder.

    Raises
    ------
    UserError
        For an architecture or setting that cannot be represented, and damaged files.
    """
    settings = _modern(read_settings(folder / SETTINGS))
    architecture = settings.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        raise unknown("architecture that can be read", architecture, ARCHITECTURES, f"({folder})")
    if settings.get("activation_fn", "relu") not in ("relu", "topk"):
        raise UserError(f"{folder} has the activation {settings['activation_fn']!r}; there are relu and topk, so it is refused.")
    weights = Weights(folder / WEIGHTS, read_safetensors(folder / WEIGHTS), dtype)
    transcoder = architecture in _TRANSCODERS
    W_enc = weights.take("W_enc", -1, -1)
    d_in, d_sae = W_enc.shape
    W_dec = weights.take("W_dec", d_sae, -1)
    gated = architecture == "gated"
    _see_widths(folder, settings, d_in, d_sae, W_dec.shape[1])
    if "skip" in architecture:
        W_skip = weights.take("W_skip", W_dec.shape[1], d_in).T.contiguous()
    else:
        W_skip = None
    if "scaling_factor" in weights:  # of old files, 1 where it never acted
        _see_ones(folder, weights.take("scaling_factor", d_sae))
    held = settings.get("metadata")
    metadata: dict[str, Any] = held if isinstance(held, dict) else {}
    made = SparseAutoencoder(
        W_enc,
        torch.zeros(d_sae, dtype=dtype) if gated else weights.take("b_enc", d_sae),
        W_dec,
        weights.take("b_dec", W_dec.shape[1]),
        _activation(folder, architecture, settings, weights, d_sae, given),
        _normalization(folder, settings, d_in, dtype, given),
        subtract_b_dec=not transcoder and _flag(folder, settings, "apply_b_dec_to_input", True),
        rescale_by_decoder_norm=_flag(folder, settings, "rescale_acts_by_decoder_norm", architecture in _BATCH)
        if architecture in ("topk", *_BATCH)
        else False,
        W_skip=W_skip,
        transcoder=transcoder,
        site=_site(metadata, "hook_name", "hook_head_index"),
        site_out=_site(metadata, "hook_name_out", "hook_head_index_out") if transcoder else None,
        metadata={"format": "SAELens", "architecture": architecture, **metadata},
    )
    weights.finish()
    return made


def _modern(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings before version 6 in today's names, with the defaults of that time."""
    metadata = settings.get("metadata")
    if isinstance(metadata, dict) and str(metadata.get("sae_lens_version", "0"))[0].isdigit():
        version = str(metadata.get("sae_lens_version", "0")).partition(".")[0]
        if version.isdigit() and int(version) >= 6:
            return settings
    new = {_OLD_NAMES.get(name, name): value for name, value in settings.items()}
    if new.get("finetuning_scaling_factor"):
        raise UserError("This SAELens folder has a finetuning_scaling_factor, which cannot be represented, so it is refused.")
    k = (new.get("activation_fn_kwargs") or {}).get("k")
    if new.get("activation_fn") == "topk" and k is not None:
        new |= {"architecture": "topk", "k": k}
    normalize = new.get("normalize_activations")
    if normalize is None or isinstance(normalize, bool):
        new["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    return {**new, "metadata": {name: new[name] for name in _CARRIED if name in new} | (metadata or {})}


_CARRIED = ("model_name", "hook_name", "hook_head_index", "hook_name_out", "prepend_bos", "context_size", "dataset_path")


def _activation(
    folder: Path, architecture: str, settings: Mapping[str, Any], weights: Weights, d_sae: int, given: Overrides
) -> Activation:
    if architecture == "gated":
        return Gated(*(weights.take(name, d_sae) for name in ("b_gate", "b_mag", "r_mag")))
    if architecture.startswith("jumprelu"):
        return JumpReLU(weights.take("threshold", d_sae))
    if architecture == "topk":
        return TopK(_whole(folder, settings.get("k"), d_sae))
    if architecture in _BATCH:
        threshold = weights.number("topk_threshold")
        if given.threshold is None and not threshold > 0:
            raise UserError(
                f"{folder} has the BatchTopK threshold {threshold}, which training never set, so every positive latent would be "
                "active; give threshold=, or train further."
            )
        return BatchTopK(float(settings.get("k", 0)), threshold if given.threshold is None else given.threshold)
    return ReLU()


def _normalization(
    folder: Path, settings: Mapping[str, Any], d_in: int, dtype: torch.dtype, given: Overrides
) -> Normalization | None:
    kind = settings.get("normalize_activations", "none")
    scaler = read_settings(folder / SCALER) if (folder / SCALER).is_file() else {}
    factor = scaler.get("scaling_factor")
    if given.scale is not None and kind != "expected_average_only_in":
        raise UserError(f"A scale was given, but {folder} has normalize_activations={kind!r}; leave it out.")
    if factor is not None and kind != "expected_average_only_in":
        raise UserError(f"{folder} has normalize_activations={kind!r} and the scale {factor} in {SCALER}; they disagree.")
    match kind:
        case "none" | None:
            return None
        case "layer_norm":
            return LayerNorm()
        case "constant_norm_rescale":
            return ConstantNorm()
        case "expected_average_only_in":
            scale = factor if given.scale is None else given.scale
            if isinstance(scale, bool) or not isinstance(scale, (int, float)):
                raise UserError(
                    f"{folder} was trained on rescaled activations and its scale is not there ({SCALER}), so its latents would be "
                    "wrong; give scale=, which is √d_in over the mean norm of the activations."
                )
            return Scale(float(scale))
        case "covariance_whitening":
            if not (folder / WHITENING).is_file():
                raise UserError(f"{folder} was trained on whitened activations and {WHITENING} is not there; copy it from the run.")
            held = Weights(folder / WHITENING, read_safetensors(folder / WHITENING), dtype)
            shapes = {"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)}
            return Whitening(*(held.take(name, *shape) for name, shape in shapes.items()))
    raise unknown("normalisation", kind, ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in"), f"({folder})")


def _whole(folder: Path, k: Any, d_sae: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, float)) or k != int(k) or not 1 <= k <= d_sae:
        raise UserError(f"{folder} has k={k!r} for {d_sae} latents; it must be a whole number from 1 to {d_sae}.")
    return int(k)


def _flag(folder: Path, settings: Mapping[str, Any], name: str, default: bool) -> bool:
    value = settings.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{folder} has {name}={value!r}; it must be true or false.")
    return value


def _see_ones(folder: Path, factor: torch.Tensor) -> None:
    if not torch.allclose(factor, torch.ones_like(factor)):
        raise UserError(f"{folder} has a finetuning scaling factor, which cannot be represented, so it is refused.")


def _see_widths(folder: Path, settings: Mapping[str, Any], d_in: int, d_sae: int, d_out: int) -> None:
    for name, width in (("d_in", d_in), ("d_sae", d_sae), ("d_out", d_out)):
        if settings.get(name) not in (None, width):
            raise UserError(f"{folder} says {name}={settings[name]} and its weights have {width}; they do not belong together.")


def _site(metadata: Mapping[str, Any], name: str, head: str) -> Site | None:
    """The site of a hook, None if it has no name here."""
    hook, index = metadata.get(name), metadata.get(head)
    try:
        site = Site.parse(hook) if isinstance(hook, str) else None
    except UserError:
        return None
    if site is None or not isinstance(index, int) or isinstance(index, bool):
        return site
    return replace(site, head=index) if site.kind in ("q", "k", "v", "z", "pattern", "head_out") else None


_HOOKS = {"resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post"}
_HOOKS |= {"attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "mlp_act": "mlp.hook_post", "z": "attn.hook_z"}


def _hook(site: Site | None, end: str = "") -> dict[str, Any]:
    if site is None:
        return {}
    known = site.kind in _HOOKS and site.layer is not None
    name = f"blocks.{site.layer}.{_HOOKS[site.kind]}" if known else str(site)
    return {f"hook_name{end}": name, **({} if site.head is None else {f"hook_head_index{end}": site.head})}


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` into a folder that exists.

    Raises
    ------
    UserError
        For an autoencoder that the format cannot represent.
    """
    from safetensors.torch import save_file

    made = as_jumprelu(fold(sae))
    settings: dict[str, Any] = {"architecture": _architecture(made), "d_in": made.d_in, "d_sae": made.d_sae}
    settings |= {"dtype": str(made.dtype).removeprefix("torch."), "device": "cpu", "apply_b_dec_to_input": made.subtract_b_dec}
    normal = {type(None): "none", ConstantNorm: "constant_norm_rescale", LayerNorm: "layer_norm"}
    settings["normalize_activations"] = normal[type(made.normalization)]
    whole_z = made.site is not None and made.site.kind == "z" and made.site.head is None
    settings["reshape_activations"] = "hook_z" if whole_z and not made.transcoder else "none"
    tensors = {"W_enc": made.W_enc, "W_dec": made.W_dec, "b_dec": made.b_dec}
    match made.activation:
        case TopK(k):
            settings |= {"k": k, "rescale_acts_by_decoder_norm": False}
        case JumpReLU(threshold):
            tensors["threshold"] = threshold
        case Gated(b_gate, b_mag, r_mag):
            tensors |= {"b_gate": b_gate, "b_mag": b_mag, "r_mag": r_mag}
    if not isinstance(made.activation, Gated):
        tensors["b_enc"] = made.b_enc
    if made.transcoder:
        settings["d_out"] = made.d_out
    if made.W_skip is not None:
        tensors["W_skip"] = made.W_skip.T
    said = {name: value for name, value in sae.metadata.items() if name not in ("format", "architecture")}
    settings["metadata"] = {**said, **_hook(made.site), **_hook(made.site_out, "_out")}
    settings["metadata"] |= {"sae_lens_version": _VERSION, "written_by": "repscope"}
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1, default=str), encoding="utf-8")


def _architecture(sae: SparseAutoencoder) -> str:
    """The name of an architecture; a `UserError` if SAELens has none."""
    kind = {ReLU: "standard", TopK: "topk", JumpReLU: "jumprelu", Gated: "gated"}.get(type(sae.activation))
    if kind is None or (sae.transcoder and kind in ("topk", "gated")) or (not sae.transcoder and sae.W_skip is not None):
        skip = " with W_skip" if sae.W_skip is not None else ""
        what = "transcoder" if sae.transcoder else "autoencoder"
        raise UserError(f"SAELens has no {type(sae.activation).__name__} {what}{skip}; write it in another format.")
    if not sae.transcoder:
        return kind
    return f"{'jumprelu_' if kind == 'jumprelu' else ''}{'skip_' if sae.W_skip is not None else ''}transcoder"
