"""A report as a file: a page takes the place of an earlier page, and of nothing else."""

from pathlib import Path

from paramdelta.errors import UsageError
from paramdelta.storage.local import write_text

MARK = '<meta name="generator" content="paramdelta">'
_HEAD = 2000  # bytes of a file in which the mark stands


def check_page(path: Path) -> None:
    """Raise UsageError unless a page can be written there: a new file, or an earlier page."""
    if not path.parent.is_dir():
        raise UsageError(
            "the folder for the report does not exist",
            code="no-folder",
            where=str(path.parent),
            expected="a folder",
            remedy="make it first",
        )
    if path.is_symlink() or path.exists():
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if MARK.encode() in file.read(_HEAD):
                    return
        raise UsageError(
            "something else is there, which a report does not replace",
            code="report-exists",
            where=str(path),
            expected="a new file, or an earlier report",
            remedy="choose another name",
        )


def write_page(path: Path, text: str) -> None:
    """Write a page; raises UsageError, StorageError."""
    check_page(path)
    write_text(path, text)
