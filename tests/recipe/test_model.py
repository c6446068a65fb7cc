"""Recipes from Python: what they take, what they refuse, what they write."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import Dare, Delta, Recipe, Rule, Schedule, Ties, UsageError
from paramdelta.recipe import recipe_from_dict
from paramdelta.recipe.option import options

DELTA = Delta("p", "b")


def test_paths_and_sequences():
    """Paths, lists and single texts are kept as text and tuples, so that recipes compare equal."""
    loose = Recipe(Path("n"), [Delta(Path("p"), Path("b"))], "bf16", ["z", "a", "a"], graft="<x>")
    assert loose == Recipe("n", (DELTA,), "BF16", ("a", "z"), graft=("<x>",))
    assert hash(loose) == hash(Recipe("n", (DELTA,), "BF16", ("a", "z"), graft=("<x>",)))
    assert Schedule([Rule(["a", "b"], 1)]) == Schedule((Rule(("a", "b"), 1),))
    assert Delta("p", "b", dare={"drop": 0.5}) == Delta("p", "b", dare=Dare(0.5))


@pytest.mark.parametrize(
    ("choices", "what"),
    [
        ({"vocabulary": "tokens"}, "did you mean 'token'"),
        ({"head": "tie"}, "one of untie, drop"),
        ({"dtype": "int4"}, "unknown output dtype"),
    ],
)
def test_options_are_checked(choices, what):
    """A value that is not valid is refused with those that are."""
    with pytest.raises(UsageError, match=what):
        Recipe("n", [DELTA], **choices)


def test_every_option_has_help_and_keeps_its_default():
    """The command line and the reader take them from here."""
    for name, option in options(Recipe).items():
        default = Recipe.__dataclass_fields__[name].default
        assert option.help.endswith((".", ")")), name
        assert option.several == isinstance(default, tuple)
        assert option.checked(name, default) == default


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["BF16", "F16", "F32", "F64", "fp8-block"]),
            "allow": st.lists(st.text()),
            "vocabulary": st.sampled_from(["auto", "id", "token", "new-base"]),
            "graft": st.lists(st.text(min_size=1)),
            "take": st.lists(st.text(min_size=1)),
            "maps": st.lists(st.text(min_size=1)),
            "head": st.sampled_from(["untie", "drop"]),
            "scheme": st.builds(Ties, st.floats(0.01, 1), st.floats(-2, 2), st.booleans()),
        },
    )
)
def test_the_plain_form_and_back(choices):
    """What a recipe writes is read as the same recipe; defaults are not written."""
    choices["allow"] = [code for code in choices.get("allow", []) if code]
    recipe = Recipe("n", [DELTA], **choices)
    plain = recipe.to_dict()
    assert recipe_from_dict(plain) == recipe
    assert plain.keys() <= {"new_base", "deltas", "ties", *options(Recipe)}
    assert Recipe("n", [DELTA]).to_dict() == {
        "new_base": "n",
        "deltas": [{"post": "p", "base": "b", "scale": 1.0}],
    }
