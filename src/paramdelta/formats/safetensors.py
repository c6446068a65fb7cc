"""One safetensors header, parsed and checked in one pass over its bytes.

Format: 8 bytes little-endian header length n, n bytes of JSON, then the data. The JSON maps tensor
names to ``{"dtype", "shape", "data_offsets": [begin, end]}`` relative to the data, which the
tensors cover without overlap, hole or rest; ``__metadata__`` maps strings to strings.
Source: the format's section of the safetensors README and its reference reader.

The header is not given to a JSON parser: that would build every object before anything is checked,
and a few megabytes of brackets would take hundreds of megabytes of memory. One regular expression
matches an entry, in any order of its keys and with any white space. An entry that it does not match
is refused; only then is that entry parsed as JSON, to say what is wrong with it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from paramdelta.dtypes import DTYPES
from paramdelta.errors import CheckpointError
from paramdelta.text import shown

MAX_HEADER = 100_000_000  # bytes; the limit of the reference reader
MAX_NAME = 1024  # characters; real names have under 200
MAX_AXES = 64  # the limit of torch
MAX_METADATA = 100_000  # keys
_WINDOW = 4096  # bytes of a wrong entry that are parsed to say what is wrong
_METADATA = "__metadata__"


def _compiled(pattern: str) -> "re.Pattern[bytes]":
    """A pattern in which _ stands for white space, S for a string's contents, N for a number."""
    pattern = pattern.replace(" ", "").replace("_", r"[ \t\r\n]*")
    pattern = pattern.replace("S", r'[^"\\\x00-\x1f]{0,4096}(?:\\.[^"\\\x00-\x1f]*){0,1024}')
    return re.compile(pattern.replace("N", "(?:0|[1-9][0-9]{0,17})").encode(), re.DOTALL)


# Each _ is followed by something else than white space, so matching takes linear time. A shape has
# at most MAX_AXES numbers; \x5f is the underscore itself.
_KEY = _compiled('_ "(S)" _:_')
_ENTRY = _compiled(
    r"""_ "(S)" _:_ \{_ (?:
    (?: "dtype"_:_"([0-9A-Z\x5f]{1,16})"
      | "shape"_:_\[_((?: N_ (?: ,_N_ ){0,63} )?)\]
      | "data\x5foffsets"_:_\[_(N)_,_(N)_\] )
    _ (?: ,_(?=") | (?=\}) ) ){3} \}_([,}])""".replace("\n", "")
)
_OPEN = _compiled(r"_\{_(\}?)")
_CLOSE = _compiled("_([,}])")
_END = _compiled(r"_\Z")
_DTYPES = {name.encode(): (name, dtype.bits) for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """One tensor of a file: safetensors dtype name, shape, first byte in the file, bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def header_length(start: bytes, file_size: int, where: str) -> int:
    """The length of the JSON from the file's first 8 bytes, checked against the file's size.

    Raises:
        CheckpointError: too short a file, or an impossible length.
    """
    if len(start) < 8 or file_size < 8:
        raise _error(
            "too short for a safetensors file", where, "at least 8 bytes", f"{file_size} bytes"
        )
    length = int.from_bytes(start[:8], "little")
    if length > min(MAX_HEADER, file_size - 8) or length < 2:
        raise _error(
            "impossible header length",
            where,
            f"2 to {min(MAX_HEADER, file_size - 8)} bytes",
            f"{length} bytes in a file of {file_size}",
        )
    return length


def parse_header(text: bytes, file_size: int, where: str) -> tuple[list[Entry], dict[str, str]]:
    """Parse and check the JSON of one file: its tensors in the order of their bytes, its metadata.

    Time and memory are linear in the header: about 4 µs and 400 bytes a tensor.

    Raises:
        CheckpointError: anything that the format does not allow; a name of more than `MAX_NAME`
            characters, more than `MAX_AXES` axes.
    """
    data_start = 8 + len(text)
    room = file_size - data_start  # bytes of data that no tensor has taken yet
    data_size = room
    entries: list[Entry] = []
    metadata: dict[str, str] | None = None
    shapes: dict[bytes, tuple[tuple[int, ...], int]] = {}
    opening = _OPEN.match(text)
    if opening is None:
        raise _error("the header is not an object", where, "{…}", _start(text))
    position, more = opening.end(), not opening[1]
    match = _ENTRY.match
    while more:
        found = match(text, position)
        if found is None:
            metadata, position = _metadata(text, position, metadata, where)
            closing = _CLOSE.match(text, position)
            if closing is None:
                raise _invalid(position, where)
            position, more = closing.end(), closing[1] == b","
            continue
        raw, dtype, sizes, first, last, delimiter = found.groups()
        name = _name(raw, position, where)
        if name == _METADATA or dtype not in _DTYPES or sizes is None or first is None:
            raise _malformed(text, position, where)
        shape, elements = shapes.get(sizes) or _shape(sizes, shapes, name, where)
        begin, end = int(first), int(last)
        kind, bits = _DTYPES[dtype]
        nbytes = (elements * bits + 7) // 8
        if end - begin != nbytes:
            raise _error(
                "dtype and shape disagree with the byte range",
                _place(where, name),
                f"{nbytes} bytes for {kind} {list(shape)}",
                f"[{begin}, {end}], {end - begin} bytes",
            )
        room -= nbytes
        if end > data_size or room < 0:
            raise _outside(name, end, data_size, file_size, where)
        entries.append(Entry(name, kind, shape, data_start + begin, nbytes))
        position, more = found.end(), delimiter == b","
    if _END.match(text, position) is None:
        raise _invalid(position, where)
    _check_names(entries, where)
    entries.sort(key=itemgetter(3, 4))
    _check_cover(entries, data_start, file_size, where)
    return entries, metadata or {}


def _name(raw: bytes, position: int, where: str) -> str:
    """A tensor's name from what stands between its quotes."""
    try:
        name = json.loads(b'"%b"' % raw) if b"\\" in raw else raw.decode()
        name.encode()  # an escape can stand for half a surrogate pair
    except ValueError:
        raise _error(
            "a tensor's name is not valid text", where, "UTF-8", f"byte {8 + position}"
        ) from None
    if len(name) > MAX_NAME:
        raise _error(
            "a tensor's name is too long",
            _place(where, name),
            f"at most {MAX_NAME} characters",
            f"{len(name)}",
        )
    return str(name)


def _shape(
    sizes: bytes, shapes: dict[bytes, tuple[tuple[int, ...], int]], name: str, where: str
) -> tuple[tuple[int, ...], int]:
    """A shape and how many elements it has; most tensors share a few shapes."""
    shape = tuple(map(int, sizes.split(b","))) if sizes else ()
    if math.prod(size or 1 for size in shape) >= 2**63:
        raise _error(
            "malformed shape", _place(where, name), "sizes that 64 bits can count", f"{list(shape)}"
        )
    shapes[sizes] = shape, math.prod(shape)
    return shapes[sizes]


def _metadata(
    text: bytes, position: int, known: dict[str, str] | None, where: str
) -> tuple[dict[str, str], int]:
    """The strings of ``__metadata__`` and where they end; any other entry is a malformed one."""
    key = _KEY.match(text, position)
    if key is None or _name(key[1], position, where) != _METADATA:
        raise _malformed(text, position, where)
    if known is not None:
        raise _twice(_METADATA, where)
    result: dict[str, str] = {}
    try:
        rest = text[key.end() :].decode()
        pairs, at = json.JSONDecoder(), _skip(rest, 0)
        if rest[at : at + 1] != "{":
            raise _error("__metadata__ is not an object", where, '{"key": "value"}', "")
        more = rest[(at := _skip(rest, at + 1))] != "}"
        while more:
            name, at = _string(pairs, rest, at)
            if rest[(at := _skip(rest, at))] != ":":
                raise ValueError
            value, at = _string(pairs, rest, _skip(rest, at + 1))
            if name in result:
                raise _twice(name, f"{where}, __metadata__")
            result[name] = value
            if len(result) > MAX_METADATA:
                raise _error("too many keys of metadata", where, f"{MAX_METADATA}", "more")
            delimiter = rest[(at := _skip(rest, at))]
            more = delimiter == ","
            if not more and delimiter != "}":
                raise ValueError
            at = _skip(rest, at + 1) if more else at
    except (ValueError, IndexError):
        raise _error(
            "__metadata__ is not a map of strings", where, '{"key": "value"}', ""
        ) from None
    return result, key.end() + len(rest[: at + 1].encode())


def _string(decoder: json.JSONDecoder, text: str, at: int) -> tuple[str, int]:
    """The string at a position and where it ends; raises ValueError."""
    if text[at] != '"':
        raise ValueError
    value, end = decoder.raw_decode(text, at)
    value.encode()
    return value, end


def _skip(text: str, at: int) -> int:
    """The next position that is not white space."""
    while text[at : at + 1] in (" ", "\n", "\t", "\r"):
        at += 1
    return at


def _check_names(entries: list[Entry], where: str) -> None:
    """No name may be there twice: two readers could see two models."""
    if len({entry.name for entry in entries}) == len(entries):
        return
    counts = Counter(entry.name for entry in entries)
    raise _twice(next(name for name, count in counts.items() if count > 1), where)


def _check_cover(entries: list[Entry], data_start: int, file_size: int, where: str) -> None:
    """The tensors, in the order of their bytes, must cover the data without overlap and hole."""
    position = data_start
    for entry in entries:
        if entry.offset != position:
            problem = "overlaps the one before" if entry.offset < position else "follows a hole"
            raise _error(
                f"the data of this tensor {problem}",
                _place(where, entry.name),
                f"begin at {position - data_start}",
                f"{entry.offset - data_start}",
            )
        position += entry.nbytes
    if position != file_size:
        raise _error(
            "the file has bytes that belong to no tensor",
            where,
            f"{position} bytes, by its header",
            f"{file_size} bytes",
        )


def encode_header(
    tensors: Iterable[tuple[str, str, Sequence[int], int, int]],
    metadata: Mapping[str, str],
    multiple: int,
    size: int = 0,
) -> bytes:
    """The first bytes of a file, up to the data.

    ``tensors``: name, safetensors dtype, shape, first byte in the data and the byte after the last.
    ``multiple``: the result is padded to a multiple of so many bytes, and to ``size`` at least.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, dtype, shape, begin, end in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (max(-(-(8 + len(text)) // multiple) * multiple, size) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def _outside(name: str, end: int, data_size: int, file_size: int, where: str) -> CheckpointError:
    """The error for a tensor that ends behind the file, or for more bytes than the file has."""
    if end > data_size:
        return _error(
            "the file is truncated",
            _place(where, name),
            f"at least {file_size - data_size + end} bytes, by its header",
            f"{file_size} bytes",
            code="truncated-file",
        )
    return _error(
        "the data of this tensor overlaps that of others",
        _place(where, name),
        f"at most {data_size} bytes of all tensors together",
        "more",
    )


def _malformed(text: bytes, position: int, where: str) -> CheckpointError:
    """Say what is wrong with the entry at a position, which the expression did not match."""
    key = _KEY.match(text, position)
    if key is None:
        return _invalid(position, where)
    name = _name(key[1], position, where)
    if name == _METADATA:
        return _error("__metadata__ is not a map of strings", where, '{"key": "value"}', "")
    place = _place(where, name)
    window = text[key.end() : key.end() + _WINDOW].decode("utf-8", "replace")
    try:
        info, _ = json.JSONDecoder(object_pairs_hook=tuple).raw_decode(window)
    except (ValueError, RecursionError):
        return _error(
            "malformed tensor entry", place, "dtype, shape, data_offsets", _start(window.encode())
        )
    # Objects are tuples of pairs here, and lists are lists.
    keys = [k for k, _ in info] if isinstance(info, tuple) else []
    if sorted(keys) != ["data_offsets", "dtype", "shape"]:
        got = ", ".join(shown(k, 40) for k in keys[:8]) or _short(info)
        return _error("malformed tensor entry", place, "dtype, shape, data_offsets", got)
    fields = dict(info)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return _error("unknown dtype", place, ", ".join(DTYPES), _short(dtype))
    if isinstance(shape, list) and len(shape) > MAX_AXES:
        return _error("too many axes", place, f"at most {MAX_AXES}", f"{len(shape)}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        return _error("malformed shape", place, "a list of sizes", _short(shape))
    return _error("malformed data_offsets", place, "[begin, end]", _short(offsets))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18


def _short(value: Any) -> str:
    return shown(repr(value), 80)


def _start(text: bytes) -> str:
    """The first characters of something that should have been something else."""
    return shown(text[:40].decode("utf-8", "backslashreplace"), 60)


def _place(where: str, name: str) -> str:
    return f"{where}, tensor '{shown(name)}'"


def _invalid(position: int, where: str) -> CheckpointError:
    return _error(
        "the header is not valid JSON",
        where,
        f"a JSON object, names of at most {MAX_NAME} characters",
        f"an error near byte {8 + position}",
    )


def _twice(name: str, where: str) -> CheckpointError:
    got = f"'{shown(name)}'"
    return _error("the same name twice", where, "each name once", got, code="duplicate-tensor")


def _error(
    what: str, where: str, expected: str, got: str, *, code: str = "invalid-safetensors"
) -> CheckpointError:
    return CheckpointError(
        what,
        code=code,
        where=where,
        expected=expected,
        got=got or None,
        remedy="the file is damaged or not a safetensors file: get it again",
    )
