"""A Sink: local files at planned offsets, with a journal and an atomic finish.

All work happens in a hidden folder beside the output. Its weight files carry the ending ``.part``
until every byte is on disk, so that at no moment before the end a loader would take it for a
checkpoint. Then the files get their names, the index comes last, and the folder is renamed.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from paramdelta.dtypes import DTYPES
from paramdelta.engine.slices import Slice
from paramdelta.errors import StorageError, UsageError
from paramdelta.formats.checkpoint import INDEX, SourceFile
from paramdelta.output.journal import Journal
from paramdelta.output.layout import Layout, Shard
from paramdelta.output.lock import LOCK
from paramdelta.planning.plan import Plan
from paramdelta.storage.local import File, storage_error, sync_folder, write_text
from paramdelta.units import show_size

PART = ".part"
JOURNAL = "journal.jsonl"
SYNC_BYTES = 256_000_000  # journal at the latest after so many bytes …
SYNC_SECONDS = 2.0  # … or so long: what a kill can cost


def staging_folder(out: Path) -> Path:
    """Where an unfinished output lives: a hidden sibling."""
    return out.parent / f".{out.name}.paramdelta-partial"


def replaced_folder(out: Path) -> Path:
    """Where the old output waits, for a moment, while it is replaced."""
    return out.parent / f".{out.name}.paramdelta-replaced"


def check_output(out: Path, sources: list[Path], overwrite: bool, mark: str = LOCK) -> None:
    """Refuse an output that would lose something. ``mark``: the file that such outputs have.

    Raises:
        UsageError: it is, contains or lies in an input; it exists and overwrite was not asked for;
            or overwrite was, but it is no folder that paramdelta wrote.
    """
    resolved = out.resolve()
    for source in sources:
        place = source.resolve()
        if place in (resolved, *resolved.parents) or resolved in place.parents:
            raise UsageError(
                "the output lies on an input",
                where=f"{out} and {source}",
                remedy="choose another --out",
            )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UsageError(
            "the output exists already",
            where=str(out),
            remedy="choose another --out, or --overwrite to replace it once the new one is whole",
        )
    if not (out / mark).is_file():
        raise UsageError(
            "--overwrite replaces only what paramdelta wrote",
            where=str(out),
            expected=f"a folder with {mark}",
            remedy="choose another --out, or remove the folder yourself",
        )


def check_space(out: Path, layout: Layout) -> None:
    """Refuse beforehand where the disk has too little room for the weights.

    Raises:
        StorageError: too little free space, counting what an unfinished run already has.
    """
    check_room([out], layout.size)


def check_room(outs: Sequence[Path], size: int) -> None:
    """As `check_space`, for outputs in one place that are ``size`` bytes together."""
    free, place = free_space(outs[0])
    missing = size - _allocated([staging_folder(out) for out in outs])
    if free < missing:
        raise StorageError(
            "too little free space for the output",
            where=str(place),
            expected=show_size(missing),
            got=show_size(free),
            remedy="free some space or choose another --out",
        )


def free_space(out: Path) -> tuple[int, Path]:
    """Free bytes where the output will be, and the nearest existing folder that tells."""
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free, place


def _allocated(folders: Iterable[Path]) -> int:
    files = [path.stat() for f in folders if f.is_dir() for path in f.iterdir() if path.is_file()]
    each = {(file.st_dev, file.st_ino): file for file in files}  # a file in several folders: once
    return sum(getattr(file, "st_blocks", 0) * 512 for file in each.values())


def identity(plan: Plan, layout: Layout) -> dict[str, Any]:
    """What a run must have in common with the one that it resumes."""
    return {
        "digest": plan.digest,
        "shards": [[shard.name, shard.size] for shard in layout.shards],
        "sources": [source_identity(file) for file in plan.files],
    }


def source_identity(file: SourceFile) -> dict[str, Any]:
    """How a source file is recognised: path, size, time of change and digest of its header."""
    return {
        "path": file.blob.url,
        "size": file.blob.size,
        "version": file.blob.version,
        "header_sha256": file.header_sha256,
    }


def put_in_place(staging: Path, out: Path) -> None:
    """Rename a whole folder to the output, in the place of an earlier one; raises OSError."""
    old = replaced_folder(out)
    if out.is_dir() and any(out.iterdir()):
        if old.exists():
            shutil.rmtree(old)
        out.rename(old)
    elif out.is_dir():
        out.rmdir()
    staging.rename(out)
    sync_folder(out.parent)
    if old.exists():
        shutil.rmtree(old)


class Files:
    """The output folder in the making. Open it, let the engine write, then `finish`."""

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        out: Path,
        *,
        fresh: bool,
        twin: "Files | None" = None,
        own: int | None = None,
    ) -> None:
        """Make or reopen the staging folder and its files.

        ``fresh``: throw away an unfinished run. ``twin``: an output with the same tensors from
        number ``own`` on; where the system can, their files become the same.

        Raises:
            MisfitError: an unfinished run of something else is there, or one is going on.
            StorageError: no space, no permission.
        """
        self.out = out
        self.layout = layout
        self.staging = staging_folder(out)
        try:
            if fresh and self.staging.exists():
                shutil.rmtree(self.staging)
            self.staging.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.staging, "make") from None
        whole = all(self._present(shard) for shard in layout.shards)
        if not whole:  # what a journal says of files that are gone is void
            (self.staging / JOURNAL).unlink(missing_ok=True)
        if not (self.staging / JOURNAL).exists():
            self._part_from_twins()
        self.journal = Journal(self.staging / JOURNAL, identity(plan, layout))
        self._places: list[tuple[int, int]] = []  # by tensor: number of its file, offset there
        self._starts: list[int] = []  # by tensor: its first byte in the output's data
        position = 0
        for number, shard in enumerate(layout.shards):
            offset = len(shard.header)
            for tensor in plan.tensors[shard.first : shard.last]:
                self._places.append((number, offset))
                self._starts.append(position)
                offset += tensor.nbytes
                position += tensor.nbytes
        self._sizes = [DTYPES[tensor.dtype].size for tensor in plan.tensors]
        self._files: list[File] = []
        try:
            for shard in layout.shards:
                if twin is not None and own is not None and shard.first >= own:
                    self._link(shard, twin)
                file = File.create(self._path(shard))
                self._files.append(file)
                if file.size() != shard.size:
                    file.allocate(shard.size)
                file.write(memoryview(shard.header), 0)
        except BaseException:
            self.close()
            raise
        self._syncer = _Syncer(self._sync)

    # -- the Sink ----------------------------------------------------------------------------------

    def wants(self, piece: Slice) -> bool:
        """Whether the journal lacks the slice, or the scales that are made with it."""
        if (piece.position, piece.position + piece.nbytes) not in self.journal.done:
            return True
        return piece.also is not None and self.wants(piece.also)

    def write(self, piece: Slice, data: memoryview) -> None:
        """Write the slice at its place; it is journalled some time later, once it is synced."""
        number, offset = self._places[piece.tensor]
        offset += piece.start * self._sizes[piece.tensor]
        self._files[number].write(data, offset)
        self._syncer.add(number, offset, piece.position, piece.nbytes)

    def note(self, piece: Slice) -> None:
        """Journal a slice that was written through a twin, whose file is this one's as well."""
        number, offset = self._places[piece.tensor]
        offset += piece.start * self._sizes[piece.tensor]
        self._syncer.add(number, offset, piece.position, piece.nbytes)

    def has_file_of(self, twin: "Files", piece: Slice) -> bool:
        """Whether a slice goes into the same file in both."""
        number, _ = self._places[piece.tensor]
        return self._files[number].identity == twin._files[number].identity

    def _sync(self, written: list[tuple[int, int, int, int]]) -> None:
        for number in {entry[0] for entry in written}:
            self._files[number].sync()
        self.journal.append((position, position + size) for _, _, position, size in written)

    # -- the end -----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Sync and journal all that was written; raises StorageError."""
        self._syncer.stop()

    def close(self) -> None:
        """Close all files, keeping what is there for a later run."""
        for file in self._files:
            file.close()
        self._files.clear()
        self.journal.close()

    def finish(self, write_small_files: Callable[[Path], None]) -> None:
        """Turn the staging folder into the output: names, small files, index, atomic rename.

        ``write_small_files`` puts everything but weights and index into the folder that it is
        given.

        Raises:
            StorageError: a write, a sync or the rename failed; the same command tries again.
        """
        for file in self._files:
            file.sync()
            file.close()
        self._files.clear()
        write_small_files(self.staging)
        try:
            for shard in self.layout.shards:
                part = self.staging / (shard.name + PART)
                if part.exists():
                    part.rename(self.staging / shard.name)
            if self.layout.index is not None:
                write_text(self.staging / INDEX, self.layout.index)
            sync_folder(self.staging)
            put_in_place(self.staging, self.out)
        except OSError as error:
            raise storage_error(error, self.out, "finish") from None
        finally:
            self.journal.close()
        with contextlib.suppress(OSError):
            (self.out / JOURNAL).unlink()

    def _part_from_twins(self) -> None:
        """Let go of files that are other outputs' too, before a new run writes into them."""
        for path in map(self._path, self.layout.shards):
            if path.exists() and path.stat().st_nlink > 1:
                path.unlink()

    def _link(self, shard: Shard, twin: "Files") -> None:
        """Take the twin's file, where there is none yet; left to be written where links fail."""
        if not self._path(shard).exists():
            with contextlib.suppress(OSError):
                os.link(twin._path(shard), self.staging / (shard.name + PART))

    def _path(self, shard: Shard) -> Path:
        final = self.staging / shard.name
        return final if final.exists() else final.with_name(shard.name + PART)

    def _present(self, shard: Shard) -> bool:
        path = self._path(shard)
        return path.is_file() and path.stat().st_size == shard.size


class _Syncer:
    """A thread that syncs and journals behind the writers, so that the disk never waits."""

    def __init__(self, sync: Callable[[list[tuple[int, int, int, int]]], None]) -> None:
        self._do = sync
        self._written: list[tuple[int, int, int, int]] = []
        self._bytes = 0
        self._error: BaseException | None = None
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="paramdelta-sync", daemon=True)
        self._thread.start()

    def add(self, number: int, offset: int, position: int, size: int) -> None:
        """Note a write; raises the error of an earlier sync."""
        with self._wake:
            if self._error is not None:
                raise self._error
            self._written.append((number, offset, position, size))
            self._bytes += size
            if self._bytes >= SYNC_BYTES:
                self._wake.notify()

    def stop(self) -> None:
        """Sync the rest and end the thread; raises what went wrong."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._wake:
                if not self._stopping:
                    self._wake.wait(SYNC_SECONDS)
                written, self._written, self._bytes = self._written, [], 0
                last = self._stopping
            if written and self._error is None:
                try:
                    self._do(written)
                except BaseException as error:  # noqa: BLE001 - raised in add and stop
                    self._error = error
            if last:
                return
