"""`paramdelta analyze`: what the Δs of a recipe are like."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paramdelta.cli.options import Json, RecipeOptions, RunOptions

if TYPE_CHECKING:
    from paramdelta.recipe import Recipe


def analyze(
    recipe: RecipeOptions,
    run: RunOptions,
    spectra: Annotated[
        bool,
        typer.Option("--spectra", help="Singular values as well: further passes, minutes a GB."),
    ] = False,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="The transfer that this project's study expects."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure Δ = Θ_post − Θ_base beside the shift S = Θ_new_base − Θ_base, layer by layer.

    One streamed pass; nothing is written. Without --new-base only Δ is measured. Instead of
    RECIPE.yaml, a folder that mix wrote: its lock names the sources.
    """
    if (
        spectra
    ):  # before numpy is imported: threads of a BLAS within our threads are 20 times slower
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from paramdelta import api
    from paramdelta.cli.show.analysis import show_analysis
    from paramdelta.cli.show.progress import reporter

    with reporter("analyzing", as_json) as progress:
        result = api.analyze(
            _source(recipe),
            spectra=spectra,
            memory=run.memory,
            workers=run.workers,
            progress=progress.mix,
        )
    show_analysis(result, predict, as_json)


def _source(recipe: RecipeOptions) -> "Recipe | tuple[str, str] | Path":
    if recipe.file is not None and recipe.file.is_dir():
        from paramdelta.errors import UsageError

        if recipe.post or recipe.base or recipe.delta or recipe.new_base or recipe.choices.given:
            raise UsageError(
                "the lock of an output says how it was made, so other options have no effect",
                code="option-without-effect",
                where=str(recipe.file),
                remedy="leave them out",
            )
        return recipe.file
    alone = recipe.file is None and recipe.new_base is None
    if alone and recipe.post is not None and recipe.base is not None:
        return recipe.post, recipe.base
    return recipe.recipe()
