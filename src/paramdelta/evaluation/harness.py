"""lm-evaluation-harness: prompts, generation and scores. The only module that imports it.

The harness never looks for data on the Hub where a folder is given: its tasks get their rows from
`data`, in the form that they would have.
"""

import contextlib
import fnmatch
import importlib.metadata
import io
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta.errors import UsageError
from paramdelta.evaluation import data, tasks
from paramdelta.evaluation.suite import Suite, Task

VERSION = "0.4.13"  # the version that the suites were written for
_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")


@dataclass(frozen=True)
class Sample:
    """One question and how a model answered it. ``score``: 1 is right, unless scores are graded."""

    item: str
    prompt: str
    target: str
    answer: str
    score: float


@dataclass(frozen=True)
class Answered:
    """The samples of a model on a task. ``notes``: what limits them, for the reader."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...]


def harness_version() -> str:
    """The version that is installed.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            "lm-evaluation-harness is not installed",
            code="missing-package",
            remedy='pip install "paramdelta[evaluate]"',
        ) from None


class Harness:
    """Runs tasks of one suite. ``folder``: the data sets; None takes them from the Hub."""

    def __init__(self, suite: Suite, folder: Path | None, batch: int) -> None:
        harness_version()
        self.suite = suite
        self.folder = folder
        self.batch = batch
        self._loaded: dict[str, dict[str, Any]] = {}
        self._longest: dict[str, int] = {}  # tokens of an answer, as the tasks say

    def run(self, model: Any, tokenizer: Any, task: Task, limit: int | None) -> Answered:
        """Ask a model, in its own chat format if it has one.

        Raises:
            UsageError, StorageError: a task that does not exist, or its data.
            Exception: whatever the harness or the model raises.
        """
        with _quiet():
            from lm_eval.models.huggingface import HFLM

            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch)
        chat = getattr(tokenizer, "chat_template", None) is not None
        return self.ask(lm, chat, task, limit)

    def ask(self, lm: Any, chat: bool, task: Task, limit: int | None) -> Answered:
        """Ask a model of the harness. ``chat``: in its chat format. Raises as `run`."""
        with _quiet():
            import lm_eval

            most = min((n for n in (limit, task.most) if n is not None), default=None)
            parts = self._parts(task, most)
            wanted = _shares({name: len(each.eval_docs) for name, each in parts.items()}, most)
            parts = {name: each for name, each in parts.items() if wanted[name]}
            notes = [] if chat else ["no chat template: asked as plain text"]
            notes += self._cut_answers(parts, lm.max_length)
            found = lm_eval.evaluate(
                lm,
                {"tasks": parts},
                samples={name: list(range(wanted[name])) for name in parts},
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                bootstrap_iters=0,
                log_samples=True,
                confirm_run_unsafe_code=False,
            )
        rows = [(name, row) for name in parts for row in found["samples"][name]]
        rows = [(name, row) for name, row in rows if row["filter"] == task.filter]
        if not rows or any(task.metric not in row for _, row in rows):
            raise UsageError(
                "the task has no such score",
                code="no-such-metric",
                where=task.name,
                expected="metric and filter that the task of the harness has",
                got=f"metric {task.metric}, filter {task.filter}",
            )
        notes += _cut_prompts(rows, lm)
        notes += self._left_out(task)
        several = len(parts) > 1
        return Answered(
            tuple(_sample(f"{name}/" if several else "", row, task.metric) for name, row in rows),
            tuple(notes),
        )

    def _parts(self, task: Task, most: int | None) -> dict[str, Any]:
        """The harness's tasks that a task consists of, loaded once; not more than ``most``."""
        if task.name not in self._loaded:
            found = self._own(task) if task.own else self._theirs(task)
            self._loaded[task.name] = dict(itertools.islice(found, most))
        return self._loaded[task.name]

    def _own(self, task: Task) -> Iterator[tuple[str, Any]]:
        from lm_eval.api.task import ConfigurableTask

        settings = tasks.configuration(task, _same)
        rows: list[dict[str, Any]] | None = None
        if task.own == "questions":
            rows = tasks.questions(self.suite.folder / (task.data or ""), task.sets)
        elif self.folder is not None:
            name = task.data or ""
            sets = task.sets or ("",)
            rows = [r for s in sets for r in data.splits_of(name, self.folder, s)["test"]]
        elif settings["dataset_path"] is None:
            raise UsageError(
                "this task needs a folder of data",
                code="task-needs-data",
                where=task.name,
                remedy="pass `data=DIR`; see docs/evaluation.md",
            )
        if rows is not None:
            settings["custom_dataset"] = _given({"test": rows})
        yield task.name, ConfigurableTask(config=settings)

    def _theirs(self, task: Task) -> Iterator[tuple[str, Any]]:
        import lm_eval.tasks

        if task.data == "ifeval" and self.folder is not None:
            _forbid_nltk_downloads()
        root = Path(lm_eval.tasks.__file__).parent
        place = root / task.folder if task.folder else None
        known = place is not None and place.is_dir()
        manager = lm_eval.tasks.TaskManager(
            include_defaults=not known, include_path=str(place) if known else None
        )
        pattern = task.harness or ""
        names = fnmatch.filter(manager.all_subtasks, pattern)
        if not names:
            raise UsageError(
                "the harness has no such task",
                code="no-such-task",
                where=task.name,
                got=f"{pattern}, lm_eval {harness_version()}",
            )
        before, _, after = pattern.partition("*")
        for name in sorted(names):
            changes: dict[str, Any] = dict(task.settings)
            if self.folder is not None and task.data:
                part = name[len(before) : len(name) - len(after)] if "*" in pattern else ""
                splits = data.splits_of(task.data, self.folder, part)
                if task.data == "ifeval":
                    splits["train"] = _checkable(splits["train"])
                changes |= {"custom_dataset": _given(splits), "dataset_kwargs": None}
                if task.data == "mmlu_pro":  # its examples with reasoning are not in the data
                    changes |= {"num_fewshot": 0, "fewshot_split": None, "fewshot_config": None}
            loaded = manager.load({"group": "paramdelta", "task": [{"task": name, **changes}]})[
                "tasks"
            ]
            loaded[name].set_fewshot_seed(seed=1234)
            yield name, loaded[name]

    def _cut_answers(self, parts: dict[str, Any], context: int) -> list[str]:
        """Shorten answers that would leave no room for a prompt, and say so."""
        shortened = 0
        for name, each in parts.items():
            if each.OUTPUT_TYPE != "generate_until":
                continue
            settings = each.config.generation_kwargs or {}
            longest = self._longest.setdefault(name, settings.get("max_gen_toks", 256))
            room = min(longest, context // 2)
            shortened = room if room < longest else shortened
            each.set_config(key="generation_kwargs", value={"max_gen_toks": room}, update=True)
        if not shortened:
            return []
        return [f"answers are cut at {shortened} tokens, because the context has {context}"]

    def _left_out(self, task: Task) -> list[str]:
        if self.folder is not None and task.data == "mmlu_pro":
            return ["0-shot: the folder of data has no examples with reasoning"]
        if self.folder is not None and task.data == "ifeval" and not _has_punkt():
            return ["prompts that need NLTK's punkt_tab to check are left out"]
        return []


def _sample(prefix: str, row: dict[str, Any], metric: str) -> Sample:
    asked = row["arguments"][0]
    answers = [str(each[0]) for each in row["resps"]]
    return Sample(
        item=f"{prefix}{row['doc_id']}",
        prompt=str(asked[0]),
        target=str(row["target"]),
        answer=answers[0] if len(answers) == 1 else " | ".join(answers),
        score=float(row[metric]),
    )


def _shares(sizes: dict[str, int], most: int | None) -> dict[str, int]:
    """How many items of each part are asked: evenly, and together at most ``most``."""
    if most is None:
        return sizes
    found, left = dict.fromkeys(sizes, 0), most
    while left > 0 and any(found[name] < sizes[name] for name in sizes):
        for name in sizes:
            if left > 0 and found[name] < sizes[name]:
                found[name] += 1
                left -= 1
    return found


def _cut_prompts(rows: list[tuple[str, dict[str, Any]]], lm: Any) -> list[str]:
    """How many prompts do not fit and lose their start."""
    cut = 0
    for _, row in rows:
        prompt, settings = row["arguments"][0][0], row["arguments"][0][1]
        room = lm.max_length - (
            settings.get("max_gen_toks", 0) if isinstance(settings, dict) else 0
        )
        cut += len(lm.tok_encode(prompt)) > room
    return [f"{cut} of {len(rows)} prompts are longer than the context and lost their start"] * (
        cut > 0
    )


def _given(splits: data.Splits) -> Any:
    def rows(**_: Any) -> Any:
        import datasets

        return datasets.DatasetDict(
            {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
        )

    return rows


def _same(one: str, two: str) -> bool:
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    return bool(is_equiv(one, two))


def _checkable(rows: data.Rows) -> data.Rows:
    """The prompts of IFEval that can be checked on this machine."""
    if _has_punkt():
        return rows
    return [row for row in rows if not set(_PUNKT) & set(row["instruction_id_list"])]


def _forbid_nltk_downloads() -> None:
    """IFEval's code fetches punkt_tab when it is imported; with a folder of data it must not."""
    import nltk

    nltk.download = lambda *_, **__: False


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's bars, and its messages below errors, off the terminal."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        if before is None:
            os.environ.pop("TQDM_DISABLE", None)
        else:
            os.environ["TQDM_DISABLE"] = before
