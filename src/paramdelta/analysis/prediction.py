"""What transfer this project's study leads one to expect, and where it says nothing."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from paramdelta.analysis.measures import DeltaMeasures
from paramdelta.documents import parse_json

FIT = "fit.json"  # written by `python -m studies.transfer.fit`


@dataclass(frozen=True)
class Outside:
    """A quantity that is not known, or beyond the range that the study covers."""

    quantity: str
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """The transfer that the study's fit expects, in percent of direct post-training.

    ``low`` and ``high``: the interval. It held ``inside`` of ``runs`` runs of the study, each by a
    fit without that run's seed. ``outside``: why there is no prediction; then the numbers are None.
    """

    transfer: float | None
    low: float | None
    high: float | None
    inside: int
    runs: int
    source: str
    outside: tuple[Outside, ...] = ()

    def __str__(self) -> str:
        """One or two sentences."""
        if self.transfer is None:
            what = "; ".join(
                f"{o.quantity} is {'not known' if o.value is None else f'{o.value:.4g}'}, and the "
                f"study has {o.low:.4g} to {o.high:.4g}"
                for o in self.outside
            )
            return f"no prediction, for the study does not reach so far: {what} ({self.source})"
        return (
            f"{self.transfer:.0f} % of direct post-training, between {self.low:.0f} and "
            f"{self.high:.0f} %. The interval held {self.inside} of {self.runs} runs whose seed it "
            f"had not seen ({self.source}); they are runs of small models on invented text"
        )


@cache
def fit() -> dict[str, Any]:
    """The study's fit."""
    data = files("paramdelta.analysis").joinpath(FIT).read_bytes()
    return dict(parse_json(data))


def predict(found: DeltaMeasures, parameters: int, scale: float | None, deltas: int) -> Prediction:
    """The prediction for one Δ over the whole model.

    ``scale``: of the Δ, None if it differs between tensors. ``deltas``: of the recipe. The study
    has one Δ at scale 1; others are outside of it.
    """
    known = fit()
    shift = found.shift
    values = {
        "shift / Δ": shift.ratio if shift is not None else None,
        "cosine of Δ and S": shift.cosine if shift is not None else None,
        "Δ / base": found.relative,
        "parameters": float(parameters),
    }
    ranges = {**known["ranges"], "scale": (1.0, 1.0), "number of Δs": (1.0, 1.0)}
    values |= {"scale": scale, "number of Δs": float(deltas)}
    outside = tuple(
        Outside(name, value, *ranges[name])
        for name, value in values.items()
        if value is None or not ranges[name][0] <= value <= ranges[name][1]
    )
    told = (known["inside"], known["runs"], known["source"])
    if outside:
        return Prediction(None, None, None, *told, outside)
    assert shift is not None
    assert shift.ratio is not None
    transfer = 100 / (1 + (shift.ratio / known["middle"]) ** known["power"])
    width = known["half_width"]
    return Prediction(transfer, max(0.0, transfer - width), transfer + width, *told)


def known_cases(ratio: float | None) -> str:
    """How runs of the study came out at this ‖S‖ / ‖Δ‖, as a sentence; "" if there are none."""
    if not ratio:
        return ""
    for case in fit()["cases"]:
        if case["from"] <= ratio < case["to"]:
            return (
                f"In the study of small models, {case['runs']} runs with a ratio between "
                f"{case['from']:g} and {case['to']:g} kept {case['least']:.0f} to "
                f"{case['most']:.0f} % of direct post-training."
            )
    return "No run of the study had so large a ratio."
