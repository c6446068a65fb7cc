"""One recipe at several scales: a plan for each, and what they have in common.

Tensors that come out the same at every scale (those that are copied, for the most part) are laid
behind the others, so that they fill files of their own, which the outputs can share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from paramdelta.errors import UsageError
from paramdelta.formats.view import Tensor
from paramdelta.planning.plan import OutputTensor, Pair, Plan
from paramdelta.planning.planner import make_plan
from paramdelta.planning.quantised import CODES
from paramdelta.planning.sources import Opener
from paramdelta.recipe import Recipe
from paramdelta.storage.reader import Reader

LEAST_SHARED = 1_000_000  # bytes: for less, the outputs keep the files that a mix would write


@dataclass(frozen=True)
class Sweep:
    """Outputs that differ in scale alone.

    ``plans``: by output, just what a mix with its scale would do. ``members``: the same with the
    tensors in the order in which they are written, alike in all. ``own``: how many of them, from
    the first on, are each output's own; the others are the same in all.
    """

    scales: tuple[float, ...]
    plans: tuple[Plan, ...]
    members: tuple[Plan, ...]
    own: int

    def only(self, numbers: Sequence[int]) -> "Sweep":
        """Some of the outputs, with their tensors in the same order as before."""
        return replace(
            self,
            scales=tuple(self.scales[n] for n in numbers),
            plans=tuple(self.plans[n] for n in numbers),
            members=tuple(self.members[n] for n in numbers),
        )

    @property
    def shared_bytes(self) -> int:
        """Bytes of the tensors that are the same in all."""
        return sum(tensor.nbytes for tensor in self.members[0].tensors[self.own :])

    @cached_property
    def alike(self) -> tuple[bool, ...]:
        """By tensor: whether every output has it the same."""
        return _alike(self.members)

    @cached_property
    def joint(self) -> Plan:
        """A plan whose tensors have the operands of all members, each once: what is read."""
        tensors = tuple(
            one[0] if alike else _joined(one)
            for alike, one in zip(
                self.alike, zip(*(m.tensors for m in self.members), strict=True), strict=True
            )
        )
        return replace(self.members[0], tensors=tensors)

    @cached_property
    def places(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """By member and tensor: for each of its terms, the number of its view among the joint's."""
        return tuple(
            tuple(
                () if alike else _places(own, joint)
                for alike, own, joint in zip(
                    self.alike, member.tensors, self.joint.tensors, strict=True
                )
            )
            for member in self.members
        )


def make_sweep(recipe: Recipe, scales: Sequence[float]) -> Sweep:
    """Plan a recipe at several scales, each of which multiplies every Δ's own.

    Raises:
        UsageError: no scale, the same one twice, or the scales' outputs differ in more than values.
        MisfitError: a plan has refused findings.
        CheckpointError, StorageError: as `planner.make_plan`.
    """
    scales = tuple(float(scale) + 0.0 for scale in scales)
    if not scales:
        raise UsageError("a sweep needs a scale", expected="--scale 0.5,0.75,1.0, say")
    for scale in scales:
        if scales.count(scale) > 1:
            raise UsageError(f"scale {scale:g} stands twice", expected="each output once")
    with Reader() as reader:
        opener = Opener(reader)
        plans = tuple(make_plan(recipe.times(scale), opener) for scale in scales)
    for plan in plans:
        plan.check()
    outlines = [[(t.name, t.dtype, t.shape) for t in plan.tensors] for plan in plans]
    for scale, outline in zip(scales, outlines, strict=True):
        if outline != outlines[0]:
            first = next(iter(set(map(str, outline)) ^ set(map(str, outlines[0]))), "their order")
            raise UsageError(
                f"scale {scale:g} gives other tensors than scale {scales[0]:g}",
                where=first,
                remedy=f"make it by itself, with mix --scale {scale:g}",
            )
    alike = _alike(plans)
    order = sorted(range(len(alike)), key=alike.__getitem__)  # stable: wider elements stay first
    own = alike.count(False)
    if sum(plans[0].tensors[n].nbytes for n in order[own:]) < LEAST_SHARED or len(scales) == 1:
        return Sweep(scales, plans, plans, len(alike))
    members = tuple(replace(p, tensors=tuple(p.tensors[n] for n in order)) for p in plans)
    return Sweep(scales, plans, members, own)


def _alike(plans: Sequence[Plan]) -> tuple[bool, ...]:
    """By tensor: whether it is the same in all plans; fresh scales are if what they scale is."""
    same = {
        one[0].name: all(
            (t.new, t.pairs, t.ties) == (one[0].new, one[0].pairs, one[0].ties) for t in one
        )
        for one in zip(*(plan.tensors for plan in plans), strict=True)
    }
    return tuple(same[t.name] and (not t.scales_of or same[t.scales_of]) for t in plans[0].tensors)


def _bare(tensor: OutputTensor) -> OutputTensor:
    """What determines its values, without why it came to that."""
    return replace(tensor, asked=(), why="", reduced=False)


def _joined(tensors: Sequence[OutputTensor]) -> OutputTensor:
    """One tensor with the operands of all of these; its scales mean nothing.

    Operands that stand for the new base, of which there are several where some cancel out, come as
    pairs of their own. Of an output in FP8, what is stored as it is written goes another way.
    """
    derived = next((tensor for tensor in tensors if tensor.derived), None)
    if derived is not None:
        return derived
    summed = [t for t in tensors if not _is_stored(t)]
    fullest = max(summed, key=lambda tensor: len(tensor.pairs))
    rest = (p for t in summed if t is not fullest for p in t.pairs)
    pairs = [replace(pair, sparsity=None) for pair in rest]  # thresholds are looked for once
    news = [Pair(0, tensor.new, tensor.new, 0.0) for tensor in summed]
    return replace(fullest, pairs=(*fullest.pairs, *pairs, *news))


def _places(tensor: OutputTensor, joint: OutputTensor) -> tuple[int, ...]:
    if joint.derived or _is_stored(tensor):
        return ()
    return tuple(joint.views.index(term.view) for term in tensor.terms)


def _is_stored(tensor: OutputTensor) -> bool:
    """Whether it is FP8 just as it is stored, where other outputs have fresh scales."""
    return tensor.dtype == CODES and not tensor.pairs and isinstance(tensor.new, Tensor)
