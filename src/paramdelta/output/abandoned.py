"""What runs left that were killed and never resumed: hidden folders and journals."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paramdelta.errors import BusyError, StorageError
from paramdelta.output.guard import Guard
from paramdelta.storage.local import storage_error

_PARTIAL, _JOURNAL, _LOCK = (f".paramdelta-{kind}" for kind in ("partial", "journal", "lock"))


@dataclass(frozen=True)
class Abandoned:
    """An unfinished output.

    ``out``: where it would have been. ``size``: bytes on disk. ``changed``: when, in seconds since
    1970. ``busy``: a run is writing it at this moment, or nobody can tell.
    """

    out: Path
    size: int
    changed: float
    busy: bool

    @property
    def folder(self) -> Path:
        """The hidden folder with the files that are done."""
        return self._beside(_PARTIAL)

    def remove(self) -> None:
        """Remove folder and journal, unless a run has begun to use them meanwhile.

        Raises:
            BusyError: a run is using them, or the file system has no locks.
            StorageError: they cannot be removed.
        """
        guard = _hold(self)
        try:
            if self.folder.is_dir():
                shutil.rmtree(self.folder)
            self._beside(_JOURNAL).unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, self.folder, "remove") from None
        finally:
            guard.release()

    def _beside(self, suffix: str) -> Path:
        return self.out.with_name(f".{self.out.name}{suffix}")


def find_abandoned(folder: Path) -> Iterator[Abandoned]:
    """The unfinished outputs in a folder, by name. Links are left alone, and what others own.

    Raises:
        StorageError: the folder cannot be listed.
    """
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths
    except OSError as error:
        raise storage_error(error, folder, "list") from None
    found = dict.fromkeys(
        name.removesuffix(suffix)[1:]
        for name in names
        for suffix in (_PARTIAL, _JOURNAL)
        if name.startswith(".") and name.endswith(suffix) and _is_ours(folder / name, suffix)
    )
    for name in filter(None, found):
        one = Abandoned(folder / name, 0, 0.0, False)
        files = [one.folder, *one.folder.rglob("*"), one._beside(_JOURNAL)]
        about = [path.lstat() for path in files if os.path.lexists(path)]
        size = sum(each.st_blocks * 512 for each in about)
        yield Abandoned(one.out, size, max(each.st_mtime for each in about), _is_busy(one))


def _is_ours(path: Path, suffix: str) -> bool:
    about = path.lstat()
    kind = path.is_dir() if suffix == _PARTIAL else path.is_file()
    mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return kind and mine and not path.is_symlink()


def _is_busy(one: Abandoned) -> bool:
    try:
        _hold(one).release()
    except (BusyError, StorageError):
        return True
    return False


def _hold(one: Abandoned) -> Guard:
    guard = Guard(one._beside(_LOCK), str(one.out))
    if not guard.held:
        guard.release()
        raise BusyError(
            "this file system has no locks, so nobody can tell whether a run is using it",
            code="output-busy",
            where=str(one.out),
            remedy="remove it by hand when no run is writing",
        )
    return guard
