"""The result of an analysis: every tensor, and groups of tensors."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

from paramdelta.analysis.measures import Group, group
from paramdelta.analysis.prediction import Prediction, predict
from paramdelta.analysis.verdict import Verdict, verdict
from paramdelta.jobs.analyze import Head, Measured
from paramdelta.jobs.spectra import Spectrum
from paramdelta.jobs.tally import BOUND, Tally
from paramdelta.planning.findings import Finding
from paramdelta.planning.kinds import KINDS
from paramdelta.version import __version__

VERSION = 1  # of the JSON; see docs/analyze.md


@dataclass(frozen=True)
class TokenRow:
    """A row of an embedding that changed much. ``token``: its text; None if it is not known.

    ``norm``: ‖Δ‖ of the row. ``relative``: to ‖Θ_base‖ of the row; None if that is zero.
    ``median``: ‖Δ‖ of the median row.
    """

    row: int
    token: str | None
    norm: float
    relative: float | None
    median: float


@dataclass(frozen=True)
class TensorMeasures:
    """A tensor that has a Δ. ``heads`` and ``rows``: by number of the Δ. ``spectra``: of each Δ, if
    they were asked for.
    """

    name: str
    kind: str
    layer: int | None
    stack: str | None
    shape: tuple[int, ...]
    group: Group
    heads: Mapping[int, tuple[Head, ...]]
    rows: Mapping[int, tuple[TokenRow, ...]]
    spectra: tuple[Spectrum, ...] = ()


@dataclass(frozen=True)
class Cell:
    """Tensors of one layer, of one kind, or of both; None where it is of all.

    ``stack``: the names before the layer's number, where a model has several stacks of layers.
    """

    stack: str | None
    layer: int | None
    kind: str | None
    group: Group

    @property
    def name(self) -> str:
        """For people."""
        parts = [] if self.layer is None else [f"{self.stack or ''}{self.layer}"]
        return " ".join([*parts, *([self.kind] if self.kind else [])]) or "all"


@dataclass(frozen=True)
class DeltaName:
    """One Δ of the recipe: its label, and the addresses of post and base.

    ``factor``: its scale; None if that differs between tensors.
    """

    label: str
    post: str
    base: str | None
    factor: float | None


@dataclass(frozen=True)
class Analysis:
    """What was measured.

    ``formula``: the recipe in symbols. ``deltas``: of the recipe, in its order. ``new_base``: its
    address; None if there is none, and only Δs were measured. ``parameters``: numbers that the
    model has. ``all``, ``layers``, ``kinds``, ``cells`` (layer and kind): groups of tensors.
    ``left``: how many tensors have no Δ. ``histograms``: by number of the Δ, counts of |Δ| over all
    tensors, by bucket. ``findings``: of the plan. ``seconds``: wall time; ``read``: bytes.
    """

    formula: str
    deltas: tuple[DeltaName, ...]
    new_base: str | None
    parameters: int
    all: Group
    layers: tuple[Cell, ...]
    kinds: tuple[Cell, ...]
    cells: tuple[Cell, ...]
    tensors: tuple[TensorMeasures, ...]
    left: int
    histograms: tuple[tuple[int, ...], ...]
    findings: tuple[Finding, ...]
    seconds: float
    read: int

    @cached_property
    def verdict(self) -> Verdict:
        """What the measures say."""
        return verdict(self)

    def public(self) -> "Analysis":
        """The same to show to others: of each path of this machine, only its last part."""
        known = {self.new_base, *(a for each in self.deltas for a in (each.post, each.base))}
        paths = {a: PurePath(a).name for a in known if a and PurePath(a).is_absolute()}

        def short(text: str) -> str:
            for path in sorted(paths, key=len, reverse=True):
                text = text.replace(path, paths[path])
            return text

        return replace(
            self,
            new_base=self.new_base and short(self.new_base),
            deltas=tuple(
                replace(each, post=short(each.post), base=each.base and short(each.base))
                for each in self.deltas
            ),
            findings=tuple(
                replace(
                    found,
                    what=short(found.what),
                    where=short(found.where),
                    remedy=found.remedy and short(found.remedy),
                    allowed=found.allowed and short(found.allowed),
                )
                for found in self.findings
            ),
        )

    def predictions(self) -> tuple[Prediction, ...]:
        """The transfer of each Δ that the study leads one to expect, or why it says nothing."""
        found = (self.all.of(number) for number in range(len(self.deltas)))
        return tuple(
            predict(m, self.parameters, self.deltas[m.delta].factor, len(self.deltas))
            for m in found
            if m is not None
        )

    def to_html(self, *, predict: bool = False) -> str:
        """A page that opens offline. ``predict``: also the transfer that the study expects."""
        from paramdelta.analysis.report.page import page

        return page([self], predict=predict)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON: everything that was measured, nothing that depends on the run.

        Numbers that are NaN or infinite are None.
        """
        plain = {
            "analysis_version": VERSION,
            "formula": self.formula,
            "deltas": [asdict(each) for each in self.deltas],
            "new_base": self.new_base,
            "parameters": self.parameters,
            "tensors_without_delta": self.left,
            "quantile_bound": BOUND,
            "verdict": self.verdict.to_dict(),
            "all": self.all.to_dict(),
            "layers": [_cell(cell) for cell in self.layers],
            "kinds": [_cell(cell) for cell in self.kinds],
            "cells": [_cell(cell) for cell in self.cells],
            "tensors": [_tensor(tensor) for tensor in self.tensors],
            "findings": [finding.to_dict() for finding in self.findings],
            "versions": {"paramdelta": __version__},
        }
        return dict(_finite(plain))


def _cell(cell: Cell) -> dict[str, Any]:
    return {"stack": cell.stack, "layer": cell.layer, "kind": cell.kind, **cell.group.to_dict()}


def _tensor(tensor: TensorMeasures) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "kind": tensor.kind,
        "stack": tensor.stack,
        "layer": tensor.layer,
        "shape": list(tensor.shape),
        **tensor.group.to_dict(),
        "heads": {str(n): [asdict(head) for head in heads] for n, heads in tensor.heads.items()},
        "rows": {str(n): [asdict(row) for row in rows] for n, rows in tensor.rows.items()},
        "spectra": [asdict(spectrum) for spectrum in tensor.spectra],
    }


def _finite(value: Any) -> Any:
    """The same plain value without NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value


class Collector:
    """Adds measured tensors up to groups.

    ``tokens``: by row, of each tensor with a row for each token. ``shifts``: whether there is a new
    base.
    """

    def __init__(self, deltas: int, tokens: Mapping[str, Mapping[int, str]], shifts: bool) -> None:
        self.deltas, self.tokens, self.shifts = deltas, tokens, shifts
        self.all = Tally.empty(deltas)
        self.layers: dict[tuple[str | None, int], Tally] = {}
        self.kinds: dict[str, Tally] = {}
        self.cells: dict[tuple[str | None, int, str], Tally] = {}
        self.tensors: list[TensorMeasures] = []

    def __call__(self, measured: Measured) -> None:
        """Take a tensor."""
        one, tally = measured.subject, measured.tally
        if not self.shifts:
            tally.shifted[:] = 0
        self.all.add(tally)
        self.kinds.setdefault(one.kind, Tally.empty(self.deltas)).add(tally)
        self.tensors.append(
            TensorMeasures(
                one.name,
                one.kind,
                one.layer,
                one.stack,
                one.shape,
                group(tally),
                measured.heads,
                {n: self._rows(measured, n) for n in measured.leading},
            )
        )
        if one.layer is not None:
            layer, cell = (one.stack, one.layer), (one.stack, one.layer, one.kind)
            self.layers.setdefault(layer, Tally.empty(self.deltas)).add(tally)
            bare = tally.without_histogram()
            self.cells.setdefault(cell, Tally.empty(self.deltas).without_histogram()).add(bare)

    def _rows(self, measured: Measured, delta: int) -> tuple[TokenRow, ...]:
        tokens = self.tokens.get(measured.subject.name, {})
        return tuple(
            TokenRow(
                row.number,
                tokens.get(row.number),
                row.norm,
                row.norm / row.base if row.base else None,
                measured.median[delta],
            )
            for row in measured.leading[delta]
        )

    def groups(self) -> tuple[Group, tuple[Cell, ...], tuple[Cell, ...], tuple[Cell, ...]]:
        """All, layers, kinds and cells, in the order of the model."""
        stacks = list(dict.fromkeys(stack for stack, _ in self.layers))
        many = len(stacks) > 1

        def place(stack: str | None, layer: int) -> tuple[int, int]:
            return stacks.index(stack), layer

        layers = tuple(
            Cell(stack if many else None, layer, None, group(self.layers[stack, layer]))
            for stack, layer in sorted(self.layers, key=lambda key: place(*key))
        )
        kinds = tuple(
            Cell(None, None, kind, group(self.kinds[kind])) for kind in KINDS if kind in self.kinds
        )
        cells = tuple(
            Cell(stack if many else None, layer, kind, group(self.cells[stack, layer, kind]))
            for stack, layer, kind in sorted(
                self.cells, key=lambda key: (*place(key[0], key[1]), KINDS.index(key[2]))
            )
        )
        return group(self.all), layers, kinds, cells

    def histograms(self) -> tuple[tuple[int, ...], ...]:
        """Of |Δ| over all tensors."""
        return tuple(tuple(row) for row in self.all.histogram.tolist())


def ordered(tensors: Iterable[TensorMeasures], names: Iterable[str]) -> tuple[TensorMeasures, ...]:
    """Tensors in the order of the output."""
    known = {tensor.name: tensor for tensor in tensors}
    return tuple(known[name] for name in names if name in known)
