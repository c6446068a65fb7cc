"""The tokenizer's files: which token has which id, and which ids need a row of the embedding.

Where transformers looks for roles (bos, eos, pad, …): in tokenizer_config.json if that has an
``added_tokens_decoder``; otherwise special_tokens_map.json goes before tokenizer_config.json.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paramdelta.checks.folder import MAX_VOCABULARY
from paramdelta.checks.part import Part, ids_of, is_id, text_configs
from paramdelta.planning.findings import Findings, Severity

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
MOST = 1 << 31  # ids from here on are no ids
_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "spm.model",
    "sentencepiece.bpe.model", "sentencepiece.model", "source.spm", "tekken.json", "bpe.codes",
    "merges.txt", "vocab.bpe", "encoder.json", "vocab-src.json", "dict.txt", "prophetnet.tokenizer",
    "rwkv_vocab_v20230424.txt",
)  # fmt: skip
_WITHOUT_FILES = re.compile(r"(ByT5|Canine|Perceiver|Myt5|Charformer|Blt).*|.*Byte.*")
_ID_KEYS = re.compile(r"(^|_)token_(id|index|ids)$|^(begin_)?suppress_tokens$")
# Ids of placeholders for images and sounds: some models put no row behind them.
_PLACEHOLDER = re.compile(r"image|audio|video|vision|boi|eoi|speech|media|frame")


@dataclass(frozen=True)
class Tokens:
    """What the tokenizer's files say.

    ``ids``: token -> id as the loader gives it; empty where the numbering of a format is not known.
    ``whole``: whether these are all tokens. ``added``: those that the model itself does not have.
    """

    ids: Mapping[str, int]
    whole: bool
    added: frozenset[str]

    def names(self, wanted: set[int]) -> list[str]:
        """The tokens with these ids."""
        return [token for token, number in self.ids.items() if number in wanted]


def read_tokens(part: Part, findings: Findings) -> Tokens:
    """Tokens and ids of one part, and faults of the files themselves."""
    ids: dict[str, int] = {}
    added: dict[str, int] = {}
    whole = False
    if part.tokenizer:
        ids, added = _of_tokenizer_json(part, findings)
        whole = bool(ids)
    else:
        ids = _of_vocabulary_file(part, findings)
        whole = bool(ids)
    for place, name, token, number in _said_added(part, findings):
        known = added.get(token, ids.get(token))
        if known is not None and known != number:
            findings.add(
                Severity.REFUSED,
                "token-disagrees",
                f"{place} gives the token {token!r} the id {number}, "
                + ("tokenizer.json" if part.tokenizer else "the vocabulary")
                + f" the id {known}",
                part.place(name),
                remedy="take all files of the tokenizer from one model",
            )
        else:
            added[token] = number
    return Tokens(ids | added, whole, frozenset(added))


def _of_tokenizer_json(part: Part, findings: Findings) -> tuple[dict[str, int], dict[str, int]]:
    """Ids of the model's and of the added tokens, as the tokenizers library gives them."""
    place = part.place("tokenizer.json")
    model = part.tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    ids: dict[str, int] = {}
    if isinstance(vocabulary, Mapping):
        ids = {t: n for t, n in vocabulary.items() if _is_valid(n, t, place, findings)}
    elif isinstance(vocabulary, list):
        for number, piece in enumerate(vocabulary):
            token = piece[0] if isinstance(piece, list) and piece else None
            if isinstance(token, str):
                ids.setdefault(token, number)
    if len(set(ids.values())) != len(ids) and isinstance(vocabulary, Mapping):
        findings.add(
            Severity.REFUSED,
            "token-disagrees",
            "the vocabulary gives one id to several tokens",
            place,
            remedy="get the tokenizer again",
        )
    added: dict[str, int] = {}
    size, last = len(ids), -1
    entries = part.tokenizer.get("added_tokens")
    for entry in entries if isinstance(entries, list) else ():
        token = entry.get("content") if isinstance(entry, Mapping) else None
        said = entry.get("id") if isinstance(entry, Mapping) else None
        if not isinstance(token, str) or not _is_valid(said, token, place, findings):
            continue
        # The library numbers a token that the model lacks by counting on, whatever its entry says.
        given = ids.get(token, added.get(token, max(size, last + 1)))
        if given != said:
            findings.add(
                Severity.REFUSED,
                "token-disagrees",
                f"the added token {token!r} says id {said}; the library gives it {given}",
                place,
                remedy="leave no gaps between the ids, and give no token two",
            )
        added[token] = given
        last = max(last, given)
    return ids, added


def _of_vocabulary_file(part: Part, findings: Findings) -> dict[str, int]:
    """Ids of vocab.json or vocab.txt."""
    content = part.folder.json("vocab.json", findings, MAX_VOCABULARY)
    if isinstance(content, Mapping):
        place = part.place("vocab.json")
        return {
            token: number
            for token, number in content.items()
            if not isinstance(number, Mapping) and _is_valid(number, token, place, findings)
        }
    text = part.folder.text("vocab.txt", findings, MAX_VOCABULARY)
    if text is None:
        return {}
    lines = re.split("\r\n|\r|\n", text)  # only here: other separators of Unicode are tokens
    if not lines[-1]:
        lines.pop()
    return {line: number for number, line in enumerate(lines)}


def _said_added(part: Part, findings: Findings) -> Iterator[tuple[str, str, str, int]]:
    """Added tokens beside tokenizer.json: phrase, file, token, id."""
    decoder = part.tokenizer_config.get("added_tokens_decoder")
    name = "tokenizer_config.json"
    for key, entry in decoder.items() if isinstance(decoder, Mapping) else ():
        token = entry.get("content") if isinstance(entry, Mapping) else None
        number = int(key) if re.fullmatch(r"-?[0-9]{1,18}", key) else None
        if isinstance(token, str) and _is_valid(number, token, part.place(name), findings):
            yield "added_tokens_decoder", name, token, number  # type: ignore[misc]
    name = "added_tokens.json"
    for token, number in part.added.items():
        if _is_valid(number, token, part.place(name), findings):
            yield name, name, token, number


def _is_valid(number: Any, token: str, place: str, findings: Findings) -> bool:
    if is_id(number) and 0 <= number < MOST:
        return True
    findings.add(
        Severity.REFUSED,
        "id-invalid",
        f"the id of the token {token[:40]!r} is {str(number)[:40]}, not a whole number from 0 on",
        place,
        remedy="get the tokenizer again",
    )
    return False


def role_tokens(part: Part) -> dict[str, str]:
    """The tokens that have a role, as transformers finds them."""
    first, second = part.roles, part.tokenizer_config
    if "added_tokens_decoder" in part.tokenizer_config:
        first, second = part.tokenizer_config, {}
    found = {}
    for role in ROLES:
        token = _text(first.get(role)) or _text(second.get(role))
        if token is not None:
            found[role] = token
    return found


def _text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def check_vocabulary(part: Part, tokens: Tokens, rows: int | None, findings: Findings) -> None:
    """Compare ids with each other and with the rows. ``rows``: of the input embedding, if known."""
    _check_files(part, findings)
    _check_roles(part, tokens, rows, findings)
    _check_post_processor(part, tokens, findings)
    if rows is not None:
        _check_rows(part, tokens, rows, findings)


def _check_files(part: Part, findings: Findings) -> None:
    has_files = any(
        name in _FILES or name.endswith((".tiktoken", ".spm", ".model", ".vocab"))
        for name in part.folder.direct
    )
    kind = part.tokenizer_config.get("tokenizer_class")
    if isinstance(kind, str) and _WITHOUT_FILES.fullmatch(kind):
        has_files = True
    template = [n for n in part.folder.direct if n.startswith("chat_template.")]
    if not has_files and (part.tokenizer_config or template):
        beside = "tokenizer_config.json" if part.tokenizer_config else template[0]
        findings.add(
            Severity.REFUSED,
            "tokenizer-missing",
            f"there is {beside} but no file that says which token has which id",
            part.place(beside),
            remedy="copy the tokenizer (tokenizer.json, tokenizer.model, vocab.*, merges.txt)",
        )
    elif not has_files and part.generates and part.weights.found and not part.folder.prefix:
        findings.add(
            Severity.NOTE,
            "tokenizer-missing",
            "a language model without a tokenizer",
            part.place(),
            remedy="copy the tokenizer beside the weights",
        )


def _check_roles(part: Part, tokens: Tokens, rows: int | None, findings: Findings) -> None:
    for role in ROLES:
        one, other = _text(part.tokenizer_config.get(role)), _text(part.roles.get(role))
        if one is not None and other is not None and one != other:
            findings.add(
                Severity.WARNING,
                "roles-disagree",
                f"{role} is {one!r} in tokenizer_config.json and {other!r} in "
                "special_tokens_map.json; which one counts depends on added_tokens_decoder and on "
                "the version of transformers",
                part.place("special_tokens_map.json"),
                remedy="write one token in both",
            )
    for role, token in role_tokens(part).items():
        if tokens.whole and token not in tokens.ids:
            number = max(tokens.ids.values(), default=-1) + 1
            grave = rows is not None and number >= rows
            findings.add(
                Severity.REFUSED if grave else Severity.WARNING,
                "role-unknown",
                f"{role} is {token!r}, which is not in the vocabulary: the loader adds it with a "
                f"new id ({number}" + (f", and there are {rows} rows)" if grave else ")"),
                part.place("tokenizer_config.json"),
                remedy="name a token of the vocabulary",
            )


def _check_post_processor(part: Part, tokens: Tokens, findings: Findings) -> None:
    """Ids that the post-processor of tokenizer.json puts around a text."""
    for token, number in _processed(part.tokenizer.get("post_processor")):
        known = tokens.ids.get(token)
        if tokens.whole and known != number:
            findings.add(
                Severity.REFUSED,
                "post-processor-wrong",
                f"the post-processor gives {token!r} the id {number}, the vocabulary "
                + ("has no such token" if known is None else f"gives it {known}"),
                part.place("tokenizer.json"),
                remedy="take the post-processor and the vocabulary from one tokenizer",
            )


def _processed(processor: Any, depth: int = 0) -> Iterator[tuple[str, int]]:
    if not isinstance(processor, Mapping) or depth > 4:
        return
    for key in ("sep", "cls"):
        pair = processor.get(key)
        if (
            isinstance(pair, list)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and is_id(pair[1])
        ):
            yield pair[0], pair[1]
    special = processor.get("special_tokens")
    for each in special.values() if isinstance(special, Mapping) else ():
        if isinstance(each, Mapping):
            names, numbers = each.get("tokens"), each.get("ids")
            if isinstance(names, list) and isinstance(numbers, list):
                for name, number in zip(names, numbers, strict=False):
                    if isinstance(name, str) and is_id(number):
                        yield name, number
    inner = processor.get("processors")
    for each in inner if isinstance(inner, list) else ():
        yield from _processed(each, depth + 1)


def _check_rows(part: Part, tokens: Tokens, rows: int, findings: Findings) -> None:
    used = {tokens.ids[t] for t in role_tokens(part).values() if t in tokens.ids}
    beyond = {token: number for token, number in tokens.ids.items() if number >= rows}
    grave = any(number in used for number in beyond.values())
    for token, number in sorted(beyond.items(), key=lambda item: (item[1] not in used, item[1])):
        findings.add(
            Severity.REFUSED if grave else Severity.WARNING,
            "token-without-row",
            f"tokens have ids beyond the {rows} rows of the embedding: a text with one of "
            "them ends in an index error",
            part.place("tokenizer.json" if part.tokenizer else "tokenizer_config.json"),
            tensor=f"{token} ({number})",
            remedy="add the rows, or take a tokenizer that fits",
        )
    for name, key, number in _configured(part):
        # -1 and -100 stand for none
        if number >= rows or (number < 0 and number not in (-1, -100)):
            placeholder = bool(_PLACEHOLDER.search(key))
            findings.add(
                Severity.WARNING if placeholder else Severity.REFUSED,
                "token-without-row",
                f"{key} is {number}, and the embedding has {rows} rows",
                part.place(name),
                remedy="name a token that has a row",
            )


def _configured(part: Part) -> Iterator[tuple[str, str, int]]:
    """Ids that the configurations name: file, key, id."""
    for prefix, config in text_configs(part.config):
        for key, value in config.items():
            if _ID_KEYS.search(key):
                for number in ids_of(value):
                    yield "config.json", prefix + key, number
    for key, value in part.generation.items():
        if _ID_KEYS.search(key):
            for number in ids_of(value):
                yield "generation_config.json", key, number


def stop_ids(part: Part, tokens: Tokens) -> dict[str, set[int]]:
    """Ids at which generation stops, by loader."""
    said = part.generation.get("eos_token_id")
    if "eos_token_id" not in part.generation and not part.generation:
        said = next(
            (c["eos_token_id"] for _, c in text_configs(part.config) if c.get("eos_token_id")), None
        )
    transformers = set(ids_of(said))
    own = tokens.ids.get(role_tokens(part).get("eos_token", ""))
    return {
        "transformers": transformers,
        "vLLM": transformers | ({own} if own is not None else set()),
    }
