"""Which tokens a conversation with a checkpoint needs: those of its chat template, and its ends."""

from collections.abc import Iterable

from paramdelta.planning.facts import end_ids, role_tokens, template_text
from paramdelta.planning.vocabulary import Vocabulary
from paramdelta.storage.files import Files

NEEDED = ("bos_token", "eos_token", "pad_token")


def needed(files: Files, vocabulary: Vocabulary, ids: Iterable[int]) -> tuple[int, ...]:
    """Those of the given ids without which the checkpoint's conversations do not work.

    ``files``: what is beside its weights.
    """
    ids = tuple(ids)
    if not ids:
        return ()
    template, ends, tokens = template_text(files), end_ids(files), role_tokens(files)
    roles = {tokens[role] for role in NEEDED if role in tokens}
    return tuple(
        i
        for i in ids
        if i in ends
        or vocabulary.tokens[i] in roles
        or (i in vocabulary.special and vocabulary.tokens[i] in template)
    )
