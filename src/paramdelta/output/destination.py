"""Destinations: places that take an output file by file, and remember which shards are finished.

A destination is what a `ShippingSink` needs of a place without partial writes: a bucket, a hub, a
folder that several machines share. A shard is one file and the unit of durability. Each finished
shard has a record at the destination, and the records are the journal: any machine can continue.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from paramdelta.documents import parse_json
from paramdelta.output.journal import damaged_journal
from paramdelta.output.sink import NotFinite
from paramdelta.storage.digest import Leaves

JOURNAL = ".paramdelta"  # the folder of an unfinished run's records, at the destination
RUN = "run.json"  # what the unfinished run is


class Destination(Protocol):
    """Where an output goes. ``where``: its address, for messages.

    ``staging``: a folder from which shards can be taken without a copy; None if it does not matter.

    Raises, from every method:
        StorageError: the place failed; the same run can be repeated.
    """

    where: str

    @property
    def staging(self) -> Path | None:
        """See the class."""

    def finished(self) -> bytes | None:
        """The lock of the finished output that is there; None if there is none."""

    def begin(self, run: Mapping[str, Any], fresh: bool) -> Mapping[str, bytes]:
        """Claim the destination for a run; the records of shards that are finished, by shard.

        ``run``: what it is, see `Journal`; another run that is unfinished there is refused.
        ``fresh``: discard what is unfinished. Several machines may do the same run at once.

        Raises:
            MisfitError: something else is there.
        """

    def ship(self, name: str, path: Path, record: bytes, stopped: Callable[[], bool]) -> None:
        """Take a finished shard, then its record; both are durable when this returns.

        ``path``: the local file, which may be taken away. ``stopped``: whether to give up.
        """

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Take the small files, in order, and make the output appear: the lock, which is last, says
        that it is whole. Then the records go.

        Raises:
            MisfitError: a shard is not the one that was shipped.
        """

    def close(self) -> None:
        """Release what is held. What is durable stays for a later run."""


@dataclass(frozen=True)
class Record:
    """What the journal says about a finished shard.

    ``size`` and ``digest``: of the file; see `storage.digest`. ``leaves``: block digests of the
    sources that were read for it. ``not_finite``: what was counted in it. ``examined``: whether
    every number of it was looked at.
    """

    size: int
    digest: str
    leaves: Leaves = field(default_factory=dict)
    not_finite: NotFinite = field(default_factory=dict)
    examined: bool = False

    def to_bytes(self) -> bytes:
        """The record as JSON."""
        plain = {
            "size": self.size,
            "digest": self.digest,
            "leaves": self.leaves,
            "not_finite": [[*key, count] for key, count in sorted(self.not_finite.items())],
            "examined": self.examined,
        }
        return json.dumps(plain).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Record":
        """The record from JSON; raises MisfitError."""
        try:
            plain = parse_json(data)
            if not isinstance(plain["size"], int) or len(bytes.fromhex(plain["digest"])) != 16:
                raise ValueError("no size or no digest")
            leaves = {
                str(url): {int(n): bytes.fromhex(leaf).hex() for n, leaf in found.items()}
                for url, found in plain["leaves"].items()
            }
            not_finite = {(str(t), str(w)): int(count) for t, w, count in plain["not_finite"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged_journal(where) from None
        examined = plain.get("examined") is True
        return cls(plain["size"], plain["digest"], leaves, not_finite, examined)
