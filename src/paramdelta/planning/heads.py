"""The output head: whether it is the input embedding, in each checkpoint and in the output."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from paramdelta.formats.view import Fetch, View
from paramdelta.planning import lineage, names
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.sources import Source, Sources


def settle_head(sources: Sources, how: str, findings: Findings) -> tuple[Sources, bool | None]:
    """Decide whether the output has a head of its own, and give every source a matching one.

    ``how``: the recipe's choice, "untie" or "drop". Returns the sources, of which the new base has
    exactly the tensors of the output, and what config.json must say about a tied head; None to
    leave it as it is.

    As soon as one checkpoint has a head of its own, so has the output, and in those that have none
    the input embedding takes its place. With "drop", a tied new base stays tied and the Δ of the
    other heads is left out.
    """
    new = sources.new
    pair = names.head_and_embedding(source.known for source in sources.all)
    if pair is None or new.views.keys().isdisjoint(pair):
        return sources, None
    head, embedding = pair
    tied = _tied(sources, head, embedding, findings)
    owners = [
        source
        for source in sources.all
        if not tied[source] and (head in source.views or head in source.deltas)
    ]
    if not owners or (tied[new] and how == "drop"):
        kept = [
            _without_head(source, head, tied[source], findings)
            if tied[source] or tied[new]
            else source
            for source in sources.all
        ]
        return sources.replaced(kept), None
    if not tied[new] and new not in owners:
        return sources, None  # findings about missing names will say so
    given = sources.replaced(
        [_with_head(source, head, embedding) if tied[source] else source for source in sources.all]
    )
    if not tied[new]:
        _, said = names.tie_of(new.checkpoint.config)
        return given, False if said else None
    who = " and ".join(str(owner) for owner in owners)
    findings.add(
        Severity.WARNING,
        "untied",
        f"only {who} has an output head of its own; the output gets one, and config.json says "
        "tie_word_embeddings: false",
        new,
        tensor=head,
        remedy="pass `head='drop'` to keep the output tied and leave the head's Δ out",
    )
    return given, False


def _tied(sources: Sources, head: str, embedding: str, findings: Findings) -> dict[Source, bool]:
    """For every source whether its head is its embedding.

    An adapter's is as in the model that it was trained on, unless it changes the head.
    """
    tied = {
        source: _is_tied(source, head, embedding, findings, sources.fetch) for source in sources.all
    }
    for each in sources.lineages:
        if not each.is_adapter:
            continue
        whole = tied[each.base or sources.new]
        tied[each.post] = whole and head not in each.post.views and head not in each.post.deltas
        if whole and embedding in each.post.deltas:
            findings.add(
                Severity.WARNING,
                "adapted-embedding",
                "the adapter's Δ of the embedding also changes the output head that is "
                "tied to it, as PEFT's merge does; in training it did not",
                each.post,
                tensor=embedding,
            )
    return tied


def _is_tied(source: Source, head: str, embedding: str, findings: Findings, fetch: Fetch) -> bool:
    """Whether the head is the embedding. A stored head that differs from it counts as it is,
    whatever config.json says.
    """
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


def _without_head(source: Source, head: str, repeats: bool, findings: Findings) -> Source:
    """A source without its head, which repeats the embedding or whose Δ is not wanted."""
    if head not in source.views and head not in source.deltas:
        return source
    if repeats:
        what = "the stored output head repeats the embedding and is left out"
        findings.add(Severity.NOTE, "head-repeats", what, source, tensor=head)
    else:
        what = "the output head's Δ is left out (`head='drop'`)"
        findings.add(Severity.WARNING, "head-dropped", what, source, tensor=head)
    views, deltas = (
        {name: view for name, view in tensors.items() if name != head}
        for tensors in (source.views, source.deltas)
    )
    return replace(source, views=views, deltas=deltas)


def _with_head(source: Source, head: str, embedding: str) -> Source:
    """A source whose embedding is its head as well."""

    def given(tensors: Mapping[str, View]) -> Mapping[str, View]:
        if embedding not in tensors:
            return tensors
        return {**tensors, head: tensors[embedding]}

    return replace(source, views=given(source.views), deltas=given(source.deltas))
