"""A suite: which tasks are evaluated, and with which settings. Suites are YAML files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from paramdelta.documents import DocumentError
from paramdelta.documents.yaml import parse_yaml
from paramdelta.errors import UsageError

SUITES = Path(__file__).parent / "suites"
OWN = ("questions", "math", "humaneval", "mbpp", "calls")
_NAME = re.compile(r"\w[\w .-]{0,60}")


@dataclass(frozen=True)
class Task:
    """One row of the table.

    ``harness``: a task of lm-evaluation-harness; with ``*`` in it, all that match, as one task.
    ``folder``: its folder under the harness's tasks, which saves a search. ``metric`` and
    ``filter``: which of its scores counts. ``settings``: keys of its configuration that are
    replaced. ``own``: one of `OWN` instead of a harness task. ``data``: the folder of its data
    under ``--data``; for ``questions`` and ``text``, a file beside the suite. ``sets``: which files
    of the folder. ``most``: how many items at most.
    """

    name: str
    harness: str | None = None
    folder: str | None = None
    metric: str = "score"
    filter: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    own: str | None = None
    data: str | None = None
    sets: tuple[str, ...] = ()
    most: int | None = None

    @property
    def runs_code(self) -> bool:
        """Whether completions are executed."""
        return self.own in ("humaneval", "mbpp")

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return plain | {"settings": dict(self.settings), "sets": list(self.sets)}


@dataclass(frozen=True)
class Suite:
    """Tasks in order. ``missing``: what is left out on purpose, and why."""

    name: str
    tasks: tuple[Task, ...]
    missing: Mapping[str, str]
    folder: Path


def suites() -> dict[str, Path]:
    """The suites that come with paramdelta; ``demo`` has the questions of the shipped lineage."""
    found = {path.stem: path for path in SUITES.glob("*.yaml")}
    return dict(sorted({**found, "demo": SUITES.parents[1] / "demo/lineage/suite.yaml"}.items()))


def read_suite(name: str | Path) -> Suite:
    """A suite by its name, or from a YAML file.

    Raises:
        UsageError: no such suite, or a file that is not one.
    """
    path = suites().get(str(name), Path(name))
    if not path.is_file():
        raise UsageError(
            "no such suite",
            code="no-such-suite",
            where=str(name),
            expected=f"a YAML file, or one of {', '.join(suites())}",
        )
    try:
        read = parse_yaml(path.read_text(encoding="utf-8"))
    except (DocumentError, ValueError) as error:
        raise _invalid(path, f"not YAML: {error}") from None
    if not isinstance(read, dict) or not isinstance(read.get("tasks"), dict) or not read["tasks"]:
        raise _invalid(path, "no mapping of tasks")
    unknown = sorted(map(str, read.keys() - {"tasks", "missing"}))
    if unknown:
        raise _invalid(path, f"unknown key {unknown[0]}")
    missing = read.get("missing") or {}
    if not isinstance(missing, dict):
        raise _invalid(path, "missing is not a mapping")
    tasks = tuple(_task(path, str(key), value) for key, value in read["tasks"].items())
    title = str(name) if str(name) in suites() else path.stem
    return Suite(title, tasks, {str(k): str(v) for k, v in missing.items()}, path.parent)


def _task(path: Path, name: str, value: Any) -> Task:
    where = f"task {name}"
    if not _NAME.fullmatch(name):
        raise _invalid(path, f"{where}: a name has letters, digits, '.', '_' and '-'")
    if not isinstance(value, dict):
        raise _invalid(path, f"{where}: not a mapping")
    known = {each.name for each in fields(Task)} - {"name"}
    unknown = sorted(map(str, value.keys() - known))
    if unknown:
        raise _invalid(path, f"{where}: unknown key {unknown[0]}")
    if ("harness" in value) == ("own" in value):
        raise _invalid(path, f"{where}: either harness or own")
    if "own" in value and value["own"] not in OWN:
        raise _invalid(path, f"{where}: own is one of {', '.join(OWN)}")
    for key in ("harness", "folder", "metric", "filter", "data"):
        if not isinstance(value.get(key, ""), str):
            raise _invalid(path, f"{where}: {key} is not text")
    for key in ("folder", "data"):
        parts = Path(value.get(key, "")).parts
        if ".." in parts or Path(value.get(key, "")).is_absolute():
            raise _invalid(path, f"{where}: {key} leads out of its folder")
    most = value.get("most")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise _invalid(path, f"{where}: most is not a positive number")
    if not isinstance(value.get("settings", {}), dict):
        raise _invalid(path, f"{where}: settings is not a mapping")
    sets = value.get("sets", [])
    if not isinstance(sets, list) or not all(
        isinstance(s, str) and _NAME.fullmatch(s) for s in sets
    ):
        raise _invalid(path, f"{where}: sets is not a list of names")
    return Task(name, **(value | {"sets": tuple(sets)}))


def _invalid(path: Path, got: str) -> UsageError:
    return UsageError(
        "not a suite",
        code="invalid-suite",
        where=str(path),
        expected="tasks: a mapping of names to settings; see docs/evaluation.md",
        got=got,
    )
