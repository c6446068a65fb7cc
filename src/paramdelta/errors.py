"""Everything that paramdelta raises on purpose.

::

    ParamDeltaError                exit code
    ├── UsageError                 2    an option, an address or a recipe that is not valid
    ├── MisfitError                3    the inputs do not fit together, or not the output's state
    │   ├── CheckpointError        3    a file is not the checkpoint that it claims to be
    │   └── BusyError              3    another run is using the output
    ├── StorageError               4    the disk, the file system or the network failed
    └── Interrupted                130  stopped by the user; the same command resumes

Each error says what is wrong, where, what was expected and what was got, and what to do.
"""

from paramdelta.text import printable


class ParamDeltaError(Exception):
    """Base of all errors that are meant for the user.

    ``what`` is one line; ``where`` names the checkpoint, file or tensor; ``remedy`` says what to
    do. ``str()`` gives them together, a line each.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.remedy = remedy

    def to_dict(self) -> dict[str, str | None]:
        """The error as plain values, for machines."""
        return {
            "kind": type(self).__name__,
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
        return "\n".join(printable(line).replace("\n", "\n      ") for line in lines)


class UsageError(ParamDeltaError):
    """An option, an address or a recipe that cannot be meant."""

    exit_code = 2


class MisfitError(ParamDeltaError):
    """The inputs do not fit together, or the output is not in a state that the command can use."""

    exit_code = 3


class CheckpointError(MisfitError):
    """A file is not the checkpoint that it claims to be: truncated, malformed or hostile."""


class BusyError(MisfitError):
    """Another run is using the output."""


class StorageError(ParamDeltaError):
    """The disk, the file system or the network failed."""

    exit_code = 4


class Interrupted(ParamDeltaError):
    """Stopped by the user; what is done is kept and the same command goes on from there."""

    exit_code = 130
