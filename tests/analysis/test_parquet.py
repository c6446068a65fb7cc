"""The table of tensors as Parquet."""

import pytest

from paramdelta import UsageError, analyze
from paramdelta.analysis.parquet import rows, write_parquet


def test_rows_have_all_measures(lineage):
    """A flat row for each tensor, with the numbers of the JSON."""
    result = analyze(lineage.recipe())
    found = list(rows(result))
    assert len(found) == 21
    m = result.tensors[0].group.of(0)
    assert found[0]["relative"] == m.relative
    assert found[0]["shift.cosine"] == m.shift.cosine
    assert found[0]["quantiles.0.5"] == dict(m.quantiles)[0.5]


def test_the_file_can_be_read(lineage, tmp_path):
    """pyarrow reads what was written; an existing file is kept."""
    parquet = pytest.importorskip("pyarrow.parquet")
    result = analyze((str(lineage.post), str(lineage.base)))
    write_parquet(result, tmp_path / "x.parquet")
    table = parquet.read_table(tmp_path / "x.parquet")
    assert table.column("name").to_pylist() == [t.name for t in result.tensors]
    assert table.column("shift.cosine").to_pylist() == [None] * 21
    with pytest.raises(UsageError):
        write_parquet(result, tmp_path / "x.parquet")
