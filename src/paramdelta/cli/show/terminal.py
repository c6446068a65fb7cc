"""Standard output and standard error: the one place that writes to them.

Lines hold names and values from files that strangers wrote. `say` escapes all of a line before it
adds a color, so no name can move the cursor, change colors or begin a line of its own.
"""

import errno
import os
import sys
from typing import TextIO

import typer

from paramdelta.errors import StorageError
from paramdelta.progress import paused
from paramdelta.text import line as escaped
from paramdelta.text import spoken

_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether `say` leaves out what is not asked for: progress and what goes well."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """See `be_quiet`."""
    return _quiet


def say(
    *lines: str,
    head: str = "",
    color: str | None = None,
    bold: bool = False,
    err: bool = False,
    asked: bool = False,
) -> None:
    """Print lines. Line feeds and all other unsafe characters in a line become escapes.

    ``head``: the start of the first line, which alone is styled; without it, all lines are styled.
    ``err``: print to standard error. ``asked``: print even with --quiet. If the reader of a pipe
    has gone, the line is dropped and the work goes on.

    Raises:
        StorageError: the line cannot be written, for example because the disk is full.
    """
    if _quiet and not (err or asked):
        return
    styled = color is not None or bold
    for number, text in enumerate(lines or ("",)):
        safe, start = escaped(text), escaped(head) if number == 0 else ""
        if styled and head:
            start = typer.style(start, fg=color, bold=bold or None) if start else ""
        elif styled:
            safe = typer.style(safe, fg=color, bold=bold or None)
        _write(start + safe, err)


def stream(text: str) -> None:
    """Print a piece of what a model says at once, lines kept and other unsafe characters escaped.

    Raises as `say`.
    """
    _write(spoken(text), err=False, end="")


def _write(text: str, err: bool, end: str = "\n") -> None:
    try:
        with paused():
            typer.echo(text + end, err=err, nl=False)
    except OSError as error:
        stream = sys.stderr if err else sys.stdout
        _silence(stream)  # or the same failure comes again when Python flushes it at the end
        if error.errno == errno.EPIPE or err:
            return
        raise StorageError(
            "cannot write to the standard output",
            code="output-stream-failed",
            where="standard output",
            got=error.strerror,
            remedy="send the output elsewhere",
        ) from None


def _silence(stream: TextIO) -> None:
    """Send what is written to a stream from now on, or is left in its buffer, to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
