"""Running statistics of batch norms: a sum that is negative would give NaN."""

from dataclasses import replace

import numpy as np

from paramdelta import Delta, Recipe, Severity, plan
from paramdelta.recipe import read_scale
from tests.planning.test_constants import trio
from tests.planning.test_plan import codes


def norm(*variances):
    """The tensors of one batch norm with these variances in base, post and new base."""
    return lambda n: {
        "bn.running_var": np.full(8, variances[n], np.float32),
        "bn.running_mean": np.zeros(8, np.float32),
        "bn.num_batches_tracked": np.array(n, np.int64),
    }


def test_a_negative_variance_is_refused(tmp_path):
    """1 (new base) + 0.1 (post) − 2 (base) is negative."""
    made = plan(trio(tmp_path, norm(2, 0.1, 1)))
    assert codes(made)["variance-negative"] is Severity.REFUSED
    found = next(f for f in made.findings if f.code == "variance-negative")
    assert found.tensors == ("bn.running_var",)


def test_the_remedy_works(tmp_path):
    """Scale 0 for the statistics keeps those of the new base."""
    recipe = trio(tmp_path, norm(2, 0.1, 1))
    (delta,) = recipe.deltas
    kept = replace(delta, scale=read_scale([{"match": "*running_*", "value": 0}, 1.0]))
    made = plan(Recipe(recipe.new_base, (kept,)))
    assert not {"variance-negative", "statistics-mixed"} & codes(made).keys()


def test_frozen_statistics_are_right(tmp_path):
    """Post has base's statistics: their Δ is zero, and nothing is said."""
    assert "statistics-mixed" not in codes(plan(trio(tmp_path, norm(1, 1, 2))))


def test_positive_sums_are_a_warning(tmp_path):
    """They are an estimate; another scale can make the same sum positive."""
    assert codes(plan(trio(tmp_path / "a", norm(1, 2, 3))))["statistics-mixed"] is Severity.WARNING
    recipe = trio(tmp_path / "b", norm(2, 0.1, 1))
    half = Delta(recipe.deltas[0].post, recipe.deltas[0].base, 0.25)
    assert "variance-negative" not in codes(plan(Recipe(recipe.new_base, (half,))))
