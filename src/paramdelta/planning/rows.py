"""Tensors with a row for each token (embedding, output head and its bias), by the settlement."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from paramdelta.formats.view import ABSENT, View
from paramdelta.planning.findings import Findings
from paramdelta.planning.pairs import fits
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.settlement import Case, Settlement, picked, settle
from paramdelta.planning.sources import Sources
from paramdelta.planning.tokens import tell_rows
from paramdelta.planning.vocabulary import Vocabulary, has_rows_of_tokens, read_vocabulary
from paramdelta.recipe import Recipe
from paramdelta.schemes.pair import Pair


def settle_vocabularies(sources: Sources, recipe: Recipe) -> Settlement:
    """Read the vocabularies and decide how the rows of the sources correspond.

    Raises:
        CheckpointError: a tokenizer file that cannot be understood.
        UsageError: as `settle`.
    """
    read: dict[bytes, Vocabulary] = {}
    known = [read_vocabulary(sources.new.checkpoint, read)]
    for each in sources.lineages:
        for source in (each.post, each.base):
            found = read_vocabulary(source.checkpoint, read) if source is not None else None
            known.append(found)
        if each.post.is_stored:  # its rows are post's
            known[-1] = known[-2]
        if each.is_adapter and known[-2] is None and known[-1] is None:
            known[-2:] = [known[0]] * 2  # nothing says that it has tokens of its own
    where = str(sources.lineages[0].post)
    return settle(known, recipe.vocabulary, recipe.graft, recipe.take, where)


def tensors_of_tokens(sources: Sources) -> tuple[str, ...]:
    """Names of the output tensors with a row for each token, in their order."""
    return tuple(name for name in sources.new.views if has_rows_of_tokens(name))


def correspond_by_number(name: str, settlement: Settlement, sources: Sources) -> bool:
    """Whether the rows of a tensor correspond by their number in all sources."""
    return settlement.mode == "unknown" or settlement.plain(_heights(name, sources))


def by_token(
    name: str,
    pairs: Iterable[Pair],
    settlement: Settlement,
    sources: Sources,
    findings: Findings,
) -> tuple[View, list[Pair]]:
    """The operands of a tensor whose rows correspond by token: the new base's, and all pairs.

    Rows that a Δ lacks are zeros in both of its operands.
    """
    new = sources.new.views[name]
    rows = new.shape[0]
    operand, height = new, rows
    first = sources.lineages[0].post.views.get(name)
    if first is not None and first.shape[1:] == new.shape[1:]:
        height = settlement.height(rows)
        outright = settlement.outright(height, rows, first.shape[0])
        if outright is not None:
            operand = picked(name, (height, *new.shape[1:]), (new, first), outright)
    if settlement.mode == "new-base":
        return operand, []
    kept: list[Pair] = []
    for pair in pairs:
        each = sources.lineages[pair.number]
        if pair.post.shape[1:] != new.shape[1:] or pair.base.shape[1:] != new.shape[1:]:
            fits(pair, each, new, findings)
            continue
        post = settlement.rows(each.at, height, rows, pair.post.shape[0])
        base = settlement.rows(each.at + 1, height, rows, pair.base.shape[0])
        absent = (post == ABSENT) | (base == ABSENT)
        post[absent] = base[absent] = ABSENT
        kept.append(
            replace(
                pair,
                post=picked(name, operand.shape, (pair.post,), post),
                base=picked(name, operand.shape, (pair.base,), base),
            )
        )
    return operand, kept


def report_rows(
    settlement: Settlement, sources: Sources, of_tokens: Sequence[str], findings: Findings
) -> tuple[Case, ...]:
    """What becomes of the rows of the output's tokens. Empty if no tensor has such rows."""
    if not of_tokens:
        return ()
    heights = _heights(of_tokens[0], sources)
    shown = [*heights, *heights[-1:] * 2][:3]
    return tell_rows(settlement, sources, of_tokens[0], shown, findings)


def grown_rows(
    tensors: Iterable[OutputTensor], of_tokens: Sequence[str], sources: Sources
) -> int | None:
    """How many rows of tokens the output has, if more than the new base; else None."""
    heights = [
        tensor.shape[0]
        for tensor in tensors
        if tensor.name in of_tokens and tensor.shape[0] != sources.new.views[tensor.name].shape[0]
    ]
    return max(heights, default=None)


def _heights(name: str, sources: Sources) -> list[int]:
    """Rows of a tensor in every source that has it, the new base's first."""
    found = (view for s in sources.all for view in (s.views.get(name), s.deltas.get(name)))
    return [view.shape[0] for view in found if view is not None and view.shape]
