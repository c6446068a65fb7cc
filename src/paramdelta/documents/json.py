"""JSON, measured before it is parsed."""

import json
from typing import Any

_MAX_DEPTH = 100  # levels; a tokenizer has eight
_FREE = 72_000_000  # bytes that any JSON document may take, and 8 for each of its own
# The most bytes of objects that each of these characters can cause: a dict, a list, half a
# string, an entry (also as a pair, while its dict is made), a value.
_BYTES = {b"{": 220, b"[": 90, b'"': 30, b":": 132, b",": 32}
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))


class DocumentError(ValueError):
    """A document that is not read. ``line``: where in a YAML document, from 1; None if unknown."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.line = line

    def __str__(self) -> str:
        what = str(self.args[0])
        return what if self.line is None else f"{what}, line {self.line}"


def parse_json(data: bytes) -> Any:
    """A JSON document in UTF-8.

    As Python's own parser, this reads NaN and Infinity, which configs of Mamba models have, and
    escaped lone surrogates, which vocabularies have. A key may stand twice only with one value:
    loaders differ in which of two values they take.

    Raises:
        ValueError: not JSON, nested too deeply, a number with more digits than Python reads, a key
            with two values, or more objects than a document of its size has.
    """
    memory = sum(size * data.count(character) for character, size in _BYTES.items())
    if memory > _FREE + 8 * len(data):
        raise DocumentError(f"too many objects for {len(data)} bytes")
    if _is_deep(data):
        raise DocumentError("nested too deeply")
    text = data.decode("utf-8", errors="surrogatepass").removeprefix("\ufeff")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise DocumentError("nested too deeply") from None


def to_json(value: Any) -> str:
    """Plain values as an indented JSON document, with lone surrogates as escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace").decode()


def _is_deep(data: bytes) -> bool:
    """Whether brackets outside of strings are nested more deeply than `_MAX_DEPTH`."""
    marks = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS)
    # Without pairs of quotes, the same brackets are inside of strings as before.
    marks = b"".join(marks.replace(b'""', b"").split(b'"')[::2])
    for _ in range(_MAX_DEPTH):
        left = marks.replace(b"[]", b"").replace(b"{}", b"")
        if len(left) == len(marks):
            break  # nothing is left, or it is not JSON
        marks = left
    else:
        return bool(marks)
    return marks.count(b"[") + marks.count(b"{") > _MAX_DEPTH


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            # repr: NaN does not equal itself, and 1 equals true
            if found[key] is not value and repr(found[key]) != repr(value):
                raise DocumentError(f"the key {key!r} stands twice, with different values")
    return found
