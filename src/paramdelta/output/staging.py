"""A folder that appears whole or not at all, for what is made in one run and never resumed.

An output that can be resumed has a journal of what is done: see `files`.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from paramdelta.output.files import JOURNAL, put_in_place
from paramdelta.output.journal import Journal
from paramdelta.storage.local import storage_error, sync_folder


def staging_folder(out: Path) -> Path:
    """Where what is unfinished lives: a hidden sibling."""
    return out.parent / f".{out.name}.paramdelta-extract"


@contextlib.contextmanager
def whole_or_nothing(out: Path, kind: str) -> Iterator[Path]:
    """A hidden, empty folder beside ``out`` that takes its place when the block ends well.

    If the block or the end fails, nothing is left. ``kind``: what is made, in the journal that
    keeps a second run away.

    Raises:
        MisfitError: another run is writing it.
        StorageError: the folder cannot be made or put in place, or the block raised an OSError.
    """
    staging = staging_folder(out)
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, staging, "make") from None
    journal = Journal(staging / JOURNAL, {"digest": kind, "sources": [], "shards": []})
    try:
        for path in staging.iterdir():  # what a killed run left
            if path.name != JOURNAL:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield staging
        sync_folder(staging)
        put_in_place(staging, out)
        journal.close()
        with contextlib.suppress(OSError):
            (out / JOURNAL).unlink()
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        journal.close()
        if isinstance(error, OSError):
            raise storage_error(error, out, "write") from None
        raise
