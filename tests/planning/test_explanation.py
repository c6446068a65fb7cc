"""What is said of one tensor is what the plan does with it."""

import pytest

from paramdelta import Delta, Recipe, UsageError, plan
from paramdelta.planning.explanation import explain
from paramdelta.schemes.ties import Ties
from tests.checkpoints import llama, moved, save

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folders(tmp_path):
    """Addresses of a new base, a base and two posts of it."""
    base = llama()
    sets = {"base": base, "new": moved(base, 9), "one": moved(base, 1), "two": moved(base, 2)}
    return {name: str(save(tmp_path / name, tensors)) for name, tensors in sets.items()}


def test_formula_operands_and_rules(folders):
    """Coefficients as asked, each operand once with what it counts in all, and the rules."""
    scale = [{"match": "*.mlp.*", "layers": {"0-1": [1, 0.25]}}, {"match": "*norm*", "value": 0}, 2]
    recipe = Recipe(
        folders["new"],
        (
            Delta(folders["one"], folders["base"], 0.5),
            Delta(folders["two"], folders["base"], scale),
        ),
    )
    made = plan(recipe)
    (found,) = explain(made, UP)
    assert found.formula == "Θ'_base + 0.5·(Θ_post1 − Θ_base1) + 0.25·(Θ_post2 − Θ_base2)"
    assert [(o.symbols, o.coefficient) for o in found.operands] == [
        (("Θ'_base",), 1.0),
        (("Θ_post1",), 0.5),
        (("Θ_base1", "Θ_base2"), -0.75),
        (("Θ_post2",), 0.25),
    ]
    assert [(scale, why) for _, scale, why in found.reasons] == [
        (0.5, "the scale of the Δ"),
        (0.25, "rule *.mlp.*, layers 0-1 at 1"),
    ]
    stored = found.facts["operands"][1]["stored"]
    assert [(s["name"], s["dtype"], s["shape"]) for s in stored] == [(UP, "BF16", [32, 16])]
    assert stored[0]["file"].startswith(folders["one"])
    norms = explain(made, "*.0.*norm*")
    assert len(norms) == 2
    assert norms[0].formula == "Θ'_base + 0.5·(Θ_post1 − Θ_base1)"
    assert norms[0].reasons[1] == ("Δ2", 0.0, "rule *norm*")


def test_what_cancels_is_told(folders):
    """The formula as asked, and what is left of it."""
    deltas = tuple(Delta(folders[name], folders["base"], 0.5) for name in ("one", "two"))
    (found,) = explain(plan(Recipe(folders["base"], deltas)), UP)
    assert found.reduced == "Θ_post1 + 0.5·(Θ_post2 − Θ_post1)"
    assert [o.symbols for o in found.operands] == [("Θ_post1",), ("Θ_post2",)]


def test_nothing_found_gives_near_names(folders):
    """A pattern that matches no tensor is an error with what may have been meant."""
    made = plan(Recipe(folders["new"], (Delta(folders["one"], folders["base"]),)))
    with pytest.raises(UsageError) as error:
        explain(made, "*.1.mlp.up_prj.weight")
    assert error.value.remedy == "did you mean '*.1.mlp.up_proj.weight'?"


def test_what_is_left_of_sparse_deltas(folders):
    """The formula names TIES and DARE, the reasons say how much is left, nothing cancels."""
    recipe = Recipe(
        folders["base"],
        (
            Delta(folders["one"], folders["base"], 0.5, dare={"drop": 0.9}),
            Delta(folders["two"], folders["base"], density=[{"match": "*mlp*", "value": 0.3}, 1]),
        ),
        scheme=Ties(scale=0.8),
    )
    (found,) = explain(plan(recipe), UP)
    assert found.formula == (
        "Θ'_base + 0.8·TIES(0.5·DARE0.9(top20%(Θ_post1 − Θ_base1)), top%(Θ_post2 − Θ_base2))"
    )
    assert found.reduced == ""
    one, two = (why.split("; of its elements, ") for _, _, why in found.reasons)
    assert one == [
        "the scale of the Δ",
        "the largest 20 % by magnitude and of these 10 % at random",
    ]
    assert two == ["the scale of the Δ", "the largest 30 % by magnitude"]
