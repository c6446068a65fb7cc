"""Tensors with a row for each token (embedding, output head and its bias), by the settlement."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from paramdelta.formats.view import ABSENT, View
from paramdelta.planning.findings import Findings
from paramdelta.planning.pairs import fits
from paramdelta.planning.plan import OutputTensor
from paramdelta.planning.settlement import (
    Case,
    Settlement,
    by_rows,
    fitting,
    on_axis,
    picked,
    settle,
)
from paramdelta.planning.sources import Source, Sources
from paramdelta.planning.tokenizer import Known, read_vocabulary
from paramdelta.planning.tokens import (
    tell_doubts,
    tell_numbers,
    tell_rows,
    tell_unnamed,
    with_rows,
)
from paramdelta.planning.vocabulary import Opaque, Vocabulary
from paramdelta.recipe import Recipe
from paramdelta.schemes.pair import Pair


def settle_vocabularies(sources: Sources, recipe: Recipe, findings: Findings) -> Settlement:
    """Read the vocabularies and decide how the rows of the sources correspond.

    By number, without a look at the tokenizers, if the recipe says so and takes no tokens.

    Raises:
        CheckpointError: a tokenizer file that cannot be understood.
        UsageError: as `settle`.
    """
    where = str(sources.lineages[0].post)
    if recipe.vocabulary == "id" and not recipe.graft and not recipe.take:
        return settle([None] * (2 * len(sources.lineages) + 1), "id", (), (), where)
    read: Known = {}
    known = [_vocabulary(sources.new, read)]
    for each in sources.lineages:
        for source in (each.post, each.base):
            found = _vocabulary(source, read) if source is not None else None
            if source is not None and isinstance(found, Vocabulary):
                found = with_rows(found, source, findings)
            known.append(found)
        if each.post.is_stored:  # its rows are post's
            known[-1] = known[-2]
        if each.is_adapter and known[-2] is None and known[-1] is None:
            known[-2:] = [known[0]] * 2  # nothing says that it has tokens of its own
    return settle(known, recipe.vocabulary, recipe.graft, recipe.take, where)


def correspond_by_number(name: str, axis: int, settlement: Settlement, sources: Sources) -> bool:
    """Whether the rows of a tensor correspond by their number in all sources.

    ``axis``: of its tokens.
    """
    return settlement.mode == "unknown" or settlement.plain(_heights(name, axis, sources))


def by_token(
    name: str,
    axis: int,
    pairs: Iterable[Pair],
    settlement: Settlement,
    sources: Sources,
    findings: Findings,
) -> tuple[View, list[Pair]]:
    """The operands of a tensor whose rows correspond by token: the new base's, and all pairs.

    ``axis``: of its tokens. Rows that a Δ lacks are zeros in both of its operands.
    """
    new = sources.new.views[name]
    turned = by_rows(new, axis)
    rows, *rest = turned.shape
    height = settlement.height(rows)
    shape = (height, *rest)
    operand = new
    first = sources.lineages[0].post.views.get(name)
    if first is not None and fitting(first.shape, new.shape, axis):
        own = by_rows(first, axis)
        outright = settlement.outright(height, rows, own.shape[0])
        if outright is not None:
            operand = on_axis(picked(name, shape, (turned, own), outright), axis)
    if settlement.mode == "new-base":
        return operand, []
    kept: list[Pair] = []
    for pair in pairs:
        each = sources.lineages[pair.number]
        if not all(fitting(view.shape, new.shape, axis) for view in (pair.post, pair.base)):
            fits(pair, each, new, findings)
            continue
        ours, theirs = by_rows(pair.post, axis), by_rows(pair.base, axis)
        post = settlement.rows(each.at, height, rows, ours.shape[0])
        base = settlement.rows(each.at + 1, height, rows, theirs.shape[0])
        absent = (post == ABSENT) | (base == ABSENT)
        post[absent] = base[absent] = ABSENT
        kept.append(
            replace(
                pair,
                post=on_axis(picked(name, shape, (ours,), post), axis),
                base=on_axis(picked(name, shape, (theirs,), base), axis),
            )
        )
    return operand, kept


def report_rows(
    settlement: Settlement, sources: Sources, axes: Mapping[str, int], findings: Findings
) -> tuple[Case, ...]:
    """What becomes of the rows of the output's tokens. Empty if no matrix has such rows.

    ``axes``: as in `token_axes`.
    """
    tell_doubts(settlement, sources, axes, findings)
    matrices = (name for name in axes if len(sources.new.views[name].shape) == 2)
    embedding = next(matrices, None)
    if embedding is None:
        return ()
    heights = _heights(embedding, axes[embedding], sources)
    shown = [*heights, *heights[-1:] * 2][:3]
    cases = tell_rows(settlement, sources, embedding, shown, findings)
    tell_unnamed(settlement, sources, axes, findings)
    tell_numbers(settlement, sources, findings, embedding)
    return cases


def grown_rows(
    tensors: Iterable[OutputTensor], axes: Mapping[str, int], sources: Sources
) -> dict[int, int]:
    """Rows of tokens in the output, by how many the new base's tensor has, if they are more."""
    result: dict[int, int] = {}
    for tensor in tensors:
        axis = axes.get(tensor.name)
        if axis is None:
            continue
        rows = sources.new.views[tensor.name].shape[axis]
        if tensor.shape[axis] != rows:
            result[rows] = tensor.shape[axis]
    return result


def _vocabulary(source: Source, read: Known) -> Vocabulary | Opaque | None:
    """The tokens of a source; None if it has no tokenizer."""
    return read_vocabulary(source.checkpoint.files, source.checkpoint.config, read)


def _heights(name: str, axis: int, sources: Sources) -> list[int]:
    """Rows of tokens of a tensor in every source that has it, the new base's first."""
    found = (view for s in sources.all for view in (s.views.get(name), s.deltas.get(name)))
    return [view.shape[axis] for view in found if view is not None and len(view.shape) > axis]
