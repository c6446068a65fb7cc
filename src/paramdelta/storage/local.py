"""Files and folders of this machine.

A mix touches every byte once and should not evict other files from the page cache. Reads that had
to go to the disk therefore go through the page cache and are dropped from it right after. Whole
blocks are written around the page cache (direct I/O), which also saves zeroing fresh pages. Where
the system supports neither, plain I/O is used.

Positional I/O (pread, pwrite) lets many threads share one file descriptor. Where the platform lacks
it (Windows), a lock per file and a seek replace it.
"""

import contextlib
import errno
import mmap
import os
import random
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from paramdelta.errors import CheckpointError, StorageError
from paramdelta.storage.blob import Blob

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_POSITIONAL = hasattr(os, "preadv") and hasattr(os, "pwrite")
_BINARY = getattr(os, "O_BINARY", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not wait for a writer
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECT = getattr(os, "O_DIRECT", 0) if _POSITIONAL else 0
PAGE = 4096  # bytes; every file system accepts direct transfers of this alignment
WINDOW = 8 << 20  # bytes dropped from the page cache at a time; no page is larger
STEP = 256 << 10  # bytes per read where the data only has to reach the page cache
FEW = 4096  # parts that are read one by one, unless compiled code is loaded anyway
DEPTH = 4  # levels of folders that are listed
MOST_FILES = 20_000  # that a folder may hold to be listed


@dataclass
class _Ahead:
    """A range of a file that is being read into the page cache.

    ``done``: the position up to which it was read. ``wanted``: bytes that readers have yet to take.
    """

    done: int
    wanted: int


def page_buffer(size: int) -> memoryview:
    """Page-aligned memory, which direct writes need."""
    return memoryview(mmap.mmap(-1, max(size, 1)))[:size]


class File:
    """An open regular file. Many threads may read and write it at once.

    Raises:
        StorageError: it cannot be opened, is not a regular file, or a later read or write fails.
    """

    def __init__(self, path: str | Path, flags: int = os.O_RDONLY) -> None:
        """Open a file. A FIFO or a device is refused and does not block."""
        self.path = path
        self._lock = threading.Lock()
        self._direct: int | None = None
        self._passed: dict[int, int] | None = None  # window -> bytes of it that were read
        self._ahead: dict[range, _Ahead] = {}
        try:
            self._descriptor = os.open(path, flags | _BINARY | _NONBLOCK, 0o666)
            self.status = os.fstat(self._descriptor)
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            raise storage_error(error, path, "open") from None
        if not stat.S_ISREG(self.status.st_mode):
            os.close(self._descriptor)
            raise StorageError(
                "not a regular file",
                code="not-a-regular-file",
                where=str(path),
                expected="a file, not a folder or device",
            )

    @classmethod
    def create(cls, path: str | Path) -> "File":
        """Open for reading and direct writing. An absent file is created, a present one kept, and a
        link refused.
        """
        file = cls(path, os.O_RDWR | os.O_CREAT | _NOFOLLOW)
        if _DIRECT:
            with contextlib.suppress(OSError):  # tmpfs and some network file systems cannot
                file._direct = os.open(path, os.O_RDWR | _DIRECT | _NOFOLLOW)
        return file

    @classmethod
    def open_once(cls, path: str | Path) -> "File":
        """Open a file whose bytes are read once each. The page cache stays as it was."""
        file = cls(path)
        if hasattr(os, "posix_fadvise") and not file._is_cached():
            file._passed = {}
        return file

    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self._descriptor).st_size

    @cached_property
    def identity(self) -> tuple[int, int]:
        """Device and inode. Two paths with the same identity lead to one file."""
        found = os.fstat(self._descriptor)
        return found.st_dev, found.st_ino

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole buffer from ``offset`` bytes into the file.

        Raises:
            CheckpointError: the file ends before the buffer is full.
            StorageError: the read failed.
        """
        done = 0
        try:
            while done < len(buffer):
                count = self._read(buffer[done:], offset + done)
                if count == 0:
                    raise CheckpointError(
                        "the file ends too early",
                        code="truncated-file",
                        where=str(self.path),
                        expected=f"at least {offset + len(buffer)} bytes",
                        got=f"{offset + done} bytes",
                        remedy="download the file again",
                    )
                done += count
        except OSError as error:
            raise storage_error(error, self.path, "read") from None

    def read_once(self, buffer: memoryview, offset: int) -> None:
        """As `read_into`. Bytes that were not in the page cache do not stay there."""
        self.read_into(buffer, offset)
        if self._passed is None:
            return
        stop = offset + len(buffer)
        for window in range(offset // WINDOW, -(-stop // WINDOW)):
            start = window * WINDOW
            count = min(stop, start + WINDOW) - max(offset, start)
            with self._lock:
                count += self._passed.pop(window, 0)
                if count < WINDOW:
                    self._passed[window] = count
            if count == WINDOW:
                self._drop(start, WINDOW)

    def gather(self, buffer: memoryview, offsets: "npt.NDArray[np.int64]", among: range) -> None:
        """Fill the buffer with parts of equal size, one from each offset; raises as `read_into`.

        ``among``: the bytes of the file that hold all parts. Other calls will ask for most of them.
        The disk does not see a request per part: if the file is read once, the threads that call
        this read all of ``among`` into the page cache first.
        """
        import numpy as np

        if self._passed is not None:
            self._read_ahead(among)
        size, done = len(buffer) // len(offsets), 0
        if _POSITIONAL and (len(offsets) > FEW or "numba" in sys.modules):
            from paramdelta.storage.scattered import read_parts  # compiled code: slow to load

            done = read_parts(self._descriptor, np.frombuffer(buffer, np.uint8), offsets)
        for number in range(done, len(offsets)):  # this path also reports what is wrong
            self.read_into(buffer[number * size : (number + 1) * size], int(offsets[number]))
        if self._passed is not None:
            self._drop_behind(among, len(buffer))

    def _read_ahead(self, stretch: range) -> None:
        """Help to read a range into the page cache, unless memory is too small for it."""
        if len(stretch) > _memory() // 4:
            return
        step = memoryview(bytearray(STEP))
        while True:
            with self._lock:
                ahead = self._ahead.setdefault(stretch, _Ahead(stretch.start, len(stretch)))
                start, ahead.done = ahead.done, min(ahead.done + WINDOW, stretch.stop)
                stop = ahead.done
            if start == stop:
                return
            for offset in range(start, stop, STEP):
                self.read_into(step[: stop - offset], offset)

    def _drop_behind(self, stretch: range, count: int) -> None:
        """Drop a range from the page cache once all of it was read."""
        with self._lock:
            ahead = self._ahead.get(stretch)
            if ahead is None:
                return
            ahead.wanted -= count
            if ahead.wanted > 0:
                return
            del self._ahead[stretch]
        self._drop(stretch.start, len(stretch))

    def _drop(self, start: int, length: int) -> None:
        """Drop a range from the page cache; a length of 0 means to the end of the file."""
        with contextlib.suppress(OSError):  # some file systems take no advice
            os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; raises as `read_into`."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``; raises StorageError.

        Whole blocks of a `page_buffer` go directly to the disk.
        """
        done = 0
        try:
            if self._direct is not None and offset % PAGE == 0 and len(data) >= PAGE:
                done = self._write_direct(data[: len(data) // PAGE * PAGE], offset)
            while done < len(data):
                done += self._write(data[done:], offset + done)
        except OSError as error:
            raise storage_error(error, self.path, "write") from None

    def _write_direct(self, data: memoryview, offset: int) -> int:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._direct or 0, data[done:], offset + done)
                if done % PAGE:
                    break
        except OSError as error:
            if error.errno != errno.EINVAL:  # not aligned as this file system wants it
                raise
        return done

    def _read(self, buffer: memoryview, offset: int) -> int:
        if _POSITIONAL:
            return os.preadv(self._descriptor, [buffer], offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _write(self, data: memoryview, offset: int) -> int:
        if _POSITIONAL:
            return os.pwrite(self._descriptor, data, offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            return os.write(self._descriptor, data)

    def allocate(self, size: int) -> None:
        """Reserve ``size`` bytes of disk now, so that a full disk is noticed at the start.

        Raises:
            StorageError: no space left, or the file system allows no file of this size.
        """
        try:
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(self._descriptor, 0, size)
                except OSError as error:
                    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                        raise
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise storage_error(error, self.path, f"allocate {size} bytes for") from None

    def sync(self) -> None:
        """Return when everything written is on the disk; raises StorageError."""
        try:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as error:
            raise storage_error(error, self.path, "sync") from None

    def _is_cached(self) -> bool:
        """Whether most of the file is in the page cache; True where the system cannot tell.

        Reads single bytes with RWF_NOWAIT, without read-ahead and at random places: a probe that
        misses loads its page.
        """
        if not hasattr(os, "RWF_NOWAIT"):
            return True
        try:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            size, probes = self.size(), 9
            hits = sum(self._has_page(random.randrange(size)) for _ in range(probes))
        except (OSError, ValueError):  # the file system cannot say, or the file is empty
            return True
        finally:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_NORMAL)
        return hits > probes // 2

    def _has_page(self, offset: int) -> bool:
        try:
            os.preadv(self._descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptors; may be called twice. The file must not be used afterwards."""
        if self._descriptor < 0:
            return
        if self._passed or self._ahead:  # windows at the ends of tensors, scattered parts
            self._drop(0, 0)
        os.close(self._descriptor)
        self._descriptor = -1
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None


def _memory() -> int:
    """Bytes of this machine's memory; 0 if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def storage_error(error: OSError | ValueError, path: str | Path, verb: str) -> StorageError:
    """A StorageError that says what failed, where, and what to do."""
    remedies = {
        errno.ENOSPC: "free some space or choose another output folder",
        errno.EDQUOT: "your quota is used up: free some space or choose another output folder",
        errno.EFBIG: "the file system or a limit (ulimit -f) allows no larger file: "
        "choose a smaller shard size",
        errno.EACCES: "check the permissions",
        errno.EROFS: "the file system is read-only: choose another output folder",
        errno.EMFILE: "too many open files: raise ulimit -n",
        errno.EIO: "the device reports a failure: check the disk",
    }
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return StorageError(
        f"cannot {verb} the file",
        code="disk-full" if full else "io-failed",
        where=str(path),
        got=getattr(error, "strerror", None) or str(error),
        remedy=remedies.get(getattr(error, "errno", None) or 0),
    )


def write_text(path: Path, text: str) -> None:
    """Write a small text file (UTF-8) and sync it; raises StorageError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file and sync it, never through a link; raises StorageError. A file that could
    not be written whole is removed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY | _NOFOLLOW | _NONBLOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as undo, os.fdopen(os.open(path, flags, 0o666), "wb") as file:
            undo.callback(_unlink, path)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            undo.pop_all()
    except OSError as error:
        raise storage_error(error, path, "write") from None


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def sync_folder(path: Path) -> None:
    """Make renames and new files in a folder durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def raise_open_file_limit() -> None:
    """Raise the soft limit on open files to the hard limit: models have many shards."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# -- the store -------------------------------------------------------------------------------------


class LocalStore:
    """Files of this machine as a `Store`. Each file is opened once."""

    grain = 0

    def __init__(self, once: bool) -> None:
        raise_open_file_limit()
        self._open = File.open_once if once else File
        self._files: dict[Blob, File] = {}
        self._lock = threading.Lock()

    def list(self, url: str) -> dict[str, Blob]:
        """See `Store.list`. Hidden files and folders are left out."""
        path = Path(url)
        try:
            if path.is_dir():
                return dict(_walk(path, "", DEPTH, Path(os.path.realpath(path)), False))
            return {path.name: local_blob(path)} if path.exists() else {}
        except (OSError, ValueError) as error:
            raise storage_error(error, path, "list") from None

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """See `Store.read`."""
        self._file(blob).read_once(into, offset)

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """See `Store.read_many`."""
        self._file(blob).gather(into, offsets, among)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _file(self, blob: Blob) -> File:
        file = self._files.get(blob)
        if file is None:
            with self._lock:
                file = self._files.get(blob)
                if file is None:
                    file = self._open(blob.url)
                    if _version(file.status) != blob.version:
                        file.close()
                        raise changed(blob)
                    self._files[blob] = file
        return file


def local_blob(path: Path, outside: bool = False) -> Blob:
    """The blob of a file of this machine; raises OSError."""
    found = path.stat()
    url = os.path.abspath(path)  # noqa: PTH100 - keeps links
    return Blob(url, found.st_size, _version(found), outside)


def is_of(folder: Path, target: Path) -> bool:
    """Whether a file belongs to a folder, both without links: it lies in there, or it is a blob of
    the Hub's cache, of which the folder is a snapshot.
    """
    snapshots = (path.parent for path in (folder, *folder.parents))
    blobs = (path.parent / "blobs" for path in snapshots if path.name == "snapshots")
    return any(target.is_relative_to(home) for home in (folder, *blobs))


def modified_ns(blob: Blob) -> int:
    """When a file of this machine was last changed, in ns; 0 for a blob that is elsewhere."""
    try:
        return Path(blob.url).stat().st_mtime_ns
    except OSError:
        return 0


def changed(blob: Blob) -> StorageError:
    """The error for a file that is not the one that was planned with."""
    return StorageError(
        "the file changed while it was in use",
        code="source-changed",
        where=str(blob),
        remedy="run the command again when nothing writes to the file",
    )


def _version(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_ino}"


def _is_loop(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a link that leads back to itself. It counts as dangling."""
    try:
        entry.is_dir()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _walk(
    folder: Path, prefix: str, depth: int, root: Path, outside: bool
) -> Iterator[tuple[str, Blob]]:
    """Names and blobs of the files below a folder, in the order of their names. ``root``: the
    folder that is listed, without links. ``outside``: whether a link led out of it.
    """
    entries = sorted(
        (entry for entry in os.scandir(folder) if not entry.name.startswith(".")),
        key=lambda entry: entry.name,
    )
    if len(entries) > MOST_FILES:
        raise StorageError(
            "the folder holds too many files for a checkpoint",
            code="too-many-files",
            where=str(folder),
            expected=f"at most {MOST_FILES}",
            got=str(len(entries)),
        )
    for entry in entries:
        if _is_loop(entry):
            continue
        path = folder / entry.name
        leads_out = outside or (
            entry.is_symlink() and not is_of(root, Path(os.path.realpath(path)))
        )
        if entry.is_dir():
            if depth > 1:
                yield from _walk(path, f"{prefix}{entry.name}/", depth - 1, root, leads_out)
        elif entry.is_file():  # not a dangling link, a FIFO or a device
            yield prefix + entry.name, local_blob(path, leads_out)
