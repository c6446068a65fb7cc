"""Folders and files of this machine: positional reads and writes, and what surrounds them.

A mix touches every byte once and should not push everyone else's files out of the page cache. So
reads that had to go to the disk are dropped behind: through the cache, whose large pages make the
largest requests, and out of it again while they are still warm. Whole blocks are written around the
cache ("direct"), which also saves the clearing of fresh pages. Where the system can neither, all
goes the plain way.

Positional I/O (pread, pwrite) lets many threads share one file descriptor. Where the platform has
none (Windows), a lock a file and a seek stand in for it.
"""

import contextlib
import errno
import mmap
import os
import random
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from paramdelta.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_POSITIONAL = hasattr(os, "preadv") and hasattr(os, "pwrite")
_BINARY = getattr(os, "O_BINARY", 0)
_DIRECT = getattr(os, "O_DIRECT", 0) if _POSITIONAL else 0
BLOCK = 4096  # bytes: what every file system accepts for direct transfers
WINDOW = 8 << 20  # bytes: what is dropped at a time; no page of the cache is larger
STEP = 256 << 10  # bytes that are read at a time where only the page cache is to have them


@dataclass
class _Ahead:
    """A stretch of a file that is brought into the page cache: how far, and the bytes of it that
    are still to be read from there.
    """

    done: int
    wanted: int


def page_buffer(size: int) -> memoryview:
    """Page-aligned memory, as direct writes want it."""
    return memoryview(mmap.mmap(-1, max(size, 1)))[:size]


class File:
    """An open file that many threads read and write at positions of their own.

    Raises:
        StorageError: it cannot be opened, or a later read or write fails.
    """

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        """Open a file."""
        self.path = path
        self._lock = threading.Lock()
        self._direct: int | None = None
        self._passed: dict[int, int] | None = None  # by window: its bytes that have been read
        self._ahead: dict[range, _Ahead] = {}
        try:
            self._descriptor = os.open(path, flags | _BINARY, 0o666)
        except OSError as error:
            raise storage_error(error, path, "open") from None

    @classmethod
    def create(cls, path: Path) -> "File":
        """Open for reading and direct writing; made if absent, kept as it is if present."""
        file = cls(path, os.O_RDWR | os.O_CREAT)
        if _DIRECT:
            with contextlib.suppress(OSError):  # tmpfs and some network file systems cannot
                file._direct = os.open(path, os.O_RDWR | _DIRECT)
        return file

    @classmethod
    def open_once(cls, path: Path) -> "File":
        """Open a file whose bytes are read once each: it leaves the page cache as it was."""
        file = cls(path)
        if hasattr(os, "posix_fadvise") and not file._is_cached():
            file._passed = {}
        return file

    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self._descriptor).st_size

    @cached_property
    def identity(self) -> tuple[int, int]:
        """Device and number: two paths with the same lead to one file."""
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
                        where=str(self.path),
                        expected=f"{offset + len(buffer)} bytes at the least",
                        got=f"{offset + done} bytes",
                        remedy="download the file again",
                    )
                done += count
        except OSError as error:
            raise storage_error(error, self.path, "read") from None

    def read_once(self, buffer: memoryview, offset: int) -> None:
        """As `read_into`; bytes that were not in the page cache do not stay there."""
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
                os.posix_fadvise(self._descriptor, start, WINDOW, os.POSIX_FADV_DONTNEED)

    def gather(self, buffer: memoryview, offsets: "npt.NDArray[np.int64]", among: range) -> None:
        """Fill the buffer with equal parts, one from each of ``offsets``; raises as `read_into`.

        ``among``: the bytes of the file in which they lie, most of which other calls will want. The
        disk is not asked for the parts one by one: of a file that is read once, all of these bytes
        are fetched into the page cache first, by all threads that come for parts.
        """
        import numpy as np

        if self._passed is not None:
            self._read_ahead(among)
        size, done = len(buffer) // len(offsets), 0
        if _POSITIONAL:
            from paramdelta.storage.scattered import read_parts  # compiled code

            done = read_parts(self._descriptor, np.frombuffer(buffer, np.uint8), offsets)
        for number in range(done, len(offsets)):  # which also says what is wrong
            self.read_into(buffer[number * size : (number + 1) * size], int(offsets[number]))
        if self._passed is not None:
            self._drop_behind(among, len(buffer))

    def _read_ahead(self, stretch: range) -> None:
        """Help to bring a stretch into the page cache, unless that holds too little for it."""
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
        """Empty the page cache of a stretch when so many bytes more make it all."""
        with self._lock:
            ahead = self._ahead.get(stretch)
            if ahead is None:
                return
            ahead.wanted -= count
            if ahead.wanted > 0:
                return
            del self._ahead[stretch]
        os.posix_fadvise(self._descriptor, stretch.start, len(stretch), os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from ``offset``; raises as `read_into`."""
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``; raises StorageError.

        Whole blocks of a `page_buffer` go directly to the disk.
        """
        done = 0
        try:
            if self._direct is not None and offset % BLOCK == 0 and len(data) >= BLOCK:
                done = self._write_direct(data[: len(data) // BLOCK * BLOCK], offset)
            while done < len(data):
                done += self._write(data[done:], offset + done)
        except OSError as error:
            raise storage_error(error, self.path, "write") from None

    def _write_direct(self, data: memoryview, offset: int) -> int:
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._direct or 0, data[done:], offset + done)
                if done % BLOCK:
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
        """Give the file ``size`` bytes of disk now, so that a full disk is met at the start.

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
        """Return when all that was written is on the disk; raises StorageError."""
        try:
            getattr(os, "fdatasync", os.fsync)(self._descriptor)
        except OSError as error:
            raise storage_error(error, self.path, "sync") from None

    def _is_cached(self) -> bool:
        """Whether the file's bytes are, mostly, in the page cache; True where it cannot be told.

        Asked by reading single bytes with the promise not to wait for the disk: without
        read-ahead and at new places every time, for a probe that misses fetches its page.
        """
        if not hasattr(os, "RWF_NOWAIT"):
            return True
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        try:
            size, probes = self.size(), 9
            hits = sum(self._has_page(random.randrange(size)) for _ in range(probes))
        except (OSError, ValueError):  # the file system cannot say, or the file is empty
            return True
        finally:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_NORMAL)
        return hits > probes // 2

    def _has_page(self, offset: int) -> bool:
        try:
            os.preadv(self._descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptors; the file must not be used any more."""
        if self._passed or self._ahead:  # what is left: windows that hold the ends, scattered parts
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)


def _memory() -> int:
    """Bytes of this machine's memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def storage_error(error: OSError, path: Path, verb: str) -> StorageError:
    """An OSError as one that says where, what and what to do."""
    remedies = {
        errno.ENOSPC: "free some space or choose another --out",
        errno.EDQUOT: "your quota is used up: free some space or choose another --out",
        errno.EFBIG: "the file system or a limit (ulimit -f) allows no larger file: "
        "choose a smaller --shard-size",
        errno.EACCES: "look at the permissions",
        errno.EROFS: "the file system is read-only: choose another --out",
        errno.EMFILE: "too many open files: raise ulimit -n",
        errno.EIO: "the device reports a failure: look at the disk",
    }
    return StorageError(
        f"cannot {verb} the file",
        where=str(path),
        got=error.strerror or str(error),
        remedy=remedies.get(error.errno or 0),
    )


def write_text(path: Path, text: str) -> None:
    """Write a small text file (UTF-8, as it stands) and sync it; raises StorageError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file and sync it; raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, path, "write") from None


def read_bytes(path: Path) -> bytes:
    """The whole of a small file; raises StorageError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise storage_error(error, path, "read") from None


def sync_folder(path: Path) -> None:
    """Make renames and new files in a folder durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def raise_open_file_limit() -> None:
    """Allow as many open files as the system lets this process have: models have many shards."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
