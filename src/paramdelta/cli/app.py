"""All commands together, and the one place where errors become exit codes.

Exit codes: 0 done, 2 usage, 3 the inputs do not fit together (or an output is not as it should be),
4 I/O, 130 interrupted and resumable.
"""

import copy
import gc
import io
import os
import sys
from typing import Annotated

import typer

from paramdelta.cli import check, demo, extract, mix, plan, recipe, sweep, verify
from paramdelta.cli.flags import with_flags
from paramdelta.cli.options import flat
from paramdelta.cli.show.events import emit
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
for command in (
    plan.plan,
    mix.mix,
    sweep.sweep,
    verify.verify,
    check.check,
    extract.extract,
    demo.demo,
):
    app.command(command.__name__)(flat(command))
recipes = typer.Typer(help="What a recipe says.", no_args_is_help=True, rich_markup_mode=None)
recipes.command("show")(recipe.show)
recipes.command("import")(recipe.import_)
app.add_typer(recipes, name="recipe")


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
    gc.set_threshold(50_000, 20, 50)  # what a command imports and plans stays: collect less often
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?"
    try:
        app(arguments)
    except ParamDeltaError as error:
        error = flagged(error)
        if "--json" in arguments:
            emit("error", exit_code=error.exit_code, **error.to_dict())
        else:
            typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def flagged(error: ParamDeltaError) -> ParamDeltaError:
    """The same error with options of the command line in its text."""
    shown = copy.copy(error)
    shown.what = with_flags(error.what)
    shown.expected = with_flags(error.expected)
    shown.remedy = with_flags(error.remedy)
    return shown
