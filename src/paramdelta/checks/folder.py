"""A folder that is read within bounds and never left: the only module here that opens files.

Whoever made the folder may be hostile. Only regular files are opened; a link is followed only where
it stays inside, or leads to the blobs of the same Hub cache. Every read has a limit.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paramdelta.documents import parse_json
from paramdelta.errors import CheckpointError, StorageError
from paramdelta.planning.findings import Findings, Severity
from paramdelta.storage.local import is_of
from paramdelta.storage.location import nearest_path

MAX_FILES = 100_000
MAX_DEPTH = 6  # folders below the one that is checked
MAX_TEXT = 16 << 20  # bytes of a configuration file
MAX_VOCABULARY = 64 << 20  # bytes of a tokenizer file; the largest known ones have 35 MB
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_POINTER = b"version https://git-lfs.github.com/spec"


@dataclass(frozen=True)
class Folder:
    """The regular files at and below one folder.

    ``root``: the folder that is checked. ``sizes``: bytes by name, relative to ``prefix`` and with
    slashes. ``prefix``: empty, or the subfolder that this one is, with a slash at its end.
    """

    root: Path
    sizes: Mapping[str, int]
    prefix: str = ""

    def __contains__(self, name: object) -> bool:
        return name in self.sizes

    @property
    def direct(self) -> list[str]:
        """Names of the files that lie in this very folder."""
        return [name for name in self.sizes if "/" not in name]

    def place(self, name: str) -> str:
        """The name as findings give it: relative to the folder that is checked."""
        return self.prefix + name or "."

    def sub(self, name: str) -> "Folder":
        """A subfolder; the same folder for an empty name."""
        prefix = name.strip("/")
        prefix = "" if prefix in ("", ".") else prefix + "/"
        inside = {n[len(prefix) :]: s for n, s in self.sizes.items() if n.startswith(prefix)}
        return Folder(self.root, inside, self.prefix + prefix)

    def has_folder(self, name: str) -> bool:
        """Whether some file lies in this subfolder."""
        return any(known.startswith(name.strip("/") + "/") for known in self.sizes)

    def is_elsewhere(self, path: str) -> bool:
        """Whether a path that a file names, absolute or from here, is a folder of this machine.

        Nothing in it is read.
        """
        try:
            return (self.root / path).is_dir()
        except (OSError, ValueError):  # too long a name, or a null byte
            return False

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from ``offset`` bytes into a file.

        Raises:
            StorageError: the file cannot be read.
            CheckpointError: it ends before the buffer is full.
        """
        try:
            # A name that has become a FIFO since the listing must not block.
            descriptor = os.open(self.root / (self.prefix + name), _FLAGS)
            with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise CheckpointError(
                        "not a regular file", code="not-a-regular-file", where=self.place(name)
                    )
                file.seek(offset)
                done = 0
                while done < len(buffer):
                    count = file.readinto(buffer[done:])
                    if not count:
                        raise CheckpointError(
                            "the file ends too early", code="truncated-file", where=self.place(name)
                        )
                    done += count
        except OSError as error:
            raise StorageError(
                "cannot read the file",
                code="io-failed",
                where=self.place(name),
                got=error.strerror or str(error),
            ) from None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """So many bytes of a file, or all of it; raises as `read_into`."""
        buffer = bytearray(self.sizes[name] - offset if length is None else length)
        self.read_into(name, offset, memoryview(buffer))
        return bytes(buffer)

    def text(self, name: str, findings: Findings, most: int = MAX_TEXT) -> str | None:
        """A text file in UTF-8; None, with a finding, if it is not one or has over ``most`` bytes.

        None without a finding if there is no such file.
        """
        if name not in self.sizes:
            return None
        problem = ""
        if self.sizes[name] > most:
            problem = f"it has {self.sizes[name]} bytes, more than the {most} that are read"
        else:
            data = self.read(name)
            if data.startswith(_POINTER):
                report_pointer(findings, self.place(name))
                return None
            try:
                return data.decode("utf-8")
            except UnicodeDecodeError as error:
                problem = f"it is not UTF-8 at byte {error.start}"
        _report_invalid(findings, self.place(name), problem)
        return None

    def json(self, name: str, findings: Findings, most: int = MAX_TEXT) -> Any:
        """The value of a JSON file; None as `text`."""
        text = self.text(name, findings, most)
        if text is None:
            return None
        try:
            return parse_json(text.encode())
        except ValueError as error:
            _report_invalid(findings, self.place(name), f"it is not JSON: {error}")
        return None

    def object(self, name: str, findings: Findings, most: int = MAX_TEXT) -> dict[str, Any]:
        """A JSON object; an empty one, with a finding, if the file holds anything else."""
        value = self.json(name, findings, most)
        if value is not None and not isinstance(value, dict):
            _report_invalid(findings, self.place(name), "it is not a JSON object")
        return value if isinstance(value, dict) else {}


def open_folder(path: Path, findings: Findings) -> Folder:
    """List a folder's files; hidden ones are left out.

    Raises:
        StorageError: there is no such folder, or it cannot be listed.
    """
    if not path.is_dir():
        raise StorageError(
            "no such folder" if not path.exists() else "not a folder",
            code="no-such-folder",
            where=str(path),
            remedy=nearest_path(str(path))
            or "give the folder that holds config.json or the weights",
        )
    root = Path(os.path.realpath(path))
    sizes: dict[str, int] = {}
    pending = [("", 0)]
    while pending:
        prefix, depth = pending.pop()
        try:
            with os.scandir(root / prefix) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                name = prefix + entry.name
                if entry.name.startswith("."):
                    continue
                if len(sizes) >= MAX_FILES:
                    findings.add(
                        Severity.REFUSED,
                        "too-many-files",
                        f"the folder holds more than {MAX_FILES} files; the rest was not checked",
                        ".",
                        remedy="check the folder of one model",
                    )
                    return Folder(root, sizes)
                kind = _kind(root, name, entry)
                if kind == "folder" and depth < MAX_DEPTH:
                    pending.append((name + "/", depth + 1))
                elif kind == "file":
                    sizes[name] = entry.stat().st_size
                elif kind in _KINDS:
                    what, remedy = _KINDS[kind]
                    findings.add(Severity.REFUSED, kind, what, name, remedy=remedy)
        except OSError as error:
            raise StorageError(
                "cannot list the folder",
                code="io-failed",
                where=str(root / prefix),
                got=error.strerror or str(error),
            ) from None
    return Folder(root, sizes)


_KINDS = {
    "link-outside": (
        "the link leads out of the folder, or nowhere; it was not followed",
        "put the file itself in the folder",
    ),
    "not-a-file": (
        "neither a regular file nor a folder; it was not opened",
        "remove it, or replace it by the file",
    ),
}


def _kind(root: Path, name: str, entry: "os.DirEntry[str]") -> str:
    if entry.is_symlink():
        target = Path(os.path.realpath(root / name))
        if not is_of(root, target):
            return "link-outside"
        if target.is_dir():
            return "folder beside"  # it is listed where it lies
        return "file" if target.is_file() else "link-outside"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "not-a-file"


def is_inside(name: str) -> bool:
    """Whether a name that a file gives for another one stays in the folder."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and ".." not in parts and not name.startswith(("/", "\\")) and ":" not in name


def report_pointer(findings: Findings, place: str) -> None:
    """Note that a file was not downloaded."""
    findings.add(
        Severity.REFUSED,
        "lfs-pointer",
        "a Git LFS pointer: the file itself was not downloaded",
        place,
        remedy="run git lfs pull, or download the file",
    )


def is_pointer(start: bytes) -> bool:
    """Whether a file's first bytes are those of a Git LFS pointer."""
    return start.startswith(_POINTER)


def _report_invalid(findings: Findings, place: str, problem: str) -> None:
    findings.add(
        Severity.REFUSED,
        "file-invalid",
        f"the file cannot be used: {problem}",
        place,
        remedy="get the file again",
    )
