"""Fixtures that many tests share."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from paramdelta import Delta, Recipe
from tests.checkpoints import llama, moved, save

# The check at the end of a command starts a process that imports torch; and the configs of most
# tests name no real architecture. The tests of the check ask for it.
os.environ["PARAMDELTA_CHECK"] = "0"

# Shared machines pause at will: no example and no drawing of examples has a time limit.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

CONFIG = {"model_type": "llama", "hidden_size": 16, "tie_word_embeddings": False}


@dataclass
class Lineage:
    """Three folders that belong together, and the recipe for them."""

    base: Path
    post: Path
    new: Path

    def recipe(self, scale: float = 1.0, **choices) -> Recipe:
        """The plain recipe."""
        return Recipe(str(self.new), (Delta(str(self.post), str(self.base), scale),), **choices)

    @property
    def options(self) -> list[str]:
        """The same as command-line options."""
        return ["--post", str(self.post), "--base", str(self.base), "--new-base", str(self.new)]


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    """A tiny bfloat16 Llama lineage, the new base in three shards."""
    base = llama()
    return Lineage(
        save(tmp_path / "base", base, config_json=CONFIG),
        save(tmp_path / "post", moved(base, 1), shards=2, config_json=CONFIG),
        save(tmp_path / "new", moved(base, 2), shards=3, config_json=CONFIG),
    )


@pytest.fixture
def synced() -> None:
    """For a test that needs syncs to reach the disk."""


@pytest.fixture(autouse=True)
def _quick_syncs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Syncs return at once: no test turns the power off, and a busy disk takes long."""
    with pytest.MonkeyPatch.context() as patch:
        if "synced" not in request.fixturenames:
            for name in ("fsync", "fdatasync"):
                patch.setattr(os, name, lambda descriptor: None, raising=False)
        yield


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    """A lineage whose mix has three weight files of 1 MB."""
    folder, base = tmp_path_factory.mktemp("wide"), llama(hidden=128, layers=8, vocab=500)
    return Lineage(
        save(folder / "base", base, config_json=CONFIG),
        save(folder / "post", moved(base, 1), shards=2, config_json=CONFIG),
        save(folder / "new", moved(base, 2), shards=3, config_json=CONFIG),
    )
