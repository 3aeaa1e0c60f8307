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
        ("final_norm.3", "one final_norm for the whole network"),
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
