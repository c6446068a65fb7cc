"""DARE and TIES as they are written: in Python, in YAML, in the lock; and what cannot be meant."""

import pytest

from paramdelta import Delta, Recipe, UsageError, read_recipe
from paramdelta.schemes.ties import Ties

YAML = """\
new_base: n
deltas:
  - {post: p, base: b, scale: 0.5, dare: {drop: 0.9, seed: 7}}
  - {post: q, base: b, density: 0.3}
ties: {scale: 0.7, normalize: false}
"""


def test_yaml_and_python_say_the_same(tmp_path):
    """What is read is what Python would have; what is written is read as the same again."""
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML)
    recipe = read_recipe(path)
    assert recipe == Recipe(
        "n",
        (Delta("p", "b", 0.5, dare={"drop": 0.9, "seed": 7}), Delta("q", "b", density=0.3)),
        scheme=Ties(0.2, 0.7, normalize=False),
    )
    path.write_text(recipe.to_yaml())
    assert read_recipe(path) == recipe
    assert recipe.symbols == (
        "Θ = Θ'_base + 0.7·TIES(0.5·DARE0.9(top20%(Θ_post1 − Θ_base1)), top30%(Θ_post2 − Θ_base2))"
    )


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("drop: 0.9", "drop: 1", "line 3: .*drop 1"),
        ("drop: 0.9", "drop: -0.1", "line 3"),
        ("drop: 0.9, ", "", "line 3: drop is missing"),
        ("seed: 7", "seed: 0.5", "line 3: seed is not a number"),
        ("seed: 7", "seeds: 7", "did you mean 'seed'"),
        ("density: 0.3", "density: 0", "line 4: density 0"),
        ("normalize: false", "normalize: maybe", "line 5: normalize"),
        ("scale: 0.7", "density: 2", "line 5: ties: density 2"),
        ("{scale: 0.7, normalize: false}", "yes", "line 5: ties is a mapping"),
    ],
)
def test_mistakes_have_their_line(tmp_path, old, new, what):
    """A share that is none, a missing or unknown key: with the line and what is expected."""
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML.replace(old, new))
    with pytest.raises(UsageError, match=what.split(": ", 1)[-1]) as caught:
        read_recipe(path)
    if what.startswith("line"):
        assert what[:6] in caught.value.where
