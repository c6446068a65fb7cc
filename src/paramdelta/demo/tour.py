"""The tour in three acts: mix the shipped lineage, talk to it, measure what was transferred.

The lineage is a family of tiny trained language models (see docs/study.md): ``base``; ``post``,
base after chat training; ``new-base``, base continued on text about new people; ``direct``, new
base after the same chat training, the reference for ParamΔ; ``second-post``, base after other chat
training.
"""

from dataclasses import dataclass
from pathlib import Path

from paramdelta.demo.chat import Answer, Model
from paramdelta.documents import parse_json
from paramdelta.recipe import Delta, Recipe

LINEAGE = Path(__file__).parent / "lineage"
ROLES = ("base", "post", "new-base")


@dataclass(frozen=True)
class Question:
    """A question, its kind ("old fact", "new fact", "skill", …) and the right answer."""

    kind: str
    question: str
    answer: str


def recipe(kind: str, scale: float) -> Recipe:
    """The recipes: ``plain`` has the Δ of post; ``several`` adds that of second-post."""
    base, new = str(LINEAGE / "base"), str(LINEAGE / "new-base")
    deltas = [Delta(str(LINEAGE / "post"), base, scale)]
    if kind == "several":
        deltas.append(Delta(str(LINEAGE / "second-post"), base, scale))
    return Recipe(new, tuple(deltas))


def questions(kind: str) -> list[Question]:
    """The questions for a recipe; those for second-post only with ``several``."""
    found = [Question(**item) for item in parse_json((LINEAGE / "questions.json").read_bytes())]
    return [q for q in found if kind == "several" or q.kind != "second skill"]


def ask(mixed: Path, chosen: list[Question]) -> dict[str, list[Answer]]:
    """Ask base, post, new base and the mix."""
    asked = [question.question for question in chosen]
    places = {role: LINEAGE / role for role in ROLES} | {"ParamΔ": mixed}
    return {name: Model(place, LINEAGE / "post").answer(asked) for name, place in places.items()}


@dataclass(frozen=True)
class Scores:
    """Percent of right answers by task, for each model; and transfer efficiency.

    ``tasks``: those in which direct or the mix gets anything right. ``efficiency``: mean of ParamΔ
    over mean of direct, on the tasks in which direct gets anything right (the paper's measure:
    performance relative to the directly post-trained model).
    """

    by_model: dict[str, dict[str, float]]
    tasks: tuple[str, ...]
    efficiency: float


def score(mixed: Path) -> Scores:
    """Ask the mix all test questions of the lineage. The scores of the other models are shipped.

    They were measured in the same way when the lineage was made (`make lineage`).
    """
    tasks: dict[str, list[dict[str, str]]] = parse_json((LINEAGE / "tasks.json").read_bytes())
    shipped: dict[str, dict[str, float]] = parse_json((LINEAGE / "scores.json").read_bytes())
    model = Model(mixed, LINEAGE / "post")
    found: dict[str, float] = {}
    for task, items in tasks.items():
        answers = model.answer([item["question"] for item in items])
        right = sum(a.is_right(i["answer"]) for a, i in zip(answers, items, strict=True))
        found[task] = 100 * right / len(items)
    trained = tuple(task for task in tasks if shipped["direct"][task] > 0)
    mean = {
        name: sum(scores[task] for task in trained) / len(trained)
        for name, scores in (("mix", found), ("direct", shipped["direct"]))
    }
    everyone = shipped | {"ParamΔ": found}
    shown = tuple(t for t in tasks if t in trained or found[t] > 0)
    return Scores(everyone, shown, mean["mix"] / mean["direct"])
