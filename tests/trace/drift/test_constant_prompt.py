"""A constant prompt against tuning: bare passes one document at a time, a network that cannot read a prompt, and hostile inputs."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from repscope.errors import UserError
from repscope.models.language import LanguageModel
from repscope.results import Row
from repscope.trace import constant_prompt as module
from repscope.trace.constant_prompt import RECOVERED, constant_prompt, read_prompt
from repscope.worlds.tiny import untrained_llama

from .conftest import changed

PROMPT = "Answer with a colour.\nThe sky: blue\nGrass: green\n\n"
DOCUMENTS = ["Snow:", "The night sky:", "Blood:", "A lemon:", "Coal, mostly:"]
NEW = 5
BASE, OTHER = "base network", "prompt about something else"


def value(result, metric, condition="estimate", item=""):
    (row,) = result.select(metric=metric, condition=condition, item=item).itertuples()
    return row.value


def logp(lm, ids):
    with torch.no_grad():
        return lm.model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1).numpy()


def by_hand(base, tuned, before, after=""):
    """KL and shift classes per document and condition, position by position."""
    space = len(before.encode()) - len(before) + len(before.rstrip())
    control = (module.NEUTRAL_TEXT.encode() * 9)[:space] + before.encode()[space:]
    kl, shifts = {}, {}
    encode = lambda text: tuned.tokenizer(text)["input_ids"]  # noqa: E731
    for text in DOCUMENTS:
        asked, answer = encode(text), []
        for _ in range(NEW):
            answer.append(int(logp(tuned, asked + answer)[-1].argmax()))
        p = logp(tuned, asked + answer)[len(asked) - 1 : -1]
        fronts = {BASE: asked, "estimate": encode(before + text + after), OTHER: encode(control.decode() + text + after)}
        for condition, front in fronts.items():
            q = logp(base, front + answer)[len(front) - 1 : -1]
            kl.setdefault(condition, []).append(rel_entr(np.exp(p), np.exp(q)).sum(-1))
            shifts.setdefault(condition, []).append([1 + int((row > row[k]).sum()) for row, k in zip(q, p.argmax(-1))])
    return {c: np.array(v) for c, v in kl.items()}, {c: np.array(v) for c, v in shifts.items()}


@pytest.fixture(scope="module")
def found(base, tuned):
    return constant_prompt(base, tuned, PROMPT, DOCUMENTS, new_tokens=NEW)


@pytest.mark.parametrize(("prompt", "parts"), [(PROMPT, (PROMPT, "")), ("Say it:\n{document} is\n", ("Say it:\n", " is\n"))])
def test_numbers_are_those_of_bare_passes(base, tuned, prompt, parts):
    result = constant_prompt(base, tuned, prompt, DOCUMENTS, new_tokens=NEW)
    kl, ranks = by_hand(base, tuned, *parts)
    for condition, values in kl.items():
        assert value(result, "KL", condition) == pytest.approx(values.mean(), rel=1e-3)
        assert value(result, "KL", condition, "position 2–3") == pytest.approx(values[:, 1:3].mean(), rel=1e-3)
        assert value(result, "unshifted", condition) == pytest.approx((ranks[condition] == 1).mean())
        assert value(result, "shifted", condition) == pytest.approx((ranks[condition] > 3).mean())
        side = result.side["positions"]
        np.testing.assert_allclose(side[side.condition == condition].KL, values.mean(0), rtol=1e-3)
    total = {c: v.sum() for c, v in kl.items()}
    shares = {c: 1 - total[c] / total[BASE] for c in ("estimate", OTHER)}
    for condition, share in shares.items():
        assert value(result, RECOVERED, condition) == pytest.approx(share, abs=2e-3)
    assert value(result, RECOVERED, f"over {OTHER}") == pytest.approx(shares["estimate"] - shares[OTHER], abs=2e-3)
    first = 1 - kl["estimate"][:, 0].sum() / kl[BASE][:, 0].sum()
    assert value(result, RECOVERED, item="position 1") == pytest.approx(first, abs=2e-3)


def test_intervals_are_over_documents_and_rows_are_identified(found):
    table = found.table
    assert table.row_id.is_unique
    assert np.isfinite(table.value).all()
    row = found.select(metric=RECOVERED, condition="estimate", item="").iloc[0]
    assert (row.unit, row.n) == ("document", len(DOCUMENTS))
    assert row.lo <= row.value <= row.hi
    assert set(table.condition) == {BASE, "estimate", OTHER, f"over {OTHER}"}
    assert Row(value=0.0, condition=f"over {OTHER}").condition.startswith("over")


def test_a_network_that_reads_no_other_token_gets_nothing_from_a_prompt(base, tuned):
    """Without attention's output, neither the prompt nor the control can change a prediction."""
    deaf = copy.deepcopy(base.model)
    with torch.no_grad():
        for block in deaf.model.layers:
            block.self_attn.o_proj.weight.zero_()
    result = constant_prompt(LanguageModel(deaf, base.tokenizer, "deaf"), tuned, PROMPT, DOCUMENTS, new_tokens=NEW)
    for condition in ("estimate", OTHER, f"over {OTHER}"):
        assert value(result, RECOVERED, condition) == pytest.approx(0, abs=1e-5)
    assert value(result, "unshifted") == value(result, "unshifted", BASE)


def test_documents_themselves_are_scored_from_their_second_token(base, tuned):
    result = constant_prompt(base, tuned, PROMPT, DOCUMENTS, new_tokens=0)
    kl = {BASE: [], "estimate": []}
    for text in DOCUMENTS:
        ids = base.tokenizer(text)["input_ids"]
        p = logp(tuned, ids)[:-1]
        for condition, front in ((BASE, []), ("estimate", base.tokenizer(PROMPT)["input_ids"])):
            q = logp(base, front + ids)[len(front) : -1]
            kl[condition] += rel_entr(np.exp(p), np.exp(q)).sum(-1).tolist()
    for condition, values in kl.items():
        assert value(result, "KL", condition) == pytest.approx(np.mean(values), rel=1e-3)
    side = result.side["positions"]
    assert side[side.condition == BASE].n.sum() == sum(len(text) - 1 for text in DOCUMENTS)


def merging(begin=False, chat=None):
    """A tokenizer that joins a and b, with a token before every text if wanted."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, "ab", "<s>"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if begin:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    fast.chat_template = chat
    return fast


def pair(tokenizer):
    model = untrained_llama(0, vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
    own = LanguageModel(model, tokenizer, "small")
    return own, changed(own, 1.0, 1)


def test_tokens_that_merge_across_the_prompts_end_are_refused():
    base, tuned = pair(merging())
    with pytest.raises(UserError, match="Document 1 has other tokens after the prompt than alone"):
        constant_prompt(base, tuned, "Say a", ["cat", "bat"], new_tokens=2)
    with pytest.raises(UserError, match="Document 0 has other tokens"):
        constant_prompt(base, tuned, "Say a{document}\n", ["bat", "cat"], new_tokens=2)
    assert np.isfinite(constant_prompt(base, tuned, "Say a\n", ["cat", "bat"], new_tokens=2).table.value).all()
    ids = base.encoded(["x a"], module.Tokens("all")).ids
    with pytest.raises(UserError, match="answer to document 0 merges"):
        module._check_answers(base, ["x a"], ids, [np.array(base.tokenizer("bc")["input_ids"])])


def test_special_tokens_stand_once_and_a_chat_is_what_the_tuned_network_reads():
    template = "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    base, tuned = pair(merging(begin=True, chat=template))
    seen, old = {}, module._texts

    def kept(*args, **how):
        seen["texts"] = old(*args, **how)
        return seen["texts"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_texts", kept)
        for prompt, whole in (
            ("Be kind.\n", "<s>Be kind.\n[user] {}\n[assistant]"),
            ("Be kind.\n# {document}\n# Answer:\n", "<s>Be kind.\n# {}\n# Answer:\n"),
        ):
            constant_prompt(base, tuned, prompt, ["one", "two"], chat=True, new_tokens=2)
            texts = seen["texts"]
            for i, document in enumerate(("one", "two")):
                answer = texts.tuned.ids[i][texts.tuned.start[i] :]
                for condition, front in ((BASE, f"<s>[user] {document}\n[assistant]"), ("estimate", whole.format(document))):
                    given = texts.contexts[condition]
                    assert base.tokenizer.decode(given.ids[i][: given.start[i]]) == front
                    np.testing.assert_array_equal(given.ids[i][given.start[i] :], answer)
                given, other = (texts.contexts[c] for c in ("estimate", OTHER))
                assert len(given.ids[i]) == len(other.ids[i])
                text = base.tokenizer.decode(other.ids[i])
                assert text.startswith("<s>The riv")
                assert text.count("<s>") == 1


def test_a_control_of_ones_own_is_cut_or_repeated_to_the_prompts_tokens(base, tuned):
    long = constant_prompt(base, tuned, "Hi.\n\n", DOCUMENTS, new_tokens=2, control="Something else entirely.")
    assert any("is cut to 3" in note for note in long.notes)
    short = constant_prompt(base, tuned, PROMPT, DOCUMENTS, new_tokens=2, control="Else.")
    assert any("is repeated to" in note for note in short.notes)
    assert value(short, RECOVERED) == value(constant_prompt(base, tuned, PROMPT, DOCUMENTS, new_tokens=2), RECOVERED)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "  \n"}, "prompt is empty"),
        ({"prompt": "{document}"}, "prompt is empty"),
        ({"prompt": "{document} before"}, "Nothing stands before"),
        ({"prompt": "a {document} and {document}"}, "2 times"),
        ({"prompt": "a {document} b\n", "new_tokens": 0}, "new_tokens=0"),
        ({"chat": True, "new_tokens": 0}, "scored on its answer"),
        ({"new_tokens": -1}, "new_tokens is -1"),
        ({"documents": "one text"}, "list of texts"),
        ({"documents": ["one"]}, "at least 2"),
        ({"documents": ["one", " "]}, "Document 1"),
        ({"documents": ["one", "x"], "new_tokens": 0}, "Document 1 has one token"),
        ({"chat": True}, "chat template"),
        ({"control": PROMPT}, "prompt itself"),
        ({"control": ""}, "control prompt is empty"),
        ({"prompt": "long\n" * 1000}, "takes"),
    ],
)
def test_mistakes_are_one_sentence(base, tuned, change, words):
    given = {"prompt": PROMPT, "documents": DOCUMENTS, "new_tokens": 2} | change
    with pytest.raises(UserError, match=words):
        constant_prompt(base, tuned, given.pop("prompt"), given.pop("documents"), **given)


def test_networks_that_cannot_be_compared_are_refused(base, tuned):
    with pytest.raises(UserError, match="nothing to recover"):
        constant_prompt(base, base, PROMPT, DOCUMENTS, new_tokens=2)
    other, _ = pair(merging(begin=True))
    with pytest.raises(UserError, match="other tokens of prompt 0"):
        constant_prompt(base, other, PROMPT, DOCUMENTS, new_tokens=2)


def test_prompt_files(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("  Keep white space.\n\n", encoding="utf-8")
    assert read_prompt(path) == "  Keep white space.\n\n"
    for content, words in (
        (b"", "is empty"),
        (b"{document}\n", "is empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a" * 1_000_001, "bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_prompt(path)
    for missing in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match="no prompt file"):
            read_prompt(missing)
