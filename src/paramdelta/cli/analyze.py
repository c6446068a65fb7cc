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
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page with figures that opens offline."),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RECIPE.yaml", help="Put another recipe beside it in the report; repeatable."
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the figures as PNG files (needs matplotlib)."),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the table of tensors as Parquet (needs pyarrow)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure Δ = Θ_post − Θ_base beside the shift S = Θ_new_base − Θ_base, layer by layer.

    One streamed pass; nothing is written. Without --new-base only Δ is measured. Instead of
    RECIPE.yaml, a folder that mix wrote: its lock names the sources.
    """
    if spectra:  # before numpy is imported: a BLAS with threads of its own is 20 times slower here
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from paramdelta import api
    from paramdelta.cli.show.analysis import show_analysis, show_report
    from paramdelta.cli.show.progress import reporter
    from paramdelta.errors import UsageError
    from paramdelta.output.pagefile import check_page, write_page
    from paramdelta.recipe import read_recipe

    if compare and report is None:
        raise UsageError(
            "recipes are put side by side in a report",
            code="missing-option",
            expected="--report FILE.html",
        )
    if report is not None:
        check_page(report)
    sources = [
        _source(recipe),
        *(path if path.is_dir() else read_recipe(path) for path in compare or ()),
    ]
    results = []
    for source in sources:
        with reporter("analyzing", as_json) as progress:
            result = api.analyze(
                source,
                spectra=spectra,
                memory=run.memory,
                workers=run.workers,
                progress=progress.mix,
            )
        show_analysis(result, predict, as_json)
        results.append(result)
    if png is not None:
        from paramdelta.analysis.report.png import write_png

        for written in write_png(results[0], png):
            show_report(written, as_json)
    if parquet is not None:
        from paramdelta.analysis.parquet import write_parquet

        write_parquet(results[0], parquet)
        show_report(parquet, as_json)
    if report is not None:
        from paramdelta.analysis.report.page import page

        first = recipe.file.name if recipe.file is not None else "options"
        names = [first, *(path.name for path in compare or ())]
        write_page(report, page(results, names, predict=predict))
        show_report(report, as_json)


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
