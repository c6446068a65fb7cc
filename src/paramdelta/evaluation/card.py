"""The evaluation as a section of a model card, with the metadata that the Hub reads."""

from collections.abc import Mapping
from typing import Any

from paramdelta.documents.yaml import to_yaml
from paramdelta.evaluation.report import DEFINITIONS, scores
from paramdelta.text import markdown


def card(read: Mapping[str, Any]) -> str:
    """Front matter with ``model-index``, and the section, from `report.facts`.

    ``model-index`` has the scores of the mix; of several, the one that was picked, or none.
    """
    mix = _mix(read)
    text = f"## Evaluation\n\nSuite {markdown(read['suite'])}; percent, with standard errors.\n\n"
    text += scores(read) + "\n"
    if mix is None:
        return text
    found = read["transfer"].get(mix, {})
    for name, definition in DEFINITIONS.items():
        value = found.get(name, {}).get("all", {}).get("value")
        ends = found.get(name, {}).get("all", {}).get("items")
        if value is not None:
            interval = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
            text += f"\nTransfer, {definition}: {100 * value:.1f} %{interval}.\n"
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": task, "type": task},
            "metrics": [{"type": "score", "value": round(100 * row[mix]["value"], 2)}],
            "source": {"name": f"paramdelta, lm-evaluation-harness {read['versions']['lm_eval']}"},
        }
        for task, row in read["scores"].items()
        if mix in row
    ]
    index = {"model-index": [{"name": mix, "results": results}]}
    return f"---\n{to_yaml(index)}---\n\n{text}"


def _mix(read: Mapping[str, Any]) -> str | None:
    if "picked" in read:
        return str(read["picked"]["model"])
    return str(read["mixes"][0]) if len(read["mixes"]) == 1 else None
