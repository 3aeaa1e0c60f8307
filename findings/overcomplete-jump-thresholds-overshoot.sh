#!/usr/bin/env bash
# overcomplete 0.3.0: the gradient of JumpSAE's thresholds is too large by one over the bandwidth.
#
# Expected: the pseudo-derivatives of the paper that the class names (Rajamanoharan et al. 2024), -(t / e) K((x - t) / e) for JumpReLU
# with threshold t and -(1 / e) K((x - t) / e) for the step, with a kernel K of integral 1. Their mean over inputs estimates the
# derivative of the mean output, -t p(t) and -p(t), with p the density of inputs at the threshold, at any bandwidth e that is small.
# Seen: no error, no warning. The kernels divide by the bandwidth and so does the gradient, so that its mean grows as 1 / e; with the
# default kernel, whose integral is 2, it is two thousand times too large at the default bandwidth of 1e-3.
#
# Ground truth: inputs that are uniform on [0, 1], for which the derivatives of the means are -t and -1.
# Exits with an error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 scipy==1.17.1 \
  scikit-learn==1.8.0 einops==0.8.2 tqdm pillow
"$home/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps overcomplete==0.3.0  # without vision models and plots
cd "$home"
"$home/venv/bin/python" - <<'PYTHON'
import sys
import types
from importlib.util import find_spec

import torch

torch.set_num_threads(1)
package = types.ModuleType("overcomplete")  # its own __init__ imports torchvision, which autoencoders do not need
package.__path__ = list(find_spec("overcomplete").submodule_search_locations)
sys.modules["overcomplete"] = package
from overcomplete.sae import JumpSAE, heaviside, jump_relu

default = JumpSAE(4, 8)
kernels, inputs, threshold = JumpSAE._KERNELS, 2_000_000, 0.5
x = (torch.arange(inputs, dtype=torch.float64) / inputs)[:, None]  # uniform


def mean_gradient(function, kernel, bandwidth):
    t = torch.tensor([threshold], dtype=torch.float64, requires_grad=True)
    function(x, t, kernel, bandwidth).mean().backward()
    return t.grad.item()


def truth(function, step=1e-3):
    """Central difference of the mean output itself."""
    up, down = (function(x, torch.tensor([threshold + s], dtype=torch.float64), None, None).mean() for s in (step, -step))
    return float((up - down) / (2 * step))


for function, known in ((jump_relu, -threshold), (heaviside, -1.0)):
    assert abs(truth(function) - known) < 1e-2, truth(function)
    for name in ("rectangle", "epanechnikov", "silverman"):
        ratios = {e: mean_gradient(function, kernels[name], e) / known for e in (1e-1, 1e-2, 1e-3)}
        print(f"{function.__name__}, {name}: gradient over the true one", {e: round(r, 1) for e, r in ratios.items()})
        integral = 2 if name == "silverman" else 1
        for bandwidth, ratio in ratios.items():
            assert abs(ratio * bandwidth / integral - 1) < 0.05, "the gradient has another scale: this finding is over"
print("defaults: bandwidth", default.bandwidth.item(), "kernel", default.kernel_fn.__name__)
assert default.kernel_fn is kernels["silverman"] and abs(default.bandwidth.item() - 1e-3) < 1e-9
PYTHON
echo "as stated: threshold gradients are too large by one over the bandwidth"
