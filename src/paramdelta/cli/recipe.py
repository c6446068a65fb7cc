"""The options that several commands share, and a Recipe from them or from a YAML file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from paramdelta.recipe import Recipe

RecipeFile = Annotated[
    Path | None, typer.Argument(metavar="[RECIPE.yaml]", help="A recipe instead of the options.")
]
Post = Annotated[
    str | None,
    typer.Option(metavar="P", help="Post-trained model: folder, .safetensors file or Hub id."),
]
Base = Annotated[str | None, typer.Option(metavar="B", help="The base that it was trained from.")]
NewBase = Annotated[str | None, typer.Option(metavar="N", help="The base that is to get the Δ.")]
Scale = Annotated[float | None, typer.Option(metavar="α", help="Factor of the Δ.  [default: 1.0]")]
DType = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="Output dtype: auto (as the new base), bf16, f16, f32, f64."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE", help="Accept a refused finding; may be given several times."),
]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory beyond the interpreter and its libraries.")
]
Workers = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=256, help="Threads.  [default: as processors]")
]
ShardSize = Annotated[str, typer.Option(metavar="SIZE", help="Largest weight file.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]


def make_recipe(
    file: Path | None,
    post: str | None,
    base: str | None,
    new_base: str | None,
    scale: float | None,
    dtype: str | None,
    allow: list[str] | None,
) -> "Recipe":
    """A Recipe from a YAML file or from options; ``--allow`` and ``--dtype`` go with both.

    Raises:
        UsageError: neither or both were given, or an option is missing.
    """
    from paramdelta.dtypes import parse_dtype
    from paramdelta.errors import UsageError
    from paramdelta.recipe import Delta, Recipe, read_recipe

    chosen_dtype = parse_dtype(dtype) if dtype is not None else None
    if file is not None:
        if any(option is not None for option in (post, base, new_base, scale)):
            raise UsageError(
                "a recipe file and options for the same thing",
                expected="either RECIPE.yaml, or --post, --base, --new-base and --scale",
            )
        recipe = read_recipe(file)
        return Recipe(
            recipe.new_base,
            recipe.deltas,
            chosen_dtype if dtype is not None else recipe.dtype,
            (*recipe.allow, *(allow or ())),
        )
    options = {"--post": post, "--base": base, "--new-base": new_base}
    missing = [name for name, value in options.items() if value is None]
    if missing or post is None or base is None or new_base is None:
        raise UsageError(
            "missing " + ", ".join(missing),
            expected="--post P --base B --new-base N, or RECIPE.yaml",
        )
    delta = Delta(post, base, 1.0 if scale is None else scale)
    return Recipe(new_base, (delta,), chosen_dtype, tuple(allow or ()))
