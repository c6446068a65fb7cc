"""Provenance: paramdelta.lock.json says what the output was made from, so that it can be checked
and made again.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from paramdelta.errors import CheckpointError, MisfitError, UsageError
from paramdelta.formats.checkpoint import Checkpoint, open_checkpoint
from paramdelta.planning.plan import Plan
from paramdelta.recipe import Delta, Recipe
from paramdelta.storage.files import MOST_JSON, Files, parse_json
from paramdelta.storage.local import local_blob
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__

LOCK = "paramdelta.lock.json"
VERSION = 1
CHOICES = (
    "vocabulary",
    "graft",
    "take",
    "maps",
    "head",
    "ties",
)  # of a recipe, where not the default


def pinned(plan: Plan) -> Recipe:
    """The plan's recipe with addresses that will mean the same tomorrow."""
    return renamed(plan, lambda source: source.location.pinned)


def renamed(plan: Plan, name: Callable[[Checkpoint], str]) -> Recipe:
    """The plan's recipe with addresses given by a function."""
    deltas = tuple(
        replace(delta, delta=name(post))
        if delta.delta is not None
        else replace(delta, post=name(post), base=name(base) if base is not None else None)
        for (post, base), delta in zip(plan.lineages, plan.recipe.deltas, strict=True)
    )
    return replace(plan.recipe, new_base=name(plan.new_base), deltas=deltas)


def lock_text(plan: Plan, shard_size: int) -> str:
    """The lock's JSON. It holds nothing that differs between two runs of one plan."""
    lock: dict[str, Any] = {
        "lock_version": VERSION,
        "recipe": pinned(plan).to_dict(),
        "shard_size": shard_size,
        "plan_sha256": plan.digest,
        "sources": [_source(source) for source in plan.sources],
        "allowed_findings": sorted({f.code for f in plan.findings if "; allowed: " in f.what}),
        "versions": {"paramdelta": __version__, "python": platform.python_version()},
    }
    return json.dumps(lock, indent=2, ensure_ascii=False) + "\n"


def _source(source: Checkpoint) -> dict[str, Any]:
    return {
        "role": source.role,
        "address": source.location.pinned,
        "files": [
            {"name": f.blob.name, "size": f.blob.size, "header_sha256": f.header_sha256}
            for f in source.sources
        ],
    }


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock of an output folder.

    Raises:
        MisfitError: there is none.
        CheckpointError: it cannot be understood.
    """
    if not (folder / LOCK).is_file():
        raise MisfitError(
            "paramdelta did not write this folder",
            where=str(folder),
            expected=f"a folder with {LOCK}",
        )
    with Reader() as reader:
        lock = parse_json(reader.small(local_blob(folder / LOCK), MOST_JSON), str(folder / LOCK))
    if lock.get("lock_version") != VERSION or not isinstance(lock.get("recipe"), dict):
        raise CheckpointError(
            "the lock cannot be understood",
            where=str(folder / LOCK),
            expected=f"lock_version {VERSION}",
            got=f"lock_version {lock.get('lock_version')!r}",
        )
    return lock


def open_output(folder: Path) -> Checkpoint:
    """The weights of an output folder; raises as `open_checkpoint`."""
    with Reader() as reader:
        return open_checkpoint(Files(locate(str(folder)), reader), "output")


def locked_recipe(lock: dict[str, Any], where: Path) -> Recipe:
    """The recipe that a lock holds; raises CheckpointError."""
    try:
        recipe = lock["recipe"]
        deltas = tuple(
            Delta(
                d.get("post", ""),
                d.get("base"),
                d["scale"],
                d.get("delta"),
                d.get("dare"),
                d.get("density"),
            )
            for d in recipe["deltas"]
        )
        dtype = None if recipe["dtype"] == "auto" else recipe["dtype"]
        choices = {name: recipe[name] for name in CHOICES if name in recipe}
        return Recipe(recipe["new_base"], deltas, dtype, tuple(recipe["allow"]), **choices)
    except (KeyError, TypeError, UsageError) as error:
        raise CheckpointError(
            "the lock cannot be understood", where=str(where / LOCK), got=repr(error)
        ) from None
