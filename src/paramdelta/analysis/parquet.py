"""The table of tensors as a Parquet file. The only module that imports pyarrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta.errors import UsageError

if TYPE_CHECKING:
    from paramdelta.analysis.analysis import Analysis


def write_parquet(analysis: "Analysis", path: Path) -> None:
    """A row for each Δ of each tensor, with every measure; raises UsageError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "a Parquet file needs pyarrow, which is not installed",
            code="missing-package",
            expected="the package pyarrow",
            remedy="pip install pyarrow; or use the JSON",
        ) from None
    if path.exists():
        raise UsageError(
            "the file exists already",
            code="report-exists",
            where=str(path),
            remedy="choose another name",
        )
    parquet.write_table(pyarrow.Table.from_pylist(list(rows(analysis))), path)


def rows(analysis: "Analysis") -> Iterator[dict[str, Any]]:
    """A flat dictionary for each Δ of each tensor: the keys of the JSON, joined by dots."""
    for tensor in analysis.to_dict()["tensors"]:
        own = {
            key: tensor[key] for key in ("name", "kind", "stack", "layer", "shape", "not_finite")
        }
        for measures in tensor["deltas"]:
            plain = {k: v for k, v in measures.items() if k not in ("quantiles", "shift")}
            quantiles = {f"quantiles.{k}": v for k, v in measures["quantiles"].items()}
            names = ("norm", "relative", "ratio", "cosine", "agreement", "bases")
            shift = measures["shift"] or {}
            yield own | plain | quantiles | {f"shift.{name}": shift.get(name) for name in names}
