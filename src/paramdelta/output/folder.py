"""A sink: a checkpoint folder on this machine, whole or not at all.

Everything is made in a hidden folder beside the output. Weight files carry the suffix ``.part``
until every byte is on disk, so that no loader takes the folder for a checkpoint. Then the files get
their names, and the folder is renamed. A journal beside the hidden folder makes a killed run
resumable.
"""

import bisect
import contextlib
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from paramdelta.errors import BusyError, MisfitError, StorageError
from paramdelta.output.guard import Guard
from paramdelta.output.journal import Journal
from paramdelta.output.layout import Layout, Shard
from paramdelta.output.place import Place, files_in, is_plain, place_of
from paramdelta.output.sink import Durable, NotFinite
from paramdelta.storage.digest import Digests, Leaves
from paramdelta.storage.local import (
    File,
    raise_open_file_limit,
    storage_error,
    sync_folder,
    write_bytes,
)

PART = ".part"


class FolderSink:
    """An output folder in the making; see `output.sink.Sink`.

    ``identity``: what a run must have in common with the one that it resumes; see `Journal`.
    ``fresh``: discard an unfinished run. ``mark``: the file that outputs of this kind have.
    ``twin``: an output with the same tensors from number ``own``; where the system can, their files
    become one on disk. ``inspect``: called with the whole folder before it gets its place, and
    whether an earlier run made some of it; may raise. ``kept``: folders with what
    is left of replaced outputs.
    """

    def __init__(
        self,
        place: Place,
        identity: Mapping[str, Any],
        *,
        mark: str,
        fresh: bool = False,
        twin: "FolderSink | None" = None,
        own: int | None = None,
        inspect: Callable[[Path, bool], None] | None = None,
    ) -> None:
        self.inspect = inspect
        self.place = place
        self.identity = identity
        self.mark = mark
        self.fresh = fresh
        self.twin = twin
        self.own = own
        self.digests = Digests()
        self.files: dict[str, File] = {}
        self.kept: list[Path] = []
        self._shards: tuple[Shard, ...] = ()
        self._layout: Layout | None = None
        self._linked: set[int] = set()
        self._put: set[str] = set()
        self._resumed = False
        self._guard: Guard | None = None
        self._made: os.stat_result | None = None  # the staging folder
        self.journal: Journal | None = None
        self._ends: list[int] = []  # by shard: the end of its data, in all data end to end

    # -- the start ---------------------------------------------------------------------------------

    def begin(self, layout: Layout) -> Durable:
        """See `Sink.begin`."""
        raise_open_file_limit()
        self._layout, self._shards = layout, layout.shards
        ends = [*(place.position for place in layout.places), layout.nbytes]
        self._ends = [ends[shard.last] for shard in layout.shards]
        try:
            self._open()
            journal = self._resume()
            for number, shard in enumerate(self._shards):
                self._open_shard(number, shard)
        except BaseException:
            self.abort()
            raise
        self._resumed = next(iter(journal.done), None) is not None
        return Durable(journal.done, journal.leaves)

    def begin_new(self) -> None:
        """Open the destination for files that are written once, in order, and never resumed."""
        self.fresh = True
        try:
            self._open()
            self.place.journal.unlink(missing_ok=True)
            self.journal = Journal(self.place.journal, self.identity)
        except BaseException:
            self.discard()
            raise

    def create(self, name: str) -> File:
        """A new weight file, for an output of `begin_new`; it gets its name in `finish`."""
        file = File.create(self._path(name + PART))
        self.files[name] = file
        return file

    def _open(self) -> None:
        """Take the guard, then make or take over the staging folder."""
        staging = self.place.staging
        try:
            staging.parent.mkdir(parents=True, exist_ok=True)
            self._guard = Guard(self.place.guard, str(self.place.out))
            self.place.put_back()
            self.place.check_unchanged()
            if self.fresh and os.path.lexists(staging):
                if staging.is_symlink() or not staging.is_dir():
                    raise _strange(staging)
                shutil.rmtree(staging)
                self.place.journal.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):
                staging.mkdir(mode=0o700)
            found = staging.stat(follow_symlinks=False)
            own = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
            if not stat.S_ISDIR(found.st_mode) or not own:
                raise _strange(staging)
            self._keep(self.place.tidy(self.mark))
            staging.mkdir(mode=0o700, exist_ok=True)
            staging.chmod(0o700)
            self._made = staging.stat(follow_symlinks=False)
        except OSError as error:
            raise storage_error(error, staging, "create") from None

    def _resume(self) -> Journal:
        """Open the journal, and remove what an earlier run left unfinished."""
        staging = self.place.staging
        known = {n for shard in self._shards for n in (shard.name, shard.name + PART)}
        assert self._layout is not None
        small = {*self._layout.small}
        links = [name for name in files_in(staging) if not is_plain(staging / name)]
        if links:  # nothing is written or removed through them
            raise _planted(staging, links)
        whole = all(self._is_whole(shard) for shard in self._shards)
        if not whole:  # what a journal says about files that are gone is void
            self.place.journal.unlink(missing_ok=True)
        if not self.place.journal.exists():
            self._unlink_twins()
        journal = self.journal = Journal(self.place.journal, self.identity)
        self.digests.known = journal.leaves
        for name in (*journal.puts, *small):  # written again, maybe with other bytes
            if is_inside(name):
                self._path(name).unlink(missing_ok=True)
        if strange := files_in(staging) - known:
            raise _planted(staging, strange)
        return journal

    def _open_shard(self, number: int, shard: Shard) -> None:
        path = self._shard_path(shard)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, path, "create") from None
        if self.twin is not None and self.own is not None and shard.first >= self.own:
            self._link(shard, self.twin)
        file = File.create(self._shard_path(shard))
        self.files[shard.name] = file
        if file.size() != shard.size:
            file.allocate(shard.size)
        if self.twin is not None and file.identity == self._of_twin(shard.name):
            self._linked.add(number)
            return
        header = memoryview(shard.header)
        file.write(header, 0)
        self.digests.of(shard.name, shard.size).update(0, header)

    def _of_twin(self, name: str) -> tuple[int, int] | None:
        file = self.twin.files.get(name) if self.twin is not None else None
        return file.identity if file is not None else None

    # -- the work ----------------------------------------------------------------------------------

    def writer(self) -> "FolderWriter":
        """See `Sink.writer`."""
        assert self._layout is not None
        paths = [str(self._shard_path(shard)) for shard in self._shards]
        return FolderWriter(self._layout, paths, frozenset(self._linked), self)

    def commit(
        self,
        ranges: Iterable[tuple[int, int]],
        leaves: Leaves | None = None,
        not_finite: NotFinite | None = None,
    ) -> None:
        """See `Sink.commit`."""
        assert self.journal is not None
        ranges = list(ranges)
        fresh = {**(leaves or {}), **self.digests.news()}
        for number in {bisect.bisect_right(self._ends, start) for start, _ in ranges}:
            self.files[self._shards[number].name].sync()
        self.journal.append(ranges, fresh)

    def put(self, name: str, data: bytes) -> None:
        """See `Sink.put`."""
        assert self.journal is not None
        if not is_inside(name):
            raise MisfitError(
                "a file would leave the output folder", code="unsafe-file-name", where=name
            )
        self.journal.append(put=name)
        self._put.add(name)
        write_bytes(self._path(name), data)

    def file_digests(self) -> dict[str, str]:
        """The content digest of every weight file, all of which are written; see `storage.digest`.

        Raises:
            StorageError: a block has to be read again, and cannot be.
        """
        found = {}
        linked = {self._shards[number].name for number in self._linked}
        for name, file in self.files.items():
            owner = self.twin if self.twin is not None and name in linked else self
            digest = owner.digests.adopt(name, file.size())
            for offset, length in digest.missing:
                digest.update(offset, memoryview(file.read(offset, length)))
            found[name] = digest.hexdigest()
        return found

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """See `Sink.finish`.

        Raises:
            MisfitError: a file is not the one that this run wrote, or the output was taken.
            StorageError: a write, a sync or a rename failed; the same command tries again.
        """
        assert self.journal is not None
        total = self._layout.nbytes if self._layout is not None else 0
        if (0, total) not in self.journal.done:
            raise MisfitError(
                "the output is not complete",
                code="output-incomplete",
                where=str(self.place.staging),
            )
        for name, file in self.files.items():
            file.sync()
            self._check_own(name, file)
        staging = self.place.staging
        try:
            for name in self.files:
                part = self._path(name + PART)
                if part.exists():
                    part.rename(self._path(name))
            indexes = self._layout.small if self._layout is not None else {}
            for name, data in indexes.items():
                write_bytes(self._path(name), data)
            self._close_files()
            expected = {*self.files, *self._put, *indexes}
            found = files_in(staging)
            if found != expected:
                raise MisfitError(
                    "the unfinished output does not hold the files that this run wrote",
                    code="partial-output-changed",
                    where=str(staging),
                    got=", ".join(sorted(found ^ expected)[:4]),
                    remedy="pass `fresh=True` to start again",
                )
            staging.chmod(0o777 & ~_umask())
            for folder in sorted({self._path(name).parent for name in expected} | {staging}):
                sync_folder(folder)
        except OSError as error:
            raise storage_error(error, self.place.out, "finish") from None
        if self.inspect is not None:
            self.inspect(staging, self._resumed)
        self.journal.close()
        old = self.place.publish()
        with contextlib.suppress(OSError):
            self.place.journal.unlink()
        self.place.sync()  # before what was there is removed
        if old is not None:
            self._keep(self.place.remove_old(old, self.mark))
        self._release()

    def abort(self) -> None:
        """See `Sink.abort`."""
        self._close_files()
        if self.journal is not None:
            self.journal.close()
        self._release()

    def discard(self) -> None:
        """As `abort`; the staging folder is removed. An old output that was exchanged with it is
        another folder, and stays.
        """
        self._close_files()
        if self.journal is not None:
            self.journal.close()
        with contextlib.suppress(OSError):
            found = self.place.staging.stat(follow_symlinks=False)
            if self._made is not None and os.path.samestat(found, self._made):
                shutil.rmtree(self.place.staging, ignore_errors=True)
                self.place.journal.unlink(missing_ok=True)
            elif self._made is None and self._guard is not None:
                self.place.staging.rmdir()  # stopped before it was looked at: it is empty, or stays
        self._made = None
        self._release()

    def _check_own(self, name: str, file: File) -> None:
        """The file under its name must be the one that was written, and whole."""
        for path in (self._path(name + PART), self._path(name)):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat(follow_symlinks=False)
                if (found.st_dev, found.st_ino) == file.identity and found.st_size == file.size():
                    return
        raise MisfitError(
            "a weight file is not the one that this run wrote",
            code="partial-output-changed",
            where=str(self._path(name)),
            remedy="let nothing else write there, and pass `fresh=True` to start again",
        )

    def _keep(self, folder: Path | None) -> None:
        if folder is not None:
            self.kept.append(folder)

    def _close_files(self) -> None:
        for file in self.files.values():
            file.close()

    def _release(self) -> None:
        if self._guard is not None:
            self._guard.release()
            self._guard = None

    def _unlink_twins(self) -> None:
        """Drop files that are other outputs' too, before a new run writes into them."""
        for path in map(self._shard_path, self._shards):
            if path.exists() and path.stat().st_nlink > 1:
                path.unlink()

    def _link(self, shard: Shard, twin: "FolderSink") -> None:
        """Take the twin's file, if there is none yet; where links fail it is written."""
        if not self._shard_path(shard).exists():
            with contextlib.suppress(OSError):
                os.link(twin._shard_path(shard), self._path(shard.name + PART))

    def _path(self, name: str) -> Path:
        return self.place.staging / name

    def _shard_path(self, shard: Shard) -> Path:
        final = self._path(shard.name)
        return final if final.exists() else self._path(shard.name + PART)

    def _is_whole(self, shard: Shard) -> bool:
        path = self._shard_path(shard)
        return path.is_file() and path.stat().st_size == shard.size


class FolderWriter:
    """Writes tensors into the weight files of a folder; see `output.sink.Writer`.

    A copy made by pickle opens the files again, and leaves digests and the journal to the driver.
    """

    def __init__(
        self, layout: Layout, paths: list[str], linked: frozenset[int], sink: FolderSink | None
    ) -> None:
        self.layout = layout
        self.paths = paths
        self.linked = linked
        self._sink = sink
        self._files: dict[int, File] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[Any, ...]:
        return self.layout, self.paths, self.linked, None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def write(self, stream: int, offset: int, data: memoryview) -> int:
        """See `Writer.write`."""
        place = self.layout.places[stream]
        if place.shard in self.linked:
            return 0
        shard = self.layout.shards[place.shard]
        at = place.offset + offset
        self._file(place.shard).write(data, at)
        if self._sink is not None:
            self._sink.digests.of(shard.name, shard.size).update(at, data)
        return len(data)

    def _file(self, number: int) -> File:
        if self._sink is not None:
            return self._sink.files[self.layout.shards[number].name]
        with self._lock:
            if number not in self._files:
                self._files[number] = File.create(self.paths[number])
            return self._files[number]


def tidy(out: Path, mark: str) -> None:
    """Remove what a run left beside a finished output; see `Place.tidy`."""
    place = place_of(out)
    if any(map(os.path.lexists, (place.guard, place.journal, place.staging))):
        with contextlib.suppress(BusyError, StorageError, OSError):
            guard = Guard(place.guard, str(out))
            try:
                place.tidy(mark)
            finally:
                guard.release()


def is_inside(name: str) -> bool:
    """Whether a path with slashes stays in the folder that it is relative to."""
    parts = name.split("/")
    return bool(name) and not name.startswith("/") and ".." not in parts and "\0" not in name


def _planted(staging: Path, names: Iterable[str]) -> MisfitError:
    return MisfitError(
        "the unfinished run holds files that no run of paramdelta wrote",
        code="partial-output-changed",
        where=str(staging),
        got=", ".join(sorted(names)[:4]),
        remedy="remove them, or pass `fresh=True` to start again",
    )


def _strange(staging: Path) -> StorageError:
    return StorageError(
        "the folder for the unfinished output is not one of this user's",
        code="foreign-partial-folder",
        where=str(staging),
        remedy="remove it, or choose another output folder",
    )


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
