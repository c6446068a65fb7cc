"""A destination: a folder in an object store.

Shards go to their final names at once, for a bucket has no rename. Until index and config.json are
there, which come late, and the lock, which comes last, no loader takes the folder for a checkpoint.
The records of finished shards lie in its folder ``.paramdelta``, and go at the end.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.errors import MisfitError, StorageError, UsageError
from paramdelta.output.destination import JOURNAL, RUN
from paramdelta.output.journal import compare_runs
from paramdelta.output.place import written_by
from paramdelta.storage.blob import Blob
from paramdelta.storage.objects import Bucket, split

MOST_RECORD = 64_000_000  # bytes
TRIES = 3  # of a shard that another machine replaces while it is recorded


class BucketDestination:
    """A folder in a bucket; see `output.destination.Destination`.

    ``mark``: the small file that says that an output is whole. ``sources``: URLs that must not be
    touched. ``overwrite``: remove a finished output that is there before the first shard comes.

    Raises:
        UsageError: it is not the address of a folder, or it is, contains or lies in a source.
    """

    staging = None

    def __init__(
        self, url: str, *, mark: str, sources: Iterable[str] = (), overwrite: bool = False
    ) -> None:
        root, self.folder = split(url)
        self.where = f"{root}/{self.folder}"
        if not self.folder:
            raise UsageError(
                "the output would be the whole bucket",
                code="invalid-object-address",
                where=url,
                expected="a folder in it, such as s3://bucket/folder",
            )
        own = self.where + "/"
        for source in sources:
            if (source + "/").startswith(own) or own.startswith(source.rstrip("/") + "/"):
                raise UsageError(
                    "the output lies on an input",
                    code="output-on-input",
                    where=f"{url} and {source}",
                    remedy="choose another output folder",
                )
        self.mark = mark
        self.overwrite = overwrite
        self.bucket = Bucket(root)
        self._versions: dict[str, str] = {}  # of shards that are recorded

    def finished(self) -> bytes | None:
        """See `Destination.finished`."""
        return self._small(self.mark)

    def begin(self, run: Mapping[str, Any], fresh: bool) -> Mapping[str, bytes]:
        """See `Destination.begin`."""
        text = json.dumps(run)
        there = self._list()
        if fresh:
            self._discard(there, run)
            there = self._list()
        found = self._small(f"{JOURNAL}/{RUN}")
        lock = self._small(self.mark)
        if found is None or lock is not None:
            self._check_free(there, lock)
        if found is None:
            claim = self._path(f"{JOURNAL}/{RUN}")
            if not self.bucket.put(claim, text.encode(), new=True):
                found = self._small(f"{JOURNAL}/{RUN}")  # another machine was first
        if found is not None:
            try:
                compare_runs(parse_json(found), parse_json(text.encode()), self.where)
            except (ValueError, KeyError, TypeError):
                raise self._damaged() from None
        if lock is not None:
            self._clear(lock)
            there = self._list()
        return self._records(there)

    def ship(self, name: str, path: Path, record: bytes, stopped: Callable[[], bool]) -> None:
        """See `Destination.ship`."""
        for _ in range(TRIES):
            version = self.bucket.upload(self._path(name), path, stopped)
            noted = {"version": version, "record": record.decode()}
            self.bucket.put(self._record(name), json.dumps(noted).encode())
            self._versions[name] = version
            # Where another machine made the same shard meanwhile, the record may be of the wrong
            # one of the two objects.
            found = self.bucket.head(self._path(name))
            if found is not None and found.version == version:
                return

    def publish(self, files: Mapping[str, bytes]) -> None:
        """See `Destination.publish`."""
        there = self._list()
        wrong = [n for n, v in self._versions.items() if n not in there or there[n].version != v]
        if wrong:
            for name in wrong:
                self.bucket.delete(self._record(name))
            raise MisfitError(
                "a shard is not the one that was shipped",
                code="partial-output-changed",
                where=", ".join(self.bucket.url(self._path(name)) for name in wrong[:4]),
                remedy="let nothing else write there; the same command makes it again",
            )
        for name, data in files.items():
            self.bucket.put(self._path(name), data)
        names = [name for name in there if name.startswith(JOURNAL + "/")]
        for name in sorted(names, key=lambda name: name != f"{JOURNAL}/{RUN}"):
            self.bucket.delete(self._path(name))

    def close(self) -> None:
        """Nothing is held."""

    # -- what is there -----------------------------------------------------------------------------

    def _check_free(self, there: Mapping[str, Blob], lock: bytes | None) -> None:
        """Raise UsageError if the folder holds anything that may not be replaced."""
        files = {name for name in there if not name.startswith(JOURNAL + "/")}
        if not files:
            return
        if lock is None:
            raise UsageError(
                "the folder holds objects that paramdelta did not write",
                code="foreign-output",
                where=self.where,
                got=", ".join(sorted(files)[:4]),
                remedy="choose another output folder, or remove them yourself",
            )
        if not self.overwrite:
            raise UsageError(
                "the output exists already",
                code="output-exists",
                where=self.where,
                remedy="choose another output folder, or pass `overwrite=True` to remove it before "
                "the new one is written",
            )
        foreign = sorted(files - written_by(lock, self.mark))
        if foreign:
            raise UsageError(
                "the old output holds files that paramdelta did not write",
                code="foreign-output",
                where=self.where,
                got=", ".join(foreign[:4]) + (" …" if len(foreign) > 4 else ""),
                remedy="move them elsewhere, or choose another output folder",
            )

    def _clear(self, lock: bytes) -> None:
        """Remove an old output, the files that loaders look for first, its lock last."""
        names = written_by(lock, self.mark) - {self.mark}
        for name in sorted(names, key=lambda name: not name.endswith("json")):
            self.bucket.delete(self._path(name))
        self.bucket.delete(self._path(self.mark))

    def _discard(self, there: Mapping[str, Blob], run: Mapping[str, Any]) -> None:
        """Remove an unfinished run: its shards, its records, and what it is at last."""
        found = self._small(f"{JOURNAL}/{RUN}")
        if found is None:
            return
        try:
            shards = {str(name) for name, _ in parse_json(found)["shards"]}
        except (ValueError, KeyError, TypeError):
            shards = set()
        if self.finished() is None:
            shards |= {str(name) for name, _ in run["shards"]}
            for name in shards & there.keys():
                self.bucket.delete(self._path(name))
        for name in sorted(there, key=lambda name: name == f"{JOURNAL}/{RUN}"):
            if name.startswith(JOURNAL + "/"):
                self.bucket.delete(self._path(name))

    def _records(self, there: Mapping[str, Blob]) -> dict[str, bytes]:
        """The records of shards that are there as they were shipped; others are removed."""
        found = {}
        head, tail = f"{JOURNAL}/shards/", ".json"
        for entry in there:
            if not (entry.startswith(head) and entry.endswith(tail)):
                continue
            name = entry[len(head) : -len(tail)]
            data = self._small(entry)
            if data is None:
                continue
            try:
                noted = parse_json(data)
                version, record = str(noted["version"]), str(noted["record"])
            except (ValueError, KeyError, TypeError):
                raise self._damaged() from None
            if name in there and there[name].version == version:
                found[name] = record.encode()
                self._versions[name] = version
            else:
                self.bucket.delete(self._path(entry))
        return found

    def _list(self) -> dict[str, Blob]:
        start = len(self.folder) + 1
        return {path[start:]: blob for path, blob in self.bucket.list(self.folder).items()}

    def _small(self, name: str) -> bytes | None:
        try:
            return self.bucket.small(self._path(name), MOST_RECORD)
        except FileNotFoundError:
            return None

    def _record(self, name: str) -> str:
        return self._path(f"{JOURNAL}/shards/{name}.json")

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def _damaged(self) -> StorageError:
        return StorageError(
            "the journal of the unfinished run is damaged",
            code="damaged-journal",
            where=f"{self.where}/{JOURNAL}",
            remedy="pass `fresh=True` to start again",
        )
