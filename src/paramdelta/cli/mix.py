"""`paramdelta mix`: write the mix as a checkpoint."""

from typing import Annotated

import typer

from paramdelta.cli.options import (
    CheckOptions,
    Json,
    OutputOptions,
    RecipeOptions,
    RunOptions,
)


def mix(
    recipe: RecipeOptions,
    output: OutputOptions,
    run: RunOptions,
    looking: CheckOptions,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The folder to write; or its URL: s3://, gs:// or az://.  [required]",
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Make part I of N only, as several machines do at once; auto: as Slurm or "
            "Kubernetes say.",
        ),
    ] = None,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish", help="Put the output in place once all parts are made; may be repeated."
        ),
    ] = False,
    staging: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where shards are made that go elsewhere, three at a time.  [default: the folder "
            "for temporary files]",
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME", help="Push the output to this repository on the Hub, not --out."
        ),
    ] = None,
    branch: Annotated[
        str | None, typer.Option(metavar="B", help="The branch to push to.  [default: main]")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is created, make it private.")
    ] = False,
    engine: Annotated[
        str,
        typer.Option(metavar="NAME", help="threads of this process, or ray: tasks of a cluster."),
    ] = "threads",
    ray_address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The Ray cluster; auto: the one of this machine.")
    ] = "auto",
    report: Annotated[
        bool,
        typer.Option("--report", help="Analyze the Δs first; put the page beside the weights."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Mix checkpoints: Θ = Θ_new_base + α · (Θ_post − Θ_base), exactly, all or nothing.

    A run that was killed is resumed by the same command.
    """
    from paramdelta import api
    from paramdelta.cli.show.plan import show_start
    from paramdelta.cli.show.progress import reporter
    from paramdelta.cli.show.results import show_mix, show_part
    from paramdelta.errors import UsageError
    from paramdelta.output.place import check_out

    if push is not None and out is not None:
        raise UsageError("--push and --out exclude each other", code="options-exclude-each-other")
    if push is None and (private or branch is not None):
        raise UsageError(
            "--private and --branch are options of --push",
            code="option-without-effect",
            remedy="pass --push ORG/NAME",
        )
    if push is not None:
        out = f"hf://{push}@{branch}" if branch is not None else f"hf://{push}"
    if out is None:
        raise UsageError(
            "missing --out",
            code="missing-option",
            expected="--out DIR, the folder to write; or --push ORG/NAME",
        )
    if part is not None and report:
        raise UsageError(
            "a part has no report",
            code="report-with-part",
            remedy="pass --report with --finish, which writes the small files",
        )
    check_out(out)
    several = part is not None or finish
    if (part is not None and finish) or (several and (output.fresh or engine != "threads")):
        raise UsageError(
            "--part, --finish, --fresh and --engine exclude each other",
            code="options-exclude-each-other",
            remedy="run all parts, then --finish; to start again, remove the unfinished run first",
        )
    if several and output.keep_downloads:
        raise UsageError(
            "--keep-downloads is not for parts",
            code="option-without-effect",
            remedy="download the models on each machine first: hf download ORG/NAME",
        )
    plan = api.plan(recipe.recipe())
    show_start(plan, as_json)
    with reporter("mixing", as_json) as progress:
        if part is not None:
            made = api.mix_part(
                plan,
                out,
                part,
                shard_size=output.shard_size,
                memory=run.memory,
                workers=run.workers,
                overwrite=output.overwrite,
                strict=looking.strict,
                staging=staging,
                private=private,
                progress=progress.mix,
            )
        elif finish:
            result = api.finish_mix(
                plan,
                out,
                shard_size=output.shard_size,
                memory=run.memory,
                workers=run.workers,
                overwrite=output.overwrite,
                check=looking.check,
                strict=looking.strict,
                staging=staging,
                report=report,
                private=private,
                progress=progress.mix,
            )
        else:
            result = api.mix(
                plan,
                out,
                shard_size=output.shard_size,
                memory=run.memory,
                workers=run.workers,
                overwrite=output.overwrite,
                fresh=output.fresh,
                check=looking.check,
                strict=looking.strict,
                keep_downloads=output.keep_downloads,
                staging=staging,
                report=report,
                private=private,
                engine=engine,
                ray_address=ray_address,
                progress=progress.mix,
            )
    if part is not None:
        show_part(made, as_json)
    else:
        show_mix(result, as_json)
