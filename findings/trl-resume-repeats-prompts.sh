#!/usr/bin/env bash
# trl 1.16.0 (transformers 5.24.0, torch 2.13.0 CPU): GRPO resumed after its first epoch gets other prompts than the run that was not cut.
#
# Expected: `train(resume_from_checkpoint=…)` goes through the prompts that were left of the epoch, as SFTTrainer does, so that the final
#   weights are those of an uninterrupted run.
# Seen: the sampler of GRPOTrainer and RLOOTrainer draws one permutation per epoch from a generator that starts at the seed when the trainer
#   is made, and the state of that generator is in no checkpoint: the rest of the second epoch is taken from the permutation of the first.
#   Some prompts come twice, others never, and no warning is given.
# Ground truth: the prompts that the reward function receives in the uninterrupted run, which repeats exactly; each prompt once per epoch.
# Exits 1 when this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 trl==1.16.0 2>/dev/null
cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os
import sys
import tempfile

import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

transformers.logging.set_verbosity_error()
words = ["<end>", "<pad>"] + [f"w{i}" for i in range(14)]
core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
rows = [{"prompt": f"w{i} w{i + 1}"} for i in range(8)]


class Stop(TrainerCallback):
    """Ends the run after a checkpoint, as a kill would."""

    def on_save(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.at
        return control


def run(folder, seed, stop=0, resume=None):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<pad>", unk_token="w0")
    torch.manual_seed(0)
    sizes = dict(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=None, eos_token_id=0, pad_token_id=1))
    seen = []

    def reward(prompts, completions, **_):
        seen.append([p for p in prompts][::2])
        return [float(c.count("w3")) for c in completions]

    args = GRPOConfig(
        folder, max_steps=8, per_device_train_batch_size=4, num_generations=2, max_completion_length=4, learning_rate=1e-2,
        save_steps=6, logging_steps=1, seed=seed, bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none",
        disable_tqdm=True,
    )
    callback = Stop()
    callback.at = stop
    trainer = GRPOTrainer(model, reward, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                          callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return seen, {k: v.clone() for k, v in trainer.model.state_dict().items()}


with tempfile.TemporaryDirectory() as home:
    whole, weights = run(f"{home}/whole", 0)
    first, _ = run(f"{home}/cut", 0, stop=6)
    second, resumed = run(f"{home}/cut", 0, resume=f"{home}/cut/checkpoint-6")
    again, same = run(f"{home}/again", 0)
print("4 steps are one epoch of 8 prompts; a checkpoint at step 6, in the second epoch", file=sys.stderr)
print("steps 7, 8 of the whole run:   ", whole[6:], file=sys.stderr)
print("steps 7, 8 of the resumed run: ", second, file=sys.stderr)
print("steps 3, 4 of either run:      ", whole[2:4], file=sys.stderr)
epoch = [p for step in first[4:6] + second for p in step]
print(f"prompts of the second epoch that the resumed run saw twice: {len(epoch) - len(set(epoch))} of 8", file=sys.stderr)
assert first == whole[:6] and again == whole and all(torch.equal(same[k], weights[k]) for k in weights), "runs repeat exactly"
assert sorted(p for step in whole[4:8] for p in step) == sorted(r["prompt"] for r in rows), "an epoch has each prompt once"
if second == whole[6:]:
    sys.exit("the resumed run sees the prompts of the whole run now: this finding is over")
assert second == whole[2:4], "the resumed run sees another order"
PYTHON
echo "as stated: the resumed run starts the order of prompts again"
