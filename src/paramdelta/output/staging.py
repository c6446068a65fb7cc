"""Staging: a private folder on this machine for files on their way to a destination."""

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

from paramdelta.errors import BusyError, StorageError
from paramdelta.output.guard import Guard
from paramdelta.storage.local import storage_error
from paramdelta.units import show_size

_LOCK = "lock"


class Staging:
    """A new folder below ``parent``, which only this process uses, until `remove`.

    ``parent``: None for the system's folder for temporary files (TMPDIR). What killed runs of this
    machine left there is removed.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, parent: Path | None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        host = "".join(c for c in socket.gethostname() if c.isalnum())[:32] or "host"
        prefix = f"paramdelta-{host}-"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for left in parent.glob(prefix + "*"):
                _remove_left(left)
            self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        except OSError as error:
            raise storage_error(error, parent, "create a folder for") from None
        self._guard = Guard(self.folder / _LOCK, str(self.folder))

    def check_room(self, size: int) -> None:
        """Raise StorageError if the disk has less room than ``size`` bytes."""
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise StorageError(
                "too little free space for the files that are being made",
                code="staging-full",
                where=str(self.folder.parent),
                expected=show_size(size),
                got=show_size(free),
                remedy="choose another folder with `staging`, or a smaller `shard_size`",
            )

    def remove(self) -> None:
        """Remove the folder; may be called twice."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._guard.release()


def _remove_left(folder: Path) -> None:
    """Remove a folder whose process has ended; its lock says so."""
    with contextlib.suppress(BusyError, StorageError, OSError):
        found = folder.stat(follow_symlinks=False)
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            return
        if not (folder / _LOCK).exists():  # just being made, or removed
            return
        guard = Guard(folder / _LOCK, str(folder))
        if guard.held:
            shutil.rmtree(folder, ignore_errors=True)
        guard.release()
