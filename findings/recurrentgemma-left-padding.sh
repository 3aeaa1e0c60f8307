#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0 (CPU). RecurrentGemma, generation of several prompts at once.
#
# Expected: prompts padded on the left with an attention mask, the documented way to generate in batches, continue as each does alone.
# Seen: the recurrent layers take the padding for text: the mask reaches attention only. Greedy continuations of the shorter prompts
#   differ, with no warning; that of the longest, which has no padding, is right.
# Ground truth: each prompt alone, the whole text run again at every step without a cache.
# Exits 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import numpy as np, torch, transformers

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
model = transformers.RecurrentGemmaForCausalLM(transformers.RecurrentGemmaConfig(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, lru_width=32, attention_window_size=16, block_types=["recurrent", "attention"], pad_token_id=0, bos_token_id=1,
    eos_token_id=2)).eval()
with torch.no_grad():
    for p in model.parameters():
        p.mul_(2) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
rng = np.random.default_rng(5)
prompts = [rng.integers(3, 320, n) for n in (38, 4, 7, 11, 16, 21, 25, 30)]
steps = 8


@torch.no_grad()
def truth(row):
    row = list(row)
    for _ in range(steps):
        row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
    return row[-steps:]


width = max(map(len, prompts))
ids, mask = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width, dtype=torch.long)
for i, row in enumerate(prompts):
    ids[i, width - len(row):], mask[i, width - len(row):] = torch.from_numpy(row), 1
told = dict(max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0)
batch = model.generate(input_ids=ids, attention_mask=mask, **told)[:, width:].tolist()
single = [model.generate(input_ids=torch.from_numpy(r)[None], attention_mask=torch.ones(1, len(r), dtype=torch.long), **told)[0, len(r):].tolist()
          for r in prompts]
want = [truth(row) for row in prompts]
alone, together = ([a == b for a, b in zip(got, want)] for got in (single, batch))
print(f"one at a time {sum(alone)} of {len(want)} are right, in a batch {sum(together)}; the longest prompt in the batch: {together[0]}")
sys.exit(not (all(alone) and together[0] and sum(together) < len(want)))
PYTHON
