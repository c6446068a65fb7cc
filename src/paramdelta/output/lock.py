"""Provenance: paramdelta.lock.json says what the output was made from, so that it can be checked
and made again.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paramdelta.documents import to_json
from paramdelta.errors import CheckpointError, MisfitError
from paramdelta.formats.checkpoint import Checkpoint, SourceFile, open_checkpoint
from paramdelta.output.layout import Layout
from paramdelta.planning.plan import Plan
from paramdelta.recipe import Recipe
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import ALGORITHM
from paramdelta.storage.files import MOST_JSON, Files, parse_json
from paramdelta.storage.local import local_blob, modified_ns
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__

LOCK = "paramdelta.lock.json"
VERSION = 2


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


def lock_text(
    plan: Plan,
    shard_size: int,
    digests: Mapping[Blob, str | None] | None = None,
    outputs: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """The lock's JSON. It holds nothing that differs between two runs of one plan.

    ``digests``: content digests of the source files; None where a file was not read in whole.
    ``outputs``: by name, size and content digest of every file of the output. Both are
    `storage.digest.ALGORITHM`.
    """
    lock: dict[str, Any] = {
        "lock_version": VERSION,
        "recipe": pinned(plan).to_dict(),
        "shard_size": shard_size,
        "plan_sha256": plan.digest,
        "digest_algorithm": ALGORITHM,
        "sources": [_source(source, digests or {}) for source in plan.sources],
        "outputs": dict(sorted((outputs or {}).items())),
        "allowed_findings": sorted({f.code for f in plan.findings if "; allowed: " in f.what}),
        "versions": {"paramdelta": __version__, "python": platform.python_version()},
    }
    return to_json(lock)


def _source(source: Checkpoint, digests: Mapping[Blob, str | None]) -> dict[str, Any]:
    return {
        "role": source.role,
        "address": source.location.pinned,
        "files": [
            {
                "name": file.name,
                "size": file.blob.size,
                "header_sha256": file.header_sha256,
                "digest": digests.get(file.blob),
                **_at_the_hub(source, file.blob),
            }
            for file in source.sources
        ],
    }


def _at_the_hub(source: Checkpoint, blob: Blob) -> dict[str, str]:
    """The Hub's own SHA-256 of a weight file, if it is from there."""
    if source.location.repo is None:
        return {}
    from paramdelta.storage import hub

    digest = hub.sha256(blob)
    return {"sha256": digest} if digest is not None else {}


def run_identity(plan: Plan, layout: Layout) -> dict[str, Any]:
    """What a run must have in common with the one that it resumes."""
    return {
        "digest": plan.digest,
        "shards": [[shard.name, shard.size] for shard in layout.shards],
        "sources": [
            {
                "path": path,
                "size": file.blob.size,
                "version": version,
                "header_sha256": file.header_sha256,
            }
            for file, (path, version) in _places(plan).items()
        ],
    }


def _places(plan: Plan) -> dict[SourceFile, tuple[str, str]]:
    """Where every weight file is, and its version. A commit on the Hub has one place and one
    version, whether it is read there or in the cache.
    """
    found: dict[SourceFile, tuple[str, str]] = {}
    for source in plan.sources:
        for file in source.sources:
            place = f"{source.location.pinned}/{file.name}", ""
            local = file.blob.url, file.blob.version
            found.setdefault(file, place if source.location.repo is not None else local)
    return found


def shared_identity(plan: Plan, layout: Layout) -> dict[str, Any]:
    """As `run_identity`, for runs that machines share: what each of them must have in common.

    A file of the Hub is known by its repository and commit, wherever a machine keeps it.
    """
    return {**run_identity(plan, layout), "paramdelta": __version__}


def is_lock_of(lock: bytes, plan: Plan, shard_size: int) -> bool:
    """Whether a lock is that of this plan's output, ignoring digests and versions."""
    wanted = parse_json(lock_text(plan, shard_size).encode(), "the lock")
    try:
        found = parse_json(lock, LOCK)
    except CheckpointError:
        return False
    ignored = ("versions", "outputs")
    return all(
        _without_digests(found.get(key)) == _without_digests(value)
        for key, value in wanted.items()
        if key not in ignored
    )


def is_finished(plan: Plan, shard_size: int, out: Path) -> bool:
    """Whether a folder is the whole output of this plan, made after its sources last changed.

    The lock must match, ignoring versions and digests, and so must the headers of the weights.
    """
    try:
        lock, output = read_lock(out), open_output(out)
        made = (out / LOCK).stat().st_mtime_ns
    except (MisfitError, OSError):
        return False
    if not is_lock_of(to_json(lock).encode(), plan, shard_size):
        return False
    if any(modified_ns(file.blob) > made for file in plan.files):
        return False
    found = {t.name: (t.dtype, t.shape) for t in output.tensors.values()}
    streams = (stream for tensor in plan.tensors for stream in tensor.streams)
    return found == {s.name: (s.dtype, s.shape) for s in streams}


def _without_digests(value: Any) -> Any:
    """A value of a lock without content digests. A lock may hold anything: anyone can edit it."""
    if isinstance(value, dict):
        return {key: _without_digests(item) for key, item in value.items() if key != "digest"}
    return [_without_digests(item) for item in value] if isinstance(value, list) else value


def read_lock(folder: Path) -> dict[str, Any]:
    """The lock of an output folder.

    Raises:
        MisfitError: there is none.
        CheckpointError: it cannot be understood.
    """
    if not (folder / LOCK).is_file():
        raise MisfitError(
            "paramdelta did not write this folder",
            code="not-an-output",
            where=str(folder),
            expected=f"a folder with {LOCK}",
        )
    with Reader() as reader:
        lock = parse_json(reader.small(local_blob(folder / LOCK), MOST_JSON), str(folder / LOCK))
    if lock.get("lock_version") != VERSION or not isinstance(lock.get("recipe"), dict):
        raise CheckpointError(
            "the lock cannot be understood",
            code="invalid-record",
            where=str(folder / LOCK),
            expected=f"lock_version {VERSION}",
            got=f"lock_version {lock.get('lock_version')!r}",
        )
    return lock


def open_output(folder: Path) -> Checkpoint:
    """The weights of an output folder; raises as `open_checkpoint`."""
    with Reader() as reader:
        return open_checkpoint(Files(locate(str(folder)), reader), "output")
