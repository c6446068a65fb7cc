"""The Hugging Face Hub: names, revisions, lists of files, and their bytes. Only this module and
`hubrepo` import its client.

A name is resolved to a commit with one call of the API. A file of that commit is read from the
Hub's cache on this machine if it is there. Otherwise the Hub is asked once where the file is; all
of its ranges are then read from that signed address, which gets no token.

Token, endpoint, cache folder and offline mode are huggingface_hub's own (HF_TOKEN, HF_ENDPOINT,
HF_HOME, HF_HUB_OFFLINE).
"""

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paramdelta.errors import StorageError, UsageError
from paramdelta.storage.blob import Blob
from paramdelta.storage.filekinds import wanted
from paramdelta.storage.http import AGAIN, GRAIN, Again, RemoteFile, Target, Transport, ordered
from paramdelta.storage.local import DEPTH, MOST_FILES, LocalStore, local_blob
from paramdelta.storage.location import Location, not_here
from paramdelta.text import shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SCHEME = "hf"
TRIES = 3  # if a repository changes while it is downloaded
LARGEST = 256_000_000  # bytes of a file that is fetched and is no weights
_ID = r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}"
_NAME = re.compile(rf"(?P<repo>{_ID})(@(?P<revision>[\w./-]{{1,255}}))?")
_URL = re.compile(
    r"hf://(models/)?(?P<repo>[\w.-]{1,96}/[\w.-]{1,96}|[\w.-]{1,96}(?=@[0-9a-f]{40}))"
    r"(@(?P<revision>refs/(pr|convert)/[\w.-]+|[\w.-]{1,255}|[\w.%-]{1,255}))?(/(?P<path>.*))?",
    re.IGNORECASE,
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Name:
    """What an address on the Hub says. ``path``: of a folder or a file inside; "" for all."""

    repo: str
    revision: str | None
    path: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        name = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return f"hf://{name}/{self.path}" if self.path else name


def parse(address: str) -> Name | None:
    """The parts of ``org/name[@revision]`` or ``hf://org/name[@revision][/path]``; else None."""
    match = _NAME.fullmatch(address)
    if match is not None:
        return Name(match["repo"], match["revision"])
    match = _URL.fullmatch(address.rstrip("/"))
    if match is None or ".." in (match["path"] or "").split("/"):
        return None
    revision = (match["revision"] or "").replace("%2F", "/").replace("%2f", "/")
    return Name(match["repo"], revision or None, match["path"] or "")


@dataclass(frozen=True)
class Entry:
    """A file of a commit. ``version``: its SHA-256 if it is stored as a large file, else Git's."""

    size: int
    version: str
    large: bool


@dataclass(frozen=True)
class Listing:
    """All files of one commit of a repository, by name."""

    repo: str
    commit: str
    files: Mapping[str, Entry]

    def below(self, path: str) -> dict[str, str]:
        """The files that a download of a folder would fetch: full names by names in the folder."""
        start = f"{path}/" if path else ""
        inside = {name[len(start) :]: name for name in self.files if name.startswith(start)}
        sizes = {name: self.files[full].size for name, full in inside.items()}
        return {name: inside[name] for name in wanted(sizes, LARGEST)}

    def blob(self, name: str) -> Blob:
        """A file as a blob."""
        entry = self.files[name]
        url = f"{SCHEME}://{self.repo}@{self.commit}/{name}"
        return Blob(url, entry.size, entry.version)


_LISTINGS: dict[tuple[str, str], Listing] = {}  # by repository and commit, which never change
_FILES: dict[str, RemoteFile] = {}  # by URL: where each file is, for all stores of this process
_LOCK = threading.Lock()


def resolve(name: Name) -> Listing:
    """The commit that a name stands for now, and its files: one call of the API.

    Raises:
        StorageError: no such repository or revision, no access, or the Hub cannot be reached.
    """
    known = _LISTINGS.get((name.repo, name.revision or ""))
    if known is not None:
        return known
    from huggingface_hub import HfApi

    with reasons(name.where):
        found = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True)
    repo = found.id if parse(found.id or "") is not None else name.repo  # it may be renamed
    commit = found.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise StorageError(
            "the Hub does not say which commit this is",
            code="download-failed",
            where=name.where,
            got=shown(commit),
        )
    files = {}
    for file in found.siblings or ():
        if _is_plain(file.rfilename) and file.size is not None:
            large = file.lfs is not None
            version = file.lfs.sha256 if file.lfs is not None else file.blob_id or commit
            files[file.rfilename] = Entry(file.size, version, large)
    if len(files) > MOST_FILES:
        raise StorageError(
            "the repository holds too many files for a checkpoint",
            code="too-many-files",
            where=name.where,
            expected=f"at most {MOST_FILES}",
            got=str(len(files)),
        )
    listing = Listing(repo, commit, files)
    with _LOCK:
        _LISTINGS[repo, commit] = listing
    return listing


def find(address: str, name: Name, *, online: bool = True, keep: bool = False) -> Location:
    """Where a checkpoint on the Hub is read: in the cache if all of it is there, else at the Hub.

    ``online``: False finds only what is in the cache. ``keep``: download it into the cache first.

    Raises:
        MisfitError: it is not in the cache, and only that was asked for.
        UsageError: the repository has no such folder or file.
        StorageError: as `resolve`.
    """
    if not online or keep:
        folder, commit = download(name, cached=not online)
        return _located(address, name, name.repo, commit, str(folder))
    try:
        listing = resolve(name)
    except StorageError as error:
        if error.code != "hub-unreachable":
            raise
        folder, commit = download(name, cached=True, offline=error)
        return _located(address, name, name.repo, commit, str(folder))
    files = {name.path: name.path} if name.path in listing.files else listing.below(name.path)
    if not files:
        raise UsageError(
            "the repository has no such folder or file",
            code="no-such-checkpoint",
            where=name.where,
            got=", ".join(sorted(listing.files)[:8]) or "no files",
        )
    copies = [cached(listing.repo, listing.commit, full) for full in files.values()]
    if all(copy is not None for copy in copies):
        root = str(copies[0])[: -len(next(iter(files.values()))) - 1]
        return _located(address, name, listing.repo, listing.commit, root)
    root = f"{SCHEME}://{listing.repo}@{listing.commit}"
    return _located(address, name, listing.repo, listing.commit, root)


def _located(address: str, name: Name, repo: str, commit: str, root: str) -> Location:
    url = f"{root}/{name.path}" if name.path else root
    return Location(address, url, repo, commit, inside=name.path)


def cached(repo: str, commit: str, name: str) -> Path | None:
    """The copy of a file of a commit in the Hub's cache, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo, name, revision=commit)
    except (OSError, ValueError):
        return None
    return Path(found) if isinstance(found, str) else None


def sha256(blob: Blob) -> str | None:
    """The Hub's own SHA-256 of a large file, whether it is read there or in the cache."""
    if blob.url.startswith(f"{SCHEME}://"):
        return blob.version if _SHA256.fullmatch(blob.version) else None
    try:
        name = Path(blob.url).resolve().name  # the cache calls its files by what the Hub says
    except OSError:
        return None
    return name if _SHA256.fullmatch(name) else None


class HubStore:
    """Files of commits on the Hub as a `Store`; see `Listing.blob` for their URLs."""

    grain = GRAIN

    def __init__(self, once: bool) -> None:
        self._local = LocalStore(once)
        self._copies: dict[Blob, Blob | None] = {}
        self._transport = Transport()

    def list(self, url: str) -> dict[str, Blob]:
        """See `Store.list`. Files that a download would not fetch are left out."""
        name = _commit_of(url)
        listing = resolve(name)
        if name.path in listing.files:
            return {name.path.rpartition("/")[2]: listing.blob(name.path)}
        return {short: listing.blob(full) for short, full in listing.below(name.path).items()}

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """See `Store.read`."""
        copy = self._copy(blob)
        if copy is not None:
            self._local.read(copy, offset, into)
        else:
            self._transport.read(remote_file(blob), offset, into)

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """See `Store.read_many`."""
        copy = self._copy(blob)
        if copy is not None:
            self._local.read_many(copy, offsets, into, among)
        else:
            self._transport.read_many(remote_file(blob), offsets, into)

    def close(self) -> None:
        """Close connections and files."""
        self._transport.close()
        self._local.close()

    def _copy(self, blob: Blob) -> Blob | None:
        if blob not in self._copies:
            name = _commit_of(blob.url)
            path = cached(name.repo, str(name.revision), name.path)
            copy = local_blob(path) if path is not None else None
            if copy is not None and copy.size != blob.size:
                copy = None  # the cache is damaged
            self._copies[blob] = copy
        return self._copies[blob]


def is_here(blob: Blob) -> bool:
    """Whether a blob on the Hub has a copy in the cache."""
    name = _commit_of(blob.url)
    return cached(name.repo, str(name.revision), name.path) is not None


def remote_file(blob: Blob) -> RemoteFile:
    """A file on the Hub, behind HTTP. All stores of a process share it."""
    with _LOCK:
        if blob.url not in _FILES:
            name = _commit_of(blob.url)
            _FILES[blob.url] = RemoteFile(
                blob.url, blob.size, lambda expiries: _target(name, blob, expiries)
            )
        return _FILES[blob.url]


def _target(name: Name, blob: Blob, expiries: int) -> Target:
    """Where a file is now. Small files lie at the Hub itself, which is asked only if that fails.

    Raises:
        Again: the Hub is busy or cannot be reached.
        StorageError: no access, or it is another file.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import build_hf_headers, httpx

    endpoint = constants.ENDPOINT
    url = hf_hub_url(name.repo, name.path, revision=name.revision, endpoint=endpoint)
    own = Target(url, build_hf_headers(library_name="paramdelta"))
    if not _SHA256.fullmatch(blob.version) and not expiries:
        return own
    try:
        with reasons(blob.url, again=True):
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            found = get_hf_file_metadata(url, timeout=timeout, endpoint=endpoint)
    except HfHubHTTPError as error:
        status = error.response.status_code
        wait = ordered(status, error.response.headers)
        raise Again(f"HTTP {status}", wait) from None
    except (httpx.TransportError, OSError) as error:
        raise Again(type(error).__name__) from None
    if found.size not in (None, blob.size) or found.etag not in (None, blob.version):
        raise StorageError(
            "the Hub gives another file than it listed",
            code="source-changed",
            where=blob.url,
            expected=f"{blob.size} bytes, {blob.version}",
            got=f"{found.size} bytes, {shown(str(found.etag))}",
        )
    target = Target(found.location)
    return Target(found.location, own.headers) if target.origin == own.origin else target


def _commit_of(url: str) -> Name:
    name = parse(url)
    if name is None or name.revision is None:
        raise UsageError(
            "not the address of a commit on the Hub",
            code="unsupported-address",
            where=url,
            expected="hf://org/name@commit/file",
        )
    return name


def _is_plain(name: str) -> bool:
    """Whether a file's name can be one in a folder on this machine; hidden files are left out."""
    parts = name.split("/")
    return (
        len(parts) <= DEPTH
        and name.isprintable()
        and "\\" not in name
        and ":" not in name
        and all(part and not part.startswith(".") for part in parts)
    )


@contextlib.contextmanager
def reasons(where: str, *, again: bool = False) -> Iterator[None]:
    """Raise the Hub's reasons as StorageError. ``again``: but not what may pass by itself."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx

    try:
        yield
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise StorageError(
            "the Hub cannot be reached and its cache does not hold this model",
            code="hub-unreachable",
            where=where,
            remedy="look at the network, HF_ENDPOINT and HF_HUB_OFFLINE",
        ) from None
    except GatedRepoError as error:
        raise StorageError(
            "access to this model must be asked for",
            code="hub-access-denied",
            where=where,
            got=_said(error),
            remedy="accept its terms on the Hub, then log in: hf auth login",
        ) from None
    except RevisionNotFoundError:
        raise StorageError(
            "the model has no such revision", code="no-such-revision", where=where
        ) from None
    except DisabledRepoError as error:
        raise StorageError(
            "the Hub has disabled this model",
            code="hub-access-denied",
            where=where,
            got=_said(error),
        ) from None
    except RepositoryNotFoundError:
        raise StorageError(
            "neither a folder here nor a model on the Hub",
            code="no-such-checkpoint",
            where=where,
            remedy="look at the spelling; a private model needs: hf auth login",
        ) from None
    except EntryNotFoundError:
        raise StorageError(
            "the file is no longer there", code="source-changed", where=where
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise StorageError(
                "the Hub denies access",
                code="hub-access-denied",
                where=where,
                got=f"HTTP {status}" + (f": {said}" if (said := _said(error)) else ""),
                remedy="look at the token: hf auth login",
            ) from None
        if again and status in AGAIN:
            raise
        busy = "the limit is the Hub's: wait five minutes, or log in for a higher one"
        raise StorageError(
            "the download failed",
            code="download-failed",
            where=where,
            got=f"HTTP {status}" + (f": {said}" if (said := _said(error)) else ""),
            remedy=busy if status == 429 else None,
        ) from None
    except (httpx.TransportError, OSError) as error:
        if again:
            raise
        raise StorageError(
            "the Hub cannot be reached and its cache does not hold this model",
            code="hub-unreachable",
            where=where,
            got=type(error).__name__,
            remedy="look at the network, HF_ENDPOINT and HF_HUB_OFFLINE",
        ) from None
    except ValueError as error:
        raise StorageError(
            "the download failed",
            code="download-failed",
            where=where,
            got=shown(str(error).splitlines()[0]) if str(error) else type(error).__name__,
        ) from None


def _said(error: Exception) -> str | None:
    text = getattr(error, "server_message", None)
    return shown(str(text)) if text else None


def download(
    name: Name, cached: bool = False, offline: StorageError | None = None
) -> tuple[Path, str]:
    """Download a model into the Hub's cache, or find it there; the folder and the commit hash.

    ``cached``: only look into the cache. ``offline``: why the Hub was not asked; raised if the
    cache does not hold it.

    Raises:
        MisfitError: it is not in the cache, and only that was asked for.
        StorageError: as `resolve`, or the download failed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision = name.revision or "main"
    if cached:
        try:
            folder = Path(
                snapshot_download(
                    name.repo,
                    revision=revision,
                    allow_patterns=[],  # what is there is enough, or the caller says what is not
                    local_files_only=True,
                )
            )
        except (LocalEntryNotFoundError, OSError, ValueError):
            raise offline or not_here(name.where) from None
        return folder, folder.name
    for _ in range(TRIES):
        listing = resolve(name)
        files = [name.path] if name.path in listing.files else listing.below(name.path).values()
        with reasons(name.where):
            folder = Path(
                snapshot_download(
                    name.repo,
                    revision=revision,  # by its name, so that the cache knows it offline
                    allow_patterns=[_exactly(file) for file in files],
                )
            )
        if folder.name == listing.commit:
            break  # else someone pushed between the two calls
    return folder, folder.name


def _exactly(name: str) -> str:
    """A pattern that matches only this name."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
