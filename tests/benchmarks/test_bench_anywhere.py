"""The page on many machines holds what was measured, and what was measured keeps the promises."""

import json

import pytest

from benchmarks import anywhere

REPORT = json.loads(anywhere.RESULTS.read_text(encoding="utf-8"))


def test_the_table_is_the_measurement():
    """The table of docs/clusters.md is the one of the results."""
    text = anywhere.PAGE.read_text(encoding="utf-8")
    assert anywhere.page(text, REPORT) == text


@pytest.mark.parametrize("row", sorted(REPORT["rows"]))
def test_every_row_has_the_bytes_of_threads(row):
    """All files; from other addresses, all but card and lock, which name them."""
    found = REPORT["rows"][row]
    assert found["files"] == REPORT["rows"]["threads"]["files"]
    assert found["identical"] == found["files"] - (2 if row == "s3-s3" else 0)


def test_the_bounds():
    """Memory, disk and bytes read, as promised; and enough kills."""
    rows = REPORT["rows"]
    assert rows["disk-s3"]["peak_rss_bytes"] <= 400e6
    assert rows["disk-s3"]["peak_staging_bytes"] <= 3 * rows["disk-s3"]["largest_shard_bytes"]
    assert max(rows["s3-s3"]["read_shares"].values()) <= 1.02
    assert rows["killed-parts"]["killed"] >= 20
    assert rows["killed-nodes"]["runs"] >= 20
