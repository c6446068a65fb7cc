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
    typer.Option(
        metavar="P", help="Post-trained model or LoRA adapter: folder, weight file or Hub id."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(metavar="B", help="The base that it was trained from; an adapter needs none."),
]
StoredDelta = Annotated[
    str | None,
    typer.Option(
        "--delta", metavar="Δ", help="A Δ that extract stored, in the place of --post and --base."
    ),
]
NewBase = Annotated[str | None, typer.Option(metavar="N", help="The base that is to get the Δ.")]
Scale = Annotated[float | None, typer.Option(metavar="α", help="Factor of the Δ.  [default: 1.0]")]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Give the Δ to some tensors only: linear-only, skip-embeddings, attention-only, "
        "mlp-only, experts-only.",
    ),
]
DType = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="Output dtype: auto (as the new base; FP8 as bf16), bf16, f16, f32, f64, or fp8-block "
        "(as the new base, its FP8 weights with fresh scales).",
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="CODE", help="Accept a refused finding; may be given several times."),
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="How rows of tokens correspond: auto (by id where the tokenizers agree, else by "
        "token), id, token, new-base (its rows as they are).",
    ),
]
Graft = Annotated[
    list[str] | None,
    typer.Option(metavar="TOKEN", help="Add a token that only post has; repeatable."),
]
Take = Annotated[
    list[str] | None,
    typer.Option(metavar="TOKEN", help="Post's row outright for a token of both; repeatable."),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="RULE",
        help="Names of post and base as the new base has them: 'model.* -> "
        "language_model.model.*', or auto; repeatable.",
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="An output head of its own where the new base's is tied: untie it, or drop its Δ.",
    ),
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
    vocabulary: str | None = None,
    graft: list[str] | None = None,
    take: list[str] | None = None,
    maps: list[str] | None = None,
    head: str | None = None,
    preset: str | None = None,
    delta: str | None = None,
) -> "Recipe":
    """A Recipe from a YAML file or from options; what is no checkpoint and no scale goes with both.

    Raises:
        UsageError: neither or both were given, or an option is missing.
    """
    from dataclasses import replace

    from paramdelta.dtypes import parse_dtype
    from paramdelta.errors import UsageError
    from paramdelta.recipe import Delta, Recipe, read_recipe
    from paramdelta.recipe.schedule import preset as only

    if file is not None:
        if any(option is not None for option in (post, base, delta, new_base, scale, preset)):
            raise UsageError(
                "a recipe file and options for the same thing",
                expected="either RECIPE.yaml, or --post, --base, --new-base, --scale and --preset",
            )
        recipe = read_recipe(file)
    else:
        if (post is None and delta is None) or new_base is None:
            options = {"--post": post or delta, "--new-base": new_base}
            raise UsageError(
                "missing " + ", ".join(name for name, value in options.items() if value is None),
                expected="--post P --base B --new-base N, --delta Δ --new-base N, or RECIPE.yaml",
            )
        size = 1.0 if scale is None else scale
        factor = size if preset is None else only(preset, size, "--preset")
        recipe = Recipe(new_base, (Delta(post or "", base, factor, delta),))
    return replace(
        recipe,
        dtype=recipe.dtype if dtype is None else parse_dtype(dtype),
        allow=(*recipe.allow, *(allow or ())),
        vocabulary=vocabulary or recipe.vocabulary,
        graft=(*recipe.graft, *(graft or ())),
        take=(*recipe.take, *(take or ())),
        maps=(*recipe.maps, *(maps or ())),
        head=head or recipe.head,
    )
