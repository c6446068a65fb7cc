"""Warm or cold: whether the inputs are in the kernel's page cache when a run begins."""

import os
from collections.abc import Iterable
from pathlib import Path

from benchmarks import floor

DROP = Path("/proc/sys/vm/drop_caches")


def warm(paths: Iterable[Path]) -> None:
    """Read every file once."""
    buffer = memoryview(bytearray(floor.BUFFER))
    for path in paths:
        floor.read(path, buffer)


def drop(paths: Iterable[Path]) -> str | None:
    """Empty the page cache, or at least of these files; say by which means, None if by none."""
    os.sync()  # dirty pages cannot be dropped
    try:
        DROP.write_text("3")
    except OSError:
        if not hasattr(os, "posix_fadvise"):
            return None
        for path in paths:
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
        return "posix_fadvise(DONTNEED) on the inputs"
    return "drop_caches"
