"""The settings of the study, read from settings.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = HERE / "settings.json"
PREREGISTRATION = HERE / "preregistration.md"


@dataclass(frozen=True)
class Course:
    """One training: `rows` sequences of at most `length` tokens per step, linear decay to zero."""

    steps: int
    rows: int
    length: int
    rate: float
    warmup: int


@dataclass(frozen=True)
class Settings:
    """All settings of the study. `medical_share` is the share of medical blocks in plain text."""

    seeds: tuple[int, ...]
    model: str
    chat: Course
    continuation: Course
    weight_decay: float
    clip: float
    medical_share: float
    loss_items: int
    greedy_items: int
    greedy_tokens: int
    resamples: int


def read_settings(path: Path = SETTINGS) -> Settings:
    """Read the settings file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    courses = {name: Course(**values[name]) for name in ("chat", "continuation")}
    return Settings(**{**values, **courses, "seeds": tuple(values["seeds"])})
