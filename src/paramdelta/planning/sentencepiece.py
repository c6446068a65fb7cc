"""The pieces of a SentencePiece model, or the tokens of a tiktoken file under the same name.

SentencePiece: a protocol buffer whose field 1, repeated, is a piece: a message whose field 1 is its
text (sentencepiece_model.proto). Protocol buffers' wire format: a key (number << 3 | type) as a
varint, then a varint, 4 or 8 bytes, or a length and so many bytes.
"""

import base64
from collections.abc import Iterator


def pieces(data: bytes) -> list[str]:
    """The tokens in the order of their ids.

    Raises:
        ValueError, IndexError: the file is neither.
    """
    if _is_tiktoken(data):
        return [_text(base64.b64decode(line.split()[0])) for line in data.splitlines() if line]
    found = []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            texts = [v for n, v in _fields(value) if n == 1 and isinstance(v, bytes)]
            found.append(texts[0].decode("utf-8") if texts else "")
    if not found:
        raise ValueError("no SentencePiece model: it has no pieces")
    return found


def _is_tiktoken(data: bytes) -> bool:
    first = data[:512].split(b"\n", 1)[0].split()
    return len(first) == 2 and first[1].isdigit() and first[0].isascii()


def _text(token: bytes) -> str:
    """Bytes as text; what is no UTF-8 stays apart from what is."""
    return token.decode("utf-8", errors="surrogateescape")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} in a protocol buffer")
        if size > len(data) - at:
            raise ValueError("a protocol buffer that ends too early")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number of more than 10 bytes in a protocol buffer")
