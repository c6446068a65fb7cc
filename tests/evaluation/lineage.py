"""A run on the shipped lineage with made-up answers: everything but the harness is real."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paramdelta.demo.tour import LINEAGE
from paramdelta.evaluation import evaluator
from paramdelta.evaluation.harness import Answered, Sample

SUITE = """\
tasks:
  one: {own: questions, data: questions.json}
  two: {own: questions, data: questions.json, most: 2}
missing: {three: it is not there}
"""
QUESTIONS = '[{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]'
DIRECT = f"direct={LINEAGE / 'direct'}"


@dataclass
class Fake:
    """Stands for the harness. ``asked``: models and tasks; ``fails``: tasks that raise."""

    scores: dict[str, list[float]]
    fails: tuple[str, ...] = ()
    stops: int | None = None  # interrupted at this question
    asked: list[str] = field(default_factory=list)

    def make(self, suite: Any, folder: Path | None, batch: int) -> "Fake":
        """What `Harness` is replaced by."""
        self.suite, self.folder = suite, folder
        return self

    def run(self, model: str, tokenizer: Any, task: Any, limit: int | None) -> Answered:
        """Made-up answers."""
        if self.stops == len(self.asked):
            raise KeyboardInterrupt
        self.asked.append(f"{model} {task.name}")
        if task.name in self.fails:
            raise RuntimeError("out of\nluck")
        samples = [
            Sample(str(n), f"<b>{task.name} {n}</b>", "right", f"{model} & co", score)
            for n, score in enumerate(self.scores[model])
        ]
        return Answered(tuple(samples[:limit]), ("a note",))


def use(fake: Fake, monkeypatch: Any) -> Fake:
    """Replace the harness, and the loading of models."""
    monkeypatch.setattr(evaluator, "Harness", fake.make)
    monkeypatch.setattr(evaluator, "harness_version", lambda: "0")
    monkeypatch.setattr(evaluator.Model, "load", lambda self, *_: (self.name, None))
    return fake


def suite(folder: Path) -> Path:
    """The suite, written into a folder."""
    (folder / "questions.json").write_text(QUESTIONS)
    (folder / "mine.yaml").write_text(SUITE)
    return folder / "mine.yaml"
