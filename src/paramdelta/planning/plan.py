"""The plan: what every output tensor is made of, and every finding. `planner` makes it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from paramdelta.dtypes import DTYPES
from paramdelta.encodings.encoding import Encoding, Stream
from paramdelta.errors import MisfitError, parameter
from paramdelta.formats.checkpoint import Checkpoint, SourceFile
from paramdelta.formats.components import WHOLE, Component
from paramdelta.formats.view import View
from paramdelta.planning.account import FileFate
from paramdelta.planning.coefficients import Coefficient
from paramdelta.planning.companions import Companion
from paramdelta.planning.findings import Finding, Severity
from paramdelta.planning.lineage import Likeness, Shift
from paramdelta.planning.settlement import Case
from paramdelta.recipe import Recipe
from paramdelta.schemes.pair import Pair
from paramdelta.schemes.scheme import Scheme
from paramdelta.schemes.sum import SUM
from paramdelta.storage.blob import Blob
from paramdelta.storage.store import is_far
from paramdelta.text import shown
from paramdelta.units import show_count


@dataclass(frozen=True)
class Term:
    """One operand of an output tensor: a view of its shape, and its coefficient."""

    view: View
    coefficient: float


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output: ``new`` combined with the Δs of ``pairs``; without pairs, a copy.

    ``encoding``: how it is stored. ``scheme``: how the Δs combine. ``why``: why it is only copied;
    empty for a mixed tensor. ``asked``: the coefficient of every Δ of the recipe; None if the
    tensor does not have that Δ. ``reduced``: operands canceled out, and ``new`` and ``pairs`` are
    what is left of the formula.
    """

    name: str
    encoding: Encoding
    shape: tuple[int, ...]
    new: View
    pairs: tuple[Pair, ...] = ()
    scheme: Scheme = SUM
    why: str = ""
    asked: tuple[Coefficient | None, ...] = ()
    reduced: bool = False

    @property
    def dtype(self) -> str:
        """Safetensors dtype of the main stream."""
        return self.encoding.dtype

    @cached_property
    def streams(self) -> tuple[Stream, ...]:
        """The tensors of the weight files that store it."""
        return self.encoding.streams(self.name, self.shape)

    @cached_property
    def linear(self) -> bool:
        """Whether it is a plain sum without filters, so that operands may cancel out."""
        return self.scheme.linear and not any(pair.filters for pair in self.pairs)

    @cached_property
    def packed(self) -> bool:
        """Whether it has one whole Δ, whose operands can be added as they are stored."""
        one = len(self.pairs) == 1 and abs(self.pairs[0].scale) == 1 and self.linear
        forms = {view.packed for view in self.views} if one else {""}
        return len(forms) == 1 and "" not in forms

    @property
    def mixed(self) -> bool:
        """Whether it has a Δ."""
        return bool(self.pairs) or self.reduced

    @cached_property
    def stored(self) -> tuple[View, ...] | None:
        """The views whose bytes are its streams, if it is a copy that needs no encoding."""
        return None if self.pairs else self.encoding.stored(self.new)

    @property
    def terms(self) -> tuple[Term, ...]:
        """All operands with their coefficients, the new base first."""
        mixed = [
            Term(view, sign * pair.coefficient)
            for pair in self.pairs
            for view, sign in ((pair.post, 1), (pair.base, -1))
        ]
        return (Term(self.new, 1.0), *mixed)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The operands that are read: each once, the new base first."""
        views: list[View] = []
        for term in self.terms:
            if term.view not in views:
                views.append(term.view)
        return tuple(views)

    @cached_property
    def places(self) -> tuple[int, ...]:
        """For each of `terms` the index of its view in `views`."""
        return tuple(self.views.index(term.view) for term in self.terms)

    def to_dict(self) -> dict[str, Any]:
        """The tensor, its terms and what the weight files hold of it as plain values, for JSON."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "terms": [
                {
                    "stored": [[str(part.blob), part.name] for part in term.view.parts],
                    "dtype": term.view.dtype,
                    "coefficient": term.coefficient,
                }
                for term in self.terms
            ],
            "why": self.why,
            "streams": [
                {"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in self.streams
            ],
        }

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return self.new.elements

    @property
    def nbytes(self) -> int:
        """Bytes of all its streams."""
        return sum(stream.nbytes for stream in self.streams)


@dataclass(frozen=True, repr=False)
class Plan:
    """Everything that a mix will do, decided before a weight is read.

    ``new_base`` gives shapes and names. ``lineages``: post and base of every Δ; the base is None
    where post needs none. The first post gives chat template and special-token roles. ``tensors``:
    in the order of the output. ``likeness``: cosine and distance on a sample, by pair of roles.
    ``shifts``: how far the new base moved beside each Δ, by the role of post.
    ``vocabulary``: what becomes of the output's rows of tokens; empty if they correspond by number.
    ``components``: the models of the output, each with files of its own. ``account``: what becomes
    of every file of every source. ``fetched``: bytes that came over a network to make the plan.
    """

    recipe: Recipe
    new_base: Checkpoint
    lineages: tuple[tuple[Checkpoint, Checkpoint | None], ...]
    tensors: tuple[OutputTensor, ...]
    companions: tuple[Companion, ...]
    findings: tuple[Finding, ...]
    likeness: Mapping[str, Likeness] = field(default_factory=dict)
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    vocabulary: tuple[Case, ...] = ()
    components: tuple[Component, ...] = WHOLE
    account: tuple[FileFate, ...] = ()
    fetched: int = field(default=0, compare=False)

    def __repr__(self) -> str:
        return (
            f"<Plan {shown(self.recipe.symbols)}: {self.mixed} tensors mixed, {self.copied} copied,"
            f" {show_count(self.parameters)} parameters, {len(self.findings)} findings,"
            f" {len(self.refused)} refused>"
        )

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        """All checkpoints: the new base, then post and base of every Δ."""
        both = (source for lineage in self.lineages for source in lineage if source is not None)
        return (self.new_base, *both)

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """All weight files that are read, each once."""
        return tuple({f.blob: f for source in self.sources for f in source.sources}.values())

    @property
    def bytes_to_read(self) -> int:
        """Bytes of all operands, each once, and of two more passes where thresholds are needed."""
        operands = sum(view.nbytes for tensor in self.tensors for view in tensor.views)
        return operands + bytes_to_measure(self.tensors)

    @cached_property
    def transfers(self) -> Mapping[str, int]:
        """Bytes of weights that a mix reads over a network, by the role of their checkpoint."""
        found: dict[str, int] = {}
        parts = {part for t in self.tensors for view in t.views for part in view.parts}
        for blob in {part.blob for part in parts if is_far(part.blob)}:
            size = sum(part.nbytes for part in parts if part.blob == blob)
            found[self._roles[blob]] = found.get(self._roles[blob], 0) + size
        return {s.role: found[s.role] for s in self.sources if s.role in found}

    @property
    def bytes_to_write(self) -> int:
        """Bytes of all output tensors, without headers and other files."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Floating-point numbers of the output, without the scales of quantized weights."""
        return sum(
            t.elements for t in self.tensors if DTYPES[t.dtype].mixable or t.dtype == "F8_E4M3"
        )

    @property
    def mixed(self) -> int:
        """How many tensors have a Δ."""
        return sum(t.mixed for t in self.tensors)

    @property
    def copied(self) -> int:
        """How many tensors are copied."""
        return sum(not t.mixed for t in self.tensors)

    def role(self, view: View) -> str:
        """The role of the checkpoint that a view is from; the first of several; "" for zeros."""
        if not view.parts:
            return ""
        return self._roles.get(view.parts[0].blob, "")

    @cached_property
    def _roles(self) -> dict[Blob, str]:
        return {f.blob: s.role for s in reversed(self.sources) for f in s.sources}

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that prevent the mix."""
        return tuple(f for f in self.findings if f.severity is Severity.REFUSED)

    @property
    def digest(self) -> str:
        """SHA-256 over what determines the output's weights: sources' headers, terms, dtypes."""
        headers = {file.blob: file.header_sha256 for file in self.files}
        lines = [
            [
                tensor.name,
                [[stream.name, stream.dtype, stream.shape] for stream in tensor.streams],
                tensor.shape,
                [[*t.view.identity, t.coefficient] for t in tensor.terms],
                *([] if tensor.linear else [_combination(tensor)]),
            ]
            for tensor in self.tensors
        ]
        text = json.dumps(lines, default=headers.__getitem__)  # a file stands as its header's hash
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self, *, tensors: bool = False) -> dict[str, Any]:
        """The plan as plain values, for JSON. ``tensors``: also every output tensor."""
        plain = {
            "formula": self.recipe.formula,
            "digest": self.digest,
            "parameters": self.parameters,
            "tensors": len(self.tensors),
            "mixed": self.mixed,
            "copied": self.copied,
            "bytes_to_read": self.bytes_to_read,
            "bytes_to_write": self.bytes_to_write,
            "transfers": dict(self.transfers),
            "fetched": self.fetched,
            "sources": [
                {
                    "role": source.role,
                    "address": source.location.pinned,
                    "tensors": len(source.tensors),
                    "parameters": source.parameters,
                    "bytes": source.nbytes,
                }
                for source in self.sources
            ],
            "vocabulary": [
                {"case": case.name, "rows": case.count, "first": list(case.tokens)}
                for case in self.vocabulary
            ],
            "likeness": {
                pair: {"cosine": like.cosine, "distance": like.distance}
                for pair, like in self.likeness.items()
            },
            "shifts": {role: asdict(shift) for role, shift in self.shifts.items()},
            "companions": [
                {"name": c.name, "giver": c.giver, "why": c.why, "changes": dict(c.changes)}
                for c in self.companions
            ],
            "account": [fate.to_dict() for fate in self.account],
            "findings": [finding.to_dict() for finding in self.findings],
        }
        return plain | {"terms": [t.to_dict() for t in self.tensors]} if tensors else plain

    def check(self) -> None:
        """Raise MisfitError if a finding prevents the mix."""
        if not self.refused:
            return
        first = self.refused[0]
        rest = len(self.refused) - 1
        place = f"{first.where}: {first.sample()}" if first.tensors else first.where
        more = f" ({rest} more refused: see paramdelta plan)" if rest else ""
        raise MisfitError(first.what + more, code=first.code, where=place, remedy=_remedy(first))


def _combination(tensor: OutputTensor) -> list[Any]:
    return [
        [tensor.scheme.name, tensor.scheme.plain],
        [[pair.scale, *(filter_.plain for filter_ in pair.filters)] for pair in tensor.pairs],
    ]


def _remedy(finding: Finding) -> str | None:
    ways = [finding.remedy] if finding.remedy else []
    if finding.allowed:
        ways.append(f"{parameter('allow', (finding.code,))} ({finding.allowed})")
    return "; or ".join(ways) or None


def bytes_to_measure(tensors: Iterable[OutputTensor]) -> int:
    """Bytes of the two passes over each Δ whose threshold has to be found."""
    looks = dict.fromkeys(
        (pair.number, pair.post, pair.base)
        for tensor in tensors
        for pair in tensor.pairs
        if pair.needs_threshold
    )
    return sum(2 * (post.nbytes + base.nbytes) for _, post, base in looks)
