"""The pieces of a SentencePiece model, and the ids that tokenizer classes give them.

The model is a protocol buffer whose field 1, repeated, is a piece: a message whose field 1 is its
text (sentencepiece_model.proto). Protocol buffers' wire format: a key (number << 3 | type) as a
varint, then a varint, 4 or 8 bytes, or a length and so many bytes.

The place of a piece in the model is its id only for some tokenizer classes. Those that follow
fairseq put other tokens in front; others add tokens at the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Numbering:
    """How a tokenizer class numbers the pieces of its model.

    ``front``: tokens with the ids from 0 on. ``skip``: how many of the first pieces have no id of
    their own; the rest follow ``front``, or start at id ``at``. ``end``: tokens after the pieces.
    """

    front: tuple[str, ...] = ()
    skip: int = 0
    end: tuple[str, ...] = ()
    at: int | None = None

    def ids(self, pieces: Sequence[str]) -> dict[str, int]:
        """The id of each token."""
        ids = {token: number for number, token in enumerate(self.front)}
        first = len(self.front) if self.at is None else self.at
        after = max(first, first + len(pieces) - self.skip)
        # A piece with the name of a token in front is that token; so fairseq's loaders have it.
        ids = {piece: first + i for i, piece in enumerate(pieces[self.skip :])} | ids
        return ids | {token: after + number for number, token in enumerate(self.end)}


def pieces(data: bytes) -> list[str]:
    """The texts of the pieces in their order.

    Raises:
        ValueError, IndexError: the file is not a SentencePiece model.
    """
    found = []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            texts = [v for n, v in _fields(value) if n == 1 and isinstance(v, bytes)]
            found.append(texts[0].decode("utf-8") if texts else "")
    if not found:
        raise ValueError("not a SentencePiece model: it has no pieces")
    return found


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
