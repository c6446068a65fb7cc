"""A recipe at one or several scales: a plan for each, and how their outputs are laid out.

A mix is a sweep of one. Tensors that come out the same at every scale (most of them are copies) are
laid out last, so that they fill files of their own, which the outputs can share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from paramdelta.encodings.encoding import Stream
from paramdelta.errors import UsageError
from paramdelta.formats.components import component_of
from paramdelta.formats.view import View
from paramdelta.planning.plan import OutputTensor, Plan, bytes_to_measure
from paramdelta.planning.planner import make_plan
from paramdelta.planning.sources import Opener
from paramdelta.recipe import Recipe
from paramdelta.storage.reader import Reader

LEAST_SHARED = 1_000_000  # bytes: for less, the outputs keep the files that a mix would write


@dataclass(frozen=True)
class Stored:
    """One tensor of the weight files: stream number ``part`` of output tensor ``tensor``."""

    tensor: int
    part: int
    stream: Stream

    @property
    def nbytes(self) -> int:
        """Bytes in the weight file."""
        return self.stream.nbytes


@dataclass(frozen=True)
class Sweep:
    """Outputs of the same tensors. ``plans``: by output, what a mix with its scale would do."""

    scales: tuple[float, ...]
    plans: tuple[Plan, ...]

    @cached_property
    def alike(self) -> tuple[bool, ...]:
        """By tensor: whether every output has it the same. False where there is one output."""
        return tuple(
            len(self.plans) > 1 and all(same_values(one, other) for other in others)
            for one, *others in zip(*(plan.tensors for plan in self.plans), strict=True)
        )

    @cached_property
    def stored(self) -> tuple[Stored, ...]:
        """The tensors of the weight files, in the order in which files are filled."""
        listed = [
            Stored(number, part, stream)
            for number, tensor in enumerate(self.plans[0].tensors)
            for part, stream in enumerate(tensor.streams)
        ]
        components = self.plans[0].components
        if len(components) > 1:  # each has files of its own
            order = {component: number for number, component in enumerate(components)}
            listed.sort(key=lambda stored: order[component_of(stored.stream.name, components)])
        if self._shares:
            listed.sort(key=lambda stored: self.alike[stored.tensor])
        return tuple(listed)

    @property
    def own(self) -> int:
        """How many of `stored`, from the first, each output has for itself. The rest is shared."""
        if not self._shares:
            return len(self.stored)
        return sum(not self.alike[stored.tensor] for stored in self.stored)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the tensors that are the same in all outputs and written once."""
        return sum(stored.nbytes for stored in self.stored[self.own :])

    @property
    def bytes_to_read(self) -> int:
        """Bytes of the operands of all outputs, each once, and of the passes for thresholds."""
        columns = [*zip(*(plan.tensors for plan in self.plans), strict=True)]
        operands = sum(view.nbytes for tensors in columns for view in joint_views(tensors))
        return operands + sum(bytes_to_measure(tensors) for tensors in columns)

    def only(self, numbers: Sequence[int]) -> "Sweep":
        """Some of the outputs."""
        return replace(
            self,
            scales=tuple(self.scales[n] for n in numbers),
            plans=tuple(self.plans[n] for n in numbers),
        )

    @cached_property
    def _shares(self) -> bool:
        pairs = zip(self.plans[0].tensors, self.alike, strict=True)
        return sum(tensor.nbytes for tensor, alike in pairs if alike) >= LEAST_SHARED


def joint_views(tensors: Sequence[OutputTensor]) -> tuple[View, ...]:
    """The operands of one tensor in several outputs, each once.

    A copy that is stored in several streams is read as it is stored, and not as an operand.
    """
    views: list[View] = []
    for tensor in tensors:
        if tensor.stored is None or len(tensor.streams) == 1:
            views += [view for view in tensor.views if view not in views]
    return tuple(views)


def sweep_of_one(plan: Plan) -> Sweep:
    """A single output."""
    return Sweep((1.0,), (plan,))


def make_sweep(recipe: Recipe, scales: Sequence[float]) -> Sweep:
    """Plan a recipe at several scales, each of which multiplies every Δ's own.

    Raises:
        UsageError: no scale, one given twice, or outputs that differ in more than values.
        MisfitError: a plan has refused findings.
        CheckpointError, StorageError: as `planner.make_plan`.
    """
    scales = tuple(float(scale) + 0.0 for scale in scales)
    if not scales:
        raise UsageError(
            "a sweep needs a scale", code="missing-scale", expected="for example 0.5, 0.75, 1.0"
        )
    for scale in scales:
        if scales.count(scale) > 1:
            raise UsageError(
                f"scale {scale:g} is given twice",
                code="duplicate-scale",
                expected="each scale once",
            )
    with Reader() as reader:
        opener = Opener(reader)
        plans = tuple(make_plan(recipe.times(scale), opener) for scale in scales)
    for plan in plans:
        plan.check()
    outlines = [[tensor.streams for tensor in plan.tensors] for plan in plans]
    for scale, outline in zip(scales, outlines, strict=True):
        if outline != outlines[0]:
            first = next(iter(set(map(str, outline)) ^ set(map(str, outlines[0]))), "their order")
            raise UsageError(
                f"scale {scale:g} gives other tensors than scale {scales[0]:g}",
                code="sweep-misfit",
                where=first,
                remedy=f"mix it by itself at scale {scale:g}",
            )
    return Sweep(scales, plans)


def same_values(one: OutputTensor, other: OutputTensor) -> bool:
    """Whether two tensors hold the same values."""
    return (one.new, one.pairs, one.scheme) == (other.new, other.pairs, other.scheme)
