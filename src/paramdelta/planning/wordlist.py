"""Vocabularies that are text files with one token a line.

Lines end where the loader ends them: where Python's text mode does, at a line feed, a carriage
return, or both, and nowhere else. U+2028 and U+0085 are tokens of real vocabularies.
"""

import ast
import contextlib
import re
from collections.abc import Iterable

from paramdelta.planning.vocabtable import key_id

_END = re.compile(r"\r\n|\r|\n")
_RWKV = re.compile(r"(?P<id>\d{1,9}) (?P<token>b?'.*'|b?\".*\") (?P<size>\d{1,9})")


def lines(data: bytes) -> list[str]:
    """The lines of a text file, without their ends; raises ValueError if it is not UTF-8."""
    found = _END.split(data.decode("utf-8"))
    return found[:-1] if found[-1] == "" else found


def words(data: bytes) -> dict[str, int]:
    """``vocab.txt`` of BERT: a token's id is the number of its line, of the last one if several.

    Source: ``load_vocab`` in transformers' tokenization_bert_legacy.py.
    """
    return {token: number for number, token in enumerate(lines(data))}


def stripped_words(data: bytes) -> dict[str, int]:
    """``vocab.txt`` of ESM, whose loader splits at all of Unicode's line ends and strips tokens.

    Source: ``load_vocab_file`` in transformers' tokenization_esm.py.
    """
    return {token.strip(): number for number, token in enumerate(data.decode("utf-8").splitlines())}


def counted_words(data: bytes, front: Iterable[str], *, first_word: bool = False) -> dict[str, int]:
    """A dictionary of fairseq: a token and its count a line, after the tokens in ``front``.

    ``first_word``: the token ends at the first space of its line and not at the last. Sources:
    ``add_from_file`` in transformers' tokenization_phobert.py; tokenization_bartpho.py.
    """
    ids = {token: number for number, token in enumerate(dict.fromkeys(front))}
    for number, line in enumerate(lines(data), 1):
        token = line.strip().rpartition(" ")[0]
        if first_word:
            token = next(iter(line.split()), "")
        if not token:
            raise ValueError(f"line {number} is not a token and a count: {line[:80]!r}")
        ids[token] = len(ids)
    return ids


def is_rwkv(data: bytes) -> bool:
    """Whether a file looks like RWKV's: an id, a Python literal and a length a line."""
    start = data[:512].decode("utf-8", errors="replace")
    return _RWKV.fullmatch(_END.split(start)[0]) is not None


def rwkv(data: bytes) -> dict[str, int]:
    """RWKV's vocabulary (``rwkv_vocab_v20230424.txt``); bytes that are not UTF-8 are escaped.

    Source: ``RWKV_TOKENIZER`` in BlinkDL's rwkv_tokenizer.py.
    """
    ids: dict[str, int] = {}
    for number, line in enumerate(lines(data), 1):
        match = _RWKV.fullmatch(line)
        token = None
        if match is not None:
            with contextlib.suppress(SyntaxError, ValueError):
                token = ast.literal_eval(match["token"])
        if match is None or not isinstance(token, (str, bytes)):
            raise ValueError(f"line {number} is not an id, a token and a length: {line[:80]!r}")
        text = token if isinstance(token, str) else token.decode("utf-8", "surrogateescape")
        ids[text] = key_id(match["id"], text)
    return ids
