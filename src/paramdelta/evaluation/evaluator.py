"""The evaluation: models × tasks. What is finished is kept, and what fails is reported."""

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from paramdelta.errors import ParamDeltaError, UsageError
from paramdelta.evaluation import data
from paramdelta.evaluation.execution import check_sandbox
from paramdelta.evaluation.harness import Answered, Harness, harness_version
from paramdelta.evaluation.models import MIX, Model, models_of, release
from paramdelta.evaluation.results import Results, digest_of
from paramdelta.evaluation.statistics import Table
from paramdelta.evaluation.suite import Suite, Task, read_suite
from paramdelta.recipe import Recipe
from paramdelta.version import __version__

MODELS = ("base", "post", "new-base", MIX)
BATCH = 8


@dataclass(frozen=True)
class Now:
    """Progress. ``done`` and ``total``: cells of the table. ``left``: seconds, if known."""

    model: str
    task: str
    done: int
    total: int
    left: float | None


@dataclass(frozen=True)
class Failure:
    """A cell without a score, and why."""

    model: str
    task: str
    code: str
    what: str


@dataclass(frozen=True)
class Evaluation:
    """The answers of all models, and what is missing.

    ``answers``: by task and model. ``mixes``: names of the models that are mixes; ``resumed``: how
    many cells an earlier run had finished. ``versions``: of what was measured with.
    """

    suite: Suite
    models: tuple[str, ...]
    mixes: tuple[str, ...]
    limit: int | None
    answers: dict[str, dict[str, Answered]]
    failures: tuple[Failure, ...]
    resumed: int
    versions: dict[str, str]

    def table(self, items: Callable[[int], bool] = lambda _: True) -> Table:
        """The scores; models of a task are paired by their items. ``items``: which, by position.

        Items that not every model of the task has are left out.
        """
        scores = {}
        for task, by_model in self.answers.items():
            common = set.intersection(*({s.item for s in a.samples} for a in by_model.values()))
            first = next(iter(by_model.values()))
            order = [s.item for n, s in enumerate(first.samples) if s.item in common and items(n)]
            if order:
                by_item = {m: {s.item: s.score for s in a.samples} for m, a in by_model.items()}
                scores[task] = {m: [found[i] for i in order] for m, found in by_item.items()}
        return Table(scores)


def evaluate(
    recipe: Recipe | None,
    suite: str | Path = "quick",
    *,
    models: Sequence[str] = MODELS,
    scales: Sequence[float] = (),
    data_folder: Path | None = None,
    out: Path | None = None,
    limit: int | None = None,
    batch: int = BATCH,
    device: str | None = None,
    allow_code_execution: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[Now], None] | None = None,
) -> Evaluation:
    """Ask every model every question of a suite. The mix is made in memory; nothing is written.

    ``models``: roles of the recipe (base, post, new-base, paramdelta) and ``name=ADDRESS``, such as
    ``direct=org/name``. ``scales``: the mix at each of these instead. ``data_folder``: the data
    sets; without it, the Hub's. ``out``: a folder that keeps what is finished; the same call
    continues. ``limit``: items of each task. ``allow_code_execution``: see `execution`.

    A cell that fails is in ``failures``, and all others are finished.

    Raises:
        UsageError: a package, a suite or a model that does not exist.
        MisfitError, CheckpointError, StorageError: as `paramdelta.plan`.
    """
    chosen = read_suite(suite)
    if limit is not None and limit < 1:
        raise UsageError("the limit is below 1", code="invalid-limit", got=str(limit))
    if data_folder is not None and not data_folder.is_dir():
        raise UsageError("no such folder of data", code="no-data-folder", where=str(data_folder))
    wanted = models_of(recipe, models, scales)
    harness = Harness(chosen, data_folder, batch)
    versions = {
        "paramdelta": __version__,
        "lm_eval": harness_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }
    if allow_code_execution and any(task.runs_code for task in chosen.tasks):
        check_sandbox()
    run = _Run(
        harness, Results(out) if out is not None else None, versions, limit, batch, device,
        allow_code_execution, trust_remote_code, progress, len(wanted) * len(chosen.tasks),
    )  # fmt: skip
    for model in wanted:
        run.model(model, chosen)
    order = {m.name: n for n, m in enumerate(wanted)}
    return Evaluation(
        chosen,
        tuple(order),
        tuple(m.name for m in wanted if m.plan is not None),
        limit,
        {
            task.name: dict(sorted(run.answers[task.name].items(), key=lambda e: order[e[0]]))
            for task in chosen.tasks
            if task.name in run.answers
        },
        tuple(run.failures),
        run.resumed,
        versions,
    )


class _Run:
    """One run: which cells are done, and how long the rest will take."""

    def __init__(
        self, harness: Harness, results: Results | None, versions: dict[str, str],
        limit: int | None, batch: int, device: str | None, code: bool, trusted: bool,
        progress: Callable[[Now], None] | None, total: int,
    ) -> None:  # fmt: skip
        self.harness, self.results, self.versions = harness, results, versions
        self.limit, self.batch, self.device = limit, batch, device
        self.code, self.trusted = code, trusted
        self.progress, self.total = progress, total
        self.done, self.resumed, self.seconds = 0, 0, 0.0
        self.answers: dict[str, dict[str, Answered]] = {}
        self.failures: list[Failure] = []
        self._fingerprints: dict[str, str] = {}

    def model(self, model: Model, suite: Suite) -> None:
        """All tasks of one model; it is loaded only if one of them is left."""
        loaded = None
        for task in suite.tasks:
            if task.runs_code and not self.code:
                self._fail(model, task, "code-not-allowed", "executes code: not allowed")
                continue
            try:
                settings = self._settings(model, task)
            except (ParamDeltaError, OSError) as error:
                self._fail(model, task, getattr(error, "code", "failed"), _text(error))
                continue
            digest = digest_of(settings)
            found = self.results.find(model.name, task.name, digest) if self.results else None
            if found is not None:
                self.resumed += 1
                self._finish(model, task, found)
                continue
            self._tell(model, task)
            began = time.monotonic()
            try:
                if loaded is None:
                    loaded = model.load(self.device, self.trusted)
                answered = self.harness.run(*loaded, task, self.limit)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - any fault of a task or a model
                self._fail(model, task, getattr(error, "code", "failed"), _text(error))
                continue
            self.seconds += time.monotonic() - began
            if self.results is not None:
                self.results.keep(model.name, task.name, digest, settings, answered)
            self._finish(model, task, answered)
        loaded = None
        release()

    def _settings(self, model: Model, task: Task) -> dict[str, object]:
        """Everything that the scores depend on."""
        return {
            "model": model.identity,
            "task": task.to_dict(),
            "data": self._fingerprint(task),
            "limit": self.limit,
            "batch": self.batch,
            "device": self.device,
            "versions": self.versions,
        }

    def _fingerprint(self, task: Task) -> str | None:
        if task.own in ("questions", "text"):
            place = self.harness.suite.folder / (task.data or "")
        elif self.harness.folder is not None and task.data:
            place = self.harness.folder / task.data
        else:
            return None
        if task.data not in self._fingerprints:
            self._fingerprints[str(task.data)] = data.fingerprint(place)
        return self._fingerprints[str(task.data)]

    def _finish(self, model: Model, task: Task, answered: Answered) -> None:
        self.answers.setdefault(task.name, {})[model.name] = answered
        self.done += 1
        self._tell(model, task)

    def _fail(self, model: Model, task: Task, code: str, what: str) -> None:
        self.failures.append(Failure(model.name, task.name, code, what))
        self.done += 1
        self._tell(model, task)

    def _tell(self, model: Model, task: Task) -> None:
        if self.progress is not None:
            fresh = self.done - self.resumed
            left = self.seconds / fresh * (self.total - self.done) if fresh else None
            self.progress(Now(model.name, task.name, self.done, self.total, left))


def _text(error: BaseException) -> str:
    """An error on one line."""
    if isinstance(error, ParamDeltaError):
        parts = (error.what, error.where, error.got, error.remedy)
        return "; ".join(part for part in parts if part)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
