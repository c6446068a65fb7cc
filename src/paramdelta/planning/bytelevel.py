"""Vocabularies of byte strings: tiktoken files, Mistral's tekken.json, and plain bytes.

Their tokens are written as byte-level BPE in a tokenizer.json writes them, one printable character
a byte, so that the same token has the same text in all of these formats.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from paramdelta.planning.vocabtable import key_id

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))


def _alphabet() -> list[str]:
    rest = (byte for byte in range(256) if byte not in _PRINTABLE)
    return [
        chr(code)
        for _, code in sorted(
            [(byte, byte) for byte in _PRINTABLE]
            + [(byte, 256 + number) for number, byte in enumerate(rest)]
        )
    ]


ALPHABET = tuple(_alphabet())
"""The character for each byte: ``bytes_to_unicode`` of GPT-2."""
_BYTES = {character: byte for byte, character in enumerate(ALPHABET)}


def spelled(token: bytes) -> str:
    """A byte string with one character a byte."""
    return "".join([ALPHABET[byte] for byte in token])


def read_out(token: str) -> str:
    """The text that a token stands for, if it is spelled with one character a byte; else itself."""
    try:
        return bytes(_BYTES[character] for character in token).decode()
    except (KeyError, UnicodeDecodeError):
        return token


def is_tiktoken(data: bytes) -> bool:
    """Whether a file holds lines of base64 and rank."""
    first = data[:4096].split(b"\n", 1)[0].split()
    return len(first) == 2 and first[1].isdigit() and _decoded(first[0]) is not None


def tiktoken(data: bytes) -> dict[str, int]:
    """The tokens of a tiktoken file; a token's id is its rank.

    Source: ``load_tiktoken_bpe`` in tiktoken/load.py.
    """
    ids: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        parts = line.split()
        token = _decoded(parts[0])
        if len(parts) != 2 or token is None or not parts[1].isdigit():
            raise ValueError(f"line {number} is not base64 and a rank: {line[:80]!r}")
        ids[spelled(token)] = key_id(parts[1].decode(), token)
    return ids


def tekken(content: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """The tokens of a tekken.json, and those of them that are special, in the order of their ids.

    Special tokens come first and are filled up with ``<SPECIAL_i>``; a file without a list of them
    is from before their names stood in it, and is not understood. Source:
    ``transformers.integrations.mistral.tokenizer`` and mistral_common's ``Tekkenizer``.

    Raises:
        ValueError, KeyError, TypeError: the content is not a tekken.json of today's form.
    """
    config = content["config"]
    entries = sorted((int(entry["rank"]), str(entry["token_str"])) for entry in special(content))
    if [rank for rank, _ in entries] != list(range(len(entries))):
        raise ValueError("the ranks of special_tokens are not 0, 1, 2, …")
    names = [name for _, name in entries]
    count = config.get("default_num_special_tokens")
    count = len(names) if count is None else _size(count)
    names += [f"<SPECIAL_{number}>" for number in range(len(names), count)]
    vocab: Sequence[Mapping[str, Any]] = content["vocab"]
    size = config.get("default_vocab_size")
    if size is not None:
        vocab = vocab[: max(0, _size(size) - count)]
    ids = {
        spelled(base64.b64decode(entry["token_bytes"])): count + number
        for number, entry in enumerate(vocab)
    }
    return ids | {name: number for number, name in enumerate(names)}, names


def special(content: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The special tokens of a tekken.json; raises ValueError if it does not name them."""
    found = content.get("special_tokens")
    if not isinstance(found, list):
        raise ValueError("no special_tokens: a tekken.json of version v3 or older")
    return found


def plain_bytes(front: Sequence[str], extra: Sequence[str] = (), first: int = 0) -> dict[str, int]:
    """All bytes as the characters of the same code, in order of their values.

    ``front``: tokens before them. ``extra``: tokens after them. ``first``: the first byte. Source:
    ByT5Tokenizer, PerceiverTokenizer and DiaTokenizer of transformers.
    """
    tokens = (*front, *map(chr, range(first, 256)), *extra)
    return {token: number for number, token in enumerate(tokens)}


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 24:
        raise ValueError(f"not a size of a vocabulary: {value!r}")
    return value


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
