"""The settings of the study, read from settings.json, and the digests that bind them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = HERE / "settings.json"
PREREGISTRATION = HERE / "preregistration.md"


@dataclass(frozen=True)
class Course:
    """One contrastive training.

    `groups` groups (files or diseases) per batch with `per_group` pairs each; `rate` is the peak
    learning rate after `warmup` steps, followed by a linear decay to zero.
    """

    steps: int
    groups: int
    per_group: int
    rate: float
    warmup: int
    temperature: float
    weight_decay: float
    clip: float


@dataclass(frozen=True)
class Settings:
    """All settings of the study.

    `arms` gives each arm its peak learning rate, `order` the (arm, seed) pairs in the order in
    which they run. Lengths are in tokens. `data` is what `Corpus.describe` must return.
    """

    course: Course
    arms: dict[str, float]
    order: tuple[tuple[str, int], ...]
    query_length: int
    document_length: int
    items: int
    per_file: int
    per_disease: int
    scales: tuple[float, ...]
    resamples: int
    model: str
    packages: tuple[str, ...]
    python: str
    data: dict[str, dict]


def read_settings(path: Path = SETTINGS) -> Settings:
    """Read the settings file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return Settings(
        **{
            **values,
            "course": Course(**values["course"]),
            "order": tuple((arm, seed) for arm, seed in values["order"]),
            "scales": tuple(values["scales"]),
            "packages": tuple(values["packages"]),
        }
    )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
