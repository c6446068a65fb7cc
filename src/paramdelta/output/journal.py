"""Which bytes of an output are durable: what makes a killed run resumable.

A text file beside the data. Each line is a CRC-32 as 8 hexadecimal digits, a space, and JSON: first
what the run is (plan, layout, sources), then ``{"done": [start, stop]}`` for each run of output
bytes that has been synced, ``{"leaves": …}`` for block digests (`storage.digest`), and ``{"put":
name}`` before a small file is written. A line is appended only after the data that it describes. A
last line that was cut short is dropped; any other line without its checksum stops the run.
"""

import bisect
import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from operator import index
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.errors import MisfitError
from paramdelta.storage.local import storage_error

SHORT = 500  # bytes of a line
_DONE = re.compile(rb'\{"done": \[(\d{1,18}), (\d{1,18})\]\}')  # nearly all lines


class Ranges:
    """A set of byte positions, kept as sorted, merged runs."""

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in sorted(runs):
            if self._stops and start <= self._stops[-1]:
                self._stops[-1] = max(stop, self._stops[-1])
            else:
                self._starts.append(start)
                self._stops.append(stop)

    def add(self, start: int, stop: int) -> None:
        """Add the positions from ``start`` up to ``stop``."""
        left = bisect.bisect_left(self._stops, start)
        right = bisect.bisect_right(self._starts, stop)
        if left < right:
            start = min(start, self._starts[left])
            stop = max(stop, self._stops[right - 1])
        self._starts[left:right] = [start]
        self._stops[left:right] = [stop]

    def __contains__(self, run: tuple[int, int]) -> bool:
        at = bisect.bisect_right(self._starts, run[0]) - 1
        return run[0] == run[1] or (at >= 0 and self._stops[at] >= run[1])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))


class Journal:
    """The open journal of one run.

    ``done``: what earlier runs made durable, and this one since. ``leaves``: block digests that
    earlier runs computed, by file. ``puts``: small files that earlier runs may have written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Open or begin a journal.

        ``identity``: ``{"digest": …, "sources": [{"path", …}, …], …}``. An existing journal must
        have the same.

        Raises:
            MisfitError: the journal belongs to another run, is damaged, or a source has changed.
            StorageError: it cannot be opened or written.
        """
        self.path = path
        self.done = Ranges()
        self.leaves: dict[str, dict[int, bytes]] = {}
        self.puts: list[str] = []
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(path, flags, 0o600), "a+b")
        except OSError as error:
            raise storage_error(error, path, "open") from None
        try:
            self._load(identity)
        except BaseException:
            self._file.close()
            raise

    def append(
        self,
        runs: Iterable[tuple[int, int]] = (),
        leaves: Mapping[str, Mapping[int, str]] | None = None,
        put: str | None = None,
    ) -> None:
        """Record runs of output bytes that have been synced, block digests, a small file."""
        merged = Ranges(runs)
        lines: list[dict[str, Any]] = [{"leaves": leaves}] if leaves else []
        lines += [{"done": run} for run in merged]
        lines += [{"put": put}] if put is not None else []
        self._write("".join(map(_line, lines)))
        for start, stop in merged:
            self.done.add(start, stop)

    def close(self) -> None:
        """Close the file; may be called twice. What was not written by `append` is lost."""
        with contextlib.suppress(OSError):  # it tries again to write what failed before
            self._file.close()

    def _load(self, identity: Mapping[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write(_line(identity))
            return
        try:
            first, *others = map(_parsed, lines)
            compare_runs(first, parse_json(json.dumps(identity).encode()), str(self.path.parent))
            done: list[tuple[int, int]] = []
            for entry in others:
                if "done" in entry:
                    start, stop = map(index, entry["done"])
                    if not 0 <= start <= stop:
                        raise ValueError("a run of bytes that ends before it starts")
                    done.append((start, stop))
                elif "put" in entry:
                    self.puts.append(str(entry["put"]))
                else:
                    for name, leaves in entry["leaves"].items():
                        known = self.leaves.setdefault(name, {})
                        known.update({int(n): bytes.fromhex(leaf) for n, leaf in leaves.items()})
            self.done = Ranges(done)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged_journal(str(self.path)) from None

    def _write(self, text: str) -> None:
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(error, self.path, "write") from None


def damaged_journal(where: str) -> MisfitError:
    """The error for records of an unfinished run that cannot be read. ``where``: the records."""
    return MisfitError(
        "the journal of the unfinished run is damaged",
        code="damaged-journal",
        where=where,
        remedy="pass `fresh=True` to start again",
    )


def compare_runs(found: Mapping[str, Any], identity: Mapping[str, Any], where: str) -> None:
    """Raise MisfitError if an unfinished run is not the one that is to be resumed.

    ``found`` and ``identity``: as a `Journal` gets it, from JSON. ``where``: the unfinished run.
    """
    if found == identity:
        return
    before = {source["path"]: source for source in found["sources"]}
    now = {source["path"]: source for source in identity["sources"]}
    changed = [path for path in now if path in before and now[path] != before[path]]
    if changed:
        raise MisfitError(
            "a source has changed since the unfinished run",
            code="source-changed",
            where=", ".join(changed),
            remedy="put the source back, or pass `fresh=True` to start again",
        )
    raise MisfitError(
        "an unfinished run of another recipe, or with other options, is here",
        code="other-run-unfinished",
        where=where,
        remedy="repeat that command to resume it, or pass `fresh=True` to start again",
    )


def _line(entry: Mapping[str, Any]) -> str:
    text = json.dumps(entry)
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _parsed(line: bytes) -> Any:
    if len(line) < 10 or int(line[:8], 16) != zlib.crc32(line[9:]):
        raise ValueError("a line does not have its checksum")
    if match := _DONE.fullmatch(line, 9):
        return {"done": [int(match[1]), int(match[2])]}
    # A short line is small and flat whatever it holds, and there may be many of them.
    return json.loads(line[9:]) if len(line) < SHORT else parse_json(line[9:])
