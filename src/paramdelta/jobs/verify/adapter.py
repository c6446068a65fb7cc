"""Verification of extracted adapters: what share of the Δ's energy they hold, measured again."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from paramdelta.engine.memory import Need
from paramdelta.errors import MisfitError
from paramdelta.formats.adapter import open_adapter
from paramdelta.formats.view import View
from paramdelta.jobs.lowrank import LORA
from paramdelta.jobs.mix import Task, Tasks
from paramdelta.jobs.verify import reference
from paramdelta.jobs.verify.job import DECODING
from paramdelta.jobs.verify.listing import OUTPUT, check_contents, check_names
from paramdelta.jobs.verify.origin import ABSENT, find_origin
from paramdelta.jobs.verify.record import Record
from paramdelta.jobs.verify.stored import Stored
from paramdelta.jobs.verify.target import size_of
from paramdelta.jobs.verify.verification import Options, Runner, Verification
from paramdelta.planning.plan import Plan
from paramdelta.schemes.pair import Pair
from paramdelta.storage.digest import Digests
from paramdelta.storage.files import Files
from paramdelta.storage.reader import Reader

TOLERANCE = 1e-9  # of energies: float64 sums of squares, in another order
TEMPORARIES = 6  # arrays of 8-byte elements that exist at a time


def verify_adapter(files: Files, options: Options) -> Verification:
    """Verify an adapter that `extract_adapter` wrote; see `api.verify`."""
    about = Record(files.json(LORA), str(files[LORA]), "the description of the adapter")
    listed = about.files("outputs")
    notes = check_names(files, listed, LORA)
    outputs = {files[name]: file for name, file in listed.items()}
    checked = check_contents(outputs, Runner(options, quiet=True), Digests(), OUTPUT)
    recorded = _recorded(about)
    factors = _factors(files, recorded)
    origin = find_origin(about, files.location, options)
    total = sum(view.elements for view in factors.values())
    if origin is None:
        return Verification(
            len(factors), 0, total, "recomputed", checked, options.seed, (*notes, ABSENT)
        )
    weights = _weights(origin.plan(options.download), recorded, factors, options)
    job = EnergyJob(weights)
    chosen = options.budget([job.need])
    with Reader(ahead=options.share == 1) as reader:
        Runner(options, chosen.workers).run(replace(job, most=chosen.buffer // 8), reader)
    _check_energies(about, job, recorded, files.location.url, options.share == 1)
    compared = sum(weight.pair.post.elements for weight in weights if weight.factors is not None)
    how = "of the Δ compared with post and base"
    return Verification(len(factors), compared, total, how, checked, options.seed, notes)


@dataclass(frozen=True)
class Recorded:
    """A module as it was measured.

    ``shape``: of its weight. ``energy``: ‖Δ‖²_F. ``kept``: the share of it that the factors hold.
    """

    module: str
    shape: tuple[int, ...]
    energy: float
    kept: float


@dataclass(frozen=True)
class Weight:
    """A weight that has a Δ, and the factors of it; None if it has none."""

    name: str
    pair: Pair
    factors: View | None


@dataclass(frozen=True)
class EnergyJob:
    """Measures the energy of each Δ, and of what its factors miss. See `engine.job.Job`.

    ``most``: elements that may be taken at a time. ``found``: by name, both energies.
    """

    weights: tuple[Weight, ...]
    most: int = 0
    found: dict[str, tuple[float, float]] = field(default_factory=dict, compare=False)

    lead = None

    def tasks(self) -> Sequence[Task]:
        """See `Job.tasks`."""
        elements = [weight.pair.post.elements for weight in self.weights]
        return Tasks(elements, [reference.MANY] * len(elements))

    def cost(self, task: Task) -> int:
        """Bytes of post and base."""
        pair = self.weights[task.tensor].pair
        return (task.stop - task.start) * (pair.post.kind.size + pair.base.kind.size)

    def need(self, most: int) -> Need:
        """Memory of a run that takes at most this many elements at a time."""
        sizes = (size_of(_views(weight), most) for weight in self.weights)
        return Need(8 * TEMPORARIES * max(sizes, default=0) + DECODING)

    def worker(
        self, reader: Reader, writers: Sequence[object]
    ) -> Callable[[Task], tuple[float, float]]:
        """See `Job.worker`."""
        stored = Stored(reader)

        def measure(task: Task) -> tuple[float, float]:
            weight = self.weights[task.tensor]
            size = size_of(_views(weight), self.most)
            energy = missed = 0.0
            for start in range(task.start, task.stop, size):
                stop = min(start + size, task.stop)
                delta = reference.wide(weight.pair.post, start, stop, stored)
                delta -= reference.wide(weight.pair.base, start, stop, stored)
                energy += float(np.square(delta).sum())
                if weight.factors is not None:
                    delta -= reference.wide(weight.factors, start, stop, stored)
                    missed += float(np.square(delta).sum())
            return energy, missed

        return measure

    def collect(self, task: Task, receipt: tuple[float, float]) -> None:
        """Add up the energies of a weight."""
        name = self.weights[task.tensor].name
        before = self.found.get(name, (0.0, 0.0))
        self.found[name] = (before[0] + receipt[0], before[1] + receipt[1])


def _views(weight: Weight) -> tuple[View, ...]:
    factors = () if weight.factors is None else (weight.factors,)
    return (weight.pair.post, weight.pair.base, *factors)


def _recorded(about: Record) -> dict[str, Recorded]:
    """The modules of a description by the names of their weights; raises CheckpointError."""
    return {
        one.text("tensor"): Recorded(
            one.text("module"), one.integers("shape"), one.number("energy"), one.number("kept")
        )
        for one in about.records("modules")
    }


def _factors(files: Files, recorded: Mapping[str, Recorded]) -> dict[str, View]:
    """The Δ of each recorded weight as the adapter holds it; raises MisfitError."""
    adapter = open_adapter(files, "adapter")
    names = {one.module + ".weight": name for name, one in recorded.items()}
    if names.keys() != adapter.deltas.keys() or adapter.replaced:
        wrong = sorted(names.keys() ^ {*adapter.deltas, *adapter.replaced})
        raise MisfitError(
            "the adapter does not hold the modules that were written",
            code="output-differs",
            where=files.location.url,
            got=", ".join(wrong[:4]),
            remedy="extract it again",
        )
    shapes = {one.module + ".weight": one.shape for one in recorded.values()}
    return {names[name]: delta for name, delta in adapter.oriented(shapes).items()}


def _weights(
    plan: Plan, recorded: Mapping[str, Recorded], factors: Mapping[str, View], options: Options
) -> tuple[Weight, ...]:
    """The weights to measure: all that have a Δ, or a random share of those with factors."""
    pairs = {tensor.name: tensor.pairs[0] for tensor in plan.tensors if tensor.pairs}
    for name, view in factors.items():
        shape = pairs[name].post.shape if name in pairs else None
        if not shape == view.shape == recorded[name].shape:
            raise MisfitError(
                "the adapter has factors that post and base do not have",
                code="output-differs",
                where=f"tensor {name!r}",
                expected=str(shape or "absent"),
                got=str(view.shape),
            )
    chosen = list(pairs)
    if options.share < 1:
        some = math.ceil(len(recorded) * options.share)
        chosen = random.Random(options.seed).sample(list(recorded), some)
    return tuple(Weight(name, pairs[name], factors.get(name)) for name in chosen)


def _check_energies(
    about: Record, job: EnergyJob, recorded: Mapping[str, Recorded], where: str, full: bool
) -> None:
    """Compare what was measured with the description; raises MisfitError."""
    for name, (energy, missed) in job.found.items():
        if name in recorded:
            _check(f"{where}, energy of {name!r}", recorded[name].energy, energy)
            kept = 1 - missed / energy if energy else 1.0
            _check(f"{where}, share of {name!r} that is kept", recorded[name].kept, kept, 1.0)
    if not full:
        return
    left: set[str] = set(recorded)
    for one in about.records("left"):
        names = one.texts("tensors")
        energies = [job.found[name][0] for name in names if name in job.found]
        _check(f"{where}, energy of {one.text('kind')}", one.number("energy"), sum(energies))
        left.update(names)
    for name in job.found.keys() - left:
        _check(f"{where}, energy of {name!r}, which is not in the adapter", 0.0, job.found[name][0])
    whole = sum(energy for energy, _ in job.found.values())
    _check(f"{where}, energy of the whole Δ", about.number("energy"), whole)


def _check(where: str, noted: float, found: float, scale: float | None = None) -> None:
    size = max(abs(noted), abs(found)) if scale is None else scale
    if not abs(noted - found) <= TOLERANCE * size:
        raise MisfitError(
            "the adapter is not what its sources give",
            code="output-differs",
            where=where,
            expected=f"{found:.12g}",
            got=f"{noted:.12g}",
            remedy="extract it again",
        )
