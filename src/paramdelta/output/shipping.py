"""A sink that ships shards: each one is made in a local file and sent away when it is whole.

The local disk holds a few shards at a time. A writer that wants to begin another one waits until
one has been shipped. What a kill costs are the shards that were not shipped yet: the shard size
bounds it.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from paramdelta.errors import MisfitError
from paramdelta.output.destination import Destination, Record
from paramdelta.output.folder import is_inside
from paramdelta.output.journal import Ranges
from paramdelta.output.layout import Layout, Shard
from paramdelta.output.sink import Durable, NotFinite
from paramdelta.output.staging import Staging
from paramdelta.storage.digest import Digests, Leaves
from paramdelta.storage.local import File, raise_open_file_limit

ON_DISK = 3  # shards on the local disk
STUCK = 20.0  # seconds after which a writer stops waiting if nothing is being shipped
COMMIT_SECONDS = 0.1  # how often an engine should commit to this sink: it costs nothing


class ShippingSink:
    """An output that goes to a destination shard by shard; see `output.sink.Sink`.

    ``run``: what a run must have in common with the one that it resumes; see `Journal`. ``mark``:
    the small file that says that an output is whole. ``fresh``: discard an unfinished run.
    ``staging``: the local folder for shards; None for the destination's or the system's own.
    ``shards``: numbers of the shards that this run makes; None for all. ``examine``: called with
    layout, shard and file before a shard is shipped; may raise. ``inspect``: called before the
    output appears, with a folder that holds its small files, and its shards without their data;
    may raise.

    ``records``: of the finished shards, by name.
    """

    def __init__(
        self,
        destination: Destination,
        run: Mapping[str, Any],
        *,
        mark: str,
        fresh: bool = False,
        staging: Path | None = None,
        shards: Collection[int] | None = None,
        examine: Callable[[Layout, Shard, File], None] | None = None,
        inspect: Callable[[Path], None] | None = None,
    ) -> None:
        self.destination = destination
        self.run = run
        self.mark = mark
        self.fresh = fresh
        self.shards = shards
        self.examine = examine
        self.inspect = inspect
        self.records: dict[str, Record] = {}
        self._parent = staging or destination.staging
        self._staging: Staging | None = None
        self._put: dict[str, bytes] = {}
        self._digests = Digests()
        self._files: dict[int, File] = {}  # shards on the local disk
        self._left: dict[int, int] = {}  # bytes of them that were not written yet
        self._todo: set[int] = set()  # shards that are not shipped
        self._queue: list[int] = []  # whole shards
        self._noted: dict[int, tuple[Leaves, NotFinite]] = {}
        self._leaves: dict[str, dict[int, str]] = {}
        self._not_finite: Counter[tuple[str, str]] = Counter()
        self._committed = Ranges()
        self._stopping = self._draining = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._shipper = threading.Thread(target=self._ship, name="paramdelta-ship", daemon=True)

    # -- the start ---------------------------------------------------------------------------------

    def begin(self, layout: Layout) -> Durable:
        """See `Sink.begin`. Shards of other runs' parts count as durable."""
        raise_open_file_limit()
        self._layout = layout
        found = self.destination.begin(self.run, self.fresh)
        done, leaves = Ranges(), dict[str, dict[int, bytes]]()
        not_finite: Counter[tuple[str, str]] = Counter()
        for number, shard in enumerate(layout.shards):
            if shard.name in found:
                record = Record.parse(found[shard.name], f"{self.destination.where}: {shard.name}")
                self.records[shard.name] = record
                not_finite.update(record.not_finite)
                for url, blocks in record.leaves.items():
                    known = leaves.setdefault(url, {})
                    known.update((n, bytes.fromhex(leaf)) for n, leaf in blocks.items())
            elif self.shards is None or number in self.shards:
                self._todo.add(number)
                continue
            done.add(*self._span(number))
        if self._todo:
            self._staging = Staging(self._parent)
            sizes = sorted(layout.shards[number].size for number in self._todo)
            try:
                self._staging.check_room(sum(sizes[-ON_DISK:]))
            except BaseException:
                self._staging.remove()
                raise
            self._shipper.start()
        return Durable(done, leaves, not_finite)

    # -- the work ----------------------------------------------------------------------------------

    def writer(self) -> "ShippingSink":
        """Itself: the shards are made in this process."""
        return self

    def write(self, stream: int, offset: int, data: memoryview) -> int:
        """See `Writer.write`. Waits while too many shards are on the local disk."""
        place = self._layout.places[stream]
        if place.shard not in self._todo:
            return 0
        shard, at = self._layout.shards[place.shard], place.offset + offset
        self._file(place.shard).write(data, at)
        self._digests.of(shard.name, shard.size).update(at, data)
        with self._changed:
            self._left[place.shard] -= len(data)
        return len(data)

    def commit(
        self,
        ranges: Iterable[tuple[int, int]],
        leaves: Leaves | None = None,
        not_finite: NotFinite | None = None,
    ) -> None:
        """See `Sink.commit`. A shard is durable when it has been shipped, soon after."""
        with self._changed:
            self._check()
            for start, stop in ranges:
                self._committed.add(start, stop)
            for url, blocks in (leaves or {}).items():
                self._leaves.setdefault(url, {}).update(blocks)
            self._not_finite.update(not_finite or {})
            for number in sorted(self._files):
                if number not in self._noted and self._span(number) in self._committed:
                    self._noted[number] = self._leaves, dict(self._not_finite)
                    self._leaves, self._not_finite = {}, Counter()
                    self._queue.append(number)
            self._changed.notify_all()

    def drain(self) -> None:
        """Return when every shard of this run is at the destination.

        Raises:
            MisfitError: not all of them were written.
            StorageError: one could not be shipped.
        """
        for number in sorted(self._todo - self._files.keys()):
            start, stop = self._span(number)
            if start == stop:  # no task writes it
                self._file(number)
        self.commit(())
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        if self._shipper.ident is not None:
            while self._shipper.is_alive():
                self._shipper.join(0.1)  # Ctrl-C gets through
        with self._changed:
            self._check()
        if self._todo:
            raise self._incomplete()

    def put(self, name: str, data: bytes) -> None:
        """See `Sink.put`."""
        if not is_inside(name):
            raise MisfitError(
                "a file would leave the output folder", code="unsafe-file-name", where=name
            )
        self._put[name] = data

    def file_digests(self) -> dict[str, str]:
        """The content digest of every shard, all of which are shipped; see `storage.digest`."""
        self.drain()
        if any(shard.name not in self.records for shard in self._layout.shards):
            raise self._incomplete()
        return {shard.name: self.records[shard.name].digest for shard in self._layout.shards}

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """See `Sink.finish`."""
        self.file_digests()
        self._check_examined()
        files = {**self._put, **self._layout.small}
        # A loader looks for an index and for config.json: they come late. The lock is the last.
        late = [name for name in files if name.endswith((".index.json", "config.json"))]
        first = [name for name in files if name not in (*late, self.mark)]
        last = [self.mark] if self.mark in files else []
        files = {name: files[name] for name in (*first, *late, *last)}
        if self.inspect is not None:
            with self._skeleton(files) as folder:
                self.inspect(folder)
        self.destination.publish(files)
        self.abort()

    def abort(self) -> None:
        """See `Sink.abort`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._shipper.ident is not None:
            self._shipper.join(30)
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._staging is not None:
            self._staging.remove()
        self.destination.close()

    # -- shards ------------------------------------------------------------------------------------

    def _span(self, number: int) -> tuple[int, int]:
        """The first byte of a shard's data, and the one behind the last, in all data."""
        shard, places = self._layout.shards[number], self._layout.places
        if shard.first == shard.last:
            return 0, 0
        end = places[shard.last - 1].position + self._layout.streams[shard.last - 1].nbytes
        return places[shard.first].position, end

    def _file(self, number: int) -> File:
        with self._changed:
            if number not in self._files:
                self._wait_for_room(number)
            if number not in self._files:
                shard = self._layout.shards[number]
                file = File.create(self._path(number))
                self._files[number] = file
                self._left[number] = shard.size - len(shard.header)
                file.allocate(shard.size)
                header = memoryview(shard.header)
                file.write(header, 0)
                self._digests.of(shard.name, shard.size).update(0, header)
            return self._files[number]

    def _wait_for_room(self, number: int) -> None:
        """Wait until a shard may begin; the lock is held.

        Only shards before this one are waited for: their tasks come first, so none of them waits
        for this one. `STUCK` is for outputs whose tasks come in another order.
        """
        since = monotonic()
        while len(self._files) >= ON_DISK and number not in self._files:
            self._check()
            if not self._queue and not any(
                left == 0 and other < number for other, left in self._left.items()
            ):
                return
            if not self._queue and monotonic() - since > STUCK:
                return
            self._changed.wait(1.0)
        self._check()

    def _check(self) -> None:
        """Raise what made the shipping fail; the lock is held."""
        if self._error is not None:
            raise self._error
        if self._stopping:
            raise MisfitError("the output was closed", code="output-incomplete")

    def _ship(self) -> None:
        """Ship whole shards one after the other, in a thread of its own."""
        try:
            while (number := self._next()) is not None:
                self._ship_one(number)
        except BaseException as error:  # noqa: BLE001 - the next call of the run raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> int | None:
        with self._changed:
            while not self._stopping:
                if self._queue:
                    return self._queue[0]
                if self._draining:
                    return None
                self._changed.wait(1.0)
        return None

    def _ship_one(self, number: int) -> None:
        shard, file = self._layout.shards[number], self._files[number]
        digest = self._digests.of(shard.name, shard.size)
        for offset, length in digest.missing:
            digest.update(offset, memoryview(file.read(offset, length)))
        if self.examine is not None:
            self.examine(self._layout, shard, file)
        file.close()
        examined = self.examine is not None
        record = Record(shard.size, digest.hexdigest(), *self._noted[number], examined)
        path = self._path(number)
        self.destination.ship(shard.name, path, record.to_bytes(), lambda: self._stopping)
        with contextlib.suppress(OSError):
            path.unlink()
        self._digests.drop(shard.name)
        with self._changed:
            self.records[shard.name] = record
            self._todo.remove(number)
            self._queue.remove(number)
            del self._files[number], self._left[number], self._noted[number]
            self._changed.notify_all()

    def _path(self, number: int) -> Path:
        assert self._staging is not None
        return self._staging.folder / f"{number}.part"

    @contextlib.contextmanager
    def _skeleton(self, files: Mapping[str, bytes]) -> Any:
        """A folder as the output will be, but with holes in place of the tensors' data."""
        staging = Staging(self._parent)
        try:
            folder = staging.folder / "output"
            for name, data in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            for shard in self._layout.shards:
                path = folder / shard.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as hollow:
                    hollow.write(shard.header)
                    hollow.truncate(shard.size)
            yield folder
        finally:
            staging.remove()

    def _check_examined(self) -> None:
        """Raise MisfitError if this run examines its shards and an earlier one did not."""
        unseen = [name for name, record in self.records.items() if not record.examined]
        if self.examine is not None and unseen:
            raise MisfitError(
                "shards were made without `strict=True`",
                code="shards-not-examined",
                where=self.destination.where,
                got=", ".join(unseen[:4]),
                remedy="pass `strict=True` to all parts from the start, or to none",
            )

    def _incomplete(self) -> MisfitError:
        missing = [s.name for s in self._layout.shards if s.name not in self.records]
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        return MisfitError(
            "shards of the output are missing",
            code="shards-missing",
            where=self.destination.where,
            expected=f"{len(self._layout.shards)} shards",
            got=f"without {', '.join(missing[:4])}{more}",
            remedy="run the parts that make them, then this again",
        )
