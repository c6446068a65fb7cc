"""Choosing α: on one half of the questions, so that the other half judges the choice."""

from dataclasses import asdict, dataclass
from typing import Any

from paramdelta.errors import UsageError
from paramdelta.evaluation.evaluator import Evaluation


@dataclass(frozen=True)
class Picked:
    """The mix that is best on average on the even questions, and its scores on the odd ones.

    ``validation``: average of each mix on the even questions. ``test``: of the chosen one, by task,
    on the odd ones.
    """

    model: str
    validation: dict[str, float]
    test: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def pick(found: Evaluation) -> Picked:
    """Choose between the mixes of an evaluation; the first of several equal ones.

    Only tasks that every mix has are counted, each the same.

    Raises:
        UsageError: fewer than two questions in every task, or no task that every mix has.
    """
    even = found.table(lambda position: position % 2 == 0).having(*found.mixes)
    odd = found.table(lambda position: position % 2 == 1).having(*found.mixes)
    tasks = [task for task in even.tasks if task in odd.tasks]
    if not tasks:
        raise UsageError(
            "too few questions to choose a scale",
            code="nothing-to-pick",
            expected="two questions or more in a task that every mix has finished",
        )
    averages = {}
    for mix in found.mixes:
        mean = even.average(mix, tasks)
        averages[mix] = mean.value if mean is not None else 0.0
    best = max(averages, key=lambda mix: averages[mix])
    test = {task: asdict(mean) for task in tasks if (mean := odd.mean(task, best)) is not None}
    return Picked(best, averages, test)
