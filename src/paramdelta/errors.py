"""Everything that paramdelta raises on purpose.

::

    ParamDeltaError                exit code
    ├── UsageError                 2    an option, an address or a recipe that is not valid
    ├── MisfitError                3    the inputs do not fit together, or not the output's state
    │   ├── CheckpointError        3    a file is not the checkpoint that it claims to be
    │   └── BusyError              3    another run is using the output
    └── StorageError               4    the disk, the file system or the network failed

    Interrupted                    130  stopped by the user; the same call resumes

`Interrupted` is a KeyboardInterrupt, so that ``except Exception`` does not swallow Ctrl-C. Each
error says what is wrong, where, what was expected, what was found and what to do.
"""

from collections.abc import Iterable
from typing import Any

from paramdelta.text import line


def parameter(name: str, value: object) -> str:
    """A parameter and its value as they are written in an error or finding."""
    return f"`{name}={value!r}`" if "`" not in repr(value) else f"`{name}`"


def did_you_mean(text: str, known: Iterable[str]) -> str | None:
    """A remedy for a mistyped name: the nearest known one; None if none is near."""
    import difflib

    known = list(known)
    near = difflib.get_close_matches(text.replace("-", "_"), known, 1, 0.5)
    near = near or difflib.get_close_matches(text, known, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else None


class Explained(BaseException):
    """What all errors that are meant for the user share.

    ``what`` is one line. ``code`` is a stable name of the cause, for programs (docs/errors.md).
    ``where`` names the checkpoint, file or tensor; ``remedy`` says what to do. ``str()`` gives the
    text together, a line each.

    A parameter in the text is written as Python passes it, in backticks: `overwrite=True`. The
    command line shows its own option there.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        code: str,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.code = code
        self.where = where
        self.expected = expected
        self.got = got
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        # Jobs run in other processes, and exceptions are pickled by their positional arguments.
        return _restored, (type(self), self.args, self.__dict__)

    def to_dict(self) -> dict[str, str | None]:
        """The error as plain values, for machines."""
        return {
            "kind": type(self).__name__,
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
            "remedy": self.remedy,
        }

    def __str__(self) -> str:
        parts = [
            ("where", self.where),
            ("expected", self.expected),
            ("got", self.got),
            ("what to do", self.remedy),
        ]
        lines = [self.what, *(f"  {name}: {text}" for name, text in parts if text)]
        # Names from files are in there: none may move the cursor or begin a line of its own.
        return "\n".join(map(line, lines))


class ParamDeltaError(Explained, Exception):
    """Base of all errors that are meant for the user, except for `Interrupted`."""


class UsageError(ParamDeltaError):
    """An option, an address or a recipe that is not valid."""

    exit_code = 2


class MisfitError(ParamDeltaError):
    """The inputs do not fit together, or the output is not in a usable state."""

    exit_code = 3


class CheckpointError(MisfitError):
    """A file is not the checkpoint that it claims to be: truncated, malformed or hostile."""


class BusyError(MisfitError):
    """Another run is using the output."""


class StorageError(ParamDeltaError):
    """The disk, the file system or the network failed."""

    exit_code = 4


class Interrupted(Explained, KeyboardInterrupt):
    """Stopped by Ctrl-C, by a signal, or by a `progress` callback that raised KeyboardInterrupt.

    A mix or a sweep keeps what is done, and the same call continues.
    """

    exit_code = 130


def _restored(kind: type[Explained], args: tuple[Any, ...], state: dict[str, Any]) -> Explained:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error
