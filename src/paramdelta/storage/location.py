"""An address as the user writes it, and the place that it stands for."""

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from paramdelta.errors import MisfitError, UsageError
from paramdelta.storage.store import LOCAL, is_known, scheme_of

# A name of one part with such an end is that of a file that is not there.
_FILE = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|tar|gguf|onnx|h5|npz|json|ya?ml|zip|gz)", re.IGNORECASE
)


@dataclass(frozen=True)
class Location:
    """Where a checkpoint is.

    ``address``: as written. ``url``: the folder or the single weight file; see `Blob`. ``repo`` and
    ``revision``: Hub id and commit, if it came from the Hub. ``branch``: which of several sets of
    weights in one file is meant, such as "ema": what follows ``#`` in the address. ``inside``: the
    folder or file of the repository that is meant; "" for all of it.
    """

    address: str
    url: str
    repo: str | None = None
    revision: str | None = None
    branch: str | None = None
    inside: str = ""

    @property
    def pinned(self) -> str:
        """The address that will mean the same tomorrow: ``org/name@commit``, or the full path."""
        pinned = f"{self.repo}@{self.revision}" if self.repo else self.url
        pinned = f"hf://{pinned}/{self.inside}" if self.repo and self.inside else pinned
        return f"{pinned}#{self.branch}" if self.branch else pinned

    @property
    def name(self) -> str:
        """The Hub id, else the name of the folder or file. Model cards use it."""
        return self.repo or self.url.rstrip("/").replace(os.sep, "/").rpartition("/")[2]

    @property
    def path(self) -> Path | None:
        """The place on this machine; None if it is elsewhere."""
        return Path(self.url) if scheme_of(self.url) == LOCAL else None


def locate(address: str, download: bool = True, keep: bool = False) -> Location:
    """Find a checkpoint: an existing path first, then a URL, then a Hub id.

    ``download``: False forbids to use the network: what is in the cache of the Hub is found.
    ``keep``: a model on the Hub is downloaded into its cache; by default it is read where it is.

    Raises:
        UsageError: neither an existing path, nor a URL that can be read, nor a Hub id.
        MisfitError: it is not on this machine, and a download is forbidden.
        StorageError: the Hub cannot be reached, or has no such model or revision.
    """
    path = _expanded(address)
    if _exists(path):
        return Location(address, os.path.abspath(path))  # noqa: PTH100 - keeps links
    file, _, branch = address.rpartition("#")
    if branch and file and _exists(_expanded(file)):
        return replace(locate(file, download), address=address, branch=branch)
    scheme = scheme_of(address)
    if scheme == LOCAL or scheme == "hf":
        from paramdelta.storage import hub  # keeps huggingface_hub out of local work

        name = hub.parse(address)
        no_id = address.startswith(".") or ("/" not in address and _FILE.fullmatch(address))
        if name is None or no_id:
            raise UsageError(
                "no such checkpoint",
                code="no-such-checkpoint",
                where=address,
                expected="an existing folder or weight file, or a Hub id (name, org/name@revision "
                "or hf://org/name@revision/folder)",
                remedy=nearest_path(address) if scheme == LOCAL else None,
            )
        return hub.find(address, name, online=download, keep=keep)
    if is_known(scheme) and not download:
        raise not_here(address)
    if is_known(scheme):
        return Location(address, address.rstrip("/"))
    raise UsageError(
        "this kind of address cannot be read yet",
        code="unsupported-address",
        where=address,
        expected="a folder, a weight file (.safetensors, .bin, .pt) or a Hub id",
        remedy="download it to a folder first",
    )


def is_here(address: str) -> bool:
    """Whether an address is a path that exists on this machine."""
    return _exists(_expanded(address))


def nearest_path(address: str) -> str | None:
    """A remedy for a mistyped path: the path that exists and is nearest to it, if there is one."""
    path = _expanded(address)
    for above in path.parents:
        if _exists(above):
            wrong = path.relative_to(above).parts[0]
            try:
                names = [each.name for each in above.iterdir()]
            except OSError:
                return None
            near = difflib.get_close_matches(wrong, names, 1, 0.6)
            if near:
                rest = path.relative_to(above).parts[1:]
                return f"did you mean {str(Path(above, near[0], *rest))!r}?"
            return None if above == Path() else f"{str(above)!r} is there, {wrong!r} is not in it"
    return None


def not_here(address: str) -> MisfitError:
    """The error for a checkpoint that would have to be downloaded, which was not asked for."""
    return MisfitError(
        "a source is not on this machine",
        code="source-missing",
        where=address,
        remedy="pass `download=True` to fetch it",
    )


def _expanded(address: str) -> Path:
    """The path of an address. A tilde of a user that this machine does not have stays."""
    path = Path(address)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, a loop of links, a null character
        return False
