"""Bring the tensors of every source under the names of the new base."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from paramdelta.formats.view import Fetch, View
from paramdelta.planning import names
from paramdelta.planning.experts import relaid
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.lineage import RELATED, is_matrix, likeness, read_sample
from paramdelta.planning.sources import Source, Sources

PROBES = 4  # pairs of matrices whose numbers are compared before a rule is proposed
MANY = 8  # modules that agree in names and shapes
AUTO = "auto"  # in place of a rule: apply the rules that are proposed


def align_names(sources: Sources, maps: Sequence[str], findings: Findings) -> Sources:
    """The sources with their tensors named as in the new base, as far as names can be matched.

    ``maps``: rules as `names.parse_rule` reads them, or `AUTO`.

    Raises:
        UsageError: a rule that cannot be read, changes no name or gives two tensors one name.
    """
    rules = [names.parse_rule(text) for text in maps if text != AUTO]
    automatic = AUTO in maps
    aligned, used = [sources.new], set[str]()
    for source in sources.others:
        views, by_view = _aligned(
            source, source.views, sources.new, rules, automatic, findings, sources.fetch
        )
        deltas, by_delta = _aligned(
            source, source.deltas, sources.new, rules, automatic, findings, None
        )
        aligned.append(replace(source, views=views, deltas=deltas))
        used |= by_view | by_delta
    for rule in rules:
        if rule.text not in used:
            own = (name for source in sources.others for name in (*source.views, *source.deltas))
            raise names.unused_rule(rule, own)
    return sources.replaced(aligned)


def join_repeats(sources: Sources, findings: Findings) -> Sources:
    """The sources with tensors matched that one names once and another several times.

    Pickles name a shared tensor several times. Each source gets the names of the new base.
    """
    groups = names.repeated(sources.new.views)
    joined = [_joined(source, sources.new, groups, findings) for source in sources.others]
    return sources.replaced([sources.new, *joined])


def _aligned(
    source: Source,
    own: Mapping[str, View],
    new: Source,
    rules: Sequence[names.Rule],
    automatic: bool,
    findings: Findings,
    fetch: Fetch | None,
) -> tuple[dict[str, View], set[str]]:
    """One source's tensors under the names of the new base, and the rules that were used.

    ``fetch``: reads the tensors, where they hold weights that are like those of the new base.
    """
    if not own:
        return {}, set()
    result, used = names.renamed(own, rules, new.views)
    for text, count in used.items():
        findings.add(Severity.NOTE, "mapped", f"{count} names are read as {text}", source)
    moved, prefix = names.bridged(result, new.views)
    gained = _gained(result, moved, new.views) if prefix is not None else []
    if gained and _is_credible(gained, result, new.views, fetch):
        result = moved
        findings.add(Severity.NOTE, "prefix", f"tensor names are read as {prefix}…", source)
    result, changed = relaid(result, new.views)
    if changed:
        what = "experts are read in the layout of the new base"
        findings.add(Severity.NOTE, "experts", what, source)
    proposals = tuple(
        proposal
        for proposal in names.propose(result, new.views)
        if _is_credible(proposal.pairs, result, new.views, fetch, 2)
    )
    shown = "; ".join(map(str, proposals))
    if proposals and automatic:
        result = names.applied(proposals, result, new.views)
        what = f"by `maps=('auto',)`, names are read as {shown}"
        findings.add(Severity.NOTE, "mapped", what, source)
    elif proposals:
        findings.add(
            Severity.NOTE,
            "map-proposed",
            f"more names would agree under {shown}",
            source,
            remedy="pass `maps=('auto',)` to apply this, or a rule of your own",
        )
    return result, set(used)


def _is_credible(
    pairs: Sequence[tuple[str, str]],
    own: Mapping[str, View],
    new: Mapping[str, View],
    fetch: Fetch | None,
    fewest: int = 1,
) -> bool:
    """Whether tensors that a rule would pair can be the same part of the model.

    Names and shapes can agree by accident, as those of two layers of equal size. So the numbers of
    a few matrices are compared. Where there are none, ``fewest`` modules have to agree; and `MANY`
    modules are no accident, whatever their numbers: then `compare_relatives` warns.
    """
    modules = {name.rpartition(".")[0] for name, _ in pairs}
    if len(modules) >= MANY:
        return True
    matrices = any(is_matrix(new[counterpart]) for _, counterpart in pairs)
    if fetch is None or not matrices:
        return len(modules) >= fewest
    return _alike(pairs, own, new, fetch)


def _alike(
    pairs: Sequence[tuple[str, str]],
    own: Mapping[str, View],
    new: Mapping[str, View],
    fetch: Fetch,
) -> bool:
    """Whether most of a few matrices are like their counterparts; True if there are none to read.

    Not all: a projector between two models may have been trained anew.
    """
    matrices = [
        (own[name], new[counterpart])
        for name, counterpart in pairs
        if is_matrix(new[counterpart])
        and own[name].shape == new[counterpart].shape
        and own[name].kind.mixable
        and new[counterpart].kind.mixable
    ]
    found = [
        likeness({"": read_sample(one, fetch)}, {"": read_sample(other, fetch)})
        for one, other in matrices[:: max(1, len(matrices) // PROBES)]
    ]
    unlike = [each for each in found if each is not None and each.cosine < RELATED]
    return 2 * len(unlike) <= len(found)


def _gained(
    before: Mapping[str, View], after: Mapping[str, View], new: Mapping[str, View]
) -> list[tuple[str, str]]:
    """Tensors that got a name of the new base: the old name and the new one."""
    old = {id(view): name for name, view in before.items()}
    pairs = [(old[id(view)], name) for name, view in after.items() if name in new]
    return [pair for pair in pairs if pair[0] != pair[1]]


def _joined(
    source: Source, new: Source, groups: Sequence[Sequence[str]], findings: Findings
) -> Source:
    """One source with the new base's names for its shared tensors.

    ``groups``: names that stand for one tensor in the new base.
    """
    views = dict(source.views)
    for repeats in names.repeated(views):
        placed = [name for name in repeats if name in new.views]
        for name in repeats if placed else ():
            if name not in placed:
                del views[name]
                what = "tensors with several names are used under those of the new base"
                findings.add(Severity.NOTE, "repeats", what, source, tensor=name)
    for group in groups:
        given = [views[name] for name in group if name in views]
        for name in group if given else ():
            views.setdefault(name, given[0])
    return replace(source, views=views)
