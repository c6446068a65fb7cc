"""Verification of what `mix` and `sweep` write: the plan is made again from the lock."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from paramdelta.errors import CheckpointError, MisfitError, UsageError
from paramdelta.formats.checkpoint import Checkpoint, open_checkpoint
from paramdelta.formats.view import Tensor
from paramdelta.jobs.outputs import SMALL
from paramdelta.jobs.verify.job import DiffersError, VerifyJob
from paramdelta.jobs.verify.lock import Lock, LockedFile, read_lock
from paramdelta.jobs.verify.thresholds import ThresholdJob
from paramdelta.jobs.verify.verification import Options, Runner, Verification
from paramdelta.output.lock import LOCK
from paramdelta.planning.plan import Plan
from paramdelta.planning.planner import make_plan
from paramdelta.planning.sources import Opener
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import Digests
from paramdelta.storage.files import Files
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__

CARD = "README.md"
MOST = 6  # problems that an error names
# Nothing loads these: people put them beside a model.
_INERT = re.compile(
    r"(.*/)?([^/]*\.(md|png|jpe?g|gif|svg|webp|pdf)|(LICEN[CS]E|NOTICE)[^/]*)", re.I
)


def verify_mix(files: Files, options: Options) -> Verification:
    """Verify an output folder; see `api.verify`."""
    lock = read_lock(files)
    notes = _check_names(files, lock)
    weights = {files[name]: file for name, file in lock.outputs.items() if _is_weights(name)}
    small = {files[name]: file for name, file in lock.outputs.items() if not _is_weights(name)}
    _check_contents(small, Runner(options, 1), Digests(), _CHANGED)
    plan = _planned(lock, options.download)
    sources = _sources(plan, lock)
    with Reader() as reader:
        written = _tensors(plan, open_checkpoint(Files(files.location, reader), "output"))
    thresholds = ThresholdJob.of(plan.tensors, 0)
    job = VerifyJob.of(plan.tensors, written, options.share, options.seed, 0)
    chosen = options.budget([job.need, *([thresholds.need] if thresholds.wanted else [])])
    size = chosen.buffer // 8

    full = options.share == 1
    rest = 0 if full else sum(blob.size for blob in weights)
    runner = Runner(options, chosen.workers, rest)
    if thresholds.wanted:
        thresholds = replace(thresholds, size=size)
        with Reader() as reader:
            runner.measure(thresholds, reader, "thresholds", plan.bytes_to_write + rest)
        job = replace(job, tensors=thresholds.applied(job.tensors))
    job = replace(job, size=size)
    digests = Digests()
    try:
        with Reader(once=full, digests=digests if full else None) as reader:
            runner.run(job, reader)
    except DiffersError as error:
        raise _explained(error, sources, weights, runner, digests) from None
    _check_contents(weights, runner, digests, _CHANGED)
    looked = {blob: file for blob, file in sources.items() if full or blob.size <= SMALL}
    _check_contents(looked, runner, digests, _SOURCES)
    streams = [stream for tensor in plan.tensors for stream in tensor.streams]
    total = sum(stream.elements for stream in streams)
    assert not full or job.elements == total, "a task was lost"
    return Verification(
        sum(stream.elements > 0 for stream in streams),
        job.elements,
        total,
        "recomputed from the sources",
        len(small) + len(weights) + len(looked),
        options.seed,
        tuple(notes),
    )


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


# -- the files of the output -----------------------------------------------------------------------

_CHANGED = "the files of the output are not those that were written"
_SOURCES = "the sources are not those that the output was made from"


def _check_names(files: Files, lock: Lock) -> list[str]:
    """Compare names and sizes of all files with the lock; returns notes.

    Raises:
        MisfitError: files are missing, have another size, or do not belong there.
    """
    wrong, notes = [], []
    for name, file in lock.outputs.items():
        if name not in files:
            wrong.append(f"{name} is missing")
        elif files[name].size != file.size:
            wrong.append(f"{name} has {files[name].size} bytes, not {file.size}")
    for name in files:
        if name in lock.outputs or name in (LOCK, CARD):
            continue
        if _INERT.fullmatch(name):
            notes.append(f"{name} was added")
        else:
            wrong.append(f"{name} does not belong to it")
    if CARD not in files:
        notes.append(f"{CARD} was removed")
    if wrong:
        raise _wrong(_CHANGED, files.location.url, wrong)
    return notes


def _check_contents(
    files: Mapping[Blob, LockedFile], runner: Runner, digests: Digests, what: str
) -> None:
    """Compare content digests, as far as they were noted; raises MisfitError."""
    noted = {blob: file.digest for blob, file in files.items() if file.digest is not None}
    found = runner.digested(noted, digests)
    wrong = [blob for blob, digest in noted.items() if found[blob] != digest]
    if wrong:
        where = ", ".join(dict.fromkeys(blob.url.rpartition("/")[0] for blob in wrong))
        raise _wrong(what, where, [f"the content of {blob.name} has changed" for blob in wrong])


def _wrong(what: str, where: str, wrong: Sequence[str]) -> MisfitError:
    rest = f"; and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
    return MisfitError(
        what,
        where=where,
        expected="as the lock lists them",
        got="; ".join(wrong[:MOST]) + rest,
        remedy="put the same files back, or mix again",
    )


def _tensors(plan: Plan, output: Checkpoint) -> dict[str, Tensor]:
    """The tensors of the output by name; raises MisfitError unless they are those of the plan."""
    streams = (stream for tensor in plan.tensors for stream in tensor.streams)
    wanted = {stream.name: (stream.dtype, stream.shape) for stream in streams}
    written = {name: view for name, view in output.tensors.items() if isinstance(view, Tensor)}
    found = {name: (view.dtype, view.shape) for name, view in written.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise MisfitError(
                "the tensors of the output are not those of the plan",
                where=f"{output.location.url}, tensor {name!r}",
                expected=str(wanted.get(name, "absent")),
                got=str(found.get(name, "absent")),
            )
    return written


# -- the sources -----------------------------------------------------------------------------------


class _Opener(Opener):
    """Opens checkpoints by the addresses of a lock, which come from a stranger."""

    def __init__(self, reader: Reader, download: bool) -> None:
        super().__init__(reader)
        self.download = download

    def files(self, address: str) -> Files:
        """The files at an address; nothing is downloaded unless that was asked for."""
        if address not in self._files:
            try:
                location = locate(address, self.download)
            except UsageError as error:
                raise MisfitError(
                    "a source of the output is not here",
                    where=address,
                    expected=error.expected,
                    remedy="put it back at the place that the lock names",
                ) from None
            self._files[address] = Files(location, self.reader)
        return self._files[address]


def _planned(lock: Lock, download: bool) -> Plan:
    """The plan of the lock's recipe; raises as `make_plan`, and MisfitError."""
    with Reader() as reader:
        try:
            return make_plan(lock.recipe, _Opener(reader, download))
        except UsageError as error:
            raise CheckpointError(
                "the recipe of the lock cannot be planned", where=error.where, got=str(error.what)
            ) from None


def _sources(plan: Plan, lock: Lock) -> dict[Blob, LockedFile]:
    """The files of the sources as the lock has them.

    Raises:
        MisfitError: names, sizes, headers or the whole plan are others now.
    """
    found: dict[Blob, LockedFile] = {}
    wrong = []
    for number, source in enumerate(plan.sources):
        listed = dict(lock.sources[number].files) if number < len(lock.sources) else {}
        for file in source.sources:
            blob = file.blob
            locked = listed.pop(blob.name, None)
            if locked is None:
                wrong.append(f"{blob} was not there")
            elif (locked.size, locked.header_sha256) != (blob.size, file.header_sha256):
                wrong.append(f"{blob} has another header")
            else:
                found[blob] = locked
        wrong += [f"{name} is missing in {source}" for name in listed]
    if wrong:
        raise _wrong(_SOURCES, ", ".join(map(str, plan.sources)), wrong)
    if plan.digest != lock.plan_sha256:
        other = lock.version != __version__
        raise MisfitError(
            "the recipe gives another plan now",
            where=", ".join(map(str, plan.sources)),
            expected=f"plan {lock.plan_sha256[:16]}",
            got=f"plan {plan.digest[:16]}",
            remedy=f"verify with paramdelta {lock.version}, which wrote it"
            if other
            else "mix again",
        )
    return found


def _explained(
    error: DiffersError,
    sources: Mapping[Blob, LockedFile],
    weights: Mapping[Blob, LockedFile],
    runner: Runner,
    digests: Digests,
) -> MisfitError:
    """The error that says what changed: a source, the output, or neither."""
    files = {blob: sources[blob] for blob in error.sources}
    _check_contents(files, runner, digests, _SOURCES)
    noted = weights[error.blob].digest
    found = runner.digested([error.blob], digests)[error.blob]
    if found == noted:
        known = all(file.digest is not None for file in files.values())
        error.remedy = (
            "no file has changed since it was written: please report this"
            if known
            else "the output is as it was written: mix again, for a source may have changed"
        )
    return error
