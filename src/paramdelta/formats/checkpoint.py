"""A checkpoint: its index, its shards, and where the bytes of every tensor are. Headers only."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paramdelta.errors import CheckpointError, UsageError
from paramdelta.formats import magic
from paramdelta.formats.gguf import model as gguf
from paramdelta.formats.gguf.header import MAGIC
from paramdelta.formats.gguf.header import read_header as read_gguf_header
from paramdelta.formats.safetensors import header_length, parse_header
from paramdelta.formats.torch_pickle import read_pickle
from paramdelta.formats.view import Tensor, View
from paramdelta.storage.blob import Blob
from paramdelta.storage.files import Files
from paramdelta.storage.location import Location
from paramdelta.storage.reader import Reader
from paramdelta.text import shown

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DELTA = "paramdelta.delta.json"  # in a folder that holds a stored Δ and no model (`delta`)
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
# An adapter, which may lie beside the weights of a whole model.
_ADAPTERS = {"adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors"}
HEAD = 1 << 16  # bytes read at first: most headers fit
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pth.tar", ".pt.tar")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)")
# What training leaves beside the weights: all of it pickles, none of it a model.
_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")


@dataclass(frozen=True)
class SourceFile:
    """A weight file and the digest of its header. If either changes, it is another file."""

    blob: Blob
    header_sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and companion files.

    ``role``: "new base", "post" or "base", for messages. ``location``: where it is. ``tensors``:
    file by file, in the order of their bytes or of the pickle. ``sources``: the weight files.
    ``files``: everything that lies beside the weights. ``config``: config.json, {} if absent.
    ``ignored``: what a pickle holds that is not a tensor, by place and kind ("epoch (int)").
    """

    role: str
    location: Location
    tensors: Mapping[str, View]
    sources: tuple[SourceFile, ...]
    files: Files = field(compare=False, repr=False)
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

    @property
    def is_bare(self) -> bool:
        """Whether it is one of weights alone, which state what small files would say (GGUF)."""
        return bool(self.files.stated)

    def companion(self, name: str) -> Blob | None:
        """A file beside the weights, if it is there."""
        return self.files.get(name)

    def read_json(self, name: str) -> Mapping[str, Any]:
        """A companion's JSON object, {} if the file is absent; raises as `Files.json`."""
        return self.files.json(name)


def open_checkpoint(files: Files, role: str) -> Checkpoint:
    """Read the headers of a checkpoint.

    Raises:
        UsageError: it is a stored Δ and not a model.
        CheckpointError: no weights there, or damaged or hostile ones.
        StorageError: a file cannot be read.
    """
    if DELTA in files:
        raise UsageError(
            "this is a stored Δ and not a model",
            code="stored-delta-as-model",
            where=f"{role}: {files.location.address}",
            remedy="pass it as `delta` in place of `post` and `base`",
        )
    index: Mapping[str, str] = {}
    if files.single is not None:
        blobs = [files.single]
    else:
        blobs, index = _weight_files(files)
    if _is_gguf(files.reader, blobs[0]):
        return _gguf_checkpoint(files, role, blobs)
    tensors: dict[str, View] = {}
    sources: list[SourceFile] = []
    ignored: list[str] = []
    for blob in blobs:
        source, found, others = read_weights(files.reader, blob, files.location.branch)
        sources.append(source)
        ignored += others
        for tensor in found:
            if tensor.name in tensors:
                raise CheckpointError(
                    f"tensor {tensor.name!r} is in two files",
                    code="duplicate-tensor",
                    where=f"{_blob(tensors[tensor.name])} and {blob}",
                    remedy="remove the file that does not belong to the checkpoint",
                )
            tensors[tensor.name] = tensor
    _check_index(files, index, tensors)
    config = files.json("config.json")
    return Checkpoint(role, files.location, tensors, tuple(sources), files, config, tuple(ignored))


def read_header(reader: Reader, blob: Blob) -> tuple[SourceFile, list[Tensor], dict[str, str]]:
    """One safetensors file: what identifies it, its tensors and its metadata.

    Raises:
        CheckpointError: not a valid safetensors file.
        StorageError: it cannot be read.
    """
    where = str(blob)
    start = reader.get(blob, 0, min(HEAD, blob.size))
    length = header_length(start, blob.size, where)
    text = start[8 : 8 + length]
    if len(text) < length:
        text += reader.get(blob, 8 + len(text), length - len(text))
    entries, metadata = parse_header(text, blob.size, where)
    digest = hashlib.sha256(start[:8] + text).hexdigest()
    tensors = [Tensor(e.name, e.dtype, e.shape, blob, e.offset, e.nbytes) for e in entries]
    return SourceFile(blob, digest), tensors, metadata


def read_weights(
    reader: Reader, blob: Blob, branch: str | None = None
) -> tuple[SourceFile, Sequence[View], Sequence[str]]:
    """One weight file: what identifies it, its tensors, and what else it holds.

    Its first bytes say what it is; its suffix only if they do not. ``branch``: the set of weights
    that is meant in a pickle that holds several. Raises as `open_checkpoint`.
    """
    kind = magic.identify(reader.get(blob, 0, min(magic.HEAD, blob.size)), blob.size, blob.name)
    kind.check(str(blob))
    format_ = kind.reader
    if format_ is None:
        torch = blob.name.endswith(_PICKLES)
        format_ = magic.Reader.TORCH if torch else magic.Reader.SAFETENSORS
    if format_ is magic.Reader.SAFETENSORS:
        source, tensors, _ = read_header(reader, blob)
        return source, tensors, ()
    if format_ is magic.Reader.GGUF:
        raise CheckpointError(
            "this is a GGUF file under the name of another format",
            code="gguf-misnamed",
            where=str(blob),
            remedy=f"rename it to end in {gguf.SUFFIX}",
        )
    contents = read_pickle(reader, blob, branch)
    return SourceFile(blob, contents.sha256), contents.tensors, contents.ignored


def header_digest(reader: Reader, blob: Blob) -> str:
    """The digest of a weight file's header; raises as `read_weights`."""
    if _is_gguf(reader, blob):  # it may be a part that says nothing by itself
        return read_gguf_header(reader, blob).sha256
    return read_weights(reader, blob)[0].header_sha256


def _is_gguf(reader: Reader, blob: Blob) -> bool:
    """Whether a file is GGUF, by its bytes; one that is named safetensors is not looked at."""
    if blob.name.endswith(".safetensors"):
        return False
    return reader.get(blob, 0, min(len(MAGIC), blob.size)) == MAGIC


def _gguf_checkpoint(files: Files, role: str, blobs: Sequence[Blob]) -> Checkpoint:
    """A model in GGUF. What the metadata states stands for the small files that are absent."""
    model = gguf.read_model(files.reader, blobs, files.location.url)
    sources = tuple(SourceFile(blob, digest) for blob, digest in model.headers.items())
    files = files.stating(model.stated)
    return Checkpoint(
        role, files.location, model.tensors, sources, files, files.json("config.json")
    )


def _blob(view: View) -> Blob:
    """The file that a tensor is in, as a weight file holds it."""
    return view.parts[0].blob


def _weight_files(files: Files) -> tuple[list[Blob], Mapping[str, str]]:
    """The weight files of a folder in the order of their names, by the rules of transformers.

    Safetensors if there are any, else pickles. The second value is the index's map from tensor to
    file name; empty without an index.
    """
    top = {name: files[name] for name in sorted(files) if "/" not in name}
    if not {PICKLE, PICKLE_INDEX}.isdisjoint(top):
        top = {name: blob for name, blob in top.items() if name not in _ADAPTERS}
    found = [name for name in top if name.endswith(".safetensors")]
    single, index, expected = WEIGHTS, INDEX, f"{WEIGHTS}, or {INDEX}"
    if not found and index not in top:
        found = [n for n in top if n.endswith(_PICKLES) and not _TRAINING.fullmatch(n)]
        single, index = PICKLE, PICKLE_INDEX
        if found or index in top:
            expected = f"{PICKLE}, or {PICKLE_INDEX}"
    where = files.location.url
    if single in top:
        return [top[single]], {}
    if index in top:
        weight_map = _weight_map(files, index)
        return [top[name] for name in sorted(set(weight_map.values()))], weight_map
    shards = [match for name in found if (match := _SHARD.fullmatch(name))]
    complete = bool(shards) and len(shards) == len(found) == int(shards[0]["count"])
    if complete or (len(found) == 1 and not shards):  # complete, though the index is lost
        return [top[name] for name in found], {}
    if found:
        raise CheckpointError(
            "cannot tell which of these files make up the checkpoint",
            code="ambiguous-weights",
            where=where,
            expected=f"{expected}, or all shards",
            got=", ".join(found[:8]) + (" …" if len(found) > 8 else ""),
            remedy="name one file instead of the folder, or finish the download",
        )
    if parts := gguf.choose(top, where):
        return parts, {}
    other = magic.named(top)
    kind = next(iter(other.values()), None)
    raise CheckpointError(
        "no weights here" + (f" that can be read: this is {kind.what}" if kind else ""),
        code="no-weights",
        where=where,
        expected=expected,
        got=", ".join(shown(name) for name in list(other)[:8]) or "neither",
        remedy=kind.remedy if kind else None,
    )


def _weight_map(files: Files, index: str) -> dict[str, str]:
    """The index's map from tensor to shard, checked: no name may leave the folder."""
    where = str(files[index])
    weight_map = files.json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", code="invalid-index", where=where)
    suffix = ".bin" if index == PICKLE_INDEX else ".safetensors"
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and re.fullmatch(r"[^/\\:\x00]+", name)
        if not plain or not name.endswith(suffix):
            raise CheckpointError(
                f"the index names a file that is not a plain {suffix} name",
                code="unsafe-file-name",
                where=f"{where}, tensor {tensor!r}",
                expected="a file of the same folder",
                got=repr(name)[:80],
                remedy="do not use this checkpoint unless you know where it comes from",
            )
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if name not in files]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(shards)} shards are missing",
            code="missing-shards",
            where=files.location.url,
            expected="every file that the index names",
            got="without " + ", ".join(missing[:4]) + (" …" if len(missing) > 4 else ""),
            remedy="finish the download",
        )
    return weight_map


def _check_index(files: Files, index: Mapping[str, str], tensors: Mapping[str, View]) -> None:
    """Every tensor that the index names must be in the shard that it names."""
    for name, shard in index.items():
        found = _blob(tensors[name]).name if name in tensors else None
        if found != shard:
            raise CheckpointError(
                "the index and the shards disagree",
                code="index-misfit",
                where=f"{files.location.url}, tensor {name!r}",
                expected=f"in {shard}",
                got=f"in {found}" if found else "in no shard",
                remedy="get the checkpoint again",
            )
