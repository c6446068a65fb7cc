"""An address as the user writes it, and the place on this machine where its files are."""

import re
from dataclasses import dataclass
from pathlib import Path

from paramdelta.errors import UsageError

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Location:
    """Where a checkpoint is.

    ``address``: as written. ``path``: the folder, or the single weight file. ``repo`` and
    ``revision``: Hub id and commit hash, where it came from the Hub.
    """

    address: str
    path: Path
    repo: str | None = None
    revision: str | None = None

    @property
    def pinned(self) -> str:
        """The address that will mean the same tomorrow: ``org/name@commit``, or the full path."""
        return f"{self.repo}@{self.revision}" if self.repo else str(self.path.absolute())

    @property
    def folder(self) -> Path | None:
        """Where the companion files are; None for a single file, which has none."""
        return self.path if self.path.is_dir() else None

    @property
    def name(self) -> str:
        """What a model card calls it: the Hub id, else the folder's name."""
        return self.repo or self.path.absolute().name


def locate(address: str) -> Location:
    """Find a checkpoint: what exists on this machine first, else a Hub id, which is downloaded.

    Raises:
        UsageError: neither an existing path nor a Hub id.
        StorageError: the download failed.
    """
    path = Path(address).expanduser()
    if path.exists():
        return Location(address, path)
    if "://" in address:
        raise UsageError(
            "this kind of address cannot be read yet",
            where=address,
            expected="a folder, a weight file (.safetensors, .bin, .pt) or a Hub id",
            remedy="download it to a folder first",
        )
    match = _HUB_ID.fullmatch(address)
    if match is None or address.startswith(("./", "../")):
        raise UsageError(
            "no such checkpoint",
            where=address,
            expected="an existing folder or weight file, or a Hub id (org/name@revision)",
        )
    from paramdelta.storage import hub  # keeps huggingface_hub out of local work

    path, commit = hub.download(match["repo"], match["revision"])
    return Location(address, path, match["repo"], commit)
