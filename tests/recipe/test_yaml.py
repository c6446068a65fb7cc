"""Documents: whatever is in them, they are read or refused with their place."""

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paramdelta import UsageError, read_recipe
from paramdelta.recipe import recipe_from_dict
from paramdelta.recipe.yaml import MOST

KEYS = st.sampled_from(
    ["new_base", "deltas", "post", "base", "scale", "match", "layers", "value", "dare", "ties", "x"]
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS | st.text(), inner),
)
# Twelve lines that stand for 10^12 values.
BOMB = "".join(f"a{n}: &a{n} [{', '.join(['*a' + str(n - 1)] * 10)}]\n" for n in range(1, 13))
BOMB = "a0: &a0 [x]\n" + BOMB


@given(PLAIN, st.sampled_from(["", "deltas", "scale"]))
def test_any_value_is_read_or_refused(tmp_path_factory, value, place):
    """Any document gives a recipe or a UsageError, from a file as from Python."""
    recipe = {"new_base": "n", "deltas": [{"post": "p", "base": "b"}]}
    if place == "deltas":
        recipe["deltas"] = value
    elif place == "scale":
        recipe["deltas"][0]["scale"] = value
    else:
        recipe = value
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8", newline="")
    for read in (lambda: read_recipe(path), lambda: recipe_from_dict(recipe)):
        with contextlib.suppress(UsageError):
            assert read().deltas


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * 5000, "nested too deeply"),
        ("a: &a [*a]", "an alias inside of its own value"),
        ("new_base: n\ndeltas:\n- {post: p, base: b, scale: &a [*a]}", "an alias inside"),
        ("a: &a [x]\nb: [*a, *a]", "unknown key"),
        (BOMB, "more than 20000 values"),
        ("new_base: !!python/object/apply:os.abort []\ndeltas: []", "tags are not read"),
        ("# nothing", "is empty"),
        ("? [a]\n: 1", "unknown key"),
    ],
)
def test_hostile_documents(tmp_path, text, what):
    """Nesting, loops, bombs and tags are refused; nothing is run."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=what):
        read_recipe(path)


def test_a_weight_file_is_not_read(tmp_path):
    """A file far too large for a recipe is refused by its size; a folder is refused too."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(MOST + 1)
    with pytest.raises(UsageError, match="too large for a recipe") as caught:
        read_recipe(path)
    assert caught.value.expected.endswith("1.0 MB")
    with pytest.raises(UsageError, match="a folder, not a recipe"):
        read_recipe(tmp_path)
