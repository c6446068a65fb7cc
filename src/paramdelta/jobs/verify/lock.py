"""The lock of an output, read as strictly as a file from a stranger has to be."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.errors import CheckpointError, UsageError
from paramdelta.output.lock import LOCK, VERSION
from paramdelta.recipe import Recipe, recipe_from_dict
from paramdelta.storage.digest import ALGORITHM
from paramdelta.storage.files import Files

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9a-f]{32}")
DEEPEST = 16  # levels of a recipe; its own form needs seven


@dataclass(frozen=True)
class LockedFile:
    """A file as it was: bytes, content digest (None: not known), digest of its header (sources)."""

    size: int
    digest: str | None
    header_sha256: str = ""


@dataclass(frozen=True)
class LockedSource:
    """A checkpoint as it was. ``files``: its weight files by name."""

    role: str
    address: str
    files: Mapping[str, LockedFile]


@dataclass(frozen=True)
class Lock:
    """What an output was made from, and its files by name, except for its card and the lock."""

    recipe: Recipe
    plan_sha256: str
    sources: tuple[LockedSource, ...]
    outputs: Mapping[str, LockedFile]
    version: str


def read_lock(files: Files) -> Lock:
    """The lock of an output folder.

    Raises:
        CheckpointError: it is not a lock of this version, or malformed in any way.
        StorageError: it cannot be read.
    """
    return _Reader(str(files[LOCK])).lock(files.json(LOCK))


class _Reader:
    """Checks every value before it is used. ``where``: the lock, for errors."""

    def __init__(self, where: str) -> None:
        self.where = where

    def lock(self, lock: Mapping[str, Any]) -> Lock:
        if lock.get("lock_version") != VERSION:
            raise self.error(
                "lock_version", f"{VERSION}", lock.get("lock_version"), "unknown version of a lock"
            )
        if lock.get("digest_algorithm") != ALGORITHM:
            raise self.error("digest_algorithm", ALGORITHM, lock.get("digest_algorithm"))
        sources = lock.get("sources")
        if not isinstance(sources, list):
            raise self.error("sources", "a list", sources)
        versions = self.mapping(lock, "versions")
        outputs = self.mapping(lock, "outputs")
        if not outputs:
            raise self.error("outputs", "the files of the output", outputs)
        return Lock(
            self.recipe(lock.get("recipe")),
            self.matching(lock, "plan_sha256", _SHA256),
            tuple(self.source(source) for source in sources),
            {self.name(name, "outputs"): self.file(file, name) for name, file in outputs.items()},
            self.text(versions.get("paramdelta"), "versions.paramdelta"),
        )

    def recipe(self, plain: Any) -> Recipe:
        if not isinstance(plain, Mapping):
            raise self.error("recipe", "an object", plain)
        self.check_plain(plain, DEEPEST)
        try:
            return recipe_from_dict(plain)
        except UsageError as error:
            raise CheckpointError(
                "the lock holds a recipe that is not valid", where=self.where, got=str(error)
            ) from None
        except (ValueError, OSError) as error:  # numbers of no size, paths of no length
            raise self.error("recipe", "a recipe", str(error)) from None

    def check_plain(self, value: Any, depth: int) -> None:
        """Refuse texts that no file could have been written with, and depths that mean nothing."""
        if depth == 0:
            raise self.error("recipe", f"at most {DEEPEST} levels", "more")
        if isinstance(value, str):
            self.text(value, "recipe")
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                self.text(key, "recipe")
                self.check_plain(inner, depth - 1)
        elif isinstance(value, list):
            for inner in value:
                self.check_plain(inner, depth - 1)

    def source(self, plain: Any) -> LockedSource:
        if not isinstance(plain, Mapping):
            raise self.error("sources", "objects", plain)
        role = self.text(plain.get("role"), "sources.role")
        address = self.text(plain.get("address"), "sources.address")
        listed = plain.get("files")
        if not isinstance(listed, list):
            raise self.error("sources.files", "a list", listed)
        files: dict[str, LockedFile] = {}
        for file in listed:
            if not isinstance(file, Mapping):
                raise self.error("sources.files", "objects", file)
            name = self.name(file.get("name"), "sources.files.name")
            header = self.matching(file, "header_sha256", _SHA256)
            found = self.file(file, name)
            files[name] = LockedFile(found.size, found.digest, header)
        return LockedSource(role, address, files)

    def file(self, plain: Any, name: str) -> LockedFile:
        if not isinstance(plain, Mapping):
            raise self.error(repr(name), "an object", plain)
        size, digest = plain.get("size"), plain.get("digest")
        if type(size) is not int or not 0 <= size < 2**63:
            raise self.error(f"the size of {name!r}", "a number of bytes", size)
        if digest is not None:
            digest = self.matching(plain, "digest", _DIGEST)
        return LockedFile(size, digest)

    def name(self, plain: Any, place: str) -> str:
        """The path of a file inside of a folder."""
        name = self.text(plain, place)
        parts = name.split("/")
        if "\\" in name or ".." in parts or "" in parts or not name.isprintable():
            raise self.error(place, "a path inside of the folder", name)
        return name

    def text(self, plain: Any, place: str) -> str:
        if not isinstance(plain, str):
            raise self.error(place, "a text", plain)
        try:
            plain.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise self.error(place, "a text", plain) from None
        return plain

    def matching(self, plain: Mapping[str, Any], key: str, form: re.Pattern[str]) -> str:
        value = plain.get(key)
        if not isinstance(value, str) or not form.fullmatch(value):
            raise self.error(key, "a digest in hexadecimal", value)
        return value

    def mapping(self, plain: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = plain.get(key)
        if not isinstance(value, Mapping):
            raise self.error(key, "an object", value)
        return value

    def error(
        self, place: str, expected: str, got: Any, what: str = "the lock is malformed"
    ) -> CheckpointError:
        plain = got is None or isinstance(got, (str, int, float))
        shown = ascii(got[:80] if isinstance(got, str) else got) if plain else type(got).__name__
        where = f"{self.where}, {place}"
        return CheckpointError(what, where=where, expected=expected, got=shown[:80])
