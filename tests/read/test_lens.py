"""The lens ends in the model's own prediction, and its control does not."""

import numpy as np
import torch

from repscope.read.lens import RANDOM, logit_lens
from repscope.results import ESTIMATE
from repscope.studies.lens_page import print_lens, write_lens

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


def test_the_page_and_the_terminal(llama, tmp_path, capsys):
    result = logit_lens(llama, PROMPT)
    page = write_lens(llama, PROMPT, result, tmp_path)
    assert PROMPT in page.read_text()
    print_lens(result, every=2)
    said = capsys.readouterr().out
    assert "emb" in said
    assert "San" in said
