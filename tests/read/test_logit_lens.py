"""The lens ends in the model's own prediction, and its control does not."""

import numpy as np
import pytest
import torch

from repscope.conditions import RANDOM
from repscope.errors import UserError
from repscope.read.logit_lens import logit_lens
from repscope.results import ESTIMATE

PROMPT = "The place called San Diego"


def test_the_last_block_read_through_the_lens_is_the_model(llama):
    result = logit_lens(llama, PROMPT)
    ids = torch.tensor([llama.tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():
        theirs = llama.model(ids).logits[0].softmax(-1).double().numpy()
    cells = result.side["cells"]
    last = cells[cells["block"] == llama.blocks - 1].sort_values("position")
    np.testing.assert_allclose(last["probability"], theirs.max(1), rtol=1e-4)
    assert last["predicted"].tolist() == [llama.tokenizer.decode([i]) for i in theirs.argmax(1)]
    assert len(cells) == (llama.blocks + 1) * ids.shape[1]


def test_a_random_direction_gives_the_prediction_nothing(llama):
    table = logit_lens(llama, PROMPT).table
    at_end = table[table["layer"] == llama.blocks - 1].set_index("condition")["value"]
    assert at_end[ESTIMATE] > at_end[RANDOM]
    assert set(table["unit"]) == {"token", "random direction"}


def test_a_long_prompt_is_read_at_its_end_and_says_so(llama):
    prompt = "The place called San Diego " * 4
    whole, end = logit_lens(llama, prompt, last=10**6), logit_lens(llama, prompt, last=5)
    count = len(llama.tokenizer(prompt)["input_ids"])
    assert whole.notes == ()
    assert end.notes == (f"The prompt has {count} tokens; the network read them all, the lens the last 5.",)
    cells = whole.side["cells"]
    kept = cells[cells["position"] >= count - 5].reset_index(drop=True)
    assert (
        kept.drop(columns=["probability", "of_final", "top_five"])
        == end.side["cells"].drop(columns=["probability", "of_final", "top_five"])
    ).all(None)
    np.testing.assert_allclose(kept["probability"], end.side["cells"]["probability"], rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"top": 0}, {"last": 0}, {"last": -3}])
def test_a_lens_of_nothing_is_refused(llama, wrong):
    with pytest.raises(UserError, match="ask for at least 1 of each"):
        logit_lens(llama, PROMPT, **wrong)
