"""tokenizer.json, the file of the tokenizers library: its tokens and their ids.

The library numbers added tokens itself and ignores the ids that the file states for them: a token
that the model has keeps the model's id; the others are numbered on from the model's size. Source:
``AddedVocabulary::add_tokens`` of tokenizers 0.23.
"""

from collections.abc import Mapping
from typing import Any

from paramdelta.planning.vocabtable import Table, checked_ids


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
