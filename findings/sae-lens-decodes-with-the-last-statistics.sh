#!/usr/bin/env bash
# sae-lens 6.54.12: with normalize_activations="layer_norm" (or "constant_norm_rescale") `decode` uses the statistics of the last `encode`.
#
# Expected: sae.decode(sae.encode(x)) is the reconstruction of x, whatever else was encoded before it is decoded; or an error.
# Seen: no error, no warning. If other rows of the same number are encoded in between (a second batch, a control), the reconstruction
# has their means and standard deviations, and is off by their ratio.
#
# Ground truth: the formula z = (x - mean) / (std + 1e-5), y = (relu(...) W_dec + b_dec) std + mean, in numpy from the stored weights.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 sae-lens==6.54.12
cd "$home"
export HF_HUB_OFFLINE=1 WANDB_MODE=disabled
"$home/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import torch
from sae_lens import StandardSAE, StandardSAEConfig

torch.manual_seed(0)
sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=128, normalize_activations="layer_norm"))
x, other = torch.randn(200, 32), 5 * torch.randn(200, 32) + 3
W_enc, W_dec, b_enc, b_dec = (p.detach().numpy() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
mean, std = x.numpy().mean(1, keepdims=True), x.numpy().std(1, ddof=1, keepdims=True)
z = (x.numpy() - mean) / (std + 1e-5)
truth = (np.maximum((z - b_dec) @ W_enc + b_enc, 0) @ W_dec + b_dec) * std + mean


def off(found):
    return float(np.linalg.norm(found.numpy() - truth) / np.linalg.norm(truth))


with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("error")
    at_once = off(sae.decode(sae.encode(x)))
    latents = sae.encode(x)
    sae.encode(other)
    later = off(sae.decode(latents))
print(f"relative error of the reconstruction: {at_once:.1e} at once, {later:.2f} after another encode")
assert at_once < 1e-4, "the ground truth is another"
assert later > 1, "decode has statistics of its own now: this finding is over"
PYTHON
echo "as stated: latents are decoded with the statistics of other rows"
