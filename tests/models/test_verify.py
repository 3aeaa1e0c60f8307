"""The engine's checks of a model: they pass on every family, and each fails on a model, or an engine, that was broken for it."""

from dataclasses import replace

import pytest
import torch

from families import CAUSAL, UNPACKED, build
from repscope.errors import UserError
from repscope.models.edits import Edit
from repscope.models.language import LanguageModel
from repscope.models.sites import Site
from repscope.models.verify import checks as module
from repscope.models.verify.checks import CHECKS, verify
from repscope.models.verify.fixture import Fixture, state
from repscope.models.verify.report import Verification
from repscope.worlds.tiny import tiny

CACHED = {name for kind in CHECKS if "cached" in (name := kind.name)}


@pytest.fixture
def lm():
    return tiny()


def names(checks):
    return {check.name for check in checks}


def failed(lm):
    return names(verify(lm).failed)


def detail(found, name):
    return next(check.detail for check in found.checks if check.name == name)


def block(lm, number=1):
    return lm.model.model.layers[number]


def test_every_family_passes_and_says_what_does_not_apply(family):
    name, lm = family
    before = state(lm)
    found = verify(lm)
    assert found.passed, found
    assert found.error <= 1e-5
    assert state(lm) == before
    assert [check.name for check in found.checks] == [kind.name for kind in CHECKS]
    left = {check.name for check in found.checks if check.state == "not applicable"}
    assert all(check.detail for check in found.checks if check.name in left)
    left -= {"packed prompts"} if name in UNPACKED else set()
    if name not in CAUSAL:
        assert left == {"logits", "shared prefix", "forks", *CACHED}
    elif name == "mamba":
        assert left == {"block identities", "shared prefix", *CACHED} - {"cached generation"}
    elif name == "opt-post-norm":
        assert left == {"logits"}
    else:
        assert not left


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-6), (torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_other_precisions_pass_with_their_own_tolerance(tokenizer, name, dtype, most):
    found = verify(LanguageModel(build(name).to(dtype), tokenizer))
    assert found.passed, found
    assert {check.tolerance for check in found.checks} == {most, 0.0}
    assert found.error > most / 1e3 or dtype == torch.float64, "low precision that rounds nothing was not run"


def test_a_network_without_a_head_or_blocks_is_told_what_was_left_out(tokenizer):
    body = verify(LanguageModel(build("llama").model, tokenizer))
    assert body.passed
    assert {c.name for c in body.checks if c.state == "not applicable"} == {"logits", *CACHED}


def test_a_block_that_mixes_the_rows_of_a_batch_fails_the_padded_batch(lm):
    block(lm).register_forward_hook(lambda m, args, output: output + 0.01 * output.mean(0, keepdim=True))
    assert not lm.batches(20)
    lm.proofs.found["padded batch", 0] = ""  # a proof that lies
    found = failed(lm)
    assert {"padded batch", "hidden states", "logits", "forks"} <= found
    assert "edit and restore" not in found


def test_a_block_that_counts_its_calls_is_not_restored(lm):
    calls = []

    def drift(m, args, output):
        calls.append(0)
        return output * (1 + 1e-6 * len(calls))

    block(lm).register_forward_hook(drift)
    assert "edit and restore" in failed(lm)


def test_a_hook_left_behind_is_named(lm):
    def leave(m, args):
        m.register_forward_hook(lambda m, args, output: None)

    block(lm, 2).register_forward_pre_hook(leave)
    found = verify(lm)
    assert "edit and restore" in names(found.failed)  # beside what is proved anew at each pass
    assert "forward hooks of model.layers.2" in detail(found, "edit and restore")


@pytest.mark.parametrize(
    ("leave", "named"),
    [
        (lambda model: model.train(), "training mode of LlamaForCausalLM"),
        (lambda model: model.lm_head.requires_grad_(False), "requires_grad of lm_head.weight"),
        (lambda model: setattr(model.config, "_attn_implementation", "eager"), "attention implementation"),
        (lambda model: torch.nn.init.ones_(model.model.norm.weight), "values of model.norm.weight"),
        (lambda model: setattr(model.model, "extra", torch.nn.Identity()), "module model.extra"),
        (lambda model: setattr(model.lm_head, "forward", model.lm_head.forward), "forward of lm_head"),
    ],
)
def test_whatever_an_operation_leaves_changed_is_named(lm, monkeypatch, leave, named):
    plain = module.run_variants

    def forked(*args):
        done = plain(*args)
        leave(lm.model)
        return done

    monkeypatch.setattr(module, "run_variants", forked)
    found = next(c for c in verify(lm).checks if c.name == "edit and restore")
    assert found.state == "failed"
    assert named in found.detail


def test_a_block_that_adds_beside_its_parts_fails_the_identities(lm):
    block(lm).register_forward_hook(lambda m, args, output: output + 0.1)
    found = verify(lm)
    assert names(found.failed) == {"block identities"}
    assert "resid" in detail(found, "block identities") or "no longer" in detail(found, "block identities")


def test_a_site_read_in_the_wrong_block_fails_the_hidden_states(lm):
    one, two = Site("resid_post", 1), Site("resid_post", 2)
    taps = lm.anatomy.taps
    lm.anatomy = replace(lm.anatomy, taps=taps | {one: taps[two], two: taps[one]})
    assert {"hidden states", "block identities"} <= failed(lm)


def test_another_head_fails_the_logits(lm):
    head = lm.head()
    lm._head = lambda x: 1.001 * head(x)
    assert failed(lm) == {"logits"}


def test_a_cache_that_changes_the_pass_fails_where_there_is_one(lm):

    def stale(m, args, kwargs):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is not None and cache.get_seq_length(1) > 0:  # a block after it has not run yet: columns came before
            return (args[0] * 1.01, *args[1:]), kwargs
        return None

    block(lm, 0).register_forward_pre_hook(stale, with_kwargs=True)
    assert not lm.shares_prefix(30)
    lm.proofs.found |= {("shared prefix", 0): "", ("generation, in a batch with a cache", 0): ""}  # proofs that lie
    found = failed(lm)
    assert {"shared prefix", *CACHED} <= found
    assert not found & {"hidden states", "logits", "padded batch", "block identities", "edit and restore"}


def test_an_edit_that_loses_its_place_under_a_cache_fails_at_new_tokens(lm, monkeypatch):
    monkeypatch.setattr(LanguageModel, "_locate", lambda self, module, args, kwargs: None)
    assert failed(lm) == {"cached generation, new tokens edited"}


def test_forks_that_are_no_edits_fail(lm, monkeypatch):
    plain = module.run_variants
    monkeypatch.setattr(module, "run_variants", lambda *args: plain(*args).roll(1, 0))
    assert failed(lm) == {"forks"}


def test_a_check_that_could_not_have_failed_fails(lm):
    torch.nn.init.zeros_(lm.model.lm_head.weight)
    found = verify(lm)
    assert "nothing was tested" in detail(found, "logits")
    assert "logits" in names(found.failed)


def test_a_network_that_stops_is_a_failure_and_not_an_error(lm):
    def stop(m, args):
        if len(args[0]) > 1:
            raise RuntimeError("no batches here")

    block(lm).register_forward_pre_hook(stop)
    assert not lm.batches(20)
    lm.proofs.found["padded batch", 0] = ""  # a proof that lies
    found = verify(lm)
    assert not found.passed
    assert "no batches here" in next(c.detail for c in found.checks if c.name == "padded batch")


def test_prompts_of_the_users_own(lm):
    assert verify(lm, ["Paris", "San Francisco"]).passed
    for prompts in (["Paris"], ["ab", "cd"], ["a", "bcd"]):
        with pytest.raises(UserError, match="unequal lengths"):
            verify(lm, prompts)
    with lm.edit(Edit.replace("mlp_out.1", 0.0)):
        with pytest.raises(UserError, match="outside"):
            verify(lm)
        lm.capture(["Paris"], "resid_post.3")


def test_the_prompts_are_run_as_the_checks_say(lm):
    subject = Fixture(lm, None)
    assert len({len(row) for row in subject.ids}) == len(subject.ids)
    whole = lm.capture(subject.ids, "resid_post.3", "all")["resid_post.3"]
    torch.testing.assert_close(subject.rows([Site("resid_post", 3)], subject.ids)[0], torch.from_numpy(whole))


def test_the_records_say_how_many_hold_and_become_a_result(lm):
    block(lm).register_forward_hook(lambda m, args, output: output + 0.1)
    found = verify(lm)
    assert found.sentence.startswith("9 of 10, largest error ")
    assert "failed: block identities" in found.sentence
    assert "failed its check “block identities”" in found.warnings[0]
    result = found.result("entities")
    table = result.table
    assert table["row_id"].is_unique
    assert set(table["step"]) == {"verify"}
    assert set(table["study"]) == {"entities"}
    assert set(table["model"]) == {lm.fingerprint}
    for check in (c for c in found.checks if c.state != "not applicable"):
        rows = table[table["item"] == check.name].set_index("condition")["value"]
        assert rows.loc["estimate"] == check.error
        assert rows.loc["tolerance"] == check.tolerance
        assert rows.loc[check.against] == check.control
    assert Verification.of(result).rows == found.rows
    assert "block identities" in found._repr_html_()


def test_a_result_survives_its_folder_with_what_did_not_apply(tokenizer, tmp_path):
    found = verify(LanguageModel(build("bert"), tokenizer, "bert"))
    again = Verification.of(type(found.result()).load(found.result().save(tmp_path / "kept")))
    assert again.rows == found.rows
    assert again.sentence == found.sentence
    left = found.result().select(condition="not applicable")
    assert set(left["item"]) == {"logits", "shared prefix", "forks", *CACHED}
    assert left["value"].isna().all()


@pytest.mark.model
def test_the_default_model_passes(smollm):
    found = verify(smollm)
    assert found.passed, found
    assert len(found.applied) == len(CHECKS)
    assert found.error <= 1e-5
