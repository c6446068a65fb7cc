"""The result of `evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramdelta.cli.show.events import emit
from paramdelta.cli.show.terminal import say

if TYPE_CHECKING:
    from paramdelta.evaluation.text import Texts


def show_evaluation(read: Mapping[str, Any], out: Path | None, as_json: bool) -> None:
    """Scores, transfer efficiency and what is missing."""
    if as_json:
        emit("done", folder=str(out) if out is not None else None, **read)
        return
    models = read["models"]
    wide = max(9, *(len(task) for task in read["scores"])) if read["scores"] else 9
    say(f"  {'% right':<{wide}}" + "".join(f"{name:>16}" for name in models))
    rows = dict(read["scores"])
    if read["average"]:
        rows["average"] = read["average"]
    for task, row in rows.items():
        say(f"  {task:<{wide}}" + "".join(f"{_mean(row.get(name)):>16}" for name in models))
    for mix, found in read["transfer"].items():
        for name in ("of direct", "of what direct adds", "of post"):
            value = found.get(name, {}).get("all", {})
            if value.get("value") is not None:
                say(f"  {mix}, {name}: {_share(value)}")
        slope = found.get("line", {}).get("slope", {})
        if slope.get("value") is not None:
            say(f"  {mix}: γ = {slope['value']:.3f}, R² = {_fit(found['line']['r2'])}")
    if "picked" in read:
        say(f"  picked {read['picked']['model']}, on every other question")
    notes = {n for row in read["notes"].values() for notes in row.values() for n in notes}
    for note in sorted(notes):
        say(f"  note      {note}")
    for failure in read["failures"]:
        say(f"  no score  {failure['task']}, {failure['model']}: {failure['what']}", color="yellow")
    if out is not None:
        say(f"{out}: report.md, report.html, results.json, card.md")


def show_texts(found: "Texts", as_json: bool) -> None:
    """How well each model predicts a text, and how far the mix is from others."""
    if as_json:
        emit("done", **found.to_dict())
        return
    say(f"  {'model':<20}{'bits a byte':>18}{'perplexity':>14}")
    for name, each in found.predictions.items():
        bits = f"{each.bits.value:.3f} ± {each.bits.error or 0:.3f}"
        say(f"  {name:<20}{bits:>18}{each.perplexity:>14.2f}")
    for distance in found.distances:
        say(
            f"  {distance.first} to {distance.second}: {distance.divergence.value:.3f} nats a "
            f"token, {100 * distance.agreement.value:.1f} % of tokens with the same favorite"
        )
    for note in found.notes:
        say(f"  note      {note}")


def _mean(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    error = "" if cell["error"] is None else f" ± {100 * cell['error']:.1f}"
    return f"{100 * cell['value']:.1f}{error}"


def _share(found: Mapping[str, Any]) -> str:
    ends = found["items"]
    interval = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends is not None else ""
    return f"{100 * found['value']:.1f} %{interval}"


def _fit(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
