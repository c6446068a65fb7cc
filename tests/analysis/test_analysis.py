"""Groups of tensors, and the JSON of an analysis."""

import json

from paramdelta import analyze
from paramdelta.analysis.analysis import VERSION

KEYS = {
    "analysis_version", "formula", "deltas", "new_base", "parameters", "tensors_without_delta",
    "quantile_bound", "verdict", "all", "layers", "kinds", "cells", "tensors", "findings",
    "versions",
}  # fmt: skip


def test_the_json_is_as_documented(lineage):
    """Its keys are those of the page, nothing depends on the run, and it is valid JSON."""
    plain = analyze(lineage.recipe()).to_dict()
    assert plain["analysis_version"] == VERSION
    assert set(plain) >= KEYS
    assert set(plain["deltas"][0]) == {"label", "post", "base", "factor"}
    assert set(plain["tensors"][0]) == {
        "name", "kind", "stack", "layer", "shape", "deltas", "pairs", "not_finite", "heads", "rows",
        "spectra",
    }  # fmt: skip
    assert plain == json.loads(json.dumps(plain, allow_nan=False))


def test_a_stack_is_named_where_there_are_several(tmp_path):
    """Layers of an encoder and a decoder are told apart, in the order of the model."""
    import numpy as np

    from paramdelta import Delta, Recipe
    from tests.checkpoints import save

    chance = np.random.default_rng(1)
    names = [f"{s}.layers.{n}.fc1.weight" for s in ("encoder", "decoder") for n in (0, 1, 10)]
    folders = [
        str(save(tmp_path / role, {name: chance.normal(size=(4, 4)) for name in names}))
        for role in ("base", "post", "new")
    ]
    found = analyze(Recipe(folders[2], (Delta(folders[1], folders[0]),)))
    assert [(c.stack, c.layer) for c in found.layers] == [
        (f"{s}.layers.", n) for s in ("encoder", "decoder") for n in (0, 1, 10)
    ]
