"""A new scheme is one small class: recipe, engine, lock and verify know the rest."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest

import paramdelta
from paramdelta.errors import UsageError
from paramdelta.recipe import read_recipe
from paramdelta.schemes import scheme
from tests import opening
from tests.checkpoints import llama, moved, save
from tests.numbers import array


@dataclass(frozen=True)
class Largest(scheme.Scheme):
    """Of all Δs, for every element the one with the largest magnitude, times ``factor``."""

    name: ClassVar[str] = "largest"

    factor: float = 1.0

    def reference(self, terms, pairs):
        """See `Scheme.reference`."""
        chosen = np.abs(terms).argmax(axis=0)
        return self.factor * terms[chosen, np.arange(terms.shape[1])]

    def exact(self, terms, pairs):
        """See `Scheme.exact`."""
        return Fraction(self.factor) * max(terms, key=abs)


@pytest.fixture
def lineage(tmp_path, monkeypatch):
    """A new base and two posts of one base; the scheme is registered."""
    monkeypatch.setitem(scheme._SCHEMES, "largest", Largest)
    base = llama()
    made = {"base": base, "one": moved(base, 1), "two": moved(base, 3), "new": moved(base, 2)}
    for name, tensors in made.items():
        save(tmp_path / name, tensors, config_json={"model_type": "llama"})
    text = "new_base: new\ndeltas:\n- {post: one, base: base}\n- {post: two, base: base}\n"
    (tmp_path / "recipe.yaml").write_text(text + "largest: {factor: 0.5}\n")
    return tmp_path


def test_a_scheme_from_yaml(lineage):
    """Parameters from YAML, the right numbers, the lock gives the recipe back, verify agrees."""
    recipe = read_recipe(lineage / "recipe.yaml")
    assert recipe.scheme == Largest(0.5)
    assert recipe.symbols == "Θ = Θ'_base + LARGEST((Θ_post1 − Θ_base1), (Θ_post2 − Θ_base2))"
    out = paramdelta.mix(recipe, lineage / "out").folder
    models = {
        name: opening.checkpoint(lineage / name).tensors
        for name in ("new", "base", "one", "two", "out")
    }
    for name in models["out"]:
        new, base, one, two, found = (
            models[model][name].float64(0, models[model][name].elements, opening.fetch)
            for model in ("new", "base", "one", "two", "out")
        )
        largest = np.where(abs(one - base) >= abs(two - base), one - base, two - base)
        assert (np.abs(new + largest / 2 - found) <= np.abs(found) * 2.0**-8).all()
    assert paramdelta.verify(out, share=1.0).elements > 0


def test_parameters_are_checked_with_their_line(lineage):
    """An unknown parameter and two schemes at once are refused, with the line."""
    text = (lineage / "recipe.yaml").read_text()
    (lineage / "recipe.yaml").write_text(text.replace("factor", "factr"))
    with pytest.raises(UsageError, match="factr") as caught:
        read_recipe(lineage / "recipe.yaml")
    assert "line 5" in caught.value.where
    (lineage / "recipe.yaml").write_text(text + "ties: {density: 0.5}\n")
    with pytest.raises(UsageError, match="one scheme"):
        read_recipe(lineage / "recipe.yaml")


def test_a_sweep_multiplies_every_delta(lineage):
    """A scheme that does not say how it scales gets Δs of other scales."""
    recipe = read_recipe(lineage / "recipe.yaml")
    assert [delta.scale for delta in recipe.times(0.5).deltas] == [0.5, 0.5]
    assert array is not None
