"""Published scores to stand beside one's own: a YAML file with rows, their source and table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paramdelta.documents import DocumentError
from paramdelta.documents.yaml import parse_yaml
from paramdelta.errors import UsageError


@dataclass(frozen=True)
class Reference:
    """Scores that somebody published. ``source``: where, with the number of the table.

    ``scores``: percent by task and model, under the names that the evaluation has.
    """

    source: str
    scores: Mapping[str, Mapping[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def read_reference(path: Path) -> Reference:
    """Published scores from a YAML file with the keys ``source`` and ``scores``.

    Raises:
        UsageError: it cannot be read, or is not of this form.
    """
    try:
        read = parse_yaml(path.read_text(encoding="utf-8"))
        scores = {
            str(task): {str(model): float(value) for model, value in row.items()}
            for task, row in read["scores"].items()
        }
        if read.keys() != {"source", "scores"} or not isinstance(read["source"], str):
            raise ValueError("the keys are source and scores")
    except (OSError, DocumentError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "not a file of published scores",
            code="invalid-reference",
            where=str(path),
            expected="source: TEXT, and scores: {TASK: {MODEL: PERCENT}}",
            got=f"{type(error).__name__}: {error}",
        ) from None
    return Reference(read["source"], scores)
