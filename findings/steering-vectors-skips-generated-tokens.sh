#!/usr/bin/env bash
# steering-vectors 0.12.2 with transformers 4.57.6: `min_token_index` and `token_indices` count from the start of each forward pass,
# so that with the cache of `generate`, on by default, they mean other tokens than without it.
#
# Expected: "The minimum token index to apply the patch to": with the prompt's length, generated tokens are steered and the prompt
# is not; `slice(-1, None)` steers the last token. The cache only saves time.
# Seen: no error, no warning. With the cache every pass after the first has one token, whose index is 0: the prompt's length steers
# nothing at all, and the text is that of the network without a vector. `slice(-1, None)` steers every generated token with the
# cache, and without it only the newest of each pass, so that the same call gives two texts. (A list of indices ends in an
# IndexError, the package's issue 60, and `token_indices` needs `min_token_index=None` beside it.)
#
# Ground truth: a hook that adds the vector at absolute positions in one pass over the whole text, without a cache. Exits with an
# error when the behaviour is no longer as stated.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m venv "$home/venv"
"$home/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==4.57.6 steering-vectors==0.12.2
cd "$home"
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
"$home/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch
from steering_vectors import SteeringVector
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
torch.manual_seed(0)
width, block, prompt_length, new = 48, 1, 9, 12
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=200, hidden_size=width, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=64, initializer_range=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=0)).double().eval()
vector = torch.randn(width, dtype=torch.float64)
vector *= 20 / vector.norm()
steer = SteeringVector({block: vector})
prompt = torch.randint(1, 200, (1, prompt_length))


def generate(cache, **where):
    """The tokens, and the logits (token, vocabulary) that they were taken from."""
    def run():
        made = model.generate(
            prompt, max_new_tokens=new, do_sample=False, use_cache=cache, output_logits=True, return_dict_in_generate=True)
        return made.sequences[0], torch.cat(made.logits)

    if not where:
        return run()
    with steer.apply(model, **where):
        return run()


@torch.no_grad()
def truth(tokens, positions):
    """Logits from which each generated token comes, the vector added at these absolute positions."""
    def add(_, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, positions] += vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.model.layers[block].register_forward_hook(add)
    try:
        return model(tokens[None, :-1], use_cache=False).logits[0, prompt_length - 1 :]
    finally:
        handle.remove()


def gap(run, positions):
    tokens, logits = run
    return float((logits - truth(tokens, positions)).abs().max())


everywhere, nowhere, generated = list(range(prompt_length + new - 1)), [], list(range(prompt_length, prompt_length + new - 1))
plain = generate(True)
assert gap(plain, nowhere) < 1e-5 and gap(plain, generated) > 0.5, "the ground truth is another"
for cache in (True, False):  # without a choice of tokens the cache does not matter
    assert gap(generate(cache, min_token_index=0), everywhere) < 1e-5

with_cache, without = (generate(cache, min_token_index=prompt_length) for cache in (True, False))
print("min_token_index = length of the prompt, logits off those steered at generated tokens: with the cache "
      f"{gap(with_cache, generated):.2f}, "
      f"without {gap(without, generated):.0e}; off the unsteered, with it, {gap(with_cache, nowhere):.0e}")
assert gap(without, generated) < 1e-5, "the example is another"
assert torch.equal(with_cache[0], plain[0]) and gap(with_cache, nowhere) < 1e-5, "they are steered: this finding is over"
assert gap(with_cache, generated) > 0.5

last, from_last = slice(-1, None), list(range(prompt_length - 1, prompt_length + new - 1))
with_cache, without = (generate(cache, token_indices=last, min_token_index=None) for cache in (True, False))
print(f"slice(-1, None): with the cache {gap(with_cache, from_last):.0e} off the vector at the prompt's last and all later tokens, "
      f"without it {gap(without, from_last):.2f}; {int((with_cache[0] == without[0])[prompt_length:].sum())} of {new} equal")
assert gap(with_cache, from_last) < 1e-5 and gap(without, from_last) > 0.1, "the cache does not matter: this finding is over"
PYTHON
echo "as stated: with the cache, tokens are counted anew in each pass"
