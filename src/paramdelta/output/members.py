"""The outputs of a sweep as one Sink: a folder each, in which equal files are one file on disk."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from paramdelta.engine.run import Sink
from paramdelta.engine.slices import Slice
from paramdelta.errors import CheckpointError, MisfitError, ParamDeltaError
from paramdelta.output.files import Files
from paramdelta.output.layout import Layout
from paramdelta.output.lock import LOCK, lock_text, open_output, read_lock
from paramdelta.planning.plan import Plan
from paramdelta.planning.sweep import Sweep
from paramdelta.storage.local import modified_ns, raise_open_file_limit


class Members:
    """All output folders in the making. Open it, let the engine write, `flush`, `finish` each.

    ``written``: bytes that were written; what is shared counts once. ``fresh``: throw away
    unfinished runs.

    Raises:
        MisfitError, StorageError: as `Files`.
    """

    def __init__(self, sweep: Sweep, layout: Layout, outs: Sequence[Path], *, fresh: bool) -> None:
        self.written = 0
        self._lock = threading.Lock()
        self._outputs: list[Files] = []
        raise_open_file_limit()  # every output has as many files as a model
        try:
            for plan, out in zip(sweep.members, outs, strict=True):
                twin = self._outputs[0] if self._outputs else None
                files = Files(plan, layout, out, fresh=fresh, twin=twin, own=sweep.own)
                self._outputs.append(files)
        except BaseException:
            with contextlib.suppress(ParamDeltaError):  # the first error is the one to be told
                self.flush()
            self.close()
            raise

    def wants(self, piece: Slice) -> bool:
        """Whether any output does."""
        return any(files.wants(piece) for files in self._outputs)

    def takers(self, piece: Slice) -> Sequence[int]:
        """The numbers of the outputs that want the slice."""
        return [n for n, files in enumerate(self._outputs) if files.wants(piece)]

    def at(self, number: int) -> Sink:
        """One output alone."""
        return _Counted(self, self._outputs[number])

    def write(self, piece: Slice, data: memoryview) -> None:
        """Write the slice into every file that lacks it, once where outputs share it."""
        done: list[Files] = []
        for number in self.takers(piece):
            files = self._outputs[number]
            if any(files.has_file_of(other, piece) for other in done):
                files.note(piece)
            else:
                self.at(number).write(piece, data)
                done.append(files)

    def count(self, size: int) -> None:
        """Note bytes that were written."""
        with self._lock:
            self.written += size

    def flush(self) -> None:
        """Sync and journal everything of all outputs; raises StorageError in the end."""
        _each(files.flush for files in self._outputs)

    def close(self) -> None:
        """Close all files, keeping what is there for a later run."""
        _each(files.close for files in self._outputs)

    def finish(self, number: int, write_small_files: Callable[[Path], None]) -> None:
        """Turn one staging folder into an output; raises StorageError."""
        self._outputs[number].finish(write_small_files)

    @property
    def staging(self) -> list[Path]:
        """Where the unfinished outputs are."""
        return [files.staging for files in self._outputs]


class _Counted:
    """One output of several; what is written to it is counted."""

    def __init__(self, members: Members, files: Files) -> None:
        self.members = members
        self.files = files
        self.wants = files.wants

    def write(self, piece: Slice, data: memoryview) -> None:
        """Write to the one."""
        self.files.write(piece, data)
        self.members.count(len(data))


def _each(calls: Iterable[Callable[[], None]]) -> None:
    """Call all of them, the last first, whatever any of them raises."""
    with contextlib.ExitStack() as stack:
        for call in calls:
            stack.callback(call)


def is_finished(plan: Plan, shard_size: int, out: Path) -> bool:
    """Whether a folder is the whole output of this plan, made after its sources last changed.

    Its lock must say the same, but for versions, and its weights be those of the plan, by their
    headers.
    """
    try:
        lock, output = read_lock(out), open_output(out)
        made = (out / LOCK).stat().st_mtime_ns
    except (MisfitError, CheckpointError, OSError):
        return False
    wanted = json.loads(lock_text(plan, shard_size))
    if any(lock.get(key) != value for key, value in wanted.items() if key != "versions"):
        return False
    if any(modified_ns(file.blob) > made for file in plan.files):
        return False
    found = {t.name: (t.dtype, t.shape) for t in output.tensors.values()}
    return found == {t.name: (t.dtype, t.shape) for t in plan.tensors}


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of a folder's weight files, and of those that are elsewhere too, by hard links."""
    files = [path.stat() for path in folder.glob("*.safetensors")]
    shared = sum(file.st_size for file in files if file.st_nlink > 1)
    return sum(file.st_size for file in files), shared
