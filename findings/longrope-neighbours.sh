#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0 (CPU). Phi-3 with rope_type "longrope", as Phi-3-mini-128k, Phi-3.5 and Phi-4-mini have it.
#
# Expected: in a padded batch with an attention mask, a text's logits are those that it has alone (the documentation of padding and
#   masks says that padded positions are ignored).
# Seen: one set of frequencies is chosen for the whole batch, by its longest row. A text within the original context that stands
#   beside one beyond it gets the long factors, and other logits; no warning is given. Left or right padding makes no difference.
# Ground truth: the text alone, and alone with the long factors forced, which is what the batch gives.
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
rope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[1.0, 3.0, 6.0, 9.0], factor=4.0,
            original_max_position_embeddings=64)


def network(**changed):
    torch.manual_seed(0)
    made = transformers.Phi3ForCausalLM(transformers.Phi3Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, original_max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        rope_parameters=rope | changed)).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() > 1:
                p.mul_(4)
    return made


rng = np.random.default_rng(0)
short, neighbours = rng.integers(3, 320, 40), {n: rng.integers(3, 320, n) for n in (60, 70)}


@torch.no_grad()
def beside(model, other, left):
    width = max(len(short), len(other))
    ids, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
    for i, row in enumerate((short, other)):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.from_numpy(row), 1
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[0]
    return out[-1] if left else out[len(short) - 1]


@torch.no_grad()
def alone(model):
    return model(input_ids=torch.from_numpy(short)[None], use_cache=False).logits[0, -1]


model = network()
truth, forced = alone(model), alone(network(short_factor=rope["long_factor"]))
gap = lambda a, b: float((a - b).norm() / b.norm())
failed = False
for left in (False, True):
    near, far = beside(model, neighbours[60], left), beside(model, neighbours[70], left)
    print(f"{'left' if left else 'right'} padding: beside a text of 60 tokens {gap(near, truth):.1e} from alone, beside one of 70 "
          f"{gap(far, truth):.3f}, and that is {gap(far, forced):.1e} from alone with the long factors")
    failed |= not (gap(near, truth) < 1e-4 < 1e-2 < gap(far, truth) and gap(far, forced) < 1e-4)
sys.exit(failed)
PYTHON
