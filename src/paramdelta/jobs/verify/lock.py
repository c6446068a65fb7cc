"""The lock of an output."""

from collections.abc import Mapping
from dataclasses import dataclass

from paramdelta.errors import CheckpointError, UsageError
from paramdelta.jobs.verify.record import SHA256, ListedFile, Record
from paramdelta.output.lock import LOCK, VERSION
from paramdelta.recipe import Recipe, recipe_from_dict
from paramdelta.storage.digest import ALGORITHM
from paramdelta.storage.files import Files


@dataclass(frozen=True)
class LockedFile:
    """A weight file of a source as it was, and the digest of its header."""

    name: str
    file: ListedFile
    header_sha256: str


@dataclass(frozen=True)
class Lock:
    """What an output was made from, and its files by name, except for its card and the lock.

    ``sources``: the weight files of each checkpoint, in the order of the plan.
    """

    recipe: Recipe
    plan_sha256: str
    sources: tuple[tuple[LockedFile, ...], ...]
    outputs: Mapping[str, ListedFile]
    version: str


def read_lock(files: Files) -> Lock:
    """The lock of an output folder.

    Raises:
        CheckpointError: it is not a lock of this version, or malformed in any way.
        StorageError: it cannot be read.
    """
    lock = Record(files.json(LOCK), str(files[LOCK]))
    for key, known in (("lock_version", VERSION), ("digest_algorithm", ALGORITHM)):
        if lock.plain.get(key) != known:
            raise lock.error(key, str(known), lock.plain.get(key))
    return Lock(
        _recipe(lock),
        lock.hexadecimal("plan_sha256", SHA256),
        tuple(
            tuple(map(locked_file, source.records("files"))) for source in lock.records("sources")
        ),
        lock.files("outputs"),
        lock.record("versions").text("paramdelta"),
    )


def locked_file(record: Record) -> LockedFile:
    """A weight file of a source from its entry; raises CheckpointError."""
    header = record.hexadecimal("header_sha256", SHA256)
    return LockedFile(record.name("name"), record.file(), header)


def _recipe(lock: Record) -> Recipe:
    plain = lock.value("recipe")
    if not isinstance(plain, Mapping):
        raise lock.error("recipe", "an object", plain)
    try:
        return recipe_from_dict(plain)
    except UsageError as error:
        got = error.what
    except (ValueError, OSError) as error:  # numbers without end, paths that are too long
        got = str(error)
    raise CheckpointError(
        "the recipe of the lock is not valid",
        code="invalid-record",
        where=lock.where,
        got=got[:200],
    )
