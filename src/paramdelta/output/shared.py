"""A destination: a folder on a file system that several machines share.

Everything is made in a hidden working folder beside the output::

    .NAME.paramdelta-parts/
      run.json          what the run is; made by the first part
      shards/           the record of each finished shard
      paramdelta-HOST-…/    shards that a part is making
      whole/            finished shards, and at the end the small files; it becomes the output

Nothing here needs locks: files appear under their names by renames and links, and two machines that
make the same shard make the same bytes.
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.errors import MisfitError, StorageError, UsageError
from paramdelta.output.destination import RUN
from paramdelta.output.journal import compare_runs, damaged_journal
from paramdelta.output.place import Place
from paramdelta.storage.local import storage_error, sync_folder, write_bytes

SHARDS = "shards"
WHOLE = "whole"
MOST_RECORD = 64_000_000  # bytes


class SharedFolder:
    """An output folder that several machines make; see `output.destination.Destination`.

    ``place``: as `find_place` gives it. ``mark``: the file that outputs of this kind have.
    ``overwrite``: replace a finished output that is there, once the new one is complete.
    """

    def __init__(self, place: Place, mark: str, overwrite: bool = False) -> None:
        self.work = place.staging.with_name(f".{place.out.name}.paramdelta-parts")
        self.place = replace(place, staging=self.work / WHOLE)
        self.mark = mark
        self.overwrite = overwrite
        self.where = str(place.out)
        self._run: Mapping[str, Any] = {}

    @property
    def staging(self) -> Path:
        """See `Destination`: a shard is renamed, not copied."""
        return self.work

    def finished(self) -> bytes | None:
        """See `Destination.finished`."""
        return _read(self.place.out / self.mark)

    def begin(self, run: Mapping[str, Any], fresh: bool) -> Mapping[str, bytes]:
        """See `Destination.begin`."""
        text = json.dumps(run)
        self._run = parse_json(text.encode())
        if self.place.replaces is not None and not self.overwrite:
            raise UsageError(
                "the output exists already",
                code="output-exists",
                where=self.where,
                remedy="choose another output folder, or pass `overwrite=True` to replace it once "
                "the new one is complete",
            )
        try:
            self.work.parent.mkdir(parents=True, exist_ok=True)
            if fresh and os.path.lexists(self.work):
                self._check_own()
                shutil.rmtree(self.work)
            self.place.check_unchanged()
            with contextlib.suppress(FileExistsError):
                self.work.mkdir(mode=0o700)
            self._check_own()
            for name in (SHARDS, WHOLE):
                (self.work / name).mkdir(exist_ok=True)
            if not (self.work / RUN).exists():
                _create(self.work / RUN, text.encode())
        except OSError as error:
            raise storage_error(error, self.work, "create") from None
        self._check_run()
        found = {}
        for path in sorted((self.work / SHARDS).rglob("*.json")):
            name = path.relative_to(self.work / SHARDS).as_posix()[: -len(".json")]
            record = _read(path)
            if record is not None and (self.place.staging / name).is_file():
                found[name] = record
        return found

    def ship(self, name: str, path: Path, record: bytes, stopped: Callable[[], bool]) -> None:
        """See `Destination.ship`."""
        target, noted = self.place.staging / name, self.work / SHARDS / f"{name}.json"
        try:
            self._check_run()
            if noted.exists() and target.exists():  # another machine made the same
                return
            with path.open("rb") as file:
                os.fsync(file.fileno())
            for folder in (target.parent, noted.parent):
                folder.mkdir(parents=True, exist_ok=True)
            path.chmod(0o666 & ~_umask())
            self._move(path, target, stopped)
            sync_folder(target.parent)
            _create(noted, record)
        except OSError as error:
            raise storage_error(error, target, "put in place") from None

    def publish(self, files: Mapping[str, bytes]) -> None:
        """See `Destination.publish`."""
        whole = self.place.staging
        try:
            self._check_run()
            self._check_shards(set(files))
            for name, data in files.items():
                target = whole / name
                with _aside(self.work) as aside:
                    write_bytes(aside, data)
                    aside.chmod(0o666 & ~_umask())
                    target.parent.mkdir(parents=True, exist_ok=True)
                    aside.replace(target)
            whole.chmod(0o777 & ~_umask())
            for folder, _, _ in os.walk(whole):
                sync_folder(Path(folder))
            old = self.place.publish()
            self.place.sync()
            if old is not None:
                self.place.remove_old(old, self.mark)
            left = sorted(path.name for path in whole.rglob("*")) if whole.exists() else []
            if not left:
                shutil.rmtree(self.work, ignore_errors=True)
        except (OSError, MisfitError) as error:
            if self.finished() == files[self.mark]:  # another machine was faster
                return
            if isinstance(error, MisfitError):
                raise
            raise storage_error(error, self.place.out, "finish") from None

    def close(self) -> None:
        """Nothing is held."""

    # -- what is there -----------------------------------------------------------------------------

    def _check_own(self) -> None:
        """Raise StorageError unless the working folder is a folder of this user."""
        found = self.work.stat(follow_symlinks=False)
        own = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
        if not stat.S_ISDIR(found.st_mode) or not own:
            raise StorageError(
                "the folder for the unfinished output is not one of this user's",
                code="foreign-partial-folder",
                where=str(self.work),
                remedy="remove it, or choose another output folder",
            )

    def _check_run(self) -> None:
        """Raise MisfitError if the unfinished run that is here is another one, or none."""
        data = _read(self.work / RUN)
        if data is None:
            raise MisfitError(
                "the unfinished output was finished or removed meanwhile",
                code="output-appeared",
                where=str(self.work),
                remedy="look whether the output is there; else run this again",
            )
        try:
            compare_runs(parse_json(data), self._run, str(self.work))
        except (ValueError, KeyError, TypeError):
            raise damaged_journal(str(self.work / RUN)) from None

    def _check_shards(self, small: set[str]) -> None:
        """Raise MisfitError unless the folder holds the run's shards, whole, and nothing else."""
        whole = self.place.staging
        wanted = {str(name): size for name, size in self._run["shards"]}
        found = {
            path.relative_to(whole).as_posix(): path.stat(follow_symlinks=False)
            for path in whole.rglob("*")
            if not path.is_dir() or path.is_symlink()
        }
        wrong = {n for n, size in wanted.items() if n not in found or found[n].st_size != size}
        wrong |= {n for n in found if n not in wanted and n not in small}
        wrong |= {n for n, entry in found.items() if not stat.S_ISREG(entry.st_mode)}
        if wrong:
            raise MisfitError(
                "the unfinished output does not hold the files that its parts wrote",
                code="partial-output-changed",
                where=str(whole),
                got=", ".join(sorted(wrong)[:4]),
                remedy="pass `fresh=True` to start again",
            )

    def _move(self, path: Path, target: Path, stopped: Callable[[], bool]) -> None:
        try:
            path.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with _aside(self.work) as aside:
                with path.open("rb") as read, aside.open("wb") as write:
                    while data := read.read(8 << 20):
                        if stopped():
                            raise InterruptedError(errno.EINTR, "stopped") from None
                        write.write(data)
                    write.flush()
                    os.fsync(write.fileno())
                aside.chmod(path.stat().st_mode)
                aside.replace(target)


def _create(path: Path, data: bytes) -> None:
    """Write a file, whole, if there is none."""
    with _aside(path.parent) as aside:
        write_bytes(aside, data)
        try:
            os.link(aside, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            if not path.exists():
                aside.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def _aside(folder: Path) -> Any:
    """A new file of a name of its own, which is gone afterwards."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=folder)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108


def _read(path: Path) -> bytes | None:
    """A small file; None if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_RECORD)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise storage_error(error, path, "read") from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
