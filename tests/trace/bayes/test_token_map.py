"""A language model through a token map: the softmax over its tokens, its mass, and one sentence per mistake."""

import numpy as np
import pytest
import torch

from repscope.errors import UserError
from repscope.trace.bayes import TokenMap, token_map
from repscope.worlds.small_lm import transformer, write_folder
from repscope.worlds.tiny import tiny


@pytest.fixture(scope="module")
def model():
    return tiny()


def test_forecasts_are_the_softmax_over_the_map(model, monkeypatch):
    tokens = TokenMap.of_texts(model, ["a", "q", "z", "7"])
    texts = np.random.default_rng(0).integers(4, size=(5, 6))
    found, mass = tokens.forecast(model, texts)
    with torch.no_grad():
        logits = model.model(torch.from_numpy(tokens.tokens[texts])).logits.double()
    np.testing.assert_allclose(found, logits[..., tokens.tokens].softmax(-1).numpy(), atol=1e-5)
    np.testing.assert_allclose(mass, logits.softmax(-1)[..., tokens.tokens].sum(-1).numpy(), atol=1e-6)
    monkeypatch.setattr(token_map, "_ROWS", 12)  # several calls give the same
    some, _ = tokens.forecast(model, texts, [5, 1])
    np.testing.assert_allclose(some, found[:, [5, 1]], atol=1e-6)


def test_tokens_before_a_text_are_put_there(model):
    with_before = TokenMap(np.array([97, 98]), before=(5,))
    texts = np.array([[0, 1, 1]])
    found, _ = with_before.forecast(model, texts)
    with torch.no_grad():
        logits = model.model(torch.tensor([[5, 97, 98, 98]])).logits[:, 1:, [97, 98]].double()
    np.testing.assert_allclose(found, logits.softmax(-1).numpy(), atol=1e-5)


def test_a_small_network_through_its_folder_is_itself(tmp_path):
    import repscope as rs

    shape = transformer.Shape(6, 10, 8)
    state = transformer.initial(shape, [0])
    model = rs.load(str(write_folder(shape, state, 0, tmp_path / "network")))
    texts = np.random.default_rng(0).integers(6, size=(3, 10))
    found, mass = TokenMap.of_texts(model, [str(i) for i in range(6)]).forecast(model, texts)
    expected = transformer.logits(shape, state, torch.from_numpy(texts)[None])[0].double().softmax(-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(mass, 1, atol=1e-9)


def test_common_words_are_one_token_each(model):
    found = TokenMap.common(model, 40)
    assert len(set(found.tokens)) == 40
    with pytest.raises(UserError, match="52 words of one token"):
        TokenMap.common(model, 60)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: TokenMap(np.array([4, 7, 4])), r"Symbols \[0, 2\] have one token, 4"),
        (lambda m: TokenMap(np.array([-1, 7])), "from 0 on"),
        (lambda m: TokenMap.of_texts(m, ["a", "bc"]), "'bc' of symbol 1 is 2 tokens"),
        (lambda m: TokenMap.of_texts(m, ["a", "b", "a"]), r"Symbols \[0, 2\] have one token"),
        (lambda m: TokenMap.of_texts(m, {0: "a", 2: "b"}), "needs the symbols 0 to 1"),
        (lambda m: TokenMap(np.array([4, 7])).forecast(m, np.array([[0, 2]])), "the map has 0 to 1"),
        (lambda m: TokenMap(np.array([4, 700])).forecast(m, np.array([[0, 0]])), "outside the 256 tokens"),
        (lambda m: TokenMap(np.array([4, 7])).forecast(m, np.zeros((1, 2000), int)), "longer than the 1024"),
        (lambda m: TokenMap(np.array([4, 7])).forecast(m, np.zeros(4, int)), "rows of symbols"),
    ],
)
def test_mistakes_are_one_sentence(model, make, said):
    with pytest.raises(UserError, match=said):
        make(model)
