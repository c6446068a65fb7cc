"""The prediction is the study's fit, with the coverage that it states, and does not extrapolate."""

import json
from pathlib import Path

import pytest

from paramdelta.analysis.measures import DeltaMeasures, Shift
from paramdelta.analysis.prediction import fit, known_cases, predict
from studies.transfer import fit as study

ROOT = Path(__file__).parents[2]


def delta(ratio, cosine=0.1, relative=0.131):
    """Measures of a Δ, as far as the prediction asks for them."""
    shift = Shift(1.0, 0.1, ratio, cosine, 0.5, 1.0)
    return DeltaMeasures(0, 1, 1, 1.0, 1.0, relative, 1.0, 0.0, 0.0, 3.0, (), shift)


def test_the_fit_is_what_the_study_gives():
    """The file in the package is what the command writes from the committed results."""
    assert fit() == json.loads(json.dumps(study.made(ROOT / "docs" / "study")))


def test_the_coverage_is_measured_on_seeds_that_were_left_out():
    """The interval of 90 % holds about so many of the held-out runs, and the fit orders them."""
    found = fit()
    assert found["inside"] / found["runs"] == pytest.approx(0.9, abs=0.04)
    points = [
        (seed, x / 10, study.curve(x / 10, 1.5, 4)) for seed in (1, 2, 3) for x in (5, 15, 25)
    ]
    middle, power = study.fitted(points)
    assert (middle, power) == (pytest.approx(1.5, abs=0.01), pytest.approx(4, abs=0.05))
    assert study.coverage(points) == (9, 9)


def test_within_the_study():
    """At the middle of the curve half is expected, within the interval."""
    middle = fit()["middle"]
    found = predict(delta(middle), 216_000, 1.0, 1)
    assert found.transfer == pytest.approx(50)
    assert found.high - found.transfer == pytest.approx(fit()["half_width"])
    assert "50 % of direct" in str(found)


@pytest.mark.parametrize(
    ("change", "quantity"),
    [
        ({"found": delta(3.0)}, "shift / Δ"),
        ({"found": delta(None)}, "shift / Δ"),
        ({"found": delta(1.0, cosine=-0.2)}, "cosine of Δ and S"),
        ({"found": delta(1.0, relative=0.01)}, "Δ / base"),
        ({"parameters": 7_000_000_000}, "parameters"),
        ({"scale": 0.5}, "scale"),
        ({"scale": None}, "scale"),
        ({"deltas": 2}, "number of Δs"),
    ],
)
def test_no_extrapolation(change, quantity):
    """Each quantity beyond the study prevents a prediction, and is named."""
    given = {"found": delta(1.0), "parameters": 216_000, "scale": 1.0, "deltas": 1} | change
    found = predict(**given)
    assert found.transfer is None
    assert [each.quantity for each in found.outside] == [quantity]
    assert quantity in str(found)


def test_known_cases():
    """Every ratio of the study has its case; beyond, it says so; without a shift, nothing."""
    assert "13 runs" in known_cases(1.2)
    assert known_cases(9.0) == "No run of the study had so large a ratio."
    assert known_cases(0.0) == known_cases(None) == ""
