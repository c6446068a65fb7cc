"""A checkpoint: its index, its shards, and where the bytes of every tensor are. Headers only."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paramdelta import documents
from paramdelta.errors import CheckpointError, UsageError
from paramdelta.formats import magic
from paramdelta.formats.safetensors import header_length, parse_header
from paramdelta.formats.torch_pickle import read_pickle
from paramdelta.formats.view import Tensor, View
from paramdelta.storage.local import File, read_bytes
from paramdelta.storage.location import Location, locate

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DELTA = "paramdelta.delta.json"  # in a folder that holds a stored Δ and no model (`delta`)
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)")
# What training leaves beside the weights: all of it pickles, none of it a model.
_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")
_MAX_JSON = 64_000_000  # bytes; the index of a model with 100 000 tensors is under 10 MB


@dataclass(frozen=True)
class SourceFile:
    """What identifies a weight file: if any of it changes, the file is another one."""

    path: Path
    size: int
    modified_ns: int
    header_sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and companion files.

    ``role``: "new base", "post" or "base", for messages. ``config``: config.json, {} if there is
    none. ``tensors`` are shard by shard, in the order of their bytes or of the pickle. ``ignored``:
    what a pickle holds beside them, each by its place and kind ("epoch (int)").
    """

    role: str
    location: Location
    tensors: Mapping[str, View]
    files: tuple[SourceFile, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.role} ({self.location.address})"

    @property
    def parameters(self) -> int:
        """Floating-point numbers in all tensors."""
        return sum(t.elements for t in self.tensors.values() if t.kind.mixable)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def companion(self, name: str) -> Path | None:
        """The path of a file beside the weights, if it is there."""
        folder = self.location.folder
        path = folder / name if folder else None
        return path if path is not None and path.is_file() else None

    def read_json(self, name: str) -> dict[str, Any]:
        """A companion's JSON object, {} if the file is absent; raises CheckpointError."""
        path = self.companion(name)
        return read_json(path) if path else {}


def open_checkpoint(address: str, role: str) -> Checkpoint:
    """Find a checkpoint and read its headers.

    Raises:
        UsageError: no such place.
        CheckpointError: no weights there, or damaged or hostile ones.
        StorageError: a file cannot be read, or the download failed.
    """
    location = locate(address)
    files, index = [location.path], None
    if location.folder is not None:
        if (location.folder / DELTA).is_file():
            raise UsageError(
                "this is a stored Δ and not a model",
                where=f"{role}: {address}",
                remedy="--delta takes it, in the place of --post and --base",
            )
        files, index = _weight_files(location.path)
    tensors: dict[str, View] = {}
    sources: list[SourceFile] = []
    ignored: list[str] = []
    for path in files:
        source, found, others = read_weights(path)
        sources.append(source)
        ignored += others
        for tensor in found:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"tensor {tensor.name!r} stands in two files",
                    where=f"{_file(tensors[tensor.name])} and {path}",
                    remedy="remove the file that does not belong to the checkpoint",
                )
            tensors[tensor.name] = tensor
    if index is not None:
        _check_index(index, tensors)
    config_path = location.path / "config.json"
    config = read_json(config_path) if location.folder and config_path.is_file() else {}
    return Checkpoint(role, location, tensors, tuple(sources), config, tuple(ignored))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 64 MB; raises CheckpointError or StorageError."""
    return parse_json(read_bytes(path), path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object from the bytes of the file at ``path``; raises CheckpointError."""
    try:
        if len(data) > _MAX_JSON:
            raise ValueError(f"{len(data)} bytes are too many")
        value = documents.parse_json(data)
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise CheckpointError("not valid JSON", where=str(path), got=str(error)) from None
    return value


def read_header(path: Path) -> tuple[SourceFile, list[Tensor]]:
    """One safetensors file: what identifies it, and its tensors; raises as `open_checkpoint`."""
    source, tensors, _ = _read_header(path)
    return source, tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of one safetensors file; raises as `open_checkpoint`."""
    return _read_header(path)[2]


def _read_header(path: Path) -> tuple[SourceFile, list[Tensor], dict[str, str]]:
    where = str(path)
    file = File(path)
    try:
        status = path.stat()
        start = file.read(0, min(8, status.st_size))
        length = header_length(start, status.st_size, where)
        text = file.read(8, length)
    finally:
        file.close()
    entries, metadata = parse_header(text, status.st_size, where)
    digest = hashlib.sha256(start + text).hexdigest()
    source = SourceFile(path, status.st_size, status.st_mtime_ns, digest)
    tensors = [Tensor(e.name, e.dtype, e.shape, path, e.offset, e.nbytes) for e in entries]
    return source, tensors, metadata


def read_weights(path: Path) -> tuple[SourceFile, Sequence[View], Sequence[str]]:
    """One weight file: what identifies it, its tensors, and what it holds beside them.

    Its first bytes say what it is; its suffix only where they do not. Raises as `open_checkpoint`.
    """
    file = File(path)
    try:
        size = file.size()
        kind = magic.identify(file.read(0, min(magic.HEAD, size)), size, path.name)
    finally:
        file.close()
    kind.check(str(path))
    reader = kind.reader
    if reader is None:
        reader = magic.Reader.TORCH if path.suffix in _PICKLES else magic.Reader.SAFETENSORS
    if reader is magic.Reader.SAFETENSORS:
        return *read_header(path), ()
    status = path.stat()
    contents = read_pickle(path)
    source = SourceFile(path, status.st_size, status.st_mtime_ns, contents.sha256)
    return source, contents.tensors, contents.ignored


def _file(view: View) -> Path:
    """The file that a tensor, as a file holds it, is in."""
    return view.parts[0].file


def _weight_files(folder: Path) -> tuple[list[Path], Path | None]:
    """The weight files of a folder in the order of their names, by the rules of transformers.

    Safetensors where there are any, else pickles. And the index, where one says which they are.
    """
    found = sorted(folder.glob("*.safetensors"))
    single, index, expected = folder / WEIGHTS, folder / INDEX, f"{WEIGHTS}, or {INDEX}"
    if not found and not index.is_file():
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix in _PICKLES and not _TRAINING.fullmatch(path.name)
        )
        single, index = folder / PICKLE, folder / PICKLE_INDEX
        if found or index.is_file():
            expected = f"{PICKLE}, or {PICKLE_INDEX}"
    if single.is_file():
        return [single], None
    if index.is_file():
        return [folder / name for name in sorted(set(_weight_map(index).values()))], index
    shards = [match for path in found if (match := _SHARD.fullmatch(path.name))]
    if shards and len(shards) == len(found) == int(shards[0]["count"]):
        return found, None  # complete, though the index is lost
    if len(found) == 1 and not shards:
        return found, None
    if found:
        raise CheckpointError(
            "which of these files make up the checkpoint cannot be told",
            where=str(folder),
            expected=f"{expected}, or all shards",
            got=", ".join(path.name for path in found[:8]) + (" …" if len(found) > 8 else ""),
            remedy="name one file instead of the folder, or finish the download",
        )
    raise CheckpointError("no weights here", where=str(folder), expected=expected, got="neither")


def _weight_map(index: Path) -> dict[str, str]:
    """The index's map from tensor to shard, checked: no shard's name may leave the folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", where=str(index))
    ending = ".bin" if index.name == PICKLE_INDEX else ".safetensors"
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and re.fullmatch(r"[^/\\:\x00]+", name)
        if not plain or not name.endswith(ending):
            raise CheckpointError(
                f"the index names a file that is no plain {ending} name",
                where=f"{index}, tensor {tensor!r}",
                expected="a file of the same folder",
                got=repr(name)[:80],
                remedy="do not use this checkpoint unless you know where it comes from",
            )
    there = {path.name for path in index.parent.iterdir() if path.is_file()}
    missing = sorted(set(weight_map.values()) - there)
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(set(weight_map.values()))} shards are absent",
            where=str(index.parent),
            expected="every file that the index names",
            got="without " + ", ".join(missing[:4]) + (" …" if len(missing) > 4 else ""),
            remedy="finish the download",
        )
    return weight_map


def _check_index(index: Path, tensors: Mapping[str, View]) -> None:
    """Every tensor that the index names must be in the shard that it names."""
    for name, shard in _weight_map(index).items():
        file = _file(tensors[name]).name if name in tensors else None
        if file != shard:
            raise CheckpointError(
                "the index and the shards disagree",
                where=f"{index}, tensor {name!r}",
                expected=f"in {shard}",
                got=f"in {file}" if file else "in no shard",
                remedy="get the checkpoint again",
            )
