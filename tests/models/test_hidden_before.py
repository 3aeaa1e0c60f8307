"""What tokens are predicted from: the rows that whole prompts give, without the passes that nothing needs."""

import numpy as np
import pytest

from families import build
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt

WORDS = ("the sea", "a town by the river", "it", "snow and more snow")


def texts():
    return [Prompt(f"We saw {w} today. And then?", {"seen": (6, 7 + len(w))}) for w in (*WORDS, WORDS[1])]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bert"])
@pytest.mark.parametrize("edited", [False, True])
def test_rows_are_those_of_whole_prompts(family, edited, tokenizer):
    lm = LanguageModel(build(family), tokenizer, family)
    edit = Edit.add("resid_post.0", np.full(lm.anatomy.width, 0.5, np.float32), tokens="seen.first")
    with lm.edit(edit) if edited else lm.unedited():
        whole, found = lm.capture(texts(), lm.last, "seen.all"), lm.hidden_before(texts(), "seen")
    assert np.diff(found.offsets).tolist() == (np.diff(whole.offsets) - 1).tolist()
    for i in range(len(texts())):
        expected = whole[lm.last][whole.offsets[i] : whole.offsets[i + 1] - 1]
        np.testing.assert_allclose(found[lm.last][found.offsets[i] : found.offsets[i + 1]], expected, rtol=2e-4, atol=2e-5)


def test_what_stands_behind_is_not_run(tokenizer, monkeypatch):
    lm = LanguageModel(build("llama"), tokenizer, "llama")
    lengths = []
    planned = LanguageModel.planned
    monkeypatch.setattr(
        LanguageModel, "planned", lambda self, ids, *a, **k: (lengths.append(ids.lengths), planned(self, ids, *a, **k))[1]
    )
    spans = lm.encoded(texts(), lm.capture(texts(), lm.last, "seen.all").tokens)
    lengths.clear()
    lm.hidden_before(texts(), "seen")
    assert lengths[-1].tolist() == (spans.stop - 1).tolist()
