"""The output head: whether it is the input embedding, in each checkpoint and in the output."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from paramdelta.formats.view import Fetch, Rows, View
from paramdelta.planning import lineage, names
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.sources import Lineage, Source, Sources


def settle_head(sources: Sources, how: str, findings: Findings) -> tuple[Sources, bool | None]:
    """Decide whether the output has a head of its own, and give every source a matching one.

    ``how``: the recipe's choice, "untie" or "drop". Returns the sources, of which the new base has
    exactly the tensors of the output, and what config.json must say about a tied head; None to
    leave it as it is.

    As soon as one checkpoint has a head of its own, so has the output, and in those that have none
    the input embedding takes its place. A LoRA adapter that changes only one of two tied tensors
    has a head of its own as well: PEFT computes with one changed and one unchanged. With "drop", a
    tied new base stays tied and the Δ of the other heads is left out.
    """
    pair = _pair(sources) or _unstored_head(sources, how, findings)
    if pair is None or sources.new.views.keys().isdisjoint(pair):
        return sources, None
    head, embedding = pair
    tied = _tied(sources, head, embedding, findings)
    sources, tied = _with_embedding(sources, tied, head, embedding, findings)
    new = sources.new
    apart = [each.post for each in sources.lineages if _is_apart(each, sources.new, tied)]
    owners = [
        source
        for source in sources.all
        if not tied[source] and (head in source.views or head in source.deltas or source in apart)
    ]
    if not owners or (tied[new] and how == "drop"):
        _warn_of_adapters(apart, head, embedding, findings)
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
    what = (
        "changes the input embedding or the output head, which are tied, and not both alike"
        if all(owner in apart for owner in owners)
        else "has an output head of its own"
    )
    findings.add(
        Severity.WARNING,
        "untied",
        f"only {who} {what}; the output gets a head of its own, and config.json says "
        "tie_word_embeddings: false",
        new,
        tensor=head,
        remedy="pass `head='drop'` to keep the output tied and leave the head's Δ out",
    )
    return given, False


def _pair(sources: Sources) -> tuple[str, str] | None:
    """Names of the head and of the embedding that it can be tied to: rather the new base's own."""
    known = [source.known for source in sources.all]
    heads = [name for each in known for name in names.heads_of(each)]
    return names.head_and_embedding([heads, known[0]]) or names.head_and_embedding(known)


def _unstored_head(sources: Sources, how: str, findings: Findings) -> tuple[str, str] | None:
    """The pair where nobody stores a head, and an adapter changes the embedding that is one.

    None where the model has no head, or where it must stay tied.
    """
    new = sources.new
    config = new.checkpoint.config
    changed = [
        (name, each)
        for each in sources.lineages
        if each.is_adapter
        for name in {**each.post.views, **each.post.deltas}
        if name in new.views and names.is_embedding(name)
    ]
    if not changed or not names.is_tied("", {}, config):
        return None
    (embedding, each), *_ = changed
    said = config.get("architectures")
    kind = str(said[0]) if isinstance(said, list) and said else ""
    if kind and not kind.endswith(_WITH_HEAD):
        return None  # an encoder, or a classifier
    head = _head_beside(embedding)
    plain = not config.get("is_encoder_decoder") and not kind.endswith(_NEVER_UNTIED)
    if (head is None or not plain) and not _keeps_tie(each, embedding):
        findings.add(
            Severity.WARNING if how == "drop" else Severity.REFUSED,
            "adapted-embedding",
            "the adapter changes an embedding that is the output head as well; PEFT changes only "
            "the embedding, and this architecture has no head of its own",
            each.post,
            tensor=embedding,
            remedy="train it with ensure_weight_tying",
            allowed="both change, as in PEFT's merge",
        )
    return (head, embedding) if head is not None and plain else None


_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
_NEVER_UNTIED = ("ForMaskedLM",)


def _head_beside(embedding: str) -> str | None:
    """What an untied head would be called; None if it is not known."""
    stem, _, last = embedding.removesuffix(".weight").rpartition(".")
    if last not in ("embed_tokens", "wte"):
        return None
    parts = stem.split(".") if stem else []
    for ending in (["model", "language_model"], ["model", "decoder"], ["model"], ["transformer"]):
        if parts[-len(ending) :] == ending:
            parts = parts[: -len(ending)]
            break
    return ".".join([*parts, "lm_head.weight"])


def _tied(sources: Sources, head: str, embedding: str, findings: Findings) -> dict[Source, bool]:
    """For every source whether its head is its embedding.

    An adapter's is as in the model that it was trained on, unless it changes one and not the other.
    """
    tied = {
        source: _is_tied(source, head, embedding, findings, sources.fetch) for source in sources.all
    }
    for each in sources.lineages:
        if each.is_adapter:
            whole = tied[each.base or sources.new]
            tied[each.post] = whole and _stays_tied(each, head, embedding, sources.fetch)
    return tied


def _stays_tied(each: Lineage, head: str, embedding: str, fetch: Fetch) -> bool:
    """Whether an adapter to a tied model changes neither of the two, or both alike."""
    post = each.post
    heads, embeddings = (
        [tensors.get(name) for tensors in (post.views, post.deltas)] for name in (head, embedding)
    )
    if not any(heads):
        return not any(embeddings) or _keeps_tie(each, embedding)
    return all(_alike(one, other, fetch) for one, other in zip(heads, embeddings, strict=True))


def _keeps_tie(each: Lineage, embedding: str) -> bool:
    """Whether an adapter's change of the embedding is one of the head that is tied to it.

    PEFT does that with trained rows, and if it is told to (ensure_weight_tying).
    """
    if each.adapter is None:
        return False
    view = each.post.views.get(embedding)
    return each.adapter.keeps_ties or (view is not None and view.name in each.adapter.rows)


def _alike(one: View | None, other: View | None, fetch: Fetch) -> bool:
    """Whether two tensors, or none, hold the same numbers on a sample."""
    if one is None or other is None:
        return one is other
    if isinstance(one, Rows) and isinstance(other, Rows):
        inner = zip(one.sources, other.sources, strict=False)
        same = len(one.sources) == len(other.sources) and one.rows == other.rows
        return same and all(_alike(first, second, fetch) for first, second in inner)
    return lineage.same_sample(one, other, fetch)


def _is_apart(each: Lineage, new: Source, tied: Mapping[Source, bool]) -> bool:
    """Whether an adapter to a tied model changes the embedding and the head differently."""
    return each.is_adapter and tied[each.base or new] and not tied[each.post]


def _warn_of_adapters(
    apart: Sequence[Source], head: str, embedding: str, findings: Findings
) -> None:
    """Find adapters whose Δ of the embedding becomes one of the tied head."""
    for post in apart:
        if embedding in post.views or embedding in post.deltas:
            findings.add(
                Severity.WARNING,
                "adapted-embedding",
                "the adapter's Δ of the embedding also changes the output head that is tied to it; "
                "with PEFT, unmerged, it does not",
                post,
                tensor=embedding,
            )


def _with_embedding(
    sources: Sources,
    tied: Mapping[Source, bool],
    head: str,
    embedding: str,
    findings: Findings,
) -> tuple[Sources, dict[Source, bool]]:
    """The sources with a tied tensor that is stored as the head called the embedding."""
    changed = []
    for source in sources.all:
        if tied[source] and head in source.views and embedding not in source.views:
            what = "the tied embedding is stored under the name of the output head"
            findings.add(Severity.NOTE, "stored-as-head", what, source, tensor=head)
            views = {(embedding if n == head else n): view for n, view in source.views.items()}
            source = replace(source, views=views)
        changed.append(source)
    again = dict(zip(changed, (tied[source] for source in sources.all), strict=True))
    return sources.replaced(changed), again


def _is_tied(source: Source, head: str, embedding: str, findings: Findings, fetch: Fetch) -> bool:
    """Whether the head is the embedding. A stored head that differs from it counts as it is,
    whatever config.json says.
    """
    views = source.known
    tied = names.is_tied(head, views, source.checkpoint.config)
    stored = tied and {head, embedding} <= views.keys()
    if stored and not lineage.same_sample(views[head], views[embedding], fetch):
        findings.add(
            Severity.WARNING,
            "not-tied",
            "config.json says that the output head is the input embedding, but the stored "
            "head differs; it is used as it is",
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
