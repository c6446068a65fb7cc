"""Reads which token of a checkpoint has which id, from its tokenizer files.

tokenizer.json comes first, as in transformers; then files that state ids; then the file that the
tokenizer's class reads. If the class is unknown and no file states ids, the result is `Opaque`.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paramdelta.errors import CheckpointError
from paramdelta.planning.bytelevel import is_tiktoken, tekken, tiktoken
from paramdelta.planning.code import LARGEST, code_files, references
from paramdelta.planning.facts import (
    FAST,
    ROLES,
    SPECIAL,
    TOKENIZER,
    extra_tokens,
    role_tokens,
    token_text,
)
from paramdelta.planning.tokenizerclasses import (
    CLASSES,
    CODED_SPECIALS,
    GENERAL,
    OBJECT,
    PIECE_FILES,
    PIECES,
    TWO_VOCABULARIES,
    UNKNOWN,
    TokenizerClass,
    class_name,
)
from paramdelta.planning.tokenizerjson import tokenizer_table
from paramdelta.planning.vocabtable import NumberingError, Table, checked_id, key_id
from paramdelta.planning.vocabulary import MOST, Opaque, Vocabulary
from paramdelta.planning.wordlist import is_rwkv, rwkv
from paramdelta.storage.files import Files, parse_json

ADDED = "added_tokens.json"
MOST_RESERVED = 65_536  # ids without a name, at most, between a tiktoken file and added tokens
_TIKTOKEN = re.compile(r"[^/]+\.tiktoken|tiktoken\.model|tokenizer\.model[^/]*")
_TEKKEN = re.compile(r"[^/]*tekken[^/]*\.json")
_RWKV = re.compile(r"rwkv_vocab[^/]*\.txt|vocab\.txt")
_NO_TABLE = {"Canine": "ids are code points, and the model has no row for each"}
_VOCABULARY = re.compile(
    r"tokenizer\.json|[^/]*\.(tiktoken|spm|model)|tokenizer\.model\.v\d[^/]*|[^/]*tekken[^/]*\.json|"
    r"prophetnet\.tokenizer|(rwkv_)?vocab[^/]*\.(json|txt|bpe)|target_vocab\.json|encoder\.json|"
    r"dict\.txt|merges\.txt|bpe\.codes|byte_maps\.json|entity_vocab\.json|emoji\.json"
)
_OTHERS = re.compile(r"tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json")

Known = dict[bytes, Table]


def is_vocabulary_file(name: str) -> bool:
    """Whether a file of this name holds tokens, or how text is cut into them."""
    return _VOCABULARY.fullmatch(name) is not None


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of this name belongs to a tokenizer."""
    return is_vocabulary_file(name) or _OTHERS.fullmatch(name) is not None


def vocabulary_names(files: Files) -> frozenset[str]:
    """Files beside the weights that hold a tokenizer's vocabulary, by their names or because
    tokenizer_config.json, or the code of the tokenizer that it names, speaks of them.
    """
    said = files.json(TOKENIZER)
    others = [name for name in _top(files) if not is_tokenizer_file(name) and _may_be_named(name)]
    found = {name for name in _top(files) if is_vocabulary_file(name)}
    if others:
        texts = {text for text in said.values() if isinstance(text, str)}
        found |= texts & {*others}
        code, _ = code_files(files, references(said))
        sources = [files.text(name) for name in code if files[name].size <= LARGEST]
        pieces = {piece for source in sources for piece in re.split("[\"']", source)}
        found |= pieces & {*others}
    return frozenset(found)


def _may_be_named(name: str) -> bool:
    """Whether a name is not that of a file which has another role."""
    suffixes = (".safetensors", ".py", ".md", "config.json", ".jinja", ".index.json")
    return not name.endswith(suffixes)


def read_vocabulary(
    files: Files, config: Mapping[str, Any], known: Known
) -> Vocabulary | Opaque | None:
    """The tokens of a tokenizer; None without a tokenizer, `Opaque` if the ids are not known.

    ``files``: the files beside the weights. ``config``: config.json. ``known``: tables that were
    read from a tokenizer.json, by its digest. The file is large, and several checkpoints often have
    the same one.

    Raises:
        CheckpointError: a tokenizer file that cannot be understood.
    """
    said = files.json(TOKENIZER)
    name = class_name(said, config)
    for file in TWO_VOCABULARIES:
        if file in files and (file != "target_vocab.json" or said.get("separate_vocabs") is True):
            return _opaque(files, f"encoder and decoder have vocabularies of their own ({file})")
    if name in _NO_TABLE:
        return Opaque(f"{name}Tokenizer: {_NO_TABLE[name]}", name.encode())
    needs_no_file = name in CLASSES and not CLASSES[name].files
    if FAST in files and not needs_no_file:
        data = files.bytes(FAST, MOST)
        digest = hashlib.sha256(data).digest()
        if digest not in known:
            with _understood(files, FAST):
                known[digest] = tokenizer_table(parse_json(data, str(files[FAST])))
        return _completed(known[digest].copy(), files, said)
    if FAST in files.stated and FAST not in files:
        return _completed(tokenizer_table(files.stated[FAST]), files, said)
    for file in _top(files):
        if (table := _self_describing(files, file, name, said)) is not None:
            return _completed(table, files, said)
    chosen = _class_of(name, files)
    if chosen is not None:
        file, kind = chosen
        try:
            with _understood(files, file):
                content = _content(files, file)
                table = Table(kind.layout(content, said), counts=kind.counts)
        except NumberingError as error:
            return _opaque(files, f"{file}: {error}")
        return _completed(table, files, said, kind)
    present = sorted(vocabulary_names(files))
    if not present:
        return None
    who = f"{name}Tokenizer" if name else "a tokenizer of an unknown class"
    return _opaque(files, f"how {who} numbers the tokens in {present[0]} is not known")


def _self_describing(files: Files, file: str, name: str, said: Mapping[str, Any]) -> Table | None:
    """The vocabulary in a file that states ids whatever the class; None if the file is another."""
    with _understood(files, file):
        if _TEKKEN.fullmatch(file):
            ids, special = tekken(files.json(file))
            table = Table(ids)
            table.add_all(special)
            return table
        if _TIKTOKEN.fullmatch(file) and is_tiktoken(files.bytes(file, MOST)):
            decoder = said.get("added_tokens_decoder")
            if name in (*CODED_SPECIALS, *GENERAL) or decoder or name in CLASSES or not name:
                table = Table(tiktoken(files.bytes(file, MOST)))
                for number, token in enumerate(CODED_SPECIALS.get(name, ()), table.size):
                    table.add(token, number)
                return _with_placeholders(table, decoder)
        if _RWKV.fullmatch(file) and is_rwkv(files.bytes(file, MOST)):
            return Table(rwkv(files.bytes(file, MOST)))
    return None


def _with_placeholders(table: Table, decoder: Any) -> Table:
    """A tiktoken vocabulary up to its last added token; ids without a name are reserved.

    Source: ``_convert_from_tiktoken`` of transformers 5, and the code of Kimi K2's tokenizer.
    """
    names = {key_id(key, token): token_text(token) for key, token in _entries(decoder)}
    stop = max(names, default=-1) + 1
    if stop > len(table.ids) + MOST_RESERVED:
        raise ValueError(f"added_tokens_decoder has the id {stop - 1} after {len(table.ids)} ranks")
    for number in range(len(table.ids), stop):
        table.add(names.get(number) or f"<|reserved_token_{number}|>", number)
    return table


def _class_of(name: str, files: Files) -> tuple[str, TokenizerClass] | None:
    """The file to read and the class that says what the ids in it are; None if unknown."""
    kind = CLASSES.get(name) or (PIECES if name in GENERAL else None)
    for candidate in (kind, OBJECT) if kind is not None else (OBJECT,):
        if not candidate.files:
            return "", candidate
        found = next((file for file in candidate.files if file in files), None)
        if found is None and candidate.files[-1] == PIECE_FILES[-1]:
            named = [n for n in vocabulary_names(files) if not is_vocabulary_file(n)]
            models = [n for n in _top(files) if n.endswith((".model", ".spm"))] or named
            found = models[0] if len(models) == 1 else None
        if found is not None:
            return found, candidate
    return None


def _completed(
    table: Table, files: Files, said: Mapping[str, Any], kind: TokenizerClass = UNKNOWN
) -> Vocabulary:
    """The vocabulary, with the tokens that only other files name."""
    stated: dict[int, tuple[str, bool]] = {}
    if "added_tokens_decoder" in said:
        with _understood(files, TOKENIZER):
            for key, token in _entries(said["added_tokens_decoder"]):
                text = token_text(token)
                if text is None:
                    raise ValueError(f"added_tokens_decoder has no text for id {key[:20]}")
                special = not isinstance(token, Mapping) or token.get("special") is not False
                stated[key_id(key, text)] = text, special
    else:
        with _understood(files, ADDED):
            for token, token_id in files.json(ADDED).items():
                stated[checked_id(token_id, token)] = token, True
    for token_id, (token, special) in sorted(stated.items()):
        table.add(token, token_id, special=special)
    roles = {**kind.roles, **role_tokens(files)}
    table.add_all(roles[role] for role in ROLES if role in roles)
    table.add_all((*kind.more, *extra_tokens(files)))
    return Vocabulary(table.tokens(), frozenset(table.special))


def _content(files: Files, file: str) -> Any:
    if not file:
        return None
    return files.json(file) if file.endswith(".json") else files.bytes(file, MOST)


def _top(files: Files) -> list[str]:
    return sorted(name for name in files if "/" not in name)


def _entries(decoder: Any) -> Iterable[tuple[str, Any]]:
    if decoder is None:
        return ()
    if not isinstance(decoder, Mapping):
        raise ValueError(f"added_tokens_decoder is not an object: {decoder!r:.80}")
    return decoder.items()


def _opaque(files: Files, why: str) -> Opaque:
    """A tokenizer that is the same only where all of its files are."""
    digest = hashlib.sha256()
    words = vocabulary_names(files)
    for name in _top(files):
        if name in words or name in (ADDED, SPECIAL) or name.endswith(".py"):
            digest.update(json.dumps([name, len(files.bytes(name, MOST))]).encode())
            digest.update(files.bytes(name, MOST))
    added = files.json(TOKENIZER).get("added_tokens_decoder")
    digest.update(json.dumps(added, sort_keys=True).encode())
    return Opaque(why, digest.digest())


@contextlib.contextmanager
def _understood(files: Files, file: str) -> Iterator[None]:
    """Turn what malformed content leads to into an error with the place."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            "the tokenizer's files cannot be understood",
            code="invalid-tokenizer",
            where=str(files[file]) if file else files.location.address,
            got=str(error)[:200] if isinstance(error, ValueError) else repr(error)[:200],
            remedy="get the file again, or pass `vocabulary='id'`",
        ) from None
