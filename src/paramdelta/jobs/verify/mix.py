"""Verification of what `mix` and `sweep` write: the plan is made again from the lock."""

from collections.abc import Mapping
from dataclasses import replace

from paramdelta.errors import MisfitError, UsageError
from paramdelta.formats.checkpoint import open_checkpoint
from paramdelta.formats.view import Tensor
from paramdelta.jobs.outputs import SMALL
from paramdelta.jobs.verify.comparison import OutputTarget
from paramdelta.jobs.verify.job import DiffersError, VerifyJob
from paramdelta.jobs.verify.listing import (
    OUTPUT,
    SOURCES,
    changed,
    check_contents,
    check_names,
)
from paramdelta.jobs.verify.lock import Lock, read_lock
from paramdelta.jobs.verify.record import ListedFile
from paramdelta.jobs.verify.sources import planned
from paramdelta.jobs.verify.thresholds import ThresholdJob
from paramdelta.jobs.verify.verification import Options, Runner, Verification
from paramdelta.output.lock import LOCK
from paramdelta.planning.plan import OutputTensor, Plan
from paramdelta.storage.blob import Blob
from paramdelta.storage.digest import Digests
from paramdelta.storage.files import Files
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__


def verify_mix(files: Files, options: Options) -> Verification:
    """Verify an output folder; see `api.verify`."""
    if options.post is not None or options.base is not None:
        raise UsageError(
            "the lock of a mix names its sources",
            code="option-without-effect",
            where=files.location.address,
            remedy="leave post and base out",
        )
    lock = read_lock(files)
    notes = check_names(files, lock.outputs, LOCK)
    outputs = {files[name]: file for name, file in lock.outputs.items()}
    weights = {blob: file for blob, file in outputs.items() if _is_weights(blob)}
    small = {blob: file for blob, file in outputs.items() if not _is_weights(blob)}
    checked = check_contents(small, Runner(options, quiet=True), Digests(), OUTPUT)
    plan = planned(lock.recipe, options.download)
    sources = _sources(plan, lock)
    written = _written(plan, files)

    thresholds = ThresholdJob.of(plan.tensors)
    job = VerifyJob(_targets(plan.tensors, written), options.share, options.seed)
    chosen = options.budget([job.need, *([thresholds.need] if thresholds.wanted else [])])
    most = chosen.buffer // 8
    full = options.share == 1
    rest = 0 if full else sum(blob.size for blob in weights)
    runner = Runner(options, chosen.workers, rest)
    if thresholds.wanted:
        thresholds = replace(thresholds, most=most)
        with Reader(ahead=True) as reader:
            runner.measure(thresholds, reader, "thresholds", plan.bytes_to_write + rest)
        job = replace(job, targets=_targets(thresholds.applied(plan.tensors), written))
    job = replace(job, most=most)
    digests = Digests()
    try:
        with Reader(once=full, ahead=full, digests=digests if full else None) as reader:
            runner.run(job, reader)
    except DiffersError as error:
        raise _explained(error, sources, weights, runner, digests) from None
    checked += check_contents(weights, runner, digests, OUTPUT)
    looked = {blob: file for blob, file in sources.items() if full or blob.size <= SMALL}
    checked += check_contents(looked, runner, digests, SOURCES)
    streams = [stream for tensor in plan.tensors for stream in tensor.streams]
    total = sum(stream.elements for stream in streams)
    assert not full or job.count == total, "a task was lost"
    return Verification(
        sum(stream.elements > 0 for stream in streams),
        job.count,
        total,
        "recomputed from the sources",
        checked,
        options.seed,
        notes,
    )


def locked_plan(files: Files) -> Plan:
    """The plan of an output folder, from its lock; its sources have the headers that they had.

    Raises:
        MisfitError: a source is not on this machine, or has changed.
        CheckpointError, StorageError: the lock is malformed, or something cannot be read.
    """
    lock = read_lock(files)
    plan = planned(lock.recipe, download=False)
    _sources(plan, lock)
    return plan


def _is_weights(blob: Blob) -> bool:
    return blob.name.endswith(".safetensors")


def _targets(
    tensors: tuple[OutputTensor, ...], written: Mapping[str, Tensor]
) -> tuple[OutputTarget, ...]:
    return tuple(
        OutputTarget(tensor, tuple(written[stream.name] for stream in tensor.streams))
        for tensor in tensors
    )


def _written(plan: Plan, files: Files) -> dict[str, Tensor]:
    """The tensors of the output by name; raises MisfitError unless they are those of the plan."""
    output = open_checkpoint(files, "output")
    streams = (stream for tensor in plan.tensors for stream in tensor.streams)
    wanted = {stream.name: (stream.dtype, stream.shape) for stream in streams}
    written = {name: view for name, view in output.tensors.items() if isinstance(view, Tensor)}
    found = {name: (view.dtype, view.shape) for name, view in written.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise MisfitError(
                "the tensors of the output are not those of the plan",
                code="output-differs",
                where=f"{output.location.url}, tensor {name!r}",
                expected=str(wanted.get(name, "absent")),
                got=str(found.get(name, "absent")),
            )
    return written


def _sources(plan: Plan, lock: Lock) -> dict[Blob, ListedFile]:
    """The files of the sources as the lock has them.

    Raises:
        MisfitError: names, sizes, headers or the whole plan are others now.
    """
    found: dict[Blob, ListedFile] = {}
    wrong = []
    for number, source in enumerate(plan.sources):
        listed = lock.sources[number] if number < len(lock.sources) else ()
        known = {file.name: file for file in listed}
        for file in source.sources:
            blob = file.blob
            locked = known.pop(file.name, None)
            if locked is None:
                wrong.append(f"{blob} was not there")
            elif (locked.file.size, locked.header_sha256) != (blob.size, file.header_sha256):
                wrong.append(f"{blob} has another header")
            else:
                found[blob] = locked.file
        wrong += [f"{name} is missing in {source}" for name in known]
    where = ", ".join(map(str, plan.sources))
    if wrong:
        raise changed(SOURCES, where, wrong)
    if plan.digest != lock.plan_sha256:
        same = lock.version == __version__
        raise MisfitError(
            "the recorded recipe gives another plan now",
            code="plan-changed",
            where=where,
            expected=f"plan {lock.plan_sha256[:16]}",
            got=f"plan {plan.digest[:16]}",
            remedy="mix again" if same else f"verify with paramdelta {lock.version[:20]!a}",
        )
    return found


def _explained(
    error: DiffersError,
    sources: Mapping[Blob, ListedFile],
    weights: Mapping[Blob, ListedFile],
    runner: Runner,
    digests: Digests,
) -> MisfitError:
    """The error that says what changed: a source, the output, or neither."""
    files = {blob: sources[blob] for blob in error.sources}
    check_contents(files, runner, digests, SOURCES)
    if runner.digested([error.blob], digests)[error.blob] == weights[error.blob].digest:
        known = all(file.digest is not None for file in files.values())
        error.remedy = (
            "no file has changed since it was written: please report this"
            if known
            else "the output is as it was written, but a source may have changed: mix again"
        )
    return error
