"""Verification of stored Δs, against post and base if they are here, else by their checksums."""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import numpy.typing as npt

from paramdelta.errors import MisfitError
from paramdelta.formats.checkpoint import DELTA
from paramdelta.formats.delta import Difference as Half
from paramdelta.formats.delta import StoredDelta, open_delta
from paramdelta.formats.view import Tensor
from paramdelta.jobs.verify import reference
from paramdelta.jobs.verify.job import VerifyJob
from paramdelta.jobs.verify.listing import OUTPUT, check_contents, check_names
from paramdelta.jobs.verify.origin import ABSENT, find_origin
from paramdelta.jobs.verify.record import Record
from paramdelta.jobs.verify.stored import Stored
from paramdelta.jobs.verify.target import (
    CopyTarget,
    Difference,
    Target,
    blobs_of,
    size_of,
)
from paramdelta.jobs.verify.verification import Options, Runner, Verification
from paramdelta.planning.plan import Plan
from paramdelta.schemes.pair import Pair
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import Digests
from paramdelta.storage.files import Files
from paramdelta.storage.reader import Reader

Floats = npt.NDArray[np.float64]

TEMPORARIES = 12  # arrays of 8-byte elements that exist at a time


def verify_delta(files: Files, options: Options) -> Verification:
    """Verify a stored Δ; see `api.verify`."""
    about = Record(files.json(DELTA), str(files[DELTA]), "the description of the Δ")
    listed = about.files("outputs")
    notes = check_names(files, listed, DELTA)
    weights = {files[n]: f for n, f in listed.items() if n.endswith(".safetensors")}
    small = {files[n]: f for n, f in listed.items() if not n.endswith(".safetensors")}
    checked = check_contents(small, Runner(options, quiet=True), Digests(), OUTPUT)
    stored = open_delta(files, "Δ")
    origin = find_origin(about, files.location, options)
    targets: tuple[Target, ...]
    if origin is None:
        targets = tuple(BlocksTarget(half) for half in stored.deltas.values())
        notes = (*notes, ABSENT)
    else:
        targets = _targets(origin.plan(options.download), stored)
    job = VerifyJob(targets, options.share, options.seed)
    chosen = options.budget([job.need])
    full = options.share == 1
    runner = Runner(options, chosen.workers, 0 if full else sum(blob.size for blob in weights))
    job = replace(job, most=chosen.buffer // 8)
    with Reader(ahead=full) as reader:
        runner.run(job, reader)
    checked += check_contents(weights, runner, Digests(), OUTPUT)
    views = [*stored.deltas.values(), *stored.whole.values()]
    return Verification(
        len(views),
        job.count,
        sum(view.elements for view in views),
        "decoded, with all checksums" if origin is None else "recomputed from post and base",
        checked,
        options.seed,
        notes,
    )


def _targets(plan: Plan, stored: StoredDelta) -> tuple[Target, ...]:
    """Every tensor beside what it should be; raises MisfitError unless they are the same ones."""
    pairs = {tensor.name: tensor.pairs[0] for tensor in plan.tensors if tensor.pairs}
    whole = {tensor.name: tensor.new for tensor in plan.tensors if not tensor.pairs}
    wanted = {name: ("Δ", pair.post.shape) for name, pair in pairs.items()}
    wanted |= {name: (view.dtype, view.shape) for name, view in whole.items()}
    found = {name: ("Δ", view.shape) for name, view in stored.deltas.items()}
    found |= {name: (view.dtype, view.shape) for name, view in stored.whole.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise MisfitError(
                "the tensors of the Δ are not those of post and base",
                code="output-differs",
                where=f"{stored.checkpoint.location.url}, tensor {name!r}",
                expected=str(wanted.get(name, "absent")),
                got=str(found.get(name, "absent")),
            )
    deltas = (DeltaTarget(half, pairs[name]) for name, half in stored.deltas.items())
    copies = (
        CopyTarget(whole[name], view)
        for name, view in stored.whole.items()
        if isinstance(view, Tensor)
    )
    return tuple(chain(deltas, copies))


@dataclass(frozen=True)
class BlocksTarget:
    """A stored Δ that is only decoded, which compares all checksums. See `Target`."""

    half: Half

    @property
    def elements(self) -> int:
        """See `Target.elements`."""
        return self.half.elements

    @property
    def step(self) -> int:
        """See `Target.step`."""
        return reference.MANY

    @property
    def sources(self) -> tuple[Blob, ...]:
        """See `Target.sources`."""
        return blobs_of([self.half])

    def need(self, most: int) -> int:
        """See `Target.need`."""
        return 8 * TEMPORARIES * size_of([self.half], most)

    def count(self, start: int, stop: int) -> int:
        """See `Target.count`."""
        return stop - start

    def nbytes(self, start: int, stop: int) -> int:
        """A share of the bytes of the stream."""
        size, whole = self.half.stream.size, max(1, self.elements)
        return stop * size // whole - start * size // whole

    def compare(self, start: int, stop: int, most: int, stored: Stored) -> Difference | None:
        """Decode both halves.

        Raises:
            CheckpointError: a checksum, or the form of a block, is wrong.
        """
        size = size_of([self.half], most)
        for first in range(start, stop, size):
            self._halves(first, min(first + size, stop), stored)
        return None

    def _halves(self, start: int, stop: int, stored: Stored) -> tuple[Floats, Floats]:
        one, other = (
            reference.wide(replace(self.half, half=half), start, stop, stored) for half in (0, 1)
        )
        # A mix looks at the second half only where the header says that there is one.
        return one, other if self.half.halves == 2 else np.zeros_like(other)


@dataclass(frozen=True)
class DeltaTarget(BlocksTarget):
    """A stored Δ beside its post and base. See `Target`."""

    pair: Pair

    @property
    def sources(self) -> tuple[Blob, ...]:
        """See `Target.sources`."""
        return blobs_of([self.pair.post, self.pair.base])

    def need(self, most: int) -> int:
        """See `Target.need`."""
        return 8 * TEMPORARIES * size_of([self.half, self.pair.post, self.pair.base], most)

    def compare(self, start: int, stop: int, most: int, stored: Stored) -> Difference | None:
        """Compare with the difference where float64 holds it, elsewhere with post and base."""
        size = size_of([self.half, self.pair.post, self.pair.base], most)
        for first in range(start, stop, size):
            last = min(first + size, stop)
            one, other = self._halves(first, last, stored)
            post = reference.wide(self.pair.post, first, last, stored)
            base = reference.wide(self.pair.base, first, last, stored)
            right = _is_difference(post, base, one, other)
            right |= _same(post, one) & _same(base, other)
            if not right.all():
                at = int(np.flatnonzero(~right)[0])
                expected = f"{float(post[at])!r} − {float(base[at])!r}"
                got = f"{float(one[at])!r} − {float(other[at])!r}"
                return Difference(self.half.stream, first + at, expected, got)
        return None


def _is_difference(post: Floats, base: Floats, one: Floats, other: Floats) -> npt.NDArray[np.bool_]:
    """Where ``one`` is exactly ``post − base``, ``other`` is zero, and no sign is forgotten."""
    with np.errstate(all="ignore"):
        difference = post - base
        part = difference - post  # Knuth's TwoSum: the rounding error of the difference
        error = (post - (difference - part)) + (-base - part)
    signs = ((post == 0) & np.signbit(post)) | ((base == 0) & np.signbit(base))
    plain = np.where(difference == 0, post.view(np.int64) == base.view(np.int64), ~signs)
    result: npt.NDArray[np.bool_] = plain & (error == 0) & (other.view(np.int64) == 0)
    result &= difference.view(np.int64) == one.view(np.int64)
    return result


def _same(expected: Floats, got: Floats) -> npt.NDArray[np.bool_]:
    """Where the bits are the same; NaN is equal to NaN."""
    both = np.isnan(expected) & np.isnan(got)
    result: npt.NDArray[np.bool_] = (expected.view(np.int64) == got.view(np.int64)) | both
    return result
