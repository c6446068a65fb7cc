"""The page of the analysis says what was measured."""

import re

from studies.observations.page import PAGE, rendered, results


def test_the_tables_are_those_of_the_results():
    """Every table of the page is what the committed results give."""
    text = PAGE.read_text(encoding="utf-8")
    assert rendered(text) == text
    assert text.count("<!-- /") == 4


def test_the_words_are_those_of_the_results():
    """The figures in the text are rounded from the results."""
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    found = results()
    deltas = found["shipped"]["deltas"]
    first, second = (f"{each['shift cosine']:.2f}" for each in deltas)
    assert f"Over the whole model the cosine is {first} and {second}." in text
    sizes = [
        abs(each[f"{which} cosine of a weight"]) for each in deltas for which in ("least", "most")
    ]
    assert max(sizes) <= 0.06
    pairs = [found[key]["pairs"][0] for key in ("shipped", "direct")]
    assert f"have a cosine of {pairs[0]['cosine']:.2f}. Both teach" in text
    assert f"have a cosine of {pairs[1]['cosine']:.2f}." in text
    low, high = sorted(f"{pair['profiles']:.2f}" for pair in pairs)
    assert f"rank correlations of {low} and {high}" in text
    real = [each for key, f in found.items() if "control" not in key for each in f["deltas"]]
    for name, form in (("layers most / least", ".1f"), ("weights most / least", ".1f")):
        values = [each[name] for each in real]
        assert f"{min(values):{form}} to {max(values):{form}}" in text
    energy = found["minilm"]["deltas"][0]["energy in rank 16"]
    assert f"hold {100 * energy:.0f} % of ‖Δ‖²" in text


def test_the_controls_are_told_apart():
    """Models without a common origin are called so, the fine-tune is not."""
    flags = {key: found["flags"] for key, found in results().items()}
    assert "not-one-lineage" in flags["control-random"]
    assert "not-one-lineage" in flags["control-permuted"]
    real = [f for key, f in flags.items() if key not in ("control-random", "control-permuted")]
    assert all("not-one-lineage" not in each for each in real)


def test_thresholds_in_the_page_are_those_of_the_code():
    """The table of flags has every code and its threshold."""
    from paramdelta.analysis import verdict
    from paramdelta.analysis.prediction import fit
    from paramdelta.planning.lineage import RELATED
    from paramdelta.planning.relatives import ALONG, FAR

    text = PAGE.read_text(encoding="utf-8")
    rows = {
        code: line for line in text.splitlines() for code in re.findall(r"^\| `([\w-]+)`", line)
    }
    told = {
        "not-one-lineage": RELATED, "shift-far": FAR, "delta-along-shift": ALONG,
        "embedding-outliers": verdict.OUTLIER, "common-part": verdict.SHARED,
    }  # fmt: skip
    for code, value in told.items():
        assert f" {value:g}" in rows[code]
    assert all(f"`{code}`" in text for code in verdict.codes())
    assert f"held {fit()['inside']} of the {fit()['runs']} runs" in " ".join(text.split())
