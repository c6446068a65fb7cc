"""The cost of a plan: so many calls a tensor and no more, however many tensors there are."""

import gc
import sys

import pytest

from paramdelta import Delta, Recipe
from paramdelta.errors import CheckpointError
from paramdelta.planning.planner import make_plan
from tests.footprint import sparse

CALLS = 115  # a tensor of three checkpoints; 108 were measured


def lineage(folder, layers):
    """A recipe of three checkpoints with so many layers of 100 matrices each."""
    shapes = {
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight": ("BF16", (64, 32), 2)
        for layer in range(layers)
        for expert in range(100)
    }
    for role in ("post", "base", "new"):
        sparse(folder / role / "model.safetensors", shapes)
    return Recipe(str(folder / "new"), (Delta(str(folder / "post"), str(folder / "base")),))


def calls_of(recipe):
    """Calls of Python functions that a plan makes; as many on any machine under any load."""
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        make_plan(recipe)
    finally:
        sys.setprofile(None)
    return count


def test_calls_for_each_tensor(tmp_path):
    """More tensors take that many more calls, within the budget."""
    few, many = lineage(tmp_path / "few", 2), lineage(tmp_path / "many", 12)
    calls_of(few)  # what is imported and compiled at the first call
    each = (calls_of(many) - calls_of(few)) / 1000
    assert each <= CALLS


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(tmp_path, enabled):
    """After a plan and after a failure: enabled if it was, and only then."""
    recipe = lineage(tmp_path, 1)
    missing = Recipe(recipe.new_base, (Delta(str(tmp_path / "none"), str(tmp_path / "base")),))
    (tmp_path / "none").mkdir()
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        make_plan(recipe)
        assert gc.isenabled() == enabled
        with pytest.raises(CheckpointError):
            make_plan(missing)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
