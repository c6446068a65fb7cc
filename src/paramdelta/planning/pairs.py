"""The operands of one Δ for one output tensor, and whether they fit the new base."""

from paramdelta.formats.delta import other_half
from paramdelta.formats.view import View
from paramdelta.planning.constants import refuse_quantized
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.predictors import is_predictor
from paramdelta.planning.sources import Lineage, Source
from paramdelta.schemes.pair import Pair

LOOK = "check that it is the right checkpoint"
_COPIED = "copied from the new base"


def pairs_of(name: str, each: Lineage, scale: float, new: Source, findings: Findings) -> list[Pair]:
    """The operands of one Δ for one tensor. Empty, with a finding, if it cannot be formed.

    An adapter can give two: the tensor that it replaces, and the Δ on top. ``new``: the new base,
    for messages.
    """
    if scale == 0:  # then the tensor may have any form in post and base
        return []
    found: list[Pair] = []
    delta = each.post.deltas.get(name)
    if delta is not None:
        found.append(Pair(each.number, delta, other_half(delta), scale))
    post = each.post.views.get(name)
    base = each.base.views.get(name) if each.base is not None else None
    if post is None and (each.is_adapter or found):
        return found
    if post is None and base is None:
        if each.number == 0:
            what = f"tensors that neither post nor base has are {_COPIED}"
            findings.add(Severity.WARNING, "only-in-new-base", what, new, tensor=name)
        return found
    if post is None or base is None or each.base is None:
        source = each.post if post is None else each.base or f"the base of {each.post}"
        if is_predictor(name, new.checkpoint.config):
            findings.add(
                Severity.WARNING,
                "predictor-without-delta",
                f"layers that predict further tokens are missing there; they are {_COPIED}, and "
                "speculative decoding with them may accept fewer tokens",
                source,
                tensor=name,
            )
            return found
        if isinstance(source, Source) and source.codes:  # so it has codes in its place
            form = next(iter(source.codes.values()))
            refuse_quantized(form, name, source, findings)
            return found
        findings.add(
            Severity.REFUSED,
            "missing-in-post" if post is None else "missing-in-base",
            "tensors are missing there, so they have no Δ",
            source,
            tensor=name,
            remedy=LOOK,
            allowed=_COPIED,
        )
        return found
    for view, owner in ((post, each.post), (base, each.base)):
        code = owner.codes.get(view.name) or (None if view.kind.mixable else view.dtype)
        if code is not None:
            refuse_quantized(code, name, owner, findings)
            return found
    return [Pair(each.number, post, base, scale), *found]


def fits(pair: Pair, each: Lineage, new: View, findings: Findings) -> bool:
    """Whether both operands have the shape of the new base's tensor; if not, adds a finding."""
    for view, source in ((pair.post, each.post), (pair.base, each.base or each.post)):
        if view.shape != new.shape:
            findings.add(
                Severity.REFUSED,
                "shape-differs",
                f"shapes differ from the new base, the first is {list(view.shape)} instead of "
                f"{list(new.shape)}",
                source,
                tensor=new.name,
                remedy=LOOK,
                allowed=_COPIED,
            )
            return False
        if view.dtype != new.dtype and view.is_stored and not each.post.is_stored:
            _note_dtype(view, new, source, findings)
    return True


def _note_dtype(view: View, new: View, source: Source, findings: Findings) -> None:
    stored = sorted({part.dtype for part in view.parts})
    ours = sorted({part.dtype for part in new.parts})
    findings.add(
        Severity.NOTE,
        "dtype-differs",
        f"stored as {' and '.join(stored)} where the new base has {' and '.join(ours)}; "
        "mixed without loss",
        source,
        tensor=new.name,
    )
