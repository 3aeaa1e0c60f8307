"""What steering-vectors does with our export, in a process of its own: the package stands in .peers (`make .peers/.done`)."""

from pathlib import Path

import numpy as np
import pytest

from repscope.directions import Direction, DirectionSet
from repscope.models.edits import Edit

PEERS = Path(__file__).parents[2] / ".peers"
PROMPTS = ["The capital of France is", "I love this film because it", "Two plus two"]
SITES = {"resid_post": (8, 20), "attn_out": (3, 12), "mlp_out": (5, 29)}
PEER = """
import sys
import numpy as np, steering_vectors, torch, transformers
from repscope.directions import DirectionSet
model_folder, folder, *prompts = sys.argv[1:]
assert steering_vectors.__version__ == "0.12.2"
tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
for kind in ("resid_post", "attn_out", "mlp_out"):
    vector = DirectionSet.load(f"{folder}/{kind}.safetensors").to_steering_vectors()
    assert type(vector) is steering_vectors.SteeringVector
    rows = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad(), vector.apply(model):
            rows.append(model(ids).logits[0, -1].numpy())
    np.save(f"{folder}/{kind}.npy", np.stack(rows))
    back = DirectionSet.from_steering_vectors(vector)
    again = back.to_steering_vectors().layer_activations
    assert all(torch.equal(again[n], t) for n, t in vector.layer_activations.items())
# tokens are counted from the start of each pass: with the cache, those after the prompt are never reached
ids = tokenizer(prompts[0], return_tensors="pt").input_ids
with torch.no_grad(), vector.apply(model, min_token_index=ids.shape[1]):
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
np.save(f"{folder}/generated.npy", made[0, ids.shape[1]:].numpy())
"""


@pytest.mark.model
def test_its_apply_gives_the_logits_of_our_edit(smollm, processes, tmp_path):
    assert (PEERS / "steering_vectors").is_dir(), "the peer's package is missing: make .peers/.done"
    rng = np.random.default_rng(0)
    width = smollm.capture(PROMPTS[:1], at="resid_post.8", tokens="last").numpy().shape[-1]
    expected = {}
    plain = np.asarray(smollm.logits(PROMPTS))
    for kind, blocks in SITES.items():
        held = DirectionSet.of(*(Direction.of(20 * rng.normal(size=width), f"{kind}.{b}", f"d{b}") for b in blocks))
        held.save(tmp_path / f"{kind}.safetensors")
        with smollm.edit(*(Edit.add(d.site, d) for d in held)):
            expected[kind] = np.asarray(smollm.logits(PROMPTS))
        edits = [Edit.add(d.site, d, tokens="generated") for d in held]  # of the last kind, as in the peer's process
        assert np.abs(expected[kind] - plain).max() > 0.5
    peer = processes.code(PEER, str(smollm.source.path), str(tmp_path), *PROMPTS, path=(str(PEERS),))
    peer.communicate()
    assert peer.returncode == 0
    for kind, rows in expected.items():
        # 1e-4 of the largest logit: what float32 leaves of thirty blocks whose sums are taken in another order
        off = np.abs(np.load(tmp_path / f"{kind}.npy") - rows).max() / np.abs(rows).max()
        assert off < 1e-4, (kind, off)
        print(kind, off)
    unsteered = smollm.generate(PROMPTS[:1], 4)[0].ids
    with smollm.edit(*edits):
        steered = smollm.generate(PROMPTS[:1], 4)[0].ids
    found = np.load(tmp_path / "generated.npy")
    assert found.tolist() == unsteered.tolist(), "it steers generated tokens now: the refusal of tokens can go"
    assert steered.tolist() != unsteered.tolist()
