"""Generation and scores under edits: cached, uncached, alone and in a batch agree with a plain loop of whole forwards."""

import numpy as np
import pytest
import torch
from scipy import stats

from families import CAUSAL, build
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.engine.hooks import first_tensor
from repscope.models.language import LanguageModel
from repscope.models.prompts import Prompt
from repscope.models.sites import KINDS, Site

PROMPTS = [
    Prompt.fill("The place called {} lies north of Lagos", subject="San Francisco"),
    Prompt.fill("{} of", subject="Zürich"),
    Prompt.fill("A map that shows {}, hydrogen, helium and lithium; the name", subject="Paris"),
    Prompt.fill("do you know {}", subject="São Paulo"),
]
NEW = 5
#: One of each kind of cache and of positions: keys and values, a sliding window, slopes instead of positions, a state.
ODD = ["llama", "gpt2", "gemma3", "bloom", "falcon-alibi", "mamba", "opt", "mixtral"]
VECTOR = 0.6 * np.random.default_rng(2).normal(size=32)


def endless(name, tokenizer, change=lambda model: model):
    """A model of a family that never ends a text, so that every continuation has its full length."""
    model = change(build(name))
    model.generation_config.eos_token_id = None
    return LanguageModel(model, tokenizer, name)


@pytest.fixture(scope="module")
def models(tokenizer):
    held = {}

    def model(name):
        if name not in held:
            held[name] = endless(name, tokenizer)
        return held[name]

    return model


@pytest.fixture(scope="module")
def steady(models):
    return models("llama")


def ids_of(lm, prompt):
    return list(prompt) if not isinstance(prompt, Prompt) else lm.tokenizer(prompt.text)["input_ids"]


def spans_of(lm, prompt, length, total, tokens):
    """The positions of a text of `total` tokens, the first `length` of them its prompt, that a choice names."""
    if tokens == "subject":
        a, b = prompt.spans["subject"]
        offsets = lm.tokenizer(prompt.text, return_offsets_mapping=True)["offset_mapping"]
        return [i for i, (start, end) in enumerate(offsets) if set(range(start, end)) & set(range(a, b))]
    last = [length - 1]
    return {"all": list(range(total)), "prompt": list(range(length)), "generated": list(range(length, total)), "last": last}[tokens]


def plain_logits(lm, ids, at, vector=VECTOR):
    """One whole forward of the Hugging Face model, a vector added by a plain hook to a block's output at some positions."""
    block = lm.module.get_submodule(f"{lm.anatomy.prefix}.1")

    def add(_, args, out):
        hidden = first_tensor(out).clone()
        hidden[:, at] += torch.from_numpy(vector).to(hidden)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    hook = block.register_forward_hook(add)
    try:
        with torch.no_grad():
            return lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    finally:
        hook.remove()


def loop(lm, prompt, tokens, vector, new=NEW):
    """Greedy by brute force: the whole text once more for each token. Ids, and how far the second choice was behind."""
    ids = ids_of(lm, prompt)
    length, gaps = len(ids), []
    for _ in range(new):
        at = spans_of(lm, prompt, length, len(ids), tokens) if tokens else []
        best = plain_logits(lm, ids, at, vector)[-1].topk(2)
        gaps.append(float(best.values[0] - best.values[1]))
        ids = [*ids, int(best.indices[0])]
    return ids[length:], min(gaps)


def written(lm, prompts, **options):
    return [c.ids.tolist() for c in lm.generate(prompts, NEW, **options)]


@pytest.mark.parametrize(
    ("name", "tokens"),
    [(name, tokens) for name in ODD for tokens in ("last", "generated")]
    + [("llama", tokens) for tokens in ("all", "prompt", "subject", None)]
    + [("mamba", None), ("gemma3", None)],
)
def test_greedy_text_is_that_of_a_plain_loop(models, name, tokens):
    odd = models(name)
    rows = odd.capture(PROMPTS, "resid_post.1", "all")["resid_post.1"]
    vector = VECTOR * 2 * np.linalg.norm(rows, axis=1).mean() / np.linalg.norm(VECTOR)
    expected, gaps = map(list, zip(*[loop(odd, prompt, tokens, vector) for prompt in PROMPTS]))
    assert min(gaps) > 2e-5, "no near tie, where rounding would choose"
    if tokens is None:
        assert written(odd, PROMPTS) == written(odd, PROMPTS, use_cache=False) == expected
        return
    with odd.edit(Edit.add("resid_post.1", vector, tokens=tokens)):
        for options in ({}, {"use_cache": False}, {"batch_tokens": 60}):
            assert written(odd, PROMPTS, **options) == expected
        assert [written(odd, [p])[0] for p in PROMPTS[:2]] == expected[:2]
    assert written(odd, PROMPTS) != expected


@pytest.mark.parametrize(("name", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gemma3", "sdpa")])
def test_every_site_holds_its_edit_while_a_text_grows(tokenizer, name, attention):
    """With a cache and without, alone and padded; keys, values and weights reach back into the cache."""
    lm = endless(name, tokenizer)
    lm.model.set_attn_implementation(attention)
    size = {s.kind: lm.capture(PROMPTS[:1], s)[s].shape[1:] for s in lm.anatomy.taps if s.layer in (None, 1)}
    kinds = [k for k in size if not KINDS[k].computed]
    for kind in kinds if name == "llama" and attention == "sdpa" else ["q", "k", "v", "pattern"]:
        site = Site(kind, 1 if KINDS[kind].per_block else None)
        shift = np.random.default_rng(0).normal(size=size[kind])
        for tokens in ("generated", "all"):
            edit = Edit.add(site, shift, tokens=tokens)
            if kind == "pattern":
                edit = Edit.replace(f"{site}.1", 0.0, tokens=tokens)
            with lm.edit(edit):
                cached = written(lm, PROMPTS)
                assert cached == written(lm, PROMPTS, use_cache=False), (site, tokens)
                assert cached[1:3] == [written(lm, [p])[0] for p in PROMPTS[1:3]], (site, tokens)
                if tokens == "generated":
                    continue
                texts = [ids_of(lm, p) + new for p, new in zip(PROMPTS, cached)]  # each token most likely after those before it
                best = lm.logits(texts, "all").argmax(-1)
                ends = np.cumsum([len(ids) for ids in texts])
                assert [best[end - NEW - 1 : end - 1].tolist() for end in ends] == cached, site


def test_several_edits_act_together_in_generation(steady):
    edits = [
        Edit.add("resid_post.1", VECTOR, tokens="generated"),
        Edit.project_out("resid_post.1", VECTOR[::-1].copy(), tokens="last"),
        Edit.replace("z.2.1", 0.0),
        Edit.clamp("mlp_out.0", VECTOR, low=1.0, tokens="subject"),
        Edit.affine("resid_post.2", np.roll(np.eye(32), 1, 0), tokens=-2),
    ]
    vectors = np.random.default_rng(4).normal(size=(len(PROMPTS), 32)) * 3
    with steady.edit(*edits), steady.edit(Edit.add("resid_post.0", vectors, per_prompt=True, tokens="prompt")):
        cached = written(steady, PROMPTS)
        assert cached == written(steady, PROMPTS, use_cache=False)
        assert cached == written(steady, PROMPTS, batch_tokens=1)
    for i, prompt in enumerate(PROMPTS):
        with steady.edit(*edits), steady.edit(Edit.add("resid_post.0", vectors[i], tokens="prompt")):
            assert written(steady, [prompt]) == [cached[i]]


# ------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom", "mamba"])
def test_a_sampled_text_is_its_prompts_own(models, name):
    odd = models(name)
    options = {"temperature": 0.9, "top_p": 0.95}
    with odd.edit(Edit.add("resid_post.1", VECTOR, tokens="all")):
        together = written(odd, PROMPTS, seed=3, **options)
        assert together == written(odd, PROMPTS, seed=3, use_cache=False, **options)
        assert together[::-1] == written(odd, PROMPTS[::-1], seed=3, **options)
        assert together == [written(odd, [p], seed=3, **options)[0] for p in PROMPTS]
        assert together != written(odd, PROMPTS, seed=4, **options)
        torch.manual_seed(99)  # nothing is drawn from the global stream, and nothing disturbs it
        state = torch.random.get_rng_state()
        assert together == written(odd, PROMPTS, seed=3, **options)
        assert torch.equal(state, torch.random.get_rng_state())


def test_a_prompt_given_twice_gets_two_draws(steady):
    one, two, other, three = written(steady, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[0]], temperature=2.0)
    assert len({tuple(one), tuple(two), tuple(three)}) == 3
    assert [one] == written(steady, [PROMPTS[0]], temperature=2.0)
    assert [one, two] == written(steady, [PROMPTS[0].text] * 2, temperature=2.0)
    assert [other] == written(steady, [PROMPTS[1]], temperature=2.0)


def first_tokens(lm, draws, **options):
    return np.array([c.ids[0] for c in lm.generate([[9, 11]] * draws, 1, **options)])


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (2.5, 1.0), (1.0, 0.6)])
@pytest.mark.parametrize("edited", [False, True])
def test_first_tokens_follow_the_softmax(steady, temperature, top_p, edited):
    draws = 4000
    logits = plain_logits(steady, [9, 11], [0, 1] if edited else [], VECTOR / 2)[-1].numpy()
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    nucleus = order[: 1 + int((np.cumsum(p[order]) < top_p).sum())]  # the fewest of the most likely that hold top_p
    kept = np.zeros_like(p)
    kept[nucleus] = p[nucleus] / p[nucleus].sum()
    if edited:
        with steady.edit(Edit.add("resid_post.1", VECTOR / 2)):
            seen = first_tokens(steady, draws, temperature=temperature, top_p=top_p, seed=8)
    else:
        seen = first_tokens(steady, draws, temperature=temperature, top_p=top_p, seed=8)
    counts = np.bincount(seen, minlength=len(p))
    assert not counts[kept == 0].any(), "no token outside the nucleus"
    common = np.flatnonzero(kept * draws >= 8)
    assert len(common) > 3, "a distribution worth the name"
    observed = [*counts[common], counts.sum() - counts[common].sum()]
    expected = np.array([*kept[common], 1 - kept[common].sum()]) * draws
    keep = expected > 1e-6
    assert stats.chisquare(np.array(observed)[keep], expected[keep]).pvalue > 1e-3


def test_a_small_nucleus_or_a_low_temperature_is_greedy(steady):
    greedy = written(steady, PROMPTS)
    assert written(steady, PROMPTS, temperature=1.5, top_p=1e-6) == greedy
    assert written(steady, PROMPTS, temperature=1e-5) == greedy


def test_options_beside_the_weights_are_not_inherited(tokenizer, steady):
    lm = endless("llama", tokenizer)
    theirs = {
        "do_sample": True,
        "temperature": 0.2,
        "top_k": 2,
        "top_p": 0.3,
        "min_p": 0.2,
        "repetition_penalty": 3.0,
        "num_beams": 2,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": list(range(20, 200)),
        "bad_words_ids": [[7]],
        "max_length": 9,
        "min_new_tokens": 3,
        "forced_eos_token_id": 5,
        "exponential_decay_length_penalty": (1, 2.0),
        "guidance_scale": 2.0,
        "num_return_sequences": 2,
        "output_hidden_states": True,
        "renormalize_logits": True,
        "begin_suppress_tokens": [1, 2],
        "stop_strings": ["a"],
        "length_penalty": 2.0,
        "return_dict_in_generate": True,
        "output_scores": True,
        "cache_implementation": "static",
    }
    greedy, sampled = written(steady, PROMPTS), written(steady, PROMPTS, temperature=1.3)
    inherited = {}
    for name, value in theirs.items():
        config = lm.model.generation_config
        before = getattr(config, name)
        setattr(config, name, value)
        held = config.to_dict()
        try:
            if written(lm, PROMPTS) != greedy or written(lm, PROMPTS, temperature=1.3) != sampled:
                inherited[name] = "other text"
        except Exception as error:
            inherited[name] = repr(error)[:80]
        assert lm.model.generation_config is config
        assert config.to_dict() == held
        setattr(config, name, before)
    assert not inherited


def test_a_text_ends_with_its_end_token_and_its_neighbours_go_on(tokenizer, steady):
    free = written(steady, PROMPTS)
    stop = free[1][2]
    lm = endless("llama", tokenizer)
    lm.model.generation_config.eos_token_id = [stop, 319]
    for cont, new in zip(lm.generate(PROMPTS, NEW), free):
        cut = new[: new.index(stop) + 1] if stop in new else new
        assert cont.ids.tolist() == cut
        assert cont.stopped is (stop in new)
        assert cont.text == str(cont) == lm.tokenizer.decode(cut, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        (["Paris"], {"max_new_tokens": 0}, "one new token at least"),
        (["Paris"], {"temperature": -1.0}, "temperature is 0 or more"),
        (["Paris"], {"temperature": float("nan")}, "temperature"),
        (["Paris"], {"top_p": 0.0}, "top_p above 0"),
        (["Paris"], {"top_p": 1.5}, "top_p above 0"),
        (["Paris", "a map " * 20], {"max_new_tokens": 100}, "Prompt 1 has .* takes 128"),
        ([], {}, "list is empty"),
        ([[1, 999]], {}, "vocabulary"),
    ],
)
def test_a_request_that_makes_no_sense(llama, prompts, options, says):
    with pytest.raises(UserError, match=says):
        llama.generate(prompts, **options)


def test_an_encoder_does_not_continue(tokenizer):
    with pytest.raises(UserError, match="no causal language model"):
        LanguageModel(build("bert"), tokenizer, "bert").generate(["Paris"])


# ------------------------------------------------------------------------------------------------- scores

TAILS = [" of hydrogen", "Paris", " and Lagos; the name", " x"]


def test_scores_sum_the_log_softmax_of_plain_logits(family):
    name, lm = family
    if name not in CAUSAL or name == "opt-post-norm":
        with pytest.raises(UserError):
            lm.score(PROMPTS, TAILS)
        return
    scores = lm.score(PROMPTS[:3], TAILS[:3], batch_tokens=40)
    edited = []
    with lm.edit(Edit.add("resid_post.1", VECTOR, tokens="generated")):
        steered = lm.score(PROMPTS[:3], TAILS[:3], batch_tokens=40)
    for i, (prompt, tail) in enumerate(zip(PROMPTS[:3], TAILS[:3])):
        ids, start = joined(lm, prompt, tail)
        nats = plain_logits(lm, ids, []).log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]]
        np.testing.assert_allclose(scores.each[i], nats, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scores.logprob[i], nats.sum(), rtol=1e-4)
        assert scores.tokens[i] == len(ids) - start
        one = [plain_logits(lm, ids[:end], list(range(start, end))).log_softmax(-1)[-1, ids[end]] for end in range(start, len(ids))]
        edited.append(one)
        np.testing.assert_allclose(steered.each[i], one, rtol=1e-4, atol=1e-4)
    assert abs(sum(map(sum, edited)) - scores.logprob.sum()) > 1e-2


def joined(lm, prompt, tail):
    """Ids of both as one text, and the first token that reaches into the tail."""
    given = lm.tokenizer(prompt.text + tail, return_offsets_mapping=True)
    start = next(i for i, (_, end) in enumerate(given["offset_mapping"]) if end > len(prompt.text))
    return given["input_ids"], start


@pytest.mark.parametrize("tokens", ["all", "last", "prompt", "generated", "subject"])
def test_edits_see_the_prompt_and_what_is_scored_apart(steady, tokens):
    expected = []
    for prompt, tail in zip(PROMPTS, TAILS):
        ids, start = joined(steady, prompt, tail)
        at = spans_of(steady, prompt, start, len(ids), tokens)
        expected.append(plain_logits(steady, ids, at).log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]])
    with steady.edit(Edit.add("resid_post.1", VECTOR, tokens=tokens)):
        for budget in (1, 30, 1024):
            scores = steady.score(PROMPTS, TAILS, batch_tokens=budget)
            np.testing.assert_allclose(np.concatenate(scores.each), np.concatenate(expected), rtol=1e-4, atol=1e-5)
    vectors = np.outer([1.0, -2.0, 0.5, 3.0], VECTOR)
    with steady.edit(Edit.add("resid_post.1", vectors, tokens=tokens, per_prompt=True)):
        together = steady.score(PROMPTS, TAILS)
    for i, vector in enumerate(vectors):
        with steady.edit(Edit.add("resid_post.1", vector, tokens=tokens)):
            np.testing.assert_allclose(steady.score(PROMPTS[i : i + 1], TAILS[i : i + 1]).each[0], together.each[i], rtol=1e-4)


@pytest.mark.parametrize(
    ("prompts", "tails", "says"),
    [
        (["Paris"], [" is", " of"], "1 prompts and 2 continuations"),
        (["Paris"], [""], "covers no token|has no token"),
        ([""], ["Paris"], "Nothing stands before continuation 0"),
        (["map", ""], ["Paris", "Paris"], "Nothing stands before continuation 1"),
        ([], [], "list is empty"),
        (["a map " * 20], [" of" * 200], "takes 128"),
    ],
)
def test_scores_that_cannot_be(llama, prompts, tails, says):
    with pytest.raises(UserError, match=says):
        llama.score(prompts, tails)


def test_a_score_is_held_to_show_its_edit(llama):
    """The one token of a continuation is read where the prompt ends, before anything is generated."""
    assert llama.score(["San Francisco"], ["*"]).tokens == [1]
    with pytest.raises(UserError, match="changes no logit"), llama.edit(Edit.add("resid_post.1", VECTOR, tokens="generated")):
        llama.score(["San Francisco"], ["*"])
    with llama.edit(Edit.add("resid_post.1", VECTOR, tokens="generated")):
        llama.score(["San Francisco"], ["* *"])  # which shows it, and does not stand for another request
        with pytest.raises(UserError, match="changes no logit"):
            llama.score(["San Francisco"], ["*"])


def test_a_hook_that_breaks_causality_is_named(tokenizer):
    model = build("llama")
    model.model.layers[1].register_forward_hook(lambda m, a, out: out + 0.1 * out.mean(1, keepdim=True))
    with pytest.raises(UserError, match=r"hook or forward function set on .* later tokens change earlier ones"):
        LanguageModel(model, tokenizer).generate(["Paris"])
