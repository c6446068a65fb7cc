"""A model in GGUF files: its tensors and metadata, as of a Hugging Face checkpoint."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramdelta.errors import CheckpointError
from paramdelta.formats.gguf.facts import number, small_files
from paramdelta.formats.gguf.header import Entry, Header, read_header
from paramdelta.formats.gguf.names import architecture_of, renamed
from paramdelta.formats.gguf.views import Quantized
from paramdelta.formats.view import Tensor, View
from paramdelta.storage.blob import Blob
from paramdelta.storage.reader import Reader

SUFFIX = ".gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_NO = "split.no"
_COUNT = "split.count"


@dataclass(frozen=True)
class Model:
    """``headers``: the SHA-256 of each file's header. ``tensors``: by name. ``stated``: see
    `facts.small_files`.
    """

    headers: Mapping[Blob, str]
    tensors: Mapping[str, View]
    stated: Mapping[str, Mapping[str, Any]]


def choose(blobs: Mapping[str, Blob], where: str) -> list[Blob]:
    """Of the files of a folder the one GGUF file, or the parts of one; empty without any.

    ``blobs``: by name. Raises CheckpointError if there are several, or parts are missing.
    """
    found = sorted(name for name in blobs if name.endswith(SUFFIX))
    parts = [match for name in found if (match := _SPLIT.fullmatch(name))]
    complete = (
        len(parts) == len(found)
        and len({(part["stem"], part["count"]) for part in parts}) == 1
        and len(parts) == int(parts[0]["count"])
    )
    if len(found) > 1 and not complete:
        raise CheckpointError(
            "cannot tell which of these GGUF files make up the model",
            code="ambiguous-weights",
            where=where,
            expected="one GGUF file, or all parts of one",
            got=", ".join(found[:8]) + (" …" if len(found) > 8 else ""),
            remedy="name one file instead of the folder, or finish the download",
        )
    return [blobs[name] for name in found]


def read_model(reader: Reader, blobs: Sequence[Blob], where: str) -> Model:
    """The model in a GGUF file, or in the parts of one.

    Raises:
        CheckpointError: damaged or hostile files, or a model that cannot be read.
        StorageError: a file cannot be read.
    """
    headers = {blob: read_header(reader, blob) for blob in blobs}
    _check_parts(headers, where)
    first = next(iter(headers.values()))
    kind = architecture_of(first.metadata, where)
    views: dict[str, View] = {}
    for blob, header in headers.items():
        for entry in header.entries:
            if entry.name in views:
                raise CheckpointError(
                    f"tensor {entry.name!r} is in two files",
                    code="duplicate-tensor",
                    where=f"{views[entry.name].parts[0].blob} and {blob}",
                    remedy="remove the file that does not belong to the checkpoint",
                )
            views[entry.name] = _view(entry, blob)
    if not views:
        raise CheckpointError(
            "this GGUF file holds no tensors",
            code="no-weights",
            where=where,
            remedy="take the file with the weights: this one may be a vocabulary alone",
        )
    heads = number(first.metadata, "attention.head_count") or 0
    key_heads = number(first.metadata, "attention.head_count_kv") or heads
    tensors = renamed(views.values(), kind, heads, key_heads, where)
    stated = small_files(first.metadata, kind, "lm_head.weight" not in tensors, where)
    return Model({blob: header.sha256 for blob, header in headers.items()}, tensors, stated)


def _view(entry: Entry, blob: Blob) -> View:
    kind = entry.type
    if kind.dtype:
        return Tensor(entry.name, kind.dtype, entry.shape, blob, entry.offset, entry.size)
    stored = Tensor(entry.name, "U8", (entry.size,), blob, entry.offset, entry.size)
    return Quantized(entry.name, "F32", entry.shape, stored, kind)


def _check_parts(headers: Mapping[Blob, Header], where: str) -> None:
    """Raise CheckpointError unless the files are the parts of one file, in order."""
    count = len(headers)
    for place, (blob, header) in enumerate(headers.items()):
        said = header.metadata.get(_COUNT, 0) or 1, header.metadata.get(_NO, 0)
        if said != (count, place):
            raise CheckpointError(
                "this GGUF file is a part of a model"
                if count == 1
                else "a GGUF file is not the part that its name says",
                code="gguf-parts",
                where=str(blob),
                expected=f"part 1 of 1 ({_NO} 0, {_COUNT} 1)"
                if count == 1
                else f"part {place + 1} of {count}",
                got=f"{_NO} {said[1]!r:.20}, {_COUNT} {said[0]!r:.20}",
                remedy="give the folder that holds all parts and nothing else"
                if count == 1
                else "get the files again",
            )
    total = next(iter(headers.values())).metadata.get("split.tensors.count")
    found = sum(len(header.entries) for header in headers.values())
    if count > 1 and type(total) is int and total != found:
        raise CheckpointError(
            "the parts do not hold all tensors",
            code="gguf-parts",
            where=where,
            expected=f"{total} tensors",
            got=str(found),
            remedy="get the files again",
        )
