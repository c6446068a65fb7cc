"""What a file is, by its first bytes and not by its name.

`identify` names the kind of a file. Three kinds can be read: safetensors, what `torch.save` writes
(a zip archive or, before torch 1.6, pickles), and GGUF. For each other kind there are words for
what it is and what to do. Names of files lie: ``checkpoint.pth.tar`` is rarely a tar archive, and
``model.safetensors`` can be a Git LFS pointer or an error page.

Sources: the formats' own descriptions; for pickles and archives, what torch, NumPy, joblib, NeMo,
Keras and flax write.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from paramdelta.errors import CheckpointError

HEAD = 4096  # bytes of a file that `identify` wants to see
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # 0x1950a86a20f9469cfc6c, pickled


class Reader(Enum):
    """The module that reads a kind of file."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    GGUF = "gguf"


@dataclass(frozen=True)
class Kind:
    """A kind of file. ``what``: as "this is …" has it. ``remedy``: what to do if it cannot be read.

    ``reader``: who reads it; None if nobody does.
    """

    what: str
    remedy: str = ""
    reader: Reader | None = None

    def check(self, where: str) -> None:
        """Raise a CheckpointError if files of this kind cannot be read."""
        if self.reader is None and self is not UNKNOWN:
            raise CheckpointError(
                f"this is {self.what}",
                code="unsupported-file",
                where=where,
                expected="safetensors, what torch.save writes, or GGUF",
                remedy=self.remedy,
            )


_AGAIN = "download the file again"
_SAVE = "load it with its own library and save the weights as safetensors"
_RELEASE = "use a safetensors release of the model"
_TENSORFLOW = "load it in transformers with from_tf=True (before version 5) and save_pretrained"

SAFETENSORS = Kind("a safetensors file", reader=Reader.SAFETENSORS)
TORCH = Kind("a file that torch.save wrote", reader=Reader.TORCH)
ZIP = Kind("a zip archive", reader=Reader.TORCH)  # of torch, as far as the first bytes tell
UNKNOWN = Kind("a file of an unknown kind")

EMPTY = Kind("an empty file", _AGAIN)
ZEROS = Kind("a file that begins with zeros only, as interrupted downloads do", _AGAIN)
LFS = Kind("a Git LFS pointer, not the file itself", "run git lfs pull, or " + _AGAIN)
HTML = Kind("a web page, such as an error or a login page", _AGAIN + ", signed in if need be")
XML = Kind("an XML document, such as an error of an object store", _AGAIN)
JSON = Kind("a JSON document, not weights", "give the folder or the file with the weights")
MESSAGE = Kind("plain text, not weights", "look at it: it may be an error message; " + _AGAIN)
GGUF = Kind("a GGUF file (llama.cpp)", reader=Reader.GGUF)
GGML = Kind("a GGML file (llama.cpp before GGUF)", "use the model that it was converted from")
ONNX = Kind("an ONNX model", _RELEASE + ": it is a program with weights inside")
NUMPY = Kind("a NumPy array (.npy)", "it has no names: save a dict of arrays as safetensors")
NPZ = Kind(
    "an archive of NumPy arrays (.npz)",
    "save it as safetensors: safetensors.numpy.save_file(dict(numpy.load(FILE)), OUT)",
)
HDF5 = Kind("an HDF5 file (Keras or TensorFlow, .h5)", _TENSORFLOW)
KERAS = Kind("a Keras model (.keras)", _SAVE)
TENSORFLOW = Kind("a TensorFlow checkpoint", _TENSORFLOW)
TFLITE = Kind("a TensorFlow Lite model", _RELEASE)
FLAX = Kind(
    "flax weights (MessagePack)",
    "load it in transformers with from_flax=True (before version 5) and save_pretrained",
)
NEMO = Kind("a NeMo archive", "convert it with NeMo's export to Hugging Face")
TAR = Kind("a tar archive", "unpack it and give what is inside")
OLD_TAR = Kind("a torch file from before version 0.1.10 (tar)", "load it with torch and save it")
SCRIPT = Kind(
    "a TorchScript archive, a program with weights inside",
    "torch.jit.load(FILE).state_dict(), saved with safetensors; only where you trust the file",
)
EXPORTED = Kind(
    "a torch.export archive (.pt2), a program with weights inside",
    "torch.export.load(FILE).state_dict, saved with safetensors; only where you trust the file",
)
DISTRIBUTED = Kind(
    "a part of a distributed torch checkpoint (.distcp)",
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE",
)
SKLEARN = Kind("a scikit-learn or joblib pickle", "it holds no named tensors of a neural network")
ARRAYS = Kind(
    "a pickle with NumPy arrays that torch.save did not write",
    "only where you trust the file: load it with pickle and save the arrays with safetensors",
)
PICKLE = Kind(
    "a pickle that torch.save did not write",
    "only where you trust the file: load it with its own library and save the weights with "
    "safetensors",
)
COMPRESSED = Kind("a compressed file", "decompress it")
OTHER_ZIP = Kind("a zip archive that torch.save did not write", "unpack it and give what is inside")
BIG_ENDIAN = Kind("a GGUF file of the other byte order", "use the model that it was converted from")

PICKLES = (PICKLE, ARRAYS, SKLEARN, SCRIPT, EXPORTED, OLD_TAR)
"""Kinds of files that run code where their own library loads them."""

_STARTS = (
    (b"version https://git-lfs", LFS),
    (b"version https://hawser", LFS),
    (b"GGUF", GGUF),
    (b"FUGG", BIG_ENDIAN),
    (b"lmgg", GGML),
    (b"fmgg", GGML),
    (b"tjgg", GGML),
    (b"algg", GGML),
    (b"\x93NUMPY", NUMPY),
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (b"PK\3\4", ZIP),
    (b"PK\5\6", OTHER_ZIP),
    (b"\x1f\x8b", COMPRESSED),
    (b"\x28\xb5\x2f\xfd", COMPRESSED),
    (b"BZh", COMPRESSED),
    (b"\xfd7zXZ\0", COMPRESSED),
    (b"\x04\x22\x4d\x18", COMPRESSED),
    (b"7z\xbc\xaf\x27\x1c", COMPRESSED),
    (b"Rar!\x1a\x07", COMPRESSED),
    (b"model_checkpoint_path:", TENSORFLOW),
)
_LIBRARIES = re.compile(rb"sklearn|joblib|xgboost|lightgbm|catboost")
_NUMPY = re.compile(rb"numpy\n|numpy\.|numpy\x94")
# For files without a magic number.
_NAMES = (
    (
        re.compile(r".*\.data-\d{5}-of-\d{5}|.*\.ckpt(-\d+)?\.(index|meta)|saved_model\.pb"),
        TENSORFLOW,
    ),
    (re.compile(r".*\.onnx(_data)?|.*\.onnx\.data"), ONNX),
    (re.compile(r".*\.nemo"), NEMO),
    (re.compile(r".*\.distcp"), DISTRIBUTED),
    (re.compile(r".*\.msgpack"), FLAX),
    (re.compile(r".*\.tflite"), TFLITE),
    (re.compile(r".*\.h5"), HDF5),
    (re.compile(r".*\.npz"), NPZ),
    (re.compile(r".*\.gguf"), GGUF),
)
# Formats without a magic number, by how they begin: a map whose first key is a string; the version
# of the format and then another field; instructions of protocol 0.
_FLAX = re.compile(rb"(?:[\x81-\x8f]|\xde..)[\xa1-\xbf\xd9]", re.DOTALL)
_ONNX = re.compile(rb"\x08[\x03-\x20][\x12\x1a\x22\x2a\x3a\x42]")
_OLD_PICKLE = re.compile(rb"c[\w.]+\n[\w.]+\n|\([dl]p?0?\n|\(i[\w.]+\n")


def identify(start: bytes, size: int, name: str = "") -> Kind:
    """The kind of a file of ``size`` bytes from its first ones, `HEAD` of them if there are.

    ``name``: decides only where the bytes do not.
    """
    start = start[:HEAD]
    if not size:
        return EMPTY
    if name.endswith(".distcp"):  # it is a file of torch.save's, but of pieces of tensors
        return DISTRIBUTED
    # First of all: the length of a header can have the bytes of any magic number (0x280 is how a
    # pickle begins), and no other format has a length that fits and a brace after it.
    if _is_safetensors(start) and 8 + int.from_bytes(start[:8], "little") <= size:
        return SAFETENSORS
    for magic, kind in _STARTS:
        if start.startswith(magic):
            if kind is COMPRESSED and name.endswith(".nemo"):
                return NEMO
            return _archive(start) if kind is ZIP else kind
    if start[257:262] == b"ustar":
        return _tar(start, name)
    if start[4:8] == b"TFL3":
        return TFLITE
    if start[:1] == b"\x80" and b"\2" <= start[1:2] <= b"\5":
        return _pickle(start)
    if _is_safetensors(start):  # the reader says what is wrong with the length
        return SAFETENSORS
    if _is_zlib(start):
        return COMPRESSED
    if _FLAX.match(start):
        return FLAX
    if _ONNX.match(start) and not name.endswith(".pb"):
        return ONNX
    if _OLD_PICKLE.match(start):
        return PICKLE
    if len(start) >= 64 and not any(start):
        return ZEROS
    return _text(start) or _message(start) or _by_name(name)


def of_archive(names: Collection[str]) -> Kind | None:
    """The kind of a zip archive from the names of its entries; None for what torch.save writes."""
    inner = {name.partition("/")[2] or name for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return SCRIPT
    if {"archive_format", "serialized_exported_program.json"} & inner or any(
        name.startswith("models/") and name.endswith(".json") for name in inner
    ):
        return EXPORTED
    if "data.pkl" in inner:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    if "model.weights.h5" in names:
        return KERAS
    return OTHER_ZIP


def named(names: Collection[str]) -> dict[str, Kind]:
    """The files of a folder that hold weights of a kind that cannot be read, by their names."""
    kinds = {name: _by_name(name) for name in names}
    return {name: kind for name, kind in kinds.items() if kind is not UNKNOWN}


def _archive(start: bytes) -> Kind:
    """A zip archive, of which the first entry is seen."""
    length = int.from_bytes(start[26:28], "little")
    return NPZ if start[30 : 30 + length].endswith(b".npy") else ZIP


def _tar(start: bytes, name: str) -> Kind:
    first = start[:100].rstrip(b"\0")
    if b"model_config.yaml" in start or b"model_weights" in start or name.endswith(".nemo"):
        return NEMO
    return OLD_TAR if first in (b"sys_info", b"pickle", b"storages", b"tensors") else TAR


def _pickle(start: bytes) -> Kind:
    if start[2:].startswith(_TORCH_MAGIC) or start[11:].startswith(_TORCH_MAGIC):  # after a frame
        return TORCH
    if _LIBRARIES.search(start):
        return SKLEARN
    return ARRAYS if _NUMPY.search(start) else PICKLE


def _is_safetensors(start: bytes) -> bool:
    """A length and a brace."""
    return len(start) > 8 and start[8:].lstrip(b" \n\r\t")[:1] == b"{" and not start[7]


def _is_zlib(start: bytes) -> bool:
    return start[:1] == b"\x78" and len(start) > 1 and int.from_bytes(start[:2], "big") % 31 == 0


def _text(start: bytes) -> Kind | None:
    """A document that says what it is."""
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:20].lower()
    if begin.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return HTML
    if begin.startswith((b"<?xml", b"<error", b"<svg")):
        return XML
    if begin.startswith((b"{", b"[")) and _message(start):
        return JSON
    return None


def _message(start: bytes) -> Kind | None:
    """Text, cut anywhere: no control characters but white space."""
    if re.search(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]", start):
        return None
    try:
        start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:
            return None
    return MESSAGE


def _by_name(name: str) -> Kind:
    return next((kind for pattern, kind in _NAMES if pattern.fullmatch(name.lower())), UNKNOWN)
