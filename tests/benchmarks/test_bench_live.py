"""The benchmark of loading mixes, and the figures that the page states."""

import json

from benchmarks import live


def test_the_page_states_what_was_measured():
    """The table of docs/live.md is that of the results."""
    report = json.loads(live.RESULTS.read_text(encoding="utf-8"))
    page = live.PAGE.read_text(encoding="utf-8")
    assert page.split(live.MARK)[1].strip() == live.table(report)


def test_summaries_compare_within_a_round():
    """Ratios are taken within a round; memory is beyond the plain load's."""
    runs = [
        {"lineage": "dense", "contender": name, "seconds": seconds * turn, "peak_rss_bytes": peak}
        | {"cpu_s": seconds}
        for turn in (1, 2, 9)
        for name, seconds, peak in (
            ("plain", 1.0, 500),
            ("three", 4.0, 700),
            ("load", 2.0, 600),
            ("scale", 1.0, 650),
        )
    ]
    (row,) = live.summarize(runs).values()
    assert row["load_to_three"] == row["load_to_three_cpu"] == 0.5
    assert row["load_s"] == 4.0
    assert (row["extra_bytes"], row["extra_scale_bytes"]) == (100, 50)
