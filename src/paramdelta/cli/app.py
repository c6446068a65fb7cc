"""The commands put together, and the one place where errors become exit codes.

Exit codes: 0 done, 2 usage, 3 the inputs do not fit together (or an output is not what it should
be), 4 I/O, 130 interrupted and resumable.
"""

import json
import os
import sys
from typing import Annotated

import typer

from paramdelta.cli import check, demo, extract, formula, mergekit, mix, plan, sweep, verify
from paramdelta.errors import ParamDeltaError
from paramdelta.version import __version__

app = typer.Typer(
    name="paramdelta",
    help="Give a new base model the abilities of an old post-trained one, with no training: "
    "Θ = Θ_new_base + α · (Θ_post − Θ_base).",
    epilog="Exit codes: 0 done · 2 usage · 3 the inputs do not fit together · 4 I/O · "
    "130 interrupted and resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command("plan")(plan.plan)
app.command("mix")(mix.mix)
app.command("sweep")(sweep.sweep)
app.command("verify")(verify.verify)
app.command("check")(check.check)
app.command("extract")(extract.extract)
app.command("demo")(demo.demo)
recipe = typer.Typer(help="What a recipe says.", no_args_is_help=True, rich_markup_mode=None)
recipe.command("show")(formula.show)
recipe.command("import")(mergekit.import_)
app.add_typer(recipe, name="recipe")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paramdelta {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; a ParamDeltaError ends as its message and its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments)
    except ParamDeltaError as error:
        if "--json" in arguments:
            typer.echo(
                json.dumps(
                    {
                        "event": "error",
                        "kind": type(error).__name__,
                        "exit_code": error.exit_code,
                        "what": error.what,
                        "where": error.where,
                        "expected": error.expected,
                        "got": error.got,
                        "remedy": error.remedy,
                    }
                )
            )
        else:
            typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
