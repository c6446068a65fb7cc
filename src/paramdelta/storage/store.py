"""Stores: the places that hold bytes. One module for each kind; this one says what they share.

A store is found by the scheme of a URL. A new place is one class with the methods of `Store` and
one call of `register`.
"""

import re
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from paramdelta.storage.blob import Blob

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LOCAL = "file"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # one letter is a Windows drive


class Store(Protocol):
    """A kind of place that holds blobs. Every method may be called from many threads at once.

    ``grain``: bytes; the size of a request at which the place is fast. 0 where small reads cost
    nothing extra, as on a local disk: such reads go straight to the store.

    Raises, from every method:
        StorageError: the place failed, or the blob is no longer the one that was listed.
    """

    grain: int

    def list(self, url: str) -> dict[str, Blob]:
        """Every file below a folder by its path relative to the folder, with slashes.

        For the URL of a file: that file alone, by its name. Empty if there is nothing.
        """

    def read(self, blob: Blob, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes from ``offset``.

        Raises:
            CheckpointError: the blob ends before ``into`` is full.
        """

    def read_many(
        self, blob: Blob, offsets: "npt.NDArray[np.int64]", into: memoryview, among: range
    ) -> None:
        """Fill ``into`` with parts of equal size, one from each offset; raises as `read`.

        ``among``: the bytes of the blob that hold all parts. Other calls will ask for most of them.
        """

    def close(self) -> None:
        """Release what the store holds open."""


def scheme_of(url: str) -> str:
    """The scheme of a URL in lower case; `LOCAL` for a path."""
    match = _SCHEME.match(url)
    return match[1].lower() if match else LOCAL


_OBJECTS = "paramdelta.storage.objects:ObjectStore"
_STORES: dict[str, Callable[[bool], Store] | str] = {
    LOCAL: "paramdelta.storage.local:LocalStore",
    "hf": "paramdelta.storage.hub:HubStore",
    **dict.fromkeys(("http", "https"), "paramdelta.storage.web:WebStore"),
    **dict.fromkeys(("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"), _OBJECTS),
}


def register(scheme: str, make: Callable[[bool], Store]) -> None:
    """Make a scheme known. ``make(once)`` gives a store; ``once``: bytes are read only once."""
    _STORES[scheme.lower()] = make


def is_known(scheme: str) -> bool:
    """Whether a store for the scheme exists."""
    return scheme in _STORES


def is_far(blob: Blob) -> bool:
    """Whether a blob is read over a network: it is not on this machine, nor a copy of it."""
    scheme = scheme_of(blob.url)
    if scheme == "hf":
        from paramdelta.storage.hub import is_here

        return not is_here(blob)
    return scheme != LOCAL


def make_store(scheme: str, once: bool) -> Store:
    """A new store for a scheme that `is_known`."""
    make = _STORES[scheme]
    if isinstance(make, str):
        module, _, name = make.partition(":")
        make = getattr(import_module(module), name)
    assert not isinstance(make, str)
    return make(once)
