import numpy as np
import pytest

from repscope.errors import UserError
from repscope.models.sites import KINDS, Site, Tokens


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_parses_and_prints_as_itself(kind):
    name = f"{kind}.3" if KINDS[kind].per_block else kind
    assert str(Site.parse(name)) == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("resid_pst.8", "did you mean 'resid_post'"),
        ("final_norm.3", "the network has only one final_norm"),
        ("resid_post.x", "form resid_post.BLOCK"),
        ("module:a.b#side", "#in and #out"),
    ],
)
def test_a_wrong_name_is_answered_with_what_to_write(text, says):
    with pytest.raises(UserError, match=says):
        Site.parse(text)


def test_forward_order():
    names = ["final_norm", "resid_post.1", "resid_pre.1", "mlp_out.0", "embed"]
    assert sorted(names, key=lambda n: Site.parse(n).depth) == names[::-1]


def test_tokens_refuse_what_they_do_not_know():
    assert Tokens.parse("subject.-2") == Tokens("-2", "subject")
    with pytest.raises(UserError, match="did you mean 'last'"):
        Tokens.parse("subject.lst")


FOREIGN = {
    # TransformerLens
    "hook_embed": "embed",
    "blocks.2.hook_resid_pre": "resid_pre.2",
    "blocks.2.hook_in": "resid_pre.2",
    "blocks.2.attn.hook_rot_q": "q.2",
    "blocks.2.attn.hook_rot_k": "k.2",
    "blocks.2.attn.hook_v": "v.2",
    "blocks.2.attn.hook_pattern": "pattern.2",
    "blocks.2.attn.hook_z": "z.2",
    "blocks.2.attn.hook_result": "head_out.2",
    "blocks.2.hook_attn_out": "attn_out.2",
    "blocks.2.hook_resid_mid": "resid_mid.2",
    "blocks.2.mlp.hook_post": "mlp_act.2",
    "blocks.2.hook_mlp_out": "mlp_out.2",
    "blocks.2.hook_resid_post": "resid_post.2",
    "blocks.2.hook_out": "resid_post.2",
    "ln_final.hook_normalized": "final_norm",
    # nnterp, which stands on nnsight
    "layers_input[2]": "resid_pre.2",
    "layers_output[2]": "resid_post.2",
    "layers_output[-1]": "resid_post.-1",
    # nnsight: the module's own path, after what a user of its tracer writes
    "model.layers[2].output": "module:model.layers.2",
    "model.layers[2].output[0]": "module:model.layers.2",
    "model.layers[2].output[0][0]": "module:model.layers.2",
    "model.layers[2].input": "module:model.layers.2#in",
    "model.layers[2].self_attn.o_proj.input": "module:model.layers.2.self_attn.o_proj#in",
    "model.layers[2].mlp.output": "module:model.layers.2.mlp",
    "model.norm.output": "module:model.norm",
    "transformer.h[2].attn.c_proj.input": "module:transformer.h.2.attn.c_proj#in",
    "gpt_neox.layers[2].output[0]": "module:gpt_neox.layers.2",
}


@pytest.mark.parametrize(("theirs", "ours"), FOREIGN.items())
def test_names_of_other_libraries_are_read(theirs, ours):
    assert Site.parse(theirs) == Site.parse(f" {theirs} ") == Site.parse(ours)
    assert str(Site.parse(theirs)) == ours


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("blocks.2.attn.hook_q", r"precedes the rotary embedding; use q\.2 .*hook_rot_q"),
        ("blocks.2.attn.hook_k", r"k\.2 .*hook_rot_k"),
        ("blocks.2.hook_resid_pots", "did you mean 'hook_resid_post'"),
        ("blocks.2.ln1.hook_normalized", "TransformerLens hook"),
        ("blocks.2.mlp.hook_pre", "did you mean 'mlp.hook_post'"),
        ("hook_pos_embed", "hook_pos_embed"),
        ("attentions_output[2]", "`module:` and the path"),
        ("layers_ouput[2]", "did you mean 'layers_output'"),
        ("model.layers[2].output[1]", r"model\.layers\[2\]"),
        ("model.layers[-1].output", r"model\.layers\[-1\]"),
        ("resid_post[2]", r"resid_post\.2"),
        ("", "site"),
    ],
)
def test_a_foreign_name_that_is_not_read_is_answered_with_what_to_write(text, says):
    with pytest.raises(UserError, match=says):
        Site.parse(text)


def test_every_foreign_name_reads_the_tensor_that_ours_reads(llama):
    prompts = ["The place called Paris", "San Francisco"]
    for theirs, ours in FOREIGN.items():
        if ours.startswith(("module:transformer", "module:gpt_neox")):
            continue
        np.testing.assert_array_equal(held(llama, prompts, theirs), held(llama, prompts, ours))
    same = {
        "model.layers[2].output[0]": "resid_post.2",
        "model.layers[2].input": "resid_pre.2",
        "model.layers[2].mlp.output": "mlp_out.2",
        "model.norm.output": "final_norm",
    }
    for theirs, ours in same.items():
        np.testing.assert_array_equal(held(llama, prompts, theirs), held(llama, prompts, ours))
    acts = llama.capture(prompts, "blocks.2.attn.hook_z")
    assert acts["blocks.2.attn.hook_z"] is acts["z.2"]


def held(lm, prompts, at):
    acts = lm.capture(prompts, at, "all")
    return acts[acts.sites[0]]


def test_heads_by_number_star_and_from_the_end(llama):
    names = ["z.2.*", "z.2.-1", "k.2.*", "z.*.*", "z.*", "resid_post.*"]
    found = {name: [str(site) for site in llama.resolve(name)] for name in names}
    assert found["z.2.*"] == [f"z.2.{h}" for h in range(4)]
    assert found["z.2.-1"] == ["z.2.3"]
    assert found["k.2.*"] == ["k.2.0", "k.2.1"]
    assert found["z.*.*"] == [f"z.{b}.{h}" for b in range(4) for h in range(4)]
    assert found["z.*"] == [f"z.{b}" for b in range(4)]
    assert found["resid_post.*"] == [f"resid_post.{b}" for b in range(4)]
    for text, says in {
        "resid_post.1.0": "names a head, but resid_post has none: write resid_post.1",
        "resid_post.1.*": "resid_post",
        "z.1.4": "heads 0 to 3",
        "k.1.2": "heads 0 to 1",
        "z.9.*": "blocks 0 to 3",
        "x.*": "site kind 'x'",
    }.items():
        with pytest.raises(UserError, match=says):
            llama.resolve(text)
