"""Memory: how many workers, and with what buffers, stay under a limit."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from paramdelta.errors import UsageError
from paramdelta.units import show_least, show_size

MAX_BUFFER = 1 << 20  # bytes: larger runs are no faster and fall out of the processor's cache
MIN_BUFFER = 64 << 10  # bytes: below, the cost of a call outweighs the work
OVERHEAD = 48_000_000  # bytes: plan, threads, tables of files; measured in tests


@dataclass(frozen=True)
class Need:
    """Bytes that a job holds: ``each`` per worker, and ``shared`` by all of them."""

    each: int
    shared: int = 0


@dataclass(frozen=True)
class Budget:
    """``workers``, the bytes of each of their buffers, and the bytes that all of it holds at most,
    beyond the interpreter and its libraries.
    """

    workers: int
    buffer: int
    projected: int


def default_workers() -> int:
    """Threads: enough to keep the disk busy while some compute, no more than pays."""
    return max(4, computing_workers())


def computing_workers() -> int:
    """Threads for work that computes more than it reads: further ones only disturb each other."""
    return min(16, os.cpu_count() or 1)


def budget(need: Callable[[int], Need], memory: int, workers: int, what: str = "") -> Budget:
    """Choose workers, and the largest buffers up to `MAX_BUFFER`, under ``memory`` bytes.

    ``need``: what a job holds with buffers of a size. ``what``: explains a large need.

    Raises:
        UsageError: too little memory for one worker with the smallest buffers.
    """

    def projected(count: int, buffer: int) -> int:
        found = need(buffer)
        return count * found.each + found.shared + OVERHEAD

    while workers > 1 and projected(workers, MIN_BUFFER) > memory:
        workers -= 1
    least = projected(workers, MIN_BUFFER)
    if least > memory:
        raise UsageError(
            f"a memory limit of {show_size(memory)} is too little",
            code="too-little-memory",
            expected=f"at least {show_least(least)}{what}",
        )
    low, high = MIN_BUFFER, MAX_BUFFER
    if projected(workers, high) > memory:
        while high - low > 4096:
            middle = (low + high) // 2
            low, high = (middle, high) if projected(workers, middle) <= memory else (low, middle)
        high = low // 4096 * 4096
    return Budget(workers, high, projected(workers, high))
