"""The settings of the study, read from settings.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from studies.lineage.model import Shape
from studies.lineage.train import Course

HERE = Path(__file__).parent
SETTINGS = HERE / "settings.json"
PREREGISTRATION = HERE / "preregistration.md"


@dataclass(frozen=True)
class Settings:
    """All settings of the study. The courses' numbers of steps are in `shift_steps`, `delta_steps`.

    `several` names the shift and Δ length at which several Δ are combined.
    """

    seeds: tuple[int, ...]
    shape: Shape
    old_people: int
    new_people: int
    items: int
    pretraining: Course
    continuation: Course
    chat: Course
    shift_steps: tuple[int, ...]
    delta_steps: tuple[int, ...]
    several: dict[str, int]
    primer: int


def read_settings(path: Path = SETTINGS) -> Settings:
    """Read the settings file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    longest = {"continuation": "shift_steps", "chat": "delta_steps"}
    courses = {
        name: Course(**{"steps": max(values[steps]), **values[name]})
        for name, steps in longest.items()
    }
    return Settings(
        **{
            **values,
            **courses,
            "pretraining": Course(**values["pretraining"]),
            "shape": Shape(**values["shape"]),
            **{name: tuple(values[name]) for name in ("seeds", "shift_steps", "delta_steps")},
        }
    )
