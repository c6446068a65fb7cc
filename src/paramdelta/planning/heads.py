"""The output head: whether it is the input embedding, in each checkpoint and in the output."""

import numpy as np

from paramdelta.formats.view import Fetch
from paramdelta.planning import lineage, names
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.sources import Source, Sources


def settle_head(sources: Sources, findings: Findings, how: str) -> tuple[list[str], bool | None]:
    """The names of the output's tensors, and what config.json must say about a tied head: None to
    leave it as it is. ``how``: the recipe's choice, "untie" or "drop".

    Tied is a fact about the output. As soon as one checkpoint has a head of its own, so has the
    output, and in those that have none the input embedding stands for it; unless the new base
    has none and the recipe says to drop the others' Δ.
    """
    output = list(sources.new.views)
    pair = names.head_and_embedding(source.known for source in sources.all)
    if pair is None:
        return output, None
    head, embedding = pair
    tied = [
        has_tied_head(source, head, embedding, findings, sources.fetch) for source in sources.all
    ]
    for each in sources.lineages:
        if each.is_adapter:  # it is as the model that it was trained on
            whole = sources.all.index(each.base or sources.new)
            changed = head in each.post.views or head in each.post.deltas
            tied[sources.all.index(each.post)] = tied[whole] and not changed
            if tied[whole] and embedding in each.post.deltas:
                findings.add(
                    Severity.WARNING,
                    "adapted-embedding",
                    "the adapter's Δ of the embedding also changes the output head that is "
                    "tied to it, as PEFT's merge does; in training it did not",
                    each.post,
                    tensor=embedding,
                )
    _, said = names.tie_of(sources.new.checkpoint.config)
    owners = [
        source
        for source, is_tied in zip(sources.all, tied, strict=True)
        if not is_tied and (head in source.views or head in source.deltas)
    ]
    if not owners or (tied[0] and how == "drop"):
        for source, is_tied in zip(sources.all, tied, strict=True):
            if is_tied or tied[0]:
                if source is sources.new and head in output:
                    output.remove(head)
                drop_head(source, head, is_tied, findings)
        return output, None
    if not tied[0] and sources.new not in owners:
        return output, None  # untied and without a head: the findings on names will say so
    for source, is_tied in zip(sources.all, tied, strict=True):
        for views in (source.views, source.deltas) if is_tied else ():
            if embedding in views:
                views[head] = views[embedding]
    if head not in output:
        output.append(head)
    if not tied[0]:
        return output, False if said else None
    who = " and ".join(str(owner) for owner in owners)
    findings.add(
        Severity.WARNING,
        "untied",
        f"only {who} has an output head of its own; the output gets one, and config.json says "
        "tie_word_embeddings: false",
        sources.new,
        tensor=head,
        remedy="--head drop keeps the output tied and leaves the head's Δ out",
    )
    return output, False


def has_tied_head(
    source: Source, head: str, embedding: str, findings: Findings, fetch: Fetch
) -> bool:
    """Whether the head is the embedding, whatever config.json says of a head that is stored."""
    views = source.known
    tied = names.is_tied(head, views, source.checkpoint.config)
    if tied and {head, embedding} <= views.keys():
        one, other = views[head], views[embedding]
        if one.shape != other.shape or not np.array_equal(
            lineage.read_sample(one, fetch), lineage.read_sample(other, fetch), equal_nan=True
        ):
            findings.add(
                Severity.WARNING,
                "not-tied",
                "config.json says that the output head is the input embedding, but the one "
                "that is stored differs from it, and counts",
                source,
                tensor=head,
            )
            return False
    return tied


def drop_head(source: Source, head: str, repeats: bool, findings: Findings) -> None:
    """Leave a stored head out: it repeats the embedding, or its Δ is not wanted."""
    if source.views.pop(head, source.deltas.pop(head, None)) is None:
        return
    if repeats:
        what = "the stored output head repeats the embedding and is left out"
        findings.add(Severity.NOTE, "head-repeats", what, source, tensor=head)
    else:
        what = "the output head's Δ is left out (--head drop)"
        findings.add(Severity.WARNING, "head-dropped", what, source, tensor=head)
