"""tokenizer.json, the file of the tokenizers library: tokens, their ids, and how text is split.

The library numbers added tokens itself and ignores the ids that the file states for them: a token
that the model has keeps the model's id; the others are numbered on from the model's size. Source:
``AddedVocabulary::add_tokens`` of tokenizers 0.23.
"""

from collections.abc import Mapping
from typing import Any

from paramdelta.planning.vocabtable import Table, checked_ids

# What a model of the library states beside its tokens.
_RULES = (
    "type",
    "unk_token",
    "byte_fallback",
    "ignore_merges",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "max_input_chars_per_word",
)


def tokenizer_table(content: Mapping[str, Any]) -> Table:
    """The vocabulary of a tokenizer.json.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the content is not a tokenizer.json.
    """
    vocab = content["model"].get("vocab", {})
    if isinstance(vocab, Mapping):  # BPE, WordPiece, WordLevel
        ids = checked_ids(vocab)
    else:  # Unigram: [piece, score]
        ids = {str(piece[0]): number for number, piece in enumerate(vocab)}
    table = Table(ids, len(vocab))
    for token in content.get("added_tokens") or []:
        table.add(str(token["content"]), special=bool(token.get("special")))
    return table


def differing_rules(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys by which two tokenizer.json split the same text into other tokens.

    The merges of BPE and the scores of Unigram are compared where both have the same vocabulary;
    a larger one has more of them.
    """
    found = [key for key in ("normalizer", "pre_tokenizer") if ours.get(key) != theirs.get(key)]
    mine, other = ours.get("model"), theirs.get("model")
    if not isinstance(mine, Mapping) or not isinstance(other, Mapping):
        return tuple(found)
    found += [  # absent, false and "" are the same
        f"model.{key}" for key in _RULES if (mine.get(key) or None) != (other.get(key) or None)
    ]
    mine_vocab, other_vocab = mine.get("vocab"), other.get("vocab")
    if isinstance(mine_vocab, list):
        same_size = isinstance(other_vocab, list) and len(mine_vocab) == len(other_vocab)
        if same_size and mine_vocab != other_vocab:
            found.append("model.vocab")
    elif mine_vocab == other_vocab and not _same_merges(mine.get("merges"), other.get("merges")):
        found.append("model.merges")
    return tuple(found)


def _same_merges(mine: Any, other: Any) -> bool:
    """Whether the merges of BPE are the same. There may be millions: no list of pairs is made."""
    if not isinstance(mine, list) or not isinstance(other, list):
        return (mine or None) == (other or None)
    return len(mine) == len(other) and all(map(_is_same_merge, mine, other))


def _is_same_merge(one: Any, other: Any) -> bool:
    """Compare two merges; older files write the pair as one string."""
    return bool(one == other or _pair(one) == _pair(other))


def _pair(merge: Any) -> Any:
    """A merge as a pair: older files write it as one string."""
    return merge.split(" ") if isinstance(merge, str) else merge
