"""Maps to two layers from shared products: those of two calls of `lre`."""

import numpy as np
import pytest

from repscope.data.relations import Relation
from repscope.models.language import LanguageModel
from repscope.read import relations_at_two_layers
from repscope.read.known_facts import encode_facts
from repscope.read.linear_relations import lre
from repscope.read.relations_at_two_layers import lre_at_both

SAMPLES = (("Chile", "Santiago"), ("Peru", "Lima"), ("Italy", "Rome"), ("France", "Paris"), ("Cuba", "Havana"))


@pytest.mark.parametrize(
    ("template", "kept", "calls"), [("The capital of {}", 1 << 29, 4), ("The capital of {}", 0, 2), ("Of {} it is", 1 << 29, 2)]
)
def test_both_are_those_of_two_calls(llama, template, kept, calls, monkeypatch):
    monkeypatch.setattr(relations_at_two_layers, "KEPT_BYTES", kept)
    facts = encode_facts(llama, Relation("capital", (template,), SAMPLES))
    made, jacobian = [], LanguageModel.jacobian
    monkeypatch.setattr(LanguageModel, "jacobian", lambda self, *a, **k: (made.append(1), jacobian(self, *a, **k))[1])
    found = lre_at_both(llama, facts, SAMPLES[:3], "resid_post.2")
    assert len(made) == calls
    monkeypatch.undo()
    for ours, target in zip(found, (None, "resid_post.2")):
        theirs = lre(llama, facts, examples=SAMPLES[:3], target=target)
        assert list(ours) == list(theirs)
        for site, fit in theirs.items():
            assert ours[site].target == fit.target
            assert np.linalg.norm(ours[site].weight - fit.weight) <= 1e-5 * np.linalg.norm(fit.weight)
            assert np.linalg.norm(ours[site].bias - fit.bias) <= 1e-5 * np.linalg.norm(fit.bias)
    assert (found[1].each is not None) == bool(kept)
    assert found[0].each is None
