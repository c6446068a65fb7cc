"""What folders and files hold, opened as planning opens them."""

from pathlib import Path

from paramdelta.formats.adapter import Adapter, open_adapter
from paramdelta.formats.checkpoint import Checkpoint, open_checkpoint, read_header, read_weights
from paramdelta.formats.delta import StoredDelta, open_delta
from paramdelta.formats.torch_pickle import Contents, read_pickle
from paramdelta.formats.view import Starts, Tensor, View, fetch_from
from paramdelta.storage.files import Files
from paramdelta.storage.local import local_blob
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader


def files(address: str | Path) -> Files:
    """The files at an address."""
    return Files(locate(str(address)), Reader())


def checkpoint(address: str | Path, role: str = "post") -> Checkpoint:
    """The checkpoint at an address."""
    return open_checkpoint(files(address), role)


def adapter(address: str | Path) -> Adapter:
    """The adapter in a folder."""
    return open_adapter(files(address), "post")


def stored_delta(address: str | Path) -> StoredDelta:
    """The stored Δ in a folder."""
    return open_delta(files(address), "post")


def contents(path: str | Path, key: str | None = None) -> Contents:
    """What a pickle holds."""
    return read_pickle(Reader(), local_blob(Path(path)), key)


def weights(path: str | Path) -> list[View]:
    """The tensors of one weight file of any kind."""
    return list(read_weights(Reader(), local_blob(Path(path)))[1])


def header(path: str | Path) -> list[Tensor]:
    """The tensors of one safetensors file."""
    return read_header(Reader(), local_blob(Path(path)))[1]


def fetch(tensor: Tensor, starts: Starts, into: memoryview) -> None:
    """Read what `Fetch` promises, through a reader that is opened for it alone."""
    with Reader() as reader:
        fetch_from(reader)(tensor, starts, into)
