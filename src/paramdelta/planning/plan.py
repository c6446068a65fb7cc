"""Recipe and checkpoints -> Plan: what every output tensor is made of, and every finding.

Made from headers, config files and tokenizer files alone, plus a few MB of weights for the question
whether the checkpoints are relatives. Nothing is written.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from paramdelta.checkpoint.checkpoint import Checkpoint, SourceFile, open_checkpoint
from paramdelta.checkpoint.tensor import View
from paramdelta.dtypes import DTYPES
from paramdelta.errors import MisfitError
from paramdelta.planning import companions, lineage, vocabulary
from paramdelta.planning.companions import Companion
from paramdelta.planning.findings import Finding, Severity, apply_allowances
from paramdelta.planning.names import aligned, head_and_embedding, is_buffer, is_tied
from paramdelta.recipe import Recipe


@dataclass(frozen=True)
class Term:
    """One operand of an output tensor: a view of the same shape, and its coefficient."""

    view: View
    coefficient: float


@dataclass(frozen=True)
class Pair:
    """The operands of one Δ: ``scale · (post − base)``; ``number`` counts the recipe's Δ from 0."""

    number: int
    post: View
    base: View
    scale: float


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output: ``new + Σ scale · (post − base)``; without pairs, a copy.

    ``why`` says why a tensor is only copied; empty for a mixed one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    new: View
    pairs: tuple[Pair, ...] = ()
    why: str = ""

    @property
    def terms(self) -> tuple[Term, ...]:
        """All operands with their coefficients, the new base's first."""
        mixed = [Term(t, c) for p in self.pairs for t, c in ((p.post, p.scale), (p.base, -p.scale))]
        return (Term(self.new, 1.0), *mixed)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return self.new.elements

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the output."""
        return DTYPES[self.dtype].nbytes(self.elements)


@dataclass(frozen=True)
class Plan:
    """Everything that will be done, decided before a weight is read.

    ``sources``: the new base first, then post and base of every Δ. ``tensors`` are in the order in
    which they are written. ``likeness``: by pair of roles, cosine and distance on the sample.
    """

    recipe: Recipe
    sources: tuple[Checkpoint, ...]
    tensors: tuple[OutputTensor, ...]
    companions: tuple[Companion, ...]
    findings: tuple[Finding, ...]
    likeness: Mapping[str, lineage.Likeness] = field(default_factory=dict)

    @property
    def new_base(self) -> Checkpoint:
        """The checkpoint that gives shape and names."""
        return self.sources[0]

    @property
    def post(self) -> Checkpoint:
        """The post-trained checkpoint of the first Δ, which gives template and roles."""
        return self.sources[1]

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """All weight files that are read, each once."""
        return tuple({f.path: f for source in self.sources for f in source.files}.values())

    @property
    def bytes_to_read(self) -> int:
        """Bytes of all operands."""
        return sum(term.view.nbytes for t in self.tensors for term in t.terms)

    @property
    def bytes_to_write(self) -> int:
        """Bytes of all output tensors, without headers and companions."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Floating-point numbers of the output."""
        return sum(t.elements for t in self.tensors if DTYPES[t.dtype].mixable)

    @property
    def refused(self) -> tuple[Finding, ...]:
        """The findings that forbid the mix."""
        return tuple(f for f in self.findings if f.severity is Severity.REFUSED)

    @property
    def digest(self) -> str:
        """SHA-256 over what determines the output's weights: sources' headers, terms, dtypes."""
        headers = {file.path: file.header_sha256 for file in self.files}
        lines = [
            [
                tensor.name,
                tensor.dtype,
                tensor.shape,
                [[*t.view.identity, t.coefficient] for t in tensor.terms],
            ]
            for tensor in self.tensors
        ]
        text = json.dumps(lines, default=headers.__getitem__)  # a file stands as its header's hash
        return hashlib.sha256(text.encode()).hexdigest()

    def check(self) -> None:
        """Raise MisfitError if a finding forbids the mix."""
        if not self.refused:
            return
        first = self.refused[0]
        rest = len(self.refused) - 1
        place = f"{first.where}: {first.sample()}" if first.tensors else first.where
        more = f" ({rest} more refused: see paramdelta plan)" if rest else ""
        raise MisfitError(first.what + more, where=place, remedy=_remedy(first))


def _remedy(finding: Finding) -> str | None:
    ways = [finding.remedy] if finding.remedy else []
    if finding.allowed:
        ways.append(f"--allow {finding.code} ({finding.allowed})")
    return "; or ".join(ways) or None


def make_plan(recipe: Recipe) -> Plan:
    """Open the checkpoints of a recipe by their headers and decide everything.

    Raises:
        UsageError: an address that is no checkpoint.
        CheckpointError: damaged or hostile files.
        StorageError: something cannot be read or downloaded.
    """
    opened: dict[str, Checkpoint] = {}

    def open_once(address: str, role: str) -> Checkpoint:
        if address not in opened:
            opened[address] = open_checkpoint(address, role)
        return replace(opened[address], role=role)

    sources = [open_once(recipe.new_base, "new base")]
    several = len(recipe.deltas) > 1
    for number, delta in enumerate(recipe.deltas, 1):
        tag = f" {number}" if several else ""
        sources.append(open_once(delta.post, f"post{tag}"))
        sources.append(open_once(delta.base, f"base{tag}"))
    return _Planner(recipe, sources).plan()


class _Planner:
    """Collects output tensors and findings; one instance makes one plan."""

    def __init__(self, recipe: Recipe, sources: list[Checkpoint]) -> None:
        self.recipe = recipe
        self.sources = sources
        self.new = sources[0]
        self.findings: list[Finding] = []
        self.grouped: dict[tuple[str, str], tuple[Finding, list[str]]] = {}
        self.views: list[dict[str, View]] = [dict(self.new.tensors)]
        for source in sources[1:]:
            view, change = aligned(source, self.new)
            self.views.append(view)
            if change is not None:
                self.find(Severity.NOTE, "prefix", f"tensor names are read as {change}…", source)

    def plan(self) -> Plan:
        tied = self.tie()
        tensors = [self.output(name) for name in self.names]
        self.leftovers()
        for finding, names in self.grouped.values():
            self.findings.append(replace(finding, tensors=tuple(names)))
        likeness = self.relatives()
        self.architecture()
        comparison = self.vocabulary()
        dtypes = {t.dtype for t in tensors if DTYPES[t.dtype].mixable}
        dtype = next(iter(dtypes)) if len(dtypes) == 1 else None
        chosen = companions.choose(self.new, self.sources[1], comparison, dtype, tied)
        # Wider elements first, as the format's own writer does: every tensor stays aligned.
        tensors.sort(key=lambda tensor: -DTYPES[tensor.dtype].size)
        return Plan(
            self.recipe,
            tuple(self.sources),
            tuple(tensors),
            chosen,
            apply_allowances(self.findings, self.recipe.allow),
            likeness,
        )

    def find(
        self,
        severity: Severity,
        code: str,
        what: str,
        source: Checkpoint,
        *,
        tensor: str | None = None,
        remedy: str | None = None,
        allowed: str | None = None,
    ) -> None:
        """Note a finding; those of one code and checkpoint that name a tensor become one."""
        finding = Finding(severity, code, what, str(source), (), remedy, allowed)
        if tensor is None:
            self.findings.append(finding)
        else:
            self.grouped.setdefault((code, str(source)), (finding, []))[1].append(tensor)

    # -- tensors -----------------------------------------------------------------------------------

    def tie(self) -> bool | None:
        """Settle the output head; what config.json must say about it, None if nothing changes.

        Tied is a fact about the output: as soon as one checkpoint has a head of its own, so has the
        output, and in those that have none the input embedding stands for it.
        """
        self.names = list(self.views[0])
        pair = head_and_embedding(self.views)
        if pair is None:
            return None
        head, embedding = pair
        ties = [is_tied(head, v, s.config) for v, s in zip(self.views, self.sources, strict=True)]
        owners = [
            source
            for source, view, tied in zip(self.sources, self.views, ties, strict=True)
            if head in view and not tied
        ]
        if not owners and head not in self.new.tensors:
            return None
        for view, tied in zip(self.views, ties, strict=True):
            if tied and embedding in view:
                view.setdefault(head, view[embedding])
        if not owners or not all(head in view for view in self.views):
            return None  # tied everywhere; or missing somewhere, which the findings on names say
        if head not in self.names:
            self.names.append(head)
        if not any(ties):
            return None
        who = " and ".join(str(owner) for owner in owners)
        self.find(
            Severity.WARNING,
            "untied",
            f"only {who} has an output head of its own; the output gets one, and config.json says "
            "tie_word_embeddings: false",
            self.new,
            tensor=head,
        )
        return False

    def output(self, name: str) -> OutputTensor:
        """Decide one output tensor."""
        new = self.views[0][name]
        kind = new.kind
        target = self.recipe.dtype if self.recipe.dtype and kind.mixable else new.dtype
        if is_buffer(new):
            self.find(
                Severity.NOTE, "buffer", "constants are copied, not mixed", self.new, tensor=name
            )
            return OutputTensor(name, new.dtype, new.shape, new, why="constant buffer")
        if not kind.mixable:
            self.unmixable(name, new)
            return OutputTensor(name, new.dtype, new.shape, new, why=f"{new.dtype}, not a weight")
        pairs = []
        for number, delta in enumerate(self.recipe.deltas):
            pair = self.pair(name, new, number, delta.scale)
            if pair is not None:
                pairs.append(pair)
        why = "" if pairs else "no Δ for it"
        return OutputTensor(name, target, new.shape, new, tuple(pairs), why)

    def unmixable(self, name: str, new: View) -> None:
        if new.dtype.startswith(("F8", "F6", "F4", "C")) or self.new.config.get(
            "quantization_config"
        ):
            self.find(
                Severity.REFUSED,
                "quantised",
                f"weights are stored as {new.dtype}, which cannot be mixed yet",
                self.new,
                tensor=name,
                remedy="use an unquantised (BF16, F16 or F32) release of the model",
            )
        else:
            self.find(
                Severity.NOTE,
                "integer",
                "integer and boolean tensors are copied, not mixed",
                self.new,
                tensor=name,
            )

    def pair(self, name: str, new: View, number: int, scale: float) -> Pair | None:
        """The operands of one Δ for one tensor; None, with a finding, if it cannot be formed."""
        post_at, base_at = 1 + 2 * number, 2 + 2 * number
        post, base = self.views[post_at].get(name), self.views[base_at].get(name)
        copied = "copied from the new base"
        if post is None and base is None:
            if number == 0:
                self.find(
                    Severity.WARNING,
                    "only-in-new-base",
                    f"tensors that neither post nor base has are {copied}",
                    self.new,
                    tensor=name,
                )
            return None
        if post is None or base is None:
            source = self.sources[post_at if post is None else base_at]
            code = "missing-in-post" if post is None else "missing-in-base"
            self.find(
                Severity.REFUSED,
                code,
                f"tensors are missing in {source.role}, so they have no Δ",
                source,
                tensor=name,
                remedy="look whether it is the right checkpoint",
                allowed=copied,
            )
            return None
        for tensor, source in ((post, self.sources[post_at]), (base, self.sources[base_at])):
            if not tensor.kind.mixable:
                self.find(
                    Severity.REFUSED,
                    "quantised",
                    f"stored as {tensor.dtype}, which cannot be mixed yet",
                    source,
                    tensor=name,
                    remedy="use an unquantised (BF16, F16 or F32) release of the model",
                )
                return None
            if tensor.shape != new.shape:
                self.find(
                    Severity.REFUSED,
                    "shape-differs",
                    f"other shapes than in the new base, the first {list(tensor.shape)} "
                    f"and not {list(new.shape)}",
                    source,
                    tensor=name,
                    remedy="look whether it is the right checkpoint",
                    allowed=copied,
                )
                return None
            if tensor.dtype != new.dtype:
                self.find(
                    Severity.NOTE,
                    "dtype-differs",
                    f"stored as {tensor.dtype} where the new base has {new.dtype}; "
                    "mixed without loss",
                    source,
                    tensor=name,
                )
        return Pair(number, post, base, scale)

    def leftovers(self) -> None:
        """Tensors that the output does not get."""
        wanted = set(self.names)
        for at in range(1, len(self.sources), 2):
            post, base = self.sources[at], self.sources[at + 1]
            head = head_and_embedding(self.views)
            for name, tensor in self.views[at].items():
                if name in wanted:
                    continue
                if is_buffer(tensor) or not tensor.kind.mixable:
                    self.find(Severity.NOTE, "buffer-left", "constants left out", post, tensor=name)
                elif head and name == head[0] and is_tied(name, self.views[at], post.config):
                    self.find(
                        Severity.NOTE,
                        "head-repeats",
                        "the stored output head repeats the embedding and is left out",
                        post,
                        tensor=name,
                    )
                else:
                    both = name in self.views[at + 1]
                    self.find(
                        Severity.REFUSED,
                        "missing-in-new-base" if both else "only-in-post",
                        f"tensors of {post.role} have no place in the new base",
                        post,
                        tensor=name,
                        remedy="look whether it is the right checkpoint",
                        allowed="left out",
                    )
            for name in self.views[at + 1].keys() - wanted - self.views[at].keys():
                self.find(Severity.NOTE, "only-in-base", "tensors left out", base, tensor=name)

    # -- whole checkpoints -------------------------------------------------------------------------

    def relatives(self) -> dict[str, lineage.Likeness]:
        """Warn where two checkpoints were never the same model, or are one and the same."""
        names = lineage.sample(self.names, self.views)
        result: dict[str, lineage.Likeness] = {}
        for at in range(1, len(self.sources), 2):
            post, base = self.sources[at], self.sources[at + 1]
            for one, other, source in (
                (self.views[at + 1], self.views[0], self.new),
                (self.views[at + 1], self.views[at], post),
            ):
                like = lineage.likeness(names, one, other)
                if like is None:
                    continue
                result[f"{base.role} ~ {source.role}"] = like
                if like.cosine < lineage.RELATED:
                    self.find(
                        Severity.WARNING,
                        "unrelated",
                        f"cosine {like.cosine:.3f} with {base}: they were never the same model, so "
                        "a Δ means nothing here",
                        source,
                        remedy="look whether all three are the checkpoints that you mean",
                    )
                elif like.distance == 0 and source is post:
                    self.find(
                        Severity.WARNING,
                        "no-delta",
                        f"equal to {base} on the sample: the Δ seems to be zero",
                        source,
                    )
        return result

    def architecture(self) -> None:
        """Compare what config.json says about the meaning of the weights."""
        meaning = (
            "model_type",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "hidden_act",
            "partial_rotary_factor",
        )
        positions = (
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "max_position_embeddings",
            "sliding_window",
        )
        for source in self.sources[1:]:
            if not source.config or not self.new.config:
                continue
            for key in meaning:
                old, new = source.config.get(key), self.new.config.get(key)
                if old != new and None not in (old, new):
                    self.find(
                        Severity.REFUSED,
                        "architecture-differs",
                        f"config.json says {key}: {old!r}, the new base {new!r}",
                        source,
                        remedy="look whether it is the right checkpoint",
                        allowed="mixed nevertheless, as the new base's architecture",
                    )
            different = [k for k in positions if source.config.get(k) != self.new.config.get(k)]
            if different and source.role.startswith("post"):
                shown = "; ".join(
                    f"{k}: {source.config.get(k)!r} -> {self.new.config.get(k)!r}"
                    for k in different
                )
                self.find(
                    Severity.NOTE,
                    "positions",
                    f"positions and context length follow the new base ({shown})",
                    source,
                )

    def vocabulary(self) -> vocabulary.Comparison:
        """Compare the vocabularies of all posts and bases with the new base's."""
        results = []
        for source in self.sources[1:]:
            result = vocabulary.compare(self.new, source)
            results.append(result)
            if result.different:
                self.find(
                    Severity.REFUSED,
                    "vocabulary-differs",
                    f"{len(result.different)} ids stand for other tokens than in the new base "
                    f"(first {result.example})",
                    source,
                    remedy="use checkpoints of one vocabulary",
                    allowed="rows are mixed by number, the tokenizer is the new base's",
                )
            elif result.renamed:
                self.find(
                    Severity.NOTE,
                    "tokens-renamed",
                    f"{len(result.renamed)} reserved tokens have other names (first "
                    f"{result.example}); rows correspond by id",
                    source,
                )
        return results[0]


def summary(plan: Plan) -> dict[str, Any]:
    """The plan's figures for `--json`: counts, bytes, findings, companions."""
    return {
        "formula": plan.recipe.formula,
        "digest": plan.digest,
        "parameters": plan.parameters,
        "tensors": len(plan.tensors),
        "mixed": sum(bool(t.pairs) for t in plan.tensors),
        "copied": sum(not t.pairs for t in plan.tensors),
        "bytes_to_read": plan.bytes_to_read,
        "bytes_to_write": plan.bytes_to_write,
        "sources": [
            {
                "role": s.role,
                "address": s.location.pinned,
                "tensors": len(s.tensors),
                "parameters": s.parameters,
                "bytes": s.nbytes,
            }
            for s in plan.sources
        ],
        "likeness": {
            pair: {"cosine": like.cosine, "distance": like.distance}
            for pair, like in plan.likeness.items()
        },
        "companions": [
            {"name": c.name, "giver": c.giver, "why": c.why, "changes": dict(c.changes)}
            for c in plan.companions
        ],
        "findings": [_finding(finding) for finding in plan.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity.value,
        "code": finding.code,
        "what": finding.what,
        "where": finding.where,
        "tensors": list(finding.tensors),
        "remedy": finding.remedy,
        "allowed": finding.allowed,
    }


def terms(tensors: Iterable[OutputTensor]) -> list[dict[str, Any]]:
    """Every output tensor with its terms, for `--tensors --json`."""
    return [
        {
            "name": t.name,
            "dtype": t.dtype,
            "shape": list(t.shape),
            "terms": [
                {
                    "stored": [[str(part.file), part.name] for part in term.view.parts],
                    "dtype": term.view.dtype,
                    "coefficient": term.coefficient,
                }
                for term in t.terms
            ],
            "why": t.why,
        }
        for t in tensors
    ]
