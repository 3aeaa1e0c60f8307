#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0 (CPU). Llama with rope_type "dynamic".
#
# Expected: a forward pass in evaluation mode without a cache is a function of its input: the same ids give the same logits.
# Seen: the logits of a text longer than the trained length depend on the longest text that the model object has run before. The
#   rotary embedding keeps the frequencies of that text, and only a text shorter than the trained length resets them; one of exactly
#   the trained length does not, though it needs no scaling at all.
# Ground truth: the same pass on a fresh copy of the model, and the formula of dynamic NTK scaling written out in numpy.
# Exits 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import copy, sys
import numpy as np, torch, transformers

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
trained, factor, base, width = 64, 4.0, 1e4, 8
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=trained, rope_parameters={"rope_type": "dynamic", "rope_theta": base, "factor": factor})).eval()
with torch.no_grad():
    for p in model.parameters():
        if p.dim() > 1:
            p.mul_(4)
rng = np.random.default_rng(0)
texts = {n: torch.from_numpy(rng.integers(2, 320, (1, n))) for n in (64, 80, 250)}


@torch.no_grad()
def logits(m, n):
    return m(input_ids=texts[n], use_cache=False).logits[0, -1]


def frequencies(n):
    """Dynamic NTK: the base grows with the length beyond the trained one."""
    grown = base * (factor * max(n, trained) / trained - (factor - 1)) ** (width / (width - 2))
    return 1 / grown ** (np.arange(0, width, 2) / width)


failed = False
for n in (80, 64):
    fresh = logits(copy.deepcopy(model), n)
    used = copy.deepcopy(model)
    first = logits(used, n)
    right_before = np.allclose(used.model.rotary_emb.inv_freq.numpy(), frequencies(n), rtol=1e-4)
    logits(used, 250)
    after = logits(used, n)
    right_after = np.allclose(used.model.rotary_emb.inv_freq.numpy(), frequencies(n), rtol=1e-4)
    gap = float((after - fresh).norm() / fresh.norm())
    print(f"{n} tokens: first pass against a fresh copy {float((first - fresh).norm()):.1e}, after a text of 250 tokens {gap:.3f}; "
          f"frequencies are those of the formula: {right_before} before, {right_after} after")
    failed |= not (gap > 1e-3 and right_before and not right_after)
sys.exit(failed)
PYTHON
