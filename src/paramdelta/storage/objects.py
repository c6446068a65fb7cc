"""Object stores: S3, Google Cloud Storage, Azure. The only module that imports obstore.

Credentials, regions and endpoints come from the environment, as each provider names them. They are
never part of an address, and nothing here puts them into a message.
"""

import contextlib
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from paramdelta.errors import CheckpointError, StorageError, UsageError
from paramdelta.storage.blob import Blob
from paramdelta.storage.local import MOST_FILES, changed
from paramdelta.text import shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

GRAIN = 8 << 20  # bytes of a request
TRIES = 6  # of a read, beside what obstore repeats itself: it does not repeat a body that broke off
PAUSE = 0.2  # seconds before the second try; it doubles, and is shortened at random
PART = 8 << 20  # bytes of a part of an upload
MOST_PARTS = 9_000  # S3 allows 10,000
UPLOADS = min(16, max(4, 2 * (os.cpu_count() or 1)))  # parts on their way at a time
_AT = "at "  # a version that is a time: the store has no ETags
_URL = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[^/?#]+)(/(?P<path>.*))?", re.IGNORECASE)
_SECRET = re.compile(r"\?|:[^/]*@|@[^/]*:")  # a query, or a password before the host

Result = TypeVar("Result")


class Bucket:
    """One bucket or container. Every method may be called from many threads at once.

    Raises, from every method:
        StorageError: the store failed, or refused.
    """

    def __init__(self, root: str) -> None:
        """``root``: scheme and name, such as ``s3://bucket``."""
        self.root = root
        self._store = connect(root)

    def url(self, path: str) -> str:
        """The URL of an object."""
        return f"{self.root}/{path}"

    def list(self, folder: str) -> dict[str, Blob]:
        """Every object below a folder, by its path in the bucket. Hidden ones are in it."""
        import obstore

        found: dict[str, Blob] = {}
        prefix = folder + "/" if folder else ""
        with self._told(self.url(folder), "list"):
            for page in obstore.list(self._store, prefix or None, chunk_size=1000):
                for meta in page:
                    found[meta["path"]] = self._blob(meta)
                if len(found) > MOST_FILES:
                    raise StorageError(
                        "the folder holds too many files for a checkpoint",
                        code="too-many-files",
                        where=self.url(folder),
                        expected=f"at most {MOST_FILES}",
                        got=f"{len(found)} or more",
                    )
        # Azure and consoles mark folders with empty objects.
        folders = {path.rpartition("/")[0] for path in found}
        return {path: blob for path, blob in found.items() if blob.size or path not in folders}

    def head(self, path: str) -> Blob | None:
        """One object; None if it does not exist."""
        import obstore

        with (
            contextlib.suppress(FileNotFoundError),
            self._told(self.url(path), "look at", missing=True),
        ):
            return self._blob(obstore.head(self._store, path))
        return None

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """Fill ``into`` from one range of the version that was listed; see `Store.read`."""
        import obstore

        path, stop = blob.url[len(self.root) + 1 :], offset + len(into)
        if stop > blob.size:
            raise CheckpointError(
                "the file ends too early",
                code="truncated-file",
                where=str(blob),
                expected=f"at least {stop} bytes",
                got=f"{blob.size} bytes",
            )
        if not into:
            return

        def once() -> None:
            options: Any = {"range": (offset, stop)}
            if not blob.version.startswith(_AT):
                options["if_match"] = f'"{blob.version}"'
            found = obstore.get(self._store, path, options=options)
            if _version(found.meta) != blob.version or found.meta["size"] != blob.size:
                raise changed(blob)
            done = 0
            for part in found.stream(min_chunk_size=1 << 20):
                view = memoryview(part)
                if done + len(view) > len(into):
                    break
                into[done : done + len(view)] = view
                done += len(view)
            if found.range != (offset, stop) or done != len(into):
                raise OSError(f"{done} of {len(into)} bytes came")

        with self._told(self.url(path), "read", blob):
            _repeated(once)

    def small(self, path: str, limit: int) -> bytes:
        """All of a small object; raises as `read`, and StorageError if it is gone or large."""
        import obstore

        with self._told(self.url(path), "read", missing=True):
            found = obstore.get(self._store, path)
            if found.meta["size"] > limit:
                raise StorageError(
                    "the file is too large for what it should be",
                    code="file-too-large",
                    where=self.url(path),
                    expected=f"at most {limit} bytes",
                    got=f"{found.meta['size']} bytes",
                )
            return bytes(found.bytes())

    def put(self, path: str, data: bytes, *, new: bool = False) -> bool:
        """Write an object in one request. ``new``: only if there is none; whether it was written.

        With ``new``, False may also mean that an answer was lost and the object is this one.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        mode: Any = "create" if new else "overwrite"
        with self._told(self.url(path), "write"):
            try:
                obstore.put(self._store, path, data, mode=mode, use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    def upload(self, path: str, file: Path, stopped: Callable[[], bool]) -> str:
        """Write an object from a file, in parts; the version of the object.

        ``stopped``: whether to give up. An upload that fails leaves nothing that can be listed.
        """
        import obstore

        size = file.stat().st_size
        part = max(PART, math.ceil(size / MOST_PARTS / 65536) * 65536)

        def parts() -> Iterator[bytes]:
            with file.open("rb", buffering=0) as opened:
                left = size
                while left:
                    if stopped():
                        raise InterruptedError("the upload was stopped")
                    data = opened.read(min(part, left))
                    if not data:
                        raise OSError("the local file was cut short")
                    left -= len(data)
                    yield data

        with self._told(self.url(path), "write"):
            obstore.put(self._store, path, parts(), chunk_size=part, max_concurrency=UPLOADS)
        found = self.head(path)
        if found is None or found.size != size:
            raise StorageError(
                "the object is not the file that was uploaded",
                code="upload-failed",
                where=self.url(path),
                expected=f"{size} bytes",
                got="nothing" if found is None else f"{found.size} bytes",
                remedy="run it again",
            )
        return found.version

    def delete(self, path: str) -> None:
        """Delete an object, if there is one."""
        import obstore

        with (
            contextlib.suppress(FileNotFoundError),
            self._told(self.url(path), "delete", missing=True),
        ):
            obstore.delete(self._store, path)

    def _blob(self, meta: Any) -> Blob:
        return Blob(self.url(meta["path"]), meta["size"], _version(meta))

    @contextlib.contextmanager
    def _told(
        self, where: str, verb: str, blob: Blob | None = None, missing: bool = False
    ) -> Iterator[None]:
        """Turn what obstore raises into a StorageError.

        ``blob``: what must not have changed. ``missing``: let FileNotFoundError pass.
        """
        from obstore import exceptions

        try:
            yield
        except (FileNotFoundError, exceptions.PreconditionError) as error:
            if missing and isinstance(error, FileNotFoundError):
                raise
            if blob is not None:
                raise changed(blob) from None
            raise self._no_bucket(where) from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            raise StorageError(
                f"not allowed to {verb} this",
                code="access-denied",
                where=where,
                remedy=f"look at the credentials in the environment: {_variables(self.root)}",
            ) from None
        except (exceptions.BaseError, OSError) as error:
            if re.search("NoSuchBucket|ContainerNotFound", str(error)):
                raise self._no_bucket(where) from None
            raise StorageError(
                f"cannot {verb} the object",
                code="object-store-failed",
                where=where,
                got=_reason(error),
                remedy=f"look at the name, the network and the environment: "
                f"{_variables(self.root)}; the same command continues",
            ) from None

    def _no_bucket(self, where: str) -> StorageError:
        return StorageError(
            "there is no such bucket",
            code="no-such-bucket",
            where=where,
            remedy=f"look at the name and the environment: {_variables(self.root)}",
        )


class ObjectStore:
    """Objects as files; see `storage.store.Store`."""

    grain = GRAIN

    def __init__(self, once: bool = False) -> None:
        """``once`` makes no difference: nothing is kept."""
        self._buckets: dict[str, Bucket] = {}
        self._lock = threading.Lock()

    def list(self, url: str) -> dict[str, Blob]:
        """See `Store.list`. Names that begin with a dot are left out, as in a folder."""
        root, path = split(url)
        bucket = self._bucket(root)
        single = bucket.head(path) if "." in path.rpartition("/")[2] else None
        if single is not None:
            return {single.name: single}
        prefix = path + "/" if path else ""
        found = {p[len(prefix) :]: blob for p, blob in bucket.list(path).items()}
        files = {n: b for n, b in found.items() if not any(s[:1] == "." for s in n.split("/"))}
        single = bucket.head(path) if path and not files else None
        return files if single is None else {single.name: single}

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """See `Store.read`."""
        self._bucket(split(blob.url)[0]).read(blob, offset, into)

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """See `Store.read_many`. Near parts are read in one request."""
        if not len(offsets):
            return
        size = len(into) // len(offsets)
        order = offsets.argsort()
        at = 0
        while at < len(order):
            first = start = int(offsets[order[at]])
            stop, last = first + size, at + 1
            while last < len(order) and int(offsets[order[last]]) - start + size <= GRAIN:
                stop = max(stop, int(offsets[order[last]]) + size)
                last += 1
            data = memoryview(bytearray(stop - start))
            self.read(blob, start, data)
            for number in order[at:last]:
                begin = int(offsets[number]) - start
                into[number * size : (number + 1) * size] = data[begin : begin + size]
            at = last

    def close(self) -> None:
        """See `Store.close`."""
        self._buckets.clear()

    def _bucket(self, root: str) -> Bucket:
        with self._lock:
            if root not in self._buckets:
                self._buckets[root] = Bucket(root)
            return self._buckets[root]


def split(url: str) -> tuple[str, str]:
    """The root of a bucket and the path in it; raises UsageError."""
    match = _URL.fullmatch(url)
    if match is None or _SECRET.search(url):
        raise UsageError(
            "this is not the address of a folder in an object store",
            code="invalid-object-address",
            where=re.split(r"[?#]", url)[0].rpartition("@")[2],  # without what may be a secret
            expected="such as s3://bucket/folder; credentials come from the environment",
        )
    parts = [part for part in (match["path"] or "").split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise UsageError(
            "the address of an object has no '.' and '..'",
            code="invalid-object-address",
            where=url,
        )
    return f"{match['scheme'].lower()}://{match['bucket']}", "/".join(parts)


def connect(root: str) -> Any:
    """The obstore of a bucket, set up by the environment; raises StorageError."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise StorageError(
            "object stores need the package obstore",
            code="missing-package",
            where=root,
            remedy="pip install 'paramdelta[objects]'",
        ) from None
    endpoints = [v for k, v in os.environ.items() if "ENDPOINT" in k.upper()]
    client: Any = {"timeout": "10m", "read_timeout": "60s", "connect_timeout": "20s"}
    if any(value.startswith("http://") for value in endpoints) or _on("AZURE_STORAGE_USE_EMULATOR"):
        client["allow_http"] = True
    retry: Any = {
        "max_retries": 8,
        "backoff": {
            "init_backoff": timedelta(milliseconds=200),
            "max_backoff": timedelta(seconds=15),
            "base": 2,
        },
        "retry_timeout": timedelta(minutes=3),
    }
    try:
        return from_url(root, client_options=client, retry_config=retry)
    except Exception as error:  # noqa: BLE001 - obstore raises many kinds; all mean the same here
        raise StorageError(
            "the object store cannot be used",
            code="object-store-failed",
            where=root,
            got=_reason(error),
            remedy=f"look at the environment: {_variables(root)}",
        ) from None


def _repeated(once: Callable[[], Result]) -> Result:
    """Try again what may work the next time."""
    from obstore import exceptions

    lasting = (
        FileNotFoundError,
        exceptions.PermissionDeniedError,
        exceptions.UnauthenticatedError,
        exceptions.PreconditionError,
        exceptions.InvalidPathError,
        exceptions.NotSupportedError,
    )
    for number in range(TRIES - 1):
        try:
            return once()
        except (exceptions.BaseError, OSError) as error:
            if isinstance(error, lasting):
                raise
        time.sleep(PAUSE * 2**number * random.uniform(0.5, 1))
    return once()


def _version(meta: Any) -> str:
    """What changes with the content. Azure's lists leave out the quotes of an ETag."""
    tag = meta.get("e_tag")
    return str(tag).strip('"') if tag else f"{_AT}{meta['last_modified']}"


def _variables(root: str) -> str:
    """The variables that a provider's programs read."""
    if root.startswith("s3"):
        return "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL"
    if root.startswith("gs"):
        return "GOOGLE_APPLICATION_CREDENTIALS"
    return "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY"


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _reason(error: BaseException) -> str:
    """The first line of an error, without the query of a URL: it may hold a signature."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return shown(re.sub(r"(://[^\s?]*)\?[^\s\"')]*", r"\1?…", text), 300)
