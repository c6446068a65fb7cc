"""Recipes from Python and YAML."""

import math

import pytest

from paramdelta import Delta, Recipe, UsageError, read_recipe


def write(tmp_path, text):
    """A recipe file."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_yaml_and_back(tmp_path):
    """What `to_yaml` writes, `read_recipe` reads."""
    recipe = Recipe(
        "org/new@main",
        (Delta("org/post", "org/base", 0.5), Delta("a/b", "c/d", -1)),
        "BF16",
        ("only-in-post",),
    )
    assert read_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_folders_beside_the_file_are_found(tmp_path):
    """A recipe can be moved together with its checkpoints."""
    (tmp_path / "post").mkdir()
    path = write(tmp_path, "new_base: org/n\ndeltas:\n- {post: post, base: org/b}\n")
    recipe = read_recipe(path)
    assert recipe.deltas[0].post == str(tmp_path / "post")
    assert recipe.new_base == "org/n"


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("new_bas: x\ndeltas:\n- {post: p, base: b}", 1, "did you mean 'new_base'"),
        ("new_base: x\ndeltas:\n- post: p\n  base: b\n  skale: 2", 5, "did you mean 'scale'"),
        ("new_base: x\ndeltas:\n- {base: b}", 3, "post is missing"),
        ("new_base: x", 1, "deltas is missing"),
        ("new_base: x\ndeltas: {post: p}", 2, "not a list"),
        ("new_base: x\ndeltas: []", 2, "not a list"),
        ("new_base: x\nnew_base: y\ndeltas:\n- {post: p, base: b}", 2, "stands twice"),
        ("new_base: x\ndeltas:\n- {post: p, base: b, scale: much}", 3, "not a number"),
        ("new_base: x\ndeltas:\n- {post: p, base: b}\ndtype: int4", 4, "unknown output dtype"),
        ("new_base: [x]\ndeltas:\n- {post: p, base: b}", 1, "expected one value"),
        ("new_base: 'x\ndeltas", 2, "read as YAML"),
        ("- a\n- b", 1, "a recipe is a mapping"),
    ],
)
def test_mistakes_are_placed(tmp_path, text, line, hint):
    """Every mistake is reported with its line, and a typo with the nearest key."""
    with pytest.raises(UsageError) as error:
        read_recipe(write(tmp_path, text))
    assert hint in str(error.value)
    assert f"recipe.yaml, line {line}" in str(error.value)


def test_unreadable_files_are_usage_errors(tmp_path):
    """Absent, empty and binary files."""
    with pytest.raises(UsageError, match="cannot read"):
        read_recipe(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read"):
        read_recipe(tmp_path / "binary.yaml")
    with pytest.raises(UsageError, match="is empty"):
        read_recipe(write(tmp_path, ""))


def test_scales_are_finite():
    """Infinity and NaN are no scales."""
    for scale in (math.inf, math.nan):
        with pytest.raises(UsageError):
            Delta("p", "b", scale)


def test_a_recipe_needs_a_delta():
    """Without one there is nothing to mix."""
    with pytest.raises(UsageError):
        Recipe("n", ())


def test_formula():
    """The formula in one line, with signs and scales."""
    recipe = Recipe("n", (Delta("p", "b"), Delta("q", "c", -0.5)))
    assert recipe.formula == "n + (p - b) - 0.5 · (q - c)"
