"""Tensors of the output that are copied, because arithmetic on them makes no sense.

Constant buffers, codes of quantized weights, integers, booleans and complex numbers. What they are
is told by content: names and dtypes together, and whether post changed them.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from paramdelta.formats.buffers import is_buffer
from paramdelta.formats.view import Fetch, View
from paramdelta.planning.findings import Findings, Severity
from paramdelta.planning.sources import Lineage, Source, Sources

UNQUANTIZED = "use an unquantized (BF16, F16 or F32) release of the model"
WHOLE = 1 << 20  # bytes of a tensor that are compared; of a larger one, three runs of `RUN`
RUN = 1 << 16
TABLE = 64  # elements of an integer matrix that can be codes or a table


def why_copied(name: str, sources: Sources, changes: Iterable[int], findings: Findings) -> str:
    """Why a tensor of the new base is copied whatever the Δs hold; "" if it is a weight.

    ``changes``: the numbers of the Δs that the recipe wants for it, with a scale other than 0.

    Raises:
        StorageError: it cannot be read.
    """
    new = sources.new.views[name]
    if is_buffer(new):
        what = "constants are copied, not mixed"
        findings.add(Severity.NOTE, "buffer", what, sources.new, tensor=name)
        return "constant buffer"
    quantized = sources.new.codes.get(new.name)
    if quantized is None and not new.kind.mixable and _is_code(new, sources.new):
        quantized = new.dtype
    if quantized is not None:
        refuse_quantized(quantized, name, sources.new, findings)
        return f"a part of {quantized} codes"
    if new.kind.mixable:
        return ""
    changed = [
        each
        for each in sources.lineages
        if each.number in changes and _changed(name, each, sources.fetch)
    ]
    if changed:
        table = len(new.shape) > 1 and new.elements >= TABLE
        for each in changed:
            findings.add(
                Severity.REFUSED if table else Severity.WARNING,
                "integer-changed" if table else "counter-changed",
                f"post's tensors of {new.dtype} differ from base's, and no Δ can be taken of them"
                + (" (codes of quantized weights, or a table)" if table else "; copied"),
                each.post,
                tensor=name,
                remedy=UNQUANTIZED if table else None,
                allowed="copied from the new base",
            )
    elif new.dtype.startswith("C"):
        what = "complex tensors are copied, not mixed; post did not change them"
        findings.add(Severity.NOTE, "complex", what, sources.new, tensor=name)
    else:
        what = "integer and boolean tensors are copied, not mixed"
        findings.add(Severity.NOTE, "integer", what, sources.new, tensor=name)
    return f"{new.dtype}, not a weight"


def refuse_quantized(form: str, name: str, source: Source, findings: Findings) -> None:
    """Refuse a tensor that is a part of a quantized weight, or missing because of one."""
    findings.add(
        Severity.REFUSED,
        "quantized",
        f"weights are quantized ({form}), and their codes cannot be added",
        source,
        tensor=name,
        remedy=UNQUANTIZED,
    )


def _is_code(new: View, source: Source) -> bool:
    """Whether a tensor that is no weight holds codes, by its dtype or by config.json."""
    narrow = new.dtype.startswith(("F8", "F6", "F4"))
    return narrow or bool(source.checkpoint.config.get("quantization_config"))


def _changed(name: str, each: Lineage, fetch: Fetch) -> bool:
    """Whether post holds other numbers than base, as far as a sample of large tensors tells."""
    post = each.post.views.get(name)
    base = each.base.views.get(name) if each.base is not None else None
    if post is None or base is None or post.shape != base.shape:
        return post is not None and base is not None
    return not same_bytes(post, base, fetch)


def same_bytes(one: View, other: View, fetch: Fetch) -> bool:
    """Whether two tensors of one shape hold the same stored bytes.

    All of them up to `WHOLE` bytes, else runs from the start, the middle and the end. Integers of
    different dtypes are compared as numbers, up to `WHOLE` bytes.
    """
    if one.dtype != other.dtype:
        if "C" in one.dtype + other.dtype or one.nbytes > WHOLE:
            return False
        count = one.elements
        return np.array_equal(one.array(0, count, fetch), other.array(0, count, fetch))
    if len(one.parts) != len(other.parts):
        return False
    for part, twin in zip(one.parts, other.parts, strict=True):
        if part.size != twin.size:
            return False
        runs = [(0, part.size)]
        if part.size > WHOLE:
            runs = [(at, RUN) for at in (0, part.size // 2, part.size - RUN)]
        for start, size in runs:
            read = []
            for tensor in (part, twin):
                into = bytearray(size)
                fetch(replace(tensor, dtype="U8"), start, memoryview(into))
                read.append(into)
            if read[0] != read[1]:
                return False
    return True
