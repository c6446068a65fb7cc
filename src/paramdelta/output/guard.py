"""Exclusive use of an output: a lock that is taken before anything is changed, and kept to the end.

The lock is a file beside the output, not inside the folder that it guards. It is removed by the run
that holds it; a run that was killed leaves an unlocked file, which the next run takes over.
"""

import contextlib
import errno
import os
from pathlib import Path

from paramdelta.errors import BusyError
from paramdelta.storage.local import storage_error

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Guard:
    """Holds a lock file until `release`.

    ``held``: whether the lock is real; False on file systems without locks, where nothing keeps a
    second run away.

    Raises:
        BusyError: another run holds it.
        StorageError: the file cannot be created.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.held = True
        while True:
            try:
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                self._descriptor = os.open(path, flags, 0o600)
            except OSError as error:
                raise storage_error(error, path, "create the lock") from None
            try:
                self.held = _lock(self._descriptor)
            except BlockingIOError:
                os.close(self._descriptor)
                raise BusyError(
                    "another run is writing this output",
                    code="output-busy",
                    where=what,
                    remedy="wait for it, or choose another output folder",
                ) from None
            if self._is_current():
                return
            os.close(self._descriptor)  # its holder removed it between open and lock

    def release(self) -> None:
        """Remove the file and let the next run in; may be called twice."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_current(self) -> bool:
        try:
            found = self.path.stat(follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._descriptor))


def _lock(descriptor: int) -> bool:
    """Lock a file; whether that is possible. Raises BlockingIOError if another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows: the open handle keeps others from deleting the file
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError from None
        raise
    return True
