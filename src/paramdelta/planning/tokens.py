"""What the user should know of the rows of tokens: which correspond, and which are missing."""

from collections.abc import Mapping

import numpy as np

from paramdelta.errors import parameter
from paramdelta.formats.view import Fetch
from paramdelta.planning import lineage
from paramdelta.planning.bytelevel import read_out
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.roles import needed
from paramdelta.planning.settlement import Case, Settlement
from paramdelta.planning.sources import Lineage, Source, Sources
from paramdelta.planning.tokenaxes import rows_of_tokens
from paramdelta.planning.tokenizer import vocabulary_names
from paramdelta.planning.vocabulary import Vocabulary, first_tokens

UNTRAINED = 0.1  # of the median row norm: a row below this was hardly ever trained
NEIGHBORS = 65  # rows, spread over the vocabulary, that the median is taken of
SPECIAL = 512  # special tokens, at most, whose rows are looked at
SHARED = 0.5  # of a vocabulary: with less in common, one belongs to another family


def with_rows(vocabulary: Vocabulary, source: Source, findings: Findings) -> Vocabulary:
    """Those tokens of a source that it has rows for, with a note if there are others."""
    shapes = {name: view.shape for name, view in {**source.deltas, **source.views}.items()}
    rows = rows_of_tokens(shapes, source.checkpoint.config, vocabulary.size)
    if rows is None or vocabulary.size <= rows:
        return vocabulary
    beyond = [i for i in sorted(vocabulary.tokens) if i >= rows]
    findings.add(
        Severity.NOTE,
        "tokens-without-rows",
        f"the tokenizer has {len(beyond)} tokens for which there is no row (first "
        f"{', '.join(map(read_out, first_tokens(vocabulary, beyond)))}); they are left out",
        source,
    )
    kept = {i: token for i, token in vocabulary.tokens.items() if i < rows}
    return Vocabulary(kept, frozenset(i for i in vocabulary.special if i < rows), is_cut=True)


def tell_rows(
    settlement: Settlement, sources: Sources, embedding: str, heights: list[int], findings: Findings
) -> tuple[Case, ...]:
    """Say what becomes of the rows of tokens; their fates, for people."""
    new, each = settlement.new, sources.lineages[0]
    if new is None or settlement.post is None:
        return ()
    everyone = [sources.new, *(s for each in sources.lineages for s in (each.post, each.base))]
    known = zip(everyone, settlement.agreements, settlement.vocabularies, strict=True)
    for source, agreement, other in known:
        if source is None or agreement is None or other is None or settlement.forced:
            continue
        if agreement.renamed:
            first = agreement.renamed[0]
            findings.add(
                Severity.NOTE,
                "tokens-renamed",
                f"{len(agreement.renamed)} reserved tokens have other names (first id {first}: "
                f"{new.tokens[first]!r} and {other.tokens[first]!r}); rows correspond by id",
                source,
            )
        if agreement.moved:
            findings.add(
                Severity.NOTE,
                "tokens-moved",
                f"{agreement.moved} tokens have other ids than in the new base; rows "
                "correspond by token",
                source,
            )
        shared = 1 - len(agreement.only_other) / max(1, len(other.tokens))
        if shared < SHARED:
            findings.add(
                Severity.REFUSED,
                "vocabulary-unrelated",
                f"only {100 * shared:.0f} % of its tokens are in the new base's vocabulary",
                source,
                remedy="check that it is the right checkpoint, or pass `vocabulary='new-base'`",
                allowed="the rows of the tokens that both have are mixed",
            )
    tell_missing(settlement, each, findings)
    tell_rowless(settlement, sources.new, each, heights, findings)
    recommend_takes(settlement, sources.new, each, embedding, findings, sources.fetch)
    return settlement.cases(heights)


def tell_doubts(
    settlement: Settlement, sources: Sources, axes: Mapping[str, int], findings: Findings
) -> None:
    """Say where rows correspond by number although nothing shows that they are the same tokens."""
    everyone = [sources.new, *(s for each in sources.lineages for s in (each.post, each.base))]
    for source, doubt in zip(everyone, settlement.doubts, strict=False):
        if source is None or doubt is None or not axes:
            continue
        if doubt.missing:
            findings.add(
                Severity.NOTE,
                "tokenizer-missing",
                f"{doubt.why}; rows of tokens correspond by number",
                source,
            )
        else:
            findings.add(
                Severity.REFUSED,
                "tokenizer-unknown",
                f"which row is which token cannot be told: {doubt.why}",
                source,
                remedy="save the tokenizer with transformers, which writes a tokenizer.json; or "
                "pass `vocabulary='id'` if all tokenizers are the same, or `vocabulary='new-base'`",
                allowed="rows of tokens correspond by number",
            )


def tell_numbers(settlement: Settlement, sources: Sources, findings: Findings, name: str) -> None:
    """Say where rows correspond by number, as asked, although there are not equally many.

    ``name``: of a tensor with a row for each token.
    """
    ours = sources.new.views[name].shape
    for source in sources.others if settlement.forced else ():
        theirs = source.views.get(name)
        if theirs is not None and theirs.shape != ours:
            findings.add(
                Severity.WARNING,
                "rows-by-number",
                "rows of tokens correspond by number (`vocabulary='id'`), without a look at the "
                f"tokenizers, but there are {theirs.shape[0]} here and {ours[0]} in the new base",
                source,
                remedy="leave `vocabulary` out unless the same number is the same token",
            )


def tell_unnamed(
    settlement: Settlement, sources: Sources, axes: Mapping[str, int], findings: Findings
) -> None:
    """Warn where a post without a tokenizer has more rows of tokens than what it was trained from.

    Somebody added tokens, or rounded the rows up; no file says which.
    """
    if settlement.post is None or settlement.forced:
        return
    for each in sources.lineages:
        post, start = each.post, each.base or sources.new
        if post.is_stored or vocabulary_names(post.checkpoint.files):
            continue
        for name, axis in axes.items():
            theirs = post.views.get(name) or post.deltas.get(name)
            ours = start.views.get(name)
            if theirs is None or ours is None or len(theirs.shape) != len(ours.shape):
                continue
            rows, before = theirs.shape[axis], ours.shape[axis]
            if rows <= before:
                continue
            findings.add(
                Severity.WARNING,
                "rows-without-tokens",
                f"it has {rows} rows of tokens and {start.checkpoint.role} has {before}, but no "
                f"tokenizer that says what the {rows - before} others are; they are left out",
                post,
                tensor=name,
                remedy="put the tokenizer's files that it was trained with into its folder",
            )


def tell_rowless(
    settlement: Settlement, base: Source, each: Lineage, heights: list[int], findings: Findings
) -> None:
    """Tokens of the output's tokenizer that the output has no row for."""
    new, post = settlement.new, settlement.post
    if new is None or post is None:
        return
    rows = settlement.height(heights[0])
    beyond = [i for i in sorted(new.tokens) if i >= rows]
    shared = [post.ids[new.tokens[i]] for i in beyond if new.tokens[i] in post.ids]
    vital = needed(each.post.checkpoint.files, post, shared)
    if vital:
        options = parameter("take", tuple(post.tokens[i] for i in vital))
        findings.add(
            Severity.REFUSED,
            "tokens-without-rows",
            f"the new base's embedding has {rows} rows and none for {len(vital)} tokens that "
            f"post's conversations need: {', '.join(map(read_out, first_tokens(post, vital)))}",
            each.post,
            remedy=f"{options}: adds post's rows",
            allowed="the output's tokenizer has tokens that the model cannot read",
        )
    elif beyond:
        findings.add(
            Severity.NOTE,
            "tokens-without-rows",
            f"the tokenizer has {len(beyond)} tokens for which there is no row (first "
            f"{', '.join(map(read_out, first_tokens(new, beyond)))}); the model cannot read them",
            base,
        )


def tell_missing(settlement: Settlement, each: Lineage, findings: Findings) -> None:
    """Tokens of post that the output does not get."""
    post = settlement.post
    missing = settlement.only_in_post
    if post is None or not missing:
        return
    vital = needed(each.post.checkpoint.files, post, missing)
    if vital:
        options = parameter("graft", tuple(post.tokens[i] for i in vital))
        findings.add(
            Severity.REFUSED,
            "post-only-tokens",
            f"the new base lacks {len(vital)} tokens that post's conversations need: "
            + ", ".join(map(read_out, first_tokens(post, vital))),
            each.post,
            remedy=options,
            allowed="left out: chat template and ends of turns will not work as in post",
        )
    rest = [i for i in missing if i not in set(vital)]
    if rest:
        findings.add(
            Severity.NOTE,
            "tokens-left",
            f"{len(rest)} tokens that the new base lacks are left out (first "
            + ", ".join(map(read_out, first_tokens(post, rest)))
            + ")",
            each.post,
            remedy="`graft` adds one with post's row",
        )


def recommend_takes(
    settlement: Settlement,
    base: Source,
    each: Lineage,
    embedding: str,
    findings: Findings,
    fetch: Fetch,
) -> None:
    """Recommend post's rows for special tokens whose rows in the new base nobody trained."""
    new, post = settlement.new, settlement.post
    ours, theirs = base.views.get(embedding), each.post.views.get(embedding)
    if new is None or post is None or ours is None or theirs is None:
        return
    if len(ours.shape) != 2 or ours.shape[1:] != theirs.shape[1:]:
        return
    shared = [
        (new.ids[post.tokens[i]], i)
        for i in sorted(post.special)
        if post.tokens[i] in new.ids and i < theirs.shape[0]
    ]
    shared = [(i, j) for i, j in shared if i < ours.shape[0] and i not in settlement.takes]
    if not shared:
        return
    usual = np.linspace(0, min(new.size, ours.shape[0]) - 1, NEIGHBORS).astype(int).tolist()
    shared = shared[:SPECIAL]
    norms = lineage.row_norms(ours, [*usual, *(i for i, _ in shared)], fetch)
    least = UNTRAINED * float(np.median(norms[: len(usual)]))
    weak = [pair for pair, norm in zip(shared, norms[len(usual) :], strict=True) if norm < least]
    trained = lineage.row_norms(theirs, [j for _, j in weak], fetch) >= least
    found = [post.tokens[j] for (_, j), is_trained in zip(weak, trained, strict=True) if is_trained]
    if found:
        findings.add(
            Severity.WARNING,
            "untrained-rows",
            f"the new base never trained the rows of {len(found)} special tokens that post "
            f"uses ({', '.join(found[:4])}): their norm is below {UNTRAINED:g} of the others'",
            base,
            remedy=parameter("take", tuple(found[:8])) + ": post's rows outright",
        )
