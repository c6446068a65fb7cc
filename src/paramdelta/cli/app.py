"""All commands together, and the one place where errors become exit codes.

Exit codes: 0 done, 2 usage, 3 the inputs do not fit together (or an output is not as it should be),
4 I/O, 130 interrupted and resumable.
"""

import contextlib
import copy
import gc
import io
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from paramdelta.cli import (
    analyze,
    card,
    chat,
    check,
    clean,
    demo,
    evaluate,
    extract,
    mix,
    plan,
    recipe,
    serve,
    sweep,
    verify,
)
from paramdelta.cli.flags import with_flags
from paramdelta.cli.options import Stopped, flat
from paramdelta.cli.show.events import emit
from paramdelta.cli.show.terminal import say
from paramdelta.errors import Explained, Interrupted, ParamDeltaError, StorageError, UsageError
from paramdelta.storage.local import storage_error
from paramdelta.version import __version__

_INTERRUPTED = 130

app = typer.Typer(
    name="paramdelta",
    help="Give a new base model the abilities of an old post-trained one, with no training: "
    "Θ = Θ_new_base + α · (Θ_post − Θ_base).",
    epilog="Exit codes: 0 done · 2 usage · 3 the inputs do not fit together · 4 I/O · "
    "130 interrupted and resumable.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (
    plan.plan,
    analyze.analyze,
    mix.mix,
    sweep.sweep,
    verify.verify,
    check.check,
    extract.extract,
    evaluate.evaluate,
    chat.chat,
    serve.scale,
    card.card,
    clean.clean,
    demo.demo,
):
    app.command(command.__name__)(flat(command))
app.command("serve", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(
    serve.serve
)
recipes = typer.Typer(help="What a recipe says.", no_args_is_help=True, rich_markup_mode=None)
recipes.command("show")(recipe.show)
recipes.command("import")(recipe.import_)
app.add_typer(recipes, name="recipe")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"paramdelta {__version__}")
        raise typer.Exit


def _schema(wanted: bool) -> None:
    if wanted:
        from importlib.resources import files

        text = (files("paramdelta.cli") / "events.schema.json").read_text(encoding="utf-8")
        say(*text.splitlines(), asked=True)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    json_schema: Annotated[
        bool,
        typer.Option(
            "--json-schema",
            callback=_schema,
            is_eager=True,
            help="Show the JSON Schema of what --json prints, and exit.",
        ),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; every error ends as its message and its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(50_000, 20, 50)  # what a command imports and plans stays: collect less often
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="replace")  # what a terminal lacks is shown as "?"
    with _ends_like_ctrl_c():
        code = _run(arguments)
    sys.exit(code)


@contextlib.contextmanager
def _ends_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP end the work as Ctrl-C does: in order, resumable, and with a message.

    Signals that are ignored, as under nohup, or handled by whoever calls this, stay so.
    """
    changed = []
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(number, signal.default_int_handler)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _run(arguments: list[str]) -> int:
    """Run the command line; the exit code."""
    as_json = "--json" in arguments
    try:
        code = app(arguments, standalone_mode=False)
        if code == _INTERRUPTED:
            say("interrupted", err=True)
        return code or 0
    except (ParamDeltaError, Interrupted) as error:
        return _report(flagged(error), as_json)
    except Stopped as stopped:
        return _report(flagged(stopped.error), as_json)
    except MemoryError:
        return _report(
            StorageError(
                "not enough memory",
                code="out-of-memory",
                remedy="close other programs, or give the machine more memory",
            ),
            as_json,
        )
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else "unknown"
        return _report(storage_error(error, where, "use"), as_json)
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted", err=True)
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a mistake in a command line, or a fault of ours
        if type(error).__name__ == "NoArgsIsHelpError":
            say(*str(error).splitlines(), err=True)
            return UsageError.exit_code
        if hasattr(error, "format_message"):
            return _report(_misused(error), as_json)
        if as_json:
            got = "".join(traceback.format_exception_only(error)).strip()
            emit("error", exit_code=1, kind="InternalError", code="internal-error", what=got)
        # Its text may come from a file.
        say(*traceback.format_exc().splitlines(), err=True)
        say("this is a fault of paramdelta: please report it", err=True)
        return 1


def _report(error: Explained, as_json: bool) -> int:
    if as_json:
        emit("error", exit_code=error.exit_code, **error.to_dict())
    else:
        say(*f"error: {error}".splitlines(), err=True)
    return error.exit_code


def _misused(error: Any) -> UsageError:
    """An error of the library that parses the command line, as one of ours."""
    near = getattr(error, "possibilities", None)
    if near:  # of options and commands, nearest first
        what = error.message if getattr(error, "option_name", None) else None
        what = what or error.format_message().partition(" Did you mean")[0]
        return UsageError(
            what.rstrip("."),
            code="invalid-command-line",
            remedy=f"did you mean {near[0]}?",
        )
    usage = " ".join(error.ctx.get_usage().split()) if error.ctx is not None else None
    return UsageError(
        " ".join(error.format_message().split()),
        code="invalid-command-line",
        expected=usage and usage.removeprefix("Usage: "),
        remedy=f"see {error.ctx.command_path} --help" if error.ctx is not None else None,
    )


def flagged(error: Explained) -> Explained:
    """The same error with options of the command line in its text."""
    shown = copy.copy(error)
    shown.what = with_flags(error.what)
    shown.expected = with_flags(error.expected)
    shown.remedy = with_flags(error.remedy)
    return shown
