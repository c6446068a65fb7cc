"""The check of an output before it is put in place."""

from pathlib import Path
from time import perf_counter

from paramdelta.checks.checker import check
from paramdelta.checks.report import Report
from paramdelta.checks.values import BLOCK, not_finite
from paramdelta.errors import MisfitError
from paramdelta.output.layout import Layout, Shard
from paramdelta.planning.findings import Severity
from paramdelta.storage.local import File


class Inspection:
    """Checks one complete folder after the other.

    ``reports``: the results. ``seconds``: wall time of all checks.

    ``strict``: read every number, and refuse those that are not finite. Else numbers are read only
    if an earlier run wrote some of them: the mix has counted what is not finite in its own.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.reports: list[Report] = []
        self.seconds = 0.0

    def __call__(self, folder: Path, resumed: bool) -> None:
        """Check a folder; raises MisfitError if anything is refused."""
        self._check(folder, f"{folder}: ", values=self.strict or resumed)

    def skeleton(self, folder: Path) -> None:
        """Check a folder whose weight files have headers alone: their numbers are elsewhere."""
        self._check(folder, "", values=False)

    def _check(self, folder: Path, place: str, values: bool) -> None:
        began = perf_counter()
        report = check(folder, strict=self.strict, values=values)
        self.seconds += perf_counter() - began
        self.reports.append(report)
        refused = [f for f in report.findings if f.severity is Severity.REFUSED]
        if refused:
            first, rest = refused[0], len(refused) - 1
            more = f" ({rest} more: `paramdelta check` shows them)" if rest else ""
            raise MisfitError(
                f"the output would not work: {first.what}{more}",
                code="check-failed",
                where=f"{place}{first.where}" + (f": {first.sample()}" if first.tensors else ""),
                got=first.code,
                remedy=(f"{first.remedy}; or " if first.remedy else "")
                + "`check=False` puts it in place as it is; nothing is computed again",
            )


def refuse_not_finite(layout: Layout, shard: Shard, file: File) -> None:
    """Raise MisfitError if a shard holds NaN or infinities. Every number of it is read."""
    for number in range(shard.first, shard.last):
        stream, place = layout.streams[number], layout.places[number]
        for start in range(0, stream.nbytes, BLOCK):
            data = file.read(place.offset + start, min(BLOCK, stream.nbytes - start))
            if not_finite(data, stream.dtype):
                raise MisfitError(
                    "the output would hold numbers that are NaN or infinite",
                    code="not-finite",
                    where=f"{shard.name}: {stream.name}",
                    remedy="look where they come from, or pass `strict=False`",
                )
