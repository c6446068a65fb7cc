"""Folders without weights."""

import pytest

from paramdelta import plan
from paramdelta.demo import tour
from paramdelta.errors import MisfitError
from paramdelta.live.folder import RECIPE, read_recipe_of, write_companions, write_recipe


def test_the_recipe_of_a_folder_is_read_back(tmp_path):
    """Workers plan the same mix; a folder without a recipe is refused."""
    planned = plan(tour.recipe("several", 0.5))
    write_companions(planned, tmp_path)
    write_recipe(planned, tmp_path)
    assert plan(read_recipe_of(tmp_path)).digest == planned.digest
    (tmp_path / RECIPE).unlink()
    with pytest.raises(MisfitError) as caught:
        read_recipe_of(tmp_path)
    assert caught.value.code == "not-a-served-folder"
