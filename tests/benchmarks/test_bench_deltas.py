"""The page on stored Δ has the measured numbers, and what was chosen is what measured best."""

import json

from benchmarks import deltas


def test_the_page_has_the_results():
    """Its tables are what the committed results give."""
    results = json.loads(deltas.RESULTS.read_text(encoding="utf-8"))
    assert deltas.tables(results) in deltas.PAGE.read_text(encoding="utf-8")


def test_what_is_stored_is_the_smallest_exact_way():
    """For every pair, of all ways that need no base and lose nothing."""
    results = json.loads(deltas.RESULTS.read_text(encoding="utf-8"))
    for pair in results["pairs"].values():
        exact = [c for c in pair["codecs"] if c["what"].startswith(("planes", "post and base"))]
        least = min(exact, key=lambda c: c["share_of_post"])
        assert (least["what"], least["how"]) == ("planes of words", "zstd, as stored")
