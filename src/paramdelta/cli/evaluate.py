"""`paramdelta evaluate`: how much of direct post-training came across."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paramdelta.cli.options import Json, RecipeOptions

if TYPE_CHECKING:
    from paramdelta.recipe import Recipe


def evaluate(
    recipe: RecipeOptions,
    suite: Annotated[
        str,
        typer.Option(metavar="NAME|FILE", help="Which tasks: paper, quick, demo, text, or a file."),
    ] = "quick",
    models: Annotated[
        str,
        typer.Option(
            metavar="M,…",
            help="Roles of the recipe, and others as name=ADDRESS, such as direct=org/name.",
        ),
    ] = "base,post,new-base,paramdelta",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The data sets; without it, those of the Hub. For text: a file or a folder.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep what is finished, and write the report here."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most N questions of each task.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="α,…", help="Evaluate the mix at each of these scales.")
    ] = None,
    pick: Annotated[
        bool,
        typer.Option(
            "--pick",
            help="Choose the scale on every other question, and report it on the rest.",
        ),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Published scores, to stand beside these."),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, help="Questions that are asked together.")
    ] = 8,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="Where models run: cpu, cuda, auto, …")
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution", help="Run the programs that models write, confined."
        ),
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that models bring.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Ask base, post, new base and the mix the questions of a suite, and compare them.

    The mix is made in memory. Needs lm-evaluation-harness: pip install "paramdelta[evaluate]". A
    run that was killed is continued by the same command with the same --out. Exits with 3 if a
    score is missing; all others are reported.
    """
    from paramdelta.cli.show.evaluation import show_evaluation
    from paramdelta.cli.show.progress import reporter
    from paramdelta.engine.job import Progress
    from paramdelta.errors import UsageError
    from paramdelta.evaluation.evaluator import evaluate as run
    from paramdelta.evaluation.output import write_report
    from paramdelta.evaluation.pick import pick as choose
    from paramdelta.evaluation.reference import read_reference

    if suite == "text":
        _texts(recipe, models, sweep, data, out, limit, device, trust_remote_code, as_json)
        return
    scales = _scales(sweep)
    if pick and len(scales) < 2:
        raise UsageError(
            "a pick needs several scales", code="missing-option", expected="--sweep 0.5,1.0 --pick"
        )
    published = read_reference(reference) if reference is not None else None
    with reporter("evaluating", as_json) as progress:
        found = run(
            _recipe(recipe),
            suite,
            models=_names(models),
            scales=scales,
            data_folder=data,
            out=out,
            limit=limit,
            batch=batch,
            device=device,
            allow_code_execution=allow_code_execution,
            trust_remote_code=trust_remote_code,
            progress=lambda now: progress.update(
                Progress(now.done, now.total, 0, 0, f"{now.model}, {now.task}"), now.left
            ),
        )
    picked = choose(found) if pick else None
    read = write_report(found, picked, out, published)
    show_evaluation(read, out, as_json)
    if found.failures:
        raise typer.Exit(3)


def _texts(
    recipe: RecipeOptions,
    models: str,
    sweep: str | None,
    file: Path | None,
    out: Path | None,
    limit: int | None,
    device: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """The suite "text"."""
    from paramdelta.cli.show.evaluation import show_texts
    from paramdelta.errors import UsageError
    from paramdelta.evaluation.output import write_texts
    from paramdelta.evaluation.text import PIECES, compare_texts

    if file is None:
        raise UsageError("missing --data", code="missing-option", expected="a file or a folder")
    found = compare_texts(
        _recipe(recipe),
        file,
        models=_names(models),
        scales=_scales(sweep),
        pieces=limit or PIECES,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    write_texts(found, out)
    show_texts(found, as_json)


def _recipe(options: RecipeOptions) -> "Recipe | None":
    given = (options.file, options.post, options.delta, options.new_base)
    return options.recipe() if any(each is not None for each in given) else None


def _names(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _scales(text: str | None) -> list[float]:
    from paramdelta.errors import UsageError

    try:
        return [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        raise UsageError(
            "invalid scales",
            code="invalid-scale",
            expected="numbers separated by commas: 0.5,0.75,1.0",
            got=text,
        ) from None
