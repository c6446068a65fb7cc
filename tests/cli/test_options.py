"""Options that commands share are declared once."""

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from paramdelta import Delta, Recipe, UsageError
from paramdelta.cli.app import app
from paramdelta.cli.options import Choices, Options, RecipeOptions, flat
from paramdelta.recipe.option import options


@dataclass(frozen=True)
class Both(Options):
    """Two options."""

    size: Annotated[int, typer.Option()] = 1
    name: Annotated[str, typer.Option()] = "n"


def test_a_command_gets_its_objects():
    """Single options go in, objects come out; the command's own parameter of a name wins."""
    seen = []

    def command(both: Both, name: Annotated[str, typer.Option()] = "own", late: int = 2) -> None:
        """What it does."""
        seen.append((both, name, late))

    made = flat(command)
    assert list(inspect.signature(made).parameters)[:3] == ["size", "name", "late"]
    assert (made.__doc__, made.__name__) == ("What it does.", "command")
    made(size=5, name="given", late=3)
    assert seen == [(Both(5, "n"), "given", 3)]


def test_a_new_option_of_a_recipe_is_an_option_of_every_command(tmp_path):
    """Each field of `Recipe` that is an option can be given to plan, mix and sweep."""
    commands = typer.main.get_command(app).commands
    for name in ("plan", "mix", "sweep"):
        flags = {flag for parameter in commands[name].params for flag in parameter.opts}
        for field, option in options(Recipe).items():
            assert f"--{option.flag or field}" in flags


def test_lists_are_added_and_texts_replaced(tmp_path):
    """Choices go with a recipe file; its lists are kept."""
    recipe = Recipe("n", [Delta("p", "b")], dtype="F32", graft=["a"], head="drop")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    choices = Choices({"graft": ["b"], "dtype": "auto"})
    found = RecipeOptions(file=path, choices=choices).recipe()
    assert (found.graft, found.dtype, found.head) == (("a", "b"), None, "drop")
    for name in ("post", "base", "delta", "new_base", "scale", "preset"):
        with pytest.raises(UsageError, match="options for the same thing"):
            RecipeOptions(file=path, **{name: 0}).recipe()
