"""Sinks: where finished tensors go. A folder, a model in memory; a destination is one file.

A sink lives in the process that runs the job. Its writer goes to the workers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from paramdelta.output.journal import Ranges
from paramdelta.output.layout import Layout
from paramdelta.storage.digest import Leaves

NotFinite: TypeAlias = Mapping[tuple[str, str], int]
"""How many numbers are infinite or NaN, by tensor and place."""


@dataclass(frozen=True)
class Durable:
    """What an earlier run left at a destination.

    ``ranges``: runs of bytes, in all data laid end to end. ``leaves``: block digests of files, by
    name; see `storage.digest`. ``not_finite``: what was counted in these bytes; see
    `jobs.mix.MixJob.not_finite`.
    """

    ranges: Ranges = field(default_factory=Ranges)
    leaves: Mapping[str, Mapping[int, bytes]] = field(default_factory=dict)
    not_finite: NotFinite = field(default_factory=dict)


class Writer(Protocol):
    """Takes bytes of tensors on a worker. Picklable; opens what it needs when it is first used."""

    def write(self, stream: int, offset: int, data: memoryview) -> int:
        """Take bytes of tensor number ``stream`` of the layout, from byte ``offset`` of it.

        ``data`` is reused as soon as this returns. May be called from many threads at once. Returns
        how many bytes were written: 0 if they are there already, through another output.
        """


class Sink(Protocol):
    """The life of one output, on the driver: begin, (commit)*, put*, finish; or abort.

    Raises, from every method:
        StorageError: the destination failed; the same run can be repeated.
    """

    def begin(self, layout: Layout) -> Durable:
        """Open the destination. Returns what is durable there from an earlier run.

        Raises:
            MisfitError: the destination is in use, or holds something else.
        """

    def writer(self) -> Writer:
        """What takes bytes on a worker."""

    def commit(
        self,
        ranges: Iterable[tuple[int, int]],
        leaves: Leaves | None = None,
        not_finite: NotFinite | None = None,
    ) -> None:
        """Make these runs of bytes durable, and remember that they are.

        ``leaves``: block digests of the sources to remember with them; see `storage.digest`.
        ``not_finite``: what was counted in them. A sink may leave both out.
        """

    def put(self, name: str, data: bytes) -> None:
        """Take a small file; ``name`` may have slashes."""

    def finish(self) -> None:
        """Make the output appear, whole."""

    def abort(self) -> None:
        """Close everything. What is durable is kept for a later run. May be called at any time."""
