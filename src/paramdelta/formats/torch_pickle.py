"""PyTorch's own weight files (.bin, .pt, .pth): read without running any code, and without torch.

A pickle is a program. Here it is interpreted by a machine that knows the few instructions that
`torch.save` writes and imports nothing: a name such as ``torch._utils._rebuild_tensor_v2`` stands
for a function of this module, and any other name is refused. The standard unpickler with a guarded
`find_class` would not do: it hashes whatever it is given, and a tuple nested a million times, or
shared with itself thirty times over, as a key of a dict ends the process or never ends.

Only the pickle and the directory are read. Where a tensor's bytes are follows from them:

- Since torch 1.6 the file is a zip archive, uncompressed, with ``data.pkl`` and one entry for each
  storage (``data/0``, …).
- Before, it was five pickles (magic number, protocol, system, the object, keys of the storages) and
  then the storages, each after its count of elements.

Source: `torch.serialization` and `torch._weights_only_unpickler` of torch 2.x; the zip file format
specification of PKWARE (APPNOTE.TXT 6.3.10), sections 4.3 and 4.5.3; `pickletools`.
"""

import hashlib
import io
import math
import pickletools
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from paramdelta.dtypes import DTYPES
from paramdelta.errors import CheckpointError
from paramdelta.formats.view import Tensor, Transposed, View
from paramdelta.storage.blob import Blob
from paramdelta.storage.reader import Reader

MAX_PICKLE = 64_000_000  # bytes; 160 a tensor are usual
MAX_DIRECTORY = 16_000_000  # bytes; 80 a tensor are usual
MAX_STEPS = 5_000_000  # instructions; 35 a tensor are usual, and each can cost some 100 bytes
_MAX_AXES = 64  # torch's own limit
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_DEPTH = 2  # wrappers inside wrappers: {"model": {"state_dict": …}}

_ELSEWHERE = (
    "use a safetensors release of the model; or, only where you trust the file and have its code, "
    "load it with torch and save model.state_dict() with safetensors"
)
_DAMAGED = "the file is damaged or not what torch.save writes: get it again"


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    ``tensors``: in the order of the state dict. ``ignored``: what else the file holds, each by its
    place and kind ("epoch (int)"). ``sha256``: over all that was read to find this out.
    """

    tensors: tuple[View, ...]
    ignored: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class _DType:
    """What a dtype's or a storage class's name stands for; ``name``: of safetensors."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """A run of ``count`` elements that tensors share; ``key``: its name in the file."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _Strided:
    """A tensor as the pickle describes it: ``first`` and ``strides`` count elements."""

    storage: _Storage
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Opaque:
    """Stands for a value that is no weight. Holds nothing, does nothing."""


class _File:
    """A blob to read from, and its URL for messages."""

    def __init__(self, reader: Reader, blob: Blob) -> None:
        self.reader = reader
        self.blob = blob
        self.path = blob.url

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``."""
        return self.reader.get(self.blob, offset, length)


def read_pickle(reader: Reader, blob: Blob) -> Contents:
    """Find the tensors of a file that `torch.save` wrote.

    Raises:
        CheckpointError: damaged, hostile, or in need of code to be understood.
        StorageError: the file cannot be read.
    """
    file, size, path = _File(reader, blob), blob.size, blob.url
    read = _read_archive if file.read(0, min(4, size)) == b"PK\3\4" else _read_legacy
    held, offsets, digest = read(file, size)
    state, ignored = _state_dict(held, path)
    tensors = []
    for name, value in state.items():
        if not isinstance(value, _Strided):
            continue
        where = f"{path}, tensor {_short(name)}"
        if not isinstance(name, str) or name == "__metadata__" or not _is_text(name):
            raise _error("a tensor's name is none", where, "a string", _short(name))
        tensors.append(_view(name, value, offsets, where, blob))
    return Contents(tuple(tensors), tuple(ignored), digest)


# -- what the object means -------------------------------------------------------------------------


def _state_dict(held: Any, path: str) -> tuple[dict[Any, Any], list[str]]:
    """The dict of tensors in what was saved, and what stands beside it and in it."""
    ignored: list[str] = []
    place = ""
    for depth in range(_DEPTH, -1, -1):
        inner = [k for k in _WRAPPERS if depth and _holds_tensors(_get(held, k), depth - 1)]
        if len(inner) > 1:
            raise _error(
                "which of these are the weights cannot be told",
                path,
                "one dict of tensors",
                ", ".join(map(repr, inner)),
                "save the one that you mean by itself",
            )
        if not inner:
            break
        chosen = inner[0]
        ignored += _told(place, ((k, v) for k, v in held.items() if k != chosen))
        place += chosen + "/"
        held = held[chosen]
    if not _holds_tensors(held, 0):
        keys = ", ".join(_short(key) for key in list(held)[:8]) if isinstance(held, dict) else ""
        raise _error(
            "no dict of tensors here",
            path,
            "names and tensors, at the top or under one of " + ", ".join(_WRAPPERS),
            f"a {_kind(held)}" + (f": {keys}" if keys else ""),
            "save model.state_dict()",
        )
    ignored += _told(place, ((k, v) for k, v in held.items() if not isinstance(v, _Strided)))
    return held, ignored


def _get(held: Any, key: str) -> Any:
    return held.get(key) if isinstance(held, dict) else None


def _holds_tensors(held: Any, depth: int) -> bool:
    """Whether a dict holds tensors, by itself or in so many wrappers."""
    if not isinstance(held, dict):
        return False
    if any(isinstance(value, _Strided) for value in held.values()):
        return True
    return depth > 0 and any(_holds_tensors(held.get(k), depth - 1) for k in _WRAPPERS)


def _told(place: str, others: Iterable[tuple[Any, Any]]) -> list[str]:
    return [f"{place}{_shown(k) if isinstance(k, str) else '?'} ({_kind(v)})" for k, v in others]


def _shown(name: str) -> str:
    """A name as it is, unless it is long or would move the cursor."""
    return name if name.isprintable() and len(name) <= 120 else _short(name)


def _kind(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    names = {
        _Strided: "tensor",
        _Storage: "storage",
        _DType: "dtype",
        _Opaque: "object",
        _Maker: "function",
        type(None): "None",
    }
    return names.get(type(value), type(value).__name__)


def _is_text(name: str) -> bool:
    """Whether UTF-8 can write it: pickles can hold half a surrogate pair."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _view(name: str, tensor: _Strided, offsets: dict[str, int], where: str, blob: Blob) -> View:
    """A tensor as the rest of the house knows it, checked against its storage."""
    kind, storage = DTYPES[tensor.dtype], tensor.storage
    elements = math.prod(tensor.shape)
    offset = offsets[storage.key] + tensor.first * kind.size
    stored = Tensor(name, kind.name, tensor.shape, blob, offset, elements * kind.size)
    turned = _is_transposed(tensor)
    if not (elements == 0 or turned or _is_contiguous(tensor)):
        raise _error(
            "the tensor is a view that leaves out or repeats numbers of its storage",
            where,
            "its elements one after the other",
            f"shape {list(tensor.shape)}, strides {list(tensor.strides)}",
            "load the file with torch and save the tensors contiguous",
        )
    held = storage.count * DTYPES[storage.dtype].size
    if tensor.first * kind.size + stored.size > held:
        raise _error(
            "the tensor reaches beyond its storage",
            where,
            f"at most {held} bytes",
            f"{stored.size} bytes from byte {tensor.first * kind.size} on",
        )
    if elements and turned and not _is_contiguous(tensor):
        rows, columns = tensor.shape
        layout = Tensor(name, kind.name, (columns, rows), blob, offset, stored.size)
        return Transposed(name, kind.name, tensor.shape, layout)
    return stored


def _is_contiguous(tensor: _Strided) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:  # the stride of a lone element means nothing
            return False
        expected *= size
    return True


def _is_transposed(tensor: _Strided) -> bool:
    return len(tensor.shape) == 2 and tensor.strides == (1, tensor.shape[0])


# -- the zip archive -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """One entry: where its local header, and after `_locate` its bytes, begin; its bytes."""

    name: bytes
    begin: int
    size: int


def _read_archive(file: _File, size: int) -> tuple[Any, dict[str, int], str]:
    """The object, the offset of each storage that it uses, and the digest."""
    where = file.path
    start, stop = _directory(file, size, where)
    directory = file.read(start, stop - start)
    entries = _locate(file, list(_entries(directory, where)), start, where)
    roots = {name.split("/", 1)[0] for name in entries}
    root = next(iter(roots)) if len(roots) == 1 else ""
    if f"{root}/constants.pkl" in entries:
        raise _error(
            "a TorchScript archive, which is a program and not weights",
            where,
            "what torch.save writes from a state dict",
            f"{root}/constants.pkl",
            _ELSEWHERE,
        )
    if f"{root}/data.pkl" not in entries:
        raise _error(
            "a zip archive, but not one that torch.save writes",
            where,
            "one folder with data.pkl",
            ", ".join(map(_short, sorted(entries)[:4])) or "no entries",
        )
    if f"{root}/byteorder" in entries:
        entry = entries[f"{root}/byteorder"]
        order = file.read(entry.begin, min(entry.size, 16))
        _check_order(order == b"little", order.decode("latin-1"), where)
    entry = entries[f"{root}/data.pkl"]
    if entry.size > MAX_PICKLE:
        raise _error("the pickle is too large", where, f"{MAX_PICKLE} bytes", f"{entry.size} bytes")
    text = file.read(entry.begin, entry.size)
    machine = _Machine(where)
    held = machine.run(io.BytesIO(text))
    offsets = {}
    for storage in machine.storages.values():
        entry = entries.get(f"{root}/data/{storage.key}", _Entry(b"", 0, -1))
        unit = DTYPES[storage.dtype].size
        if not 0 <= entry.size - storage.count * unit < unit:
            raise _error(
                f"storage {_short(storage.key)} is not as the pickle says",
                where,
                f"an entry of {storage.count * unit} bytes",
                f"{entry.size} bytes" if entry.size >= 0 else "no such entry",
            )
        offsets[storage.key] = entry.begin
    return held, offsets, hashlib.sha256(text + directory).hexdigest()


def _check_order(little: bool, got: str, where: str) -> None:
    if not little:
        raise _error(
            "written on a machine with the other byte order",
            where,
            "little",
            _short(got),
            "load it with torch and save it with safetensors",
        )


def _directory(file: _File, size: int, where: str) -> tuple[int, int]:
    """Where the archive's directory begins and ends; right up to it are entries."""
    end = size - 22
    tail = file.read(max(0, end - 76), size - max(0, end - 76))
    if end < 0 or tail[-22:-18] != b"PK\5\6":
        raise _error("the archive has no end", where, "its directory at the end of the file", "")
    disks, _, _, length, start, comment = struct.unpack("<L2H2LH", tail[-18:])
    if tail[-42:-38] == b"PK\6\7" and len(tail) == 98:  # zip64: 56 bytes, and 20 that point there
        end, narrow = end - 76, (length, start)
        (pointed,) = struct.unpack("<Q", tail[-34:-26])
        length, start = struct.unpack("<2Q", tail[40:56])
        agree = all(n in (0xFFFFFFFF, w) for n, w in zip(narrow, (length, start), strict=True))
        if tail[:4] != b"PK\6\6" or pointed != end or not agree:
            raise _error("the archive's end is damaged", where, "a zip64 record", "")
    if start + length != end or disks or comment:
        raise _error(
            "the archive's directory is not where it should be",
            where,
            f"its end at byte {end}",
            f"{length} bytes from byte {start} on",
        )
    if length > MAX_DIRECTORY:
        raise _error("too many entries", where, f"{MAX_DIRECTORY} bytes of them", f"{length} bytes")
    return start, end


def _entries(directory: bytes, where: str) -> Iterator[_Entry]:
    """The entries that a directory lists, as far as it can be believed."""
    position = 0
    while position < len(directory):
        fields = directory[position : position + 46]
        if len(fields) < 46 or fields[:4] != b"PK\1\2":
            raise _error("the archive's directory is damaged", where, "an entry", _short(fields))
        flags, method = struct.unpack("<2H", fields[8:12])
        packed, size, *lengths = struct.unpack("<2L3H", fields[20:34])
        (begin,) = struct.unpack("<L", fields[42:46])
        position += 46
        name = directory[position : position + lengths[0]]
        extra = directory[position + lengths[0] : position + sum(lengths[:2])]
        position += sum(lengths)
        if 0xFFFFFFFF in (size, packed, begin):
            wide = list(_zip64(extra))
            if len(wide) < (size, packed, begin).count(0xFFFFFFFF):
                raise _error("a zip64 entry has no sizes", where, "sizes", _short(name))
            size, packed, begin = (
                wide.pop(0) if value == 0xFFFFFFFF else value for value in (size, packed, begin)
            )
        _check_plain(name, flags, method, where)
        if packed != size:
            raise _error("an entry has two sizes", where, str(size), f"{packed}, {_short(name)}")
        yield _Entry(name, begin, size)


def _zip64(extra: bytes) -> Iterator[int]:
    """The numbers of a zip64 extra field (APPNOTE 4.5.3), none where there is no such field."""
    while len(extra) >= 4:
        tag, length = struct.unpack("<2H", extra[:4])
        if tag == 1 and len(extra) >= 4 + length:
            yield from (n for (n,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8]))
            return
        extra = extra[4 + length :]


def _check_plain(name: bytes, flags: int, method: int, where: str) -> None:
    if flags & 0x2041:  # encrypted; strongly; its header as well
        raise _error("an entry is encrypted", where, "a plain archive", _short(name))
    if method:
        raise _error(
            "an entry is compressed",
            where,
            "stored entries, as torch.save writes them",
            f"method {method} for {_short(name)}",
            "load the file with torch and save it again",
        )


def _locate(file: _File, entries: list[_Entry], stop: int, where: str) -> dict[str, _Entry]:
    """Entries by name, with the places of their bytes: read from their own headers, no overlaps."""
    found: dict[str, _Entry] = {}
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.begin):
        header = 30 + len(entry.name)
        if entry.begin < position or entry.begin + header > stop:
            raise _error(
                "an entry overlaps another or the directory",
                where,
                f"begin at {position} or later",
                f"{entry.begin}, {_short(entry.name)}",
            )
        data = file.read(entry.begin, header)
        flags, method = struct.unpack("<2H", data[6:10])
        length, extra = struct.unpack("<2H", data[26:30])
        if data[:4] != b"PK\3\4" or length != len(entry.name) or data[30:] != entry.name:
            raise _error("an entry's header is another's", where, _short(entry.name), "")
        _check_plain(entry.name, flags, method, where)
        begin = entry.begin + header + extra
        position = begin + entry.size
        if position > stop:
            raise _error(
                "an entry reaches into the directory",
                where,
                f"{stop - begin} bytes at the most",
                f"{entry.size}, {_short(entry.name)}",
            )
        try:
            name = entry.name.decode()
        except UnicodeDecodeError:
            name = ""
        if not name or name in found or "\\" in name or "\0" in name or _leaves(name):
            raise _error("an entry's name is none", where, "a path", _short(entry.name))
        found[name] = _Entry(entry.name, begin, entry.size)
    return found


def _leaves(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


# -- before torch 1.6 ------------------------------------------------------------------------------

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class _Head:
    """The start of a file as a stream; no more of the file is read than a block beyond."""

    def __init__(self, file: _File, size: int) -> None:
        self.file = file
        self.stop = min(size, MAX_PICKLE)
        self.data = bytearray()
        self.position = 0

    def _fill(self, until: int) -> bool:
        """Have so many bytes, as far as there are; whether there may be more."""
        have = len(self.data)
        if until > have:
            self.data += self.file.read(have, min(self.stop, max(until, have + 65536)) - have)
        return len(self.data) < self.stop

    def read(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        self._fill(min(self.position + count, self.stop))
        self.position, start = min(self.position + count, len(self.data)), self.position
        return bytes(self.data[start : self.position])

    def readline(self) -> bytes:
        """The next bytes up to a line's end."""
        while (end := self.data.find(b"\n", self.position)) < 0 and self._fill(len(self.data) + 1):
            pass
        return self.read((end + 1 if end >= 0 else len(self.data)) - self.position)


def _read_legacy(file: _File, size: int) -> tuple[Any, dict[str, int], str]:
    """The object, the offset of each storage that it uses, and the digest."""
    where = file.path
    head = _Head(file, size)
    stream = cast(IO[bytes], head)  # as much of one as pickletools asks for
    machine = _Machine(where)
    start = [machine.run(stream)]
    if start == [_MAGIC]:
        start += [machine.run(stream), machine.run(stream)]
    if start[:2] != [_MAGIC, _PROTOCOL] or not isinstance(start[2], dict):
        raise _error(
            "neither a zip archive nor what torch.save wrote before 1.6",
            where,
            "a magic number, then 1001",
            _kind(start[-1]),
        )
    _check_order(start[2].get("little_endian") is True, "big", where)
    held, keys = machine.run(stream), machine.run(stream)
    digest = hashlib.sha256(head.data[: head.position])
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _error("the storages have no list of keys", where, "a list of strings", _kind(keys))
    if sorted(keys) != sorted(machine.storages):  # a key twice is seen here as well
        raise _error(
            "the storages are not those that the pickle uses",
            where,
            f"{len(machine.storages)} of them",
            f"{len(keys)} keys",
        )
    offsets = {}
    position = head.position
    for key in keys:
        storage = machine.storages[key]
        count = int.from_bytes(file.read(position, 8), "little") if position + 8 <= size else -1
        if count != storage.count:
            raise _error(
                f"storage {_short(key)} is not as the pickle says",
                where,
                f"{storage.count} elements at byte {position}",
                str(count) if count >= 0 else "the end of the file",
            )
        offsets[key] = position + 8
        position += 8 + count * DTYPES[storage.dtype].size
    if position != size:
        problem = "is truncated" if position > size else "has bytes that belong to no tensor"
        raise _error(f"the file {problem}", where, f"{position} bytes", f"{size} bytes")
    return held, offsets, digest.hexdigest()


# -- the machine -----------------------------------------------------------------------------------


class _Machine:
    """Interprets pickles: values that hold no code, from instructions that call none.

    ``storages``: all that the pickles named, by key. A key of a dict that is no string becomes an
    `_Opaque`: no such key is needed, and nothing but strings is hashed.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.storages: dict[str, _Storage] = {}
        self.steps = 0

    def run(self, stream: IO[bytes]) -> Any:
        """The value of the next pickle in the stream; raises CheckpointError."""
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        try:
            for instruction, value, _ in pickletools.genops(stream):
                self.steps += 1
                if self.steps > MAX_STEPS:
                    raise ValueError(f"more than {MAX_STEPS} instructions")
                step = _STEPS.get(instruction.name)
                if step is None:
                    raise ValueError(f"instruction {instruction.name}, which torch.save never uses")
                step(self, value)
            return self.stack.pop()
        except (LookupError, ValueError) as error:
            got = str(error) if isinstance(error, ValueError) else "a value that is not there"
            raise _error(
                "the pickle cannot be read", self.where, "what torch.save writes", got[:200]
            ) from None

    def push(self, value: Any) -> None:
        """Any plain value."""
        self.stack.append(value)

    def old_text(self, value: str) -> None:
        """A string of Python 2; pickletools decodes its bytes as Latin-1."""
        self.stack.append(value.encode("latin-1").decode())

    def nothing(self, _: Any) -> None:
        """Protocol, frame, stop."""

    def mark(self, _: Any) -> None:
        """Begin a run of values."""
        self.marked.append(self.stack)
        self.stack = []

    def run_of_values(self) -> list[Any]:
        """The values since the last mark."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def frozen_set(self, _: Any) -> None:
        """A set of the values since the last mark."""
        self.run_of_values()
        self.stack.append(_Opaque())

    def last(self, count: int) -> list[Any]:
        """The last values, taken from the stack."""
        if count > len(self.stack):
            raise IndexError
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def remember(self, number: int | None) -> None:
        """Put the top of the stack into the memo, under the next number if none is said."""
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def recall(self, number: int) -> None:
        """Get a value from the memo."""
        self.stack.append(self.memo[number])

    def named(self, value: str) -> None:
        """What a module's name stands for here; ``value``: module and name, one space between."""
        self.stack.append(self.admitted(value.replace(" ", ".", 1)))

    def named_by_stack(self, _: Any) -> None:
        """As `named`, with both names on the stack."""
        module, name = self.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no string")
        self.stack.append(self.admitted(f"{module}.{name}"))

    def admitted(self, name: str) -> Any:
        """Our own stand-in for a name of Python's; raises CheckpointError where there is none."""
        if name not in _ADMITTED:
            raise _error(
                "the pickle asks for code that is not needed to read weights; it was not run",
                self.where,
                "names that torch.save uses for tensors",
                _shown(name),
                _ELSEWHERE,
            )
        return _ADMITTED[name]

    def call(self, _: Any) -> None:
        """Call one of our own functions."""
        make, values = self.last(2)
        if not isinstance(make, _Maker) or not isinstance(values, tuple):
            raise ValueError("a call of something that is no function")
        self.stack.append(make.make(values))

    def set_state(self, _: Any) -> None:
        """Give an object attributes: of a dict's (``_metadata``) and an opaque's none is needed."""
        self.last(1)
        if not isinstance(self.stack[-1], dict | _Opaque):
            raise ValueError(f"attributes for a {_kind(self.stack[-1])}")

    def storage(self, _: Any) -> None:
        """A storage from ("storage", class, key, place, count) and, in old files, a view of it."""
        (said,) = self.last(1)
        if not isinstance(said, tuple) or len(said) not in (5, 6) or said[0] != "storage":
            raise ValueError("an outside object that is no storage")
        _, kind, key, _, count = said[:5]
        if (
            not isinstance(kind, _DType)
            or not isinstance(key, str)
            or said[5:] not in ((), (None,))
        ):
            raise ValueError("a malformed storage")
        storage = _Storage(key, kind.name, _size(count))
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two descriptions of storage {_short(key)}")
        self.stack.append(storage)

    def extend(self, values: Iterable[Any]) -> None:
        """Put values into the list, or the opaque set, on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, _Opaque):
            raise ValueError(f"list items for a {_kind(target)}")

    def update(self, values: list[Any]) -> None:
        """Put keys and values, in turns, into the dict on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, dict):
            _update(target, values)
        elif not isinstance(target, _Opaque):
            raise ValueError(f"dict items for a {_kind(target)}")


def _update(target: dict[Any, Any], values: list[Any]) -> None:
    if len(values) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[key if isinstance(key, str) else _Opaque()] = value


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Machine.old_text),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(_Opaque()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.run_of_values())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "FROZENSET": _Machine.frozen_set,
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.run_of_values()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.run_of_values()),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.run_of_values()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_by_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.storage,
}


# -- what names stand for --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maker:
    """A function of this module in the place of one of torch's: arguments -> inert value."""

    make: Callable[[tuple[Any, ...]], Any]


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:  # True is no size
        raise ValueError("a size that is none")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MAX_AXES:
        raise ValueError("a shape that is none")
    return tuple(map(_size, value))


def _tensor(values: tuple[Any, ...], dtype: Any = None) -> _Strided:
    """From (storage, first element, shape, strides, …)."""
    storage, first, shape, strides = values[:4]
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    if dtype is not None and not isinstance(dtype, _DType):
        raise ValueError("a dtype that is none")
    name = dtype.name if dtype is not None else storage.dtype
    tensor = _Strided(storage, name, _size(first), _sizes(shape), _sizes(strides))
    if len(tensor.shape) != len(tensor.strides):
        raise ValueError("a shape and strides of different lengths")
    return tensor


def _rebuild_tensor(values: tuple[Any, ...]) -> _Strided:
    if len(values) != 4:
        raise ValueError("a tensor of wrong arguments")
    return _tensor(values)


def _rebuild_tensor_v2(values: tuple[Any, ...]) -> _Strided:
    """And (requires_grad, hooks, metadata)."""
    if len(values) not in (6, 7):
        raise ValueError("a tensor of wrong arguments")
    _check_metadata(values[6:])
    return _tensor(values)


def _rebuild_tensor_v3(values: tuple[Any, ...]) -> _Strided:
    """As before, with the dtype between hooks and metadata: the storage is one of bytes."""
    if len(values) not in (7, 8):
        raise ValueError("a tensor of wrong arguments")
    _check_metadata(values[7:])
    return _tensor(values, values[6])


def _check_metadata(values: tuple[Any, ...]) -> None:
    if any(values):
        raise ValueError("a tensor whose numbers are to be negated or conjugated")


def _rebuild_parameter(values: tuple[Any, ...]) -> _Strided:
    """From (tensor, requires_grad, hooks) and, of some, attributes."""
    if len(values) not in (3, 4) or not isinstance(values[0], _Strided):
        raise ValueError("a parameter of wrong arguments")
    return values[0]


def _ordered_dict(values: tuple[Any, ...]) -> dict[Any, Any]:
    """Empty, or, from Python 2, of a list of pairs."""
    if len(values) > 1 or not all(isinstance(value, list) for value in values):
        raise ValueError("an OrderedDict of wrong arguments")
    result: dict[Any, Any] = {}
    for pair in values[0] if values else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("an OrderedDict of something that is no pair")
        _update(result, list(pair))
    return result


def _opaque(values: tuple[Any, ...]) -> _Opaque:
    return _Opaque()


def _shape(values: tuple[Any, ...]) -> tuple[int, ...]:
    return _sizes(values[0]) if len(values) == 1 else _sizes(values)


_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32",
    "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
# Values beside the weights that training scripts save. What torch.load(weights_only=True) admits,
# and argparse's and numpy's, which most of its users admit by hand.
_BESIDE = (
    "torch.device", "torch.complex128", "collections.Counter", "argparse.Namespace",
    "_codecs.encode", "numpy.dtype", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "bytearray", "complex")
    ),
)  # fmt: skip

_ADMITTED: dict[str, _Maker | _DType] = {
    "collections.OrderedDict": _Maker(_ordered_dict),
    "torch.Size": _Maker(_shape),
    "torch._utils._rebuild_tensor": _Maker(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": _Maker(_rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": _Maker(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": _Maker(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": _Maker(_rebuild_parameter),
    "torch.storage.UntypedStorage": _DType("U8"),
    **{f"torch.{name}": _DType(dtype) for name, dtype in _DTYPES.items()},
    **{
        f"{module}.{name}": _DType(dtype)
        for module in ("torch", "torch.cuda")
        for name, dtype in _STORAGES.items()
    },
    **dict.fromkeys(_BESIDE, _Maker(_opaque)),
}


def _short(value: Any) -> str:
    if type(value) not in (str, bytes):
        return _kind(value)
    text = repr(value[:80])
    return text if len(text) <= 80 else text[:77] + "…"


def _error(
    what: str, where: str, expected: str, got: str, remedy: str = _DAMAGED
) -> CheckpointError:
    return CheckpointError(what, where=where, expected=expected, got=got or None, remedy=remedy)
