"""Which slices are safely on disk: what makes a killed run resumable.

A text file of JSON lines beside the data: first what the run is (plan, layout, sources), then a
line for each run of output bytes ``{"done": [start, stop]}`` that has been synced. A line is
appended only after the data that it speaks of; a last line that was cut short counts for nothing.
"""

import bisect
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paramdelta.errors import MisfitError
from paramdelta.storage.local import storage_error


class Ranges:
    """A set of byte positions kept as sorted, merged runs."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> None:
        """Put ``start`` to ``stop`` in."""
        left = bisect.bisect_left(self._stops, start)
        right = bisect.bisect_right(self._starts, stop)
        if left < right:
            start = min(start, self._starts[left])
            stop = max(stop, self._stops[right - 1])
        self._starts[left:right] = [start]
        self._stops[left:right] = [stop]

    def __contains__(self, run: tuple[int, int]) -> bool:
        at = bisect.bisect_right(self._starts, run[0]) - 1
        return at >= 0 and self._stops[at] >= run[1]

    def __iter__(self) -> Any:
        return iter(zip(self._starts, self._stops, strict=True))


class Journal:
    """The open journal of one run; exclusive: a second run on the same output is refused."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Open or begin a journal.

        ``identity``: ``{"digest": …, "sources": [{"path", …}, …]}``. An existing journal must have
        the same.

        Raises:
            MisfitError: the journal is of another run, a source has changed, or a run is going on.
            StorageError: it cannot be opened or written.
        """
        self.path = path
        self.done = Ranges()  # what earlier runs made; it no longer changes once this one works
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise storage_error(error, path, "open") from None
        try:
            self._lock()
            self._load(identity)
        except BaseException:
            self._file.close()
            raise

    def append(self, runs: Iterable[tuple[int, int]]) -> None:
        """Record runs of output bytes whose data has been synced."""
        merged = Ranges()
        for start, stop in runs:
            merged.add(start, stop)
        self._write("".join(json.dumps({"done": run}) + "\n" for run in merged))

    def close(self) -> None:
        """Let the next run have it."""
        self._file.close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: the open handle itself keeps others from deleting it
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MisfitError(
                "another run is writing this output",
                where=str(self.path.parent),
                remedy="wait for it, or choose another --out",
            ) from None

    def _load(self, identity: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write(json.dumps(identity) + "\n")
            return
        try:
            found = json.loads(lines[0])
            runs = [json.loads(line)["done"] for line in lines[1:]]
            self._compare(found, identity)
            for start, stop in runs:
                self.done.add(start, stop)
        except (ValueError, KeyError, TypeError):
            raise MisfitError(
                "the journal of the unfinished run cannot be read",
                where=str(self.path),
                remedy="--fresh starts again from nothing",
            ) from None

    def _compare(self, found: dict[str, Any], identity: dict[str, Any]) -> None:
        if found == identity:
            return
        before = {source["path"]: source for source in found["sources"]}
        now = {source["path"]: source for source in identity["sources"]}
        changed = [path for path in now if path in before and now[path] != before[path]]
        if changed:
            raise MisfitError(
                "a source has changed since the unfinished run",
                where=", ".join(changed),
                remedy="put the source back, or start again from nothing with --fresh",
            )
        raise MisfitError(
            "an unfinished run of another recipe or with other options is here",
            where=str(self.path.parent),
            remedy="repeat that command to resume it, or start again from nothing with --fresh",
        )

    def _write(self, text: str) -> None:
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(error, self.path, "write") from None
