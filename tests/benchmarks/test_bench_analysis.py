"""The benchmark of the analysis, on a tiny model."""

import pytest

from benchmarks import analysis
from benchmarks.llama import Llama
from benchmarks.make_checkpoints import make


@pytest.mark.slow
def test_every_command_is_measured(tmp_path):
    """Mix and analysis in turns, with the ratios to the mix."""
    make(tmp_path, Llama(hidden=16, layers=1, vocab=32, intermediate=32, heads=2, kv_heads=2))
    rows = analysis.run(tmp_path, 1)
    assert set(rows) == {"mix", "analyze", "analyze, with a report"}
    assert rows["mix"]["wall_times_mix"] == 1
    assert all(row["peak_rss_bytes"] > 0 for row in rows.values())
    assert not (tmp_path / "out").exists()
