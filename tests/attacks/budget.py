"""What opening one input costs: processor time and memory, measured in a child process.

A `Worker` is a Python process that opens inputs one after the other and reports, for each, how it
ended, the processor seconds, and by how many bytes the process grew at its peak. A process that
hangs or dies is a result as well. Linux only: the peak is read from /proc.
"""

import contextlib
import ctypes
import dataclasses
import gc
import json
import resource
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 1.0  # budget of an input below 10 MB, on an idle core
MEMORY = 200_000_000  # bytes: likewise
HANG = 60.0  # wall seconds after which a worker is killed
CEILING = 4 << 30  # bytes of address space beyond the start: protects the machine
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Cost:
    """One input: how it ended, and what it cost.

    ``outcome``: "opened", "refused", or the name of what escaped (an exception that is not meant
    for the user, "hang", "death"). ``message``: the error's text. ``seconds``: of the processor.
    ``memory``: bytes at the peak, beyond what the process had before. ``slowness``: how many times
    slower the machine is than the one for which the budget was set, 1 if it is faster.
    """

    outcome: str
    message: str
    seconds: float
    memory: int
    slowness: float = 1.0

    @property
    def problem(self) -> str | None:
        """What is wrong with it, None if nothing is."""
        if self.outcome not in ("opened", "refused"):
            return f"{self.outcome}: {self.message}"
        if self.seconds > SECONDS * self.slowness:
            return f"{self.seconds:.2f} s (slowness {self.slowness:.1f})"
        if self.memory > MEMORY:
            return f"{self.memory / 1e6:.0f} MB"
        unsafe = [line for line in self.message.splitlines() if not line.isprintable()]
        return f"an unsafe message: {unsafe[0]!r}" if unsafe else None


class Worker:
    """A process that opens inputs; a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def open(self, action: str, path: Path) -> Cost:
        """Open one input; ``action``: a key of `ACTIONS`."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.attacks.budget"],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([action, str(path)]) + "\n")
        stdin.flush()
        with selectors.DefaultSelector() as selector:  # for descriptors of any number
            selector.register(stdout, selectors.EVENT_READ)
            ready = selector.select(HANG)
        if not ready:
            self._stop()
            return Cost("hang", f"no answer within {HANG:.0f} s", HANG, 0)
        answer = stdout.readline()
        if not answer:
            code = self._process.wait()
            self._stop()
            return Cost("death", f"exit code {code}", 0.0, 0)
        return Cost(*json.loads(answer))

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


# -- in the child ----------------------------------------------------------------------------------


def _weights(path: Path) -> Any:
    from paramdelta.formats.checkpoint import read_weights
    from paramdelta.storage.local import local_blob
    from paramdelta.storage.reader import Reader

    with Reader() as reader:
        return read_weights(reader, local_blob(path))


def _folder(path: Path) -> Any:
    from paramdelta.formats.checkpoint import open_checkpoint

    with _files(path) as files:
        return open_checkpoint(files, "post")


def _adapter(path: Path) -> Any:
    from paramdelta.formats.adapter import open_adapter

    with _files(path) as files:
        return open_adapter(files, "post")


@contextlib.contextmanager
def _files(path: Path) -> Any:
    """The files of a folder, closed at the end: there are many inputs."""
    from paramdelta.storage.files import Files
    from paramdelta.storage.location import locate
    from paramdelta.storage.reader import Reader

    with Reader() as reader:
        yield Files(locate(str(path)), reader)


def _json(path: Path) -> None:
    from paramdelta.documents import parse_json

    parse_json(path.read_bytes())


def _yaml(path: Path) -> None:
    from paramdelta.documents.yaml import parse_yaml

    parse_yaml(path.read_text(errors="replace"))


def _recipe(path: Path) -> Any:
    from paramdelta.recipe import read_recipe

    recipe = read_recipe(path)
    return recipe.to_yaml(), recipe.formula, recipe.symbols


def _mergekit(path: Path) -> str:
    from paramdelta.recipe.mergekit import import_mergekit

    return import_mergekit(path, 4).to_yaml()


def _journal(path: Path) -> Any:
    from paramdelta.output.journal import Journal

    identity = json.loads(path.with_name("identity.json").read_bytes())
    Journal(path, identity).close()


def _output(path: Path) -> Any:
    """An output with its sources beside it: what verify and a repeated command read of it."""
    from paramdelta import api
    from paramdelta.output.lock import is_finished
    from paramdelta.output.place import find_place

    (mark,) = path.glob("paramdelta.*.json")
    find_place(path, [], True, mark.name)
    if mark.name == "paramdelta.lock.json":
        sources = {name: path.parent / name for name in ("post", "base", "new")}
        is_finished(api.plan(_lineage(sources)), 1_000_000, path)
    return api.verify(path, workers=1, seed=1)


def _plan(path: Path) -> Any:
    """Three checkpoints: the plan, the small files and the card of their mix."""
    from paramdelta import api

    plan = api.plan(_lineage({name: path / name for name in ("post", "base", "new")}))
    plan.check()
    return api._small_files(plan, path / "out", None)


def _lineage(folders: Any) -> Any:
    from paramdelta.recipe import Delta, Recipe

    return Recipe(folders["new"], (Delta(folders["post"], folders["base"]),))


def _check(path: Path) -> str:
    """The checks of a folder that this process makes itself; what they say."""
    from paramdelta.checks.agreement import check_agreement
    from paramdelta.checks.files import check_files
    from paramdelta.checks.folder import open_folder
    from paramdelta.checks.part import find_parts
    from paramdelta.checks.report import printable
    from paramdelta.checks.vocabulary import check_vocabulary, read_tokens
    from paramdelta.planning.findings import Findings

    findings = Findings()
    _, parts = find_parts(open_folder(path, findings), findings)
    for part in parts:
        tokens = read_tokens(part, findings)
        check_files(part, findings)
        check_vocabulary(part, tokens, 8, findings)
        check_agreement(part, tokens, False, findings)
    texts = [(found.what, found.where) for found in map(printable, findings.all(()))]
    return "\n".join(map(" ".join, texts))


ACTIONS = {
    "weights": _weights, "folder": _folder, "adapter": _adapter, "json": _json, "yaml": _yaml,
    "recipe": _recipe, "mergekit": _mergekit, "journal": _journal, "output": _output,
    "plan": _plan, "check": _check,
}  # fmt: skip


def measure(action: str, path: Path) -> Cost:
    """Open one input in this process."""
    from paramdelta.errors import ParamDeltaError

    refusals = (ParamDeltaError, ValueError) if action in ("json", "yaml") else ParamDeltaError
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = _memory("VmRSS"), time.process_time()
    try:
        said = ACTIONS[action](path)
        outcome, message = "opened", said if isinstance(said, str) else ""
    except refusals as error:
        outcome, message = "refused", str(error)
    except Exception as error:  # noqa: BLE001 - whatever else comes out is what is looked for
        outcome, message = type(error).__name__, str(error)
    seconds = time.process_time() - start
    memory = max(0, _memory("VmHWM") - before)
    slowness = _slowness() if seconds > SECONDS / 2 else 1.0
    return Cost(outcome, message[:2000], seconds, memory, slowness)


def _slowness() -> float:
    """How long a loop takes, beside what it took on the machine of the budget."""
    known: dict[int, Any] = {}
    start = time.process_time()
    for number in range(100_000):
        known[number & 1023] = (number, str(number))
    return max(1.0, (time.process_time() - start) / 0.0105)


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def _serve() -> None:
    # Not part of the first input's cost.
    import paramdelta.api
    import paramdelta.checks.checker
    import paramdelta.jobs.verify.folder  # noqa: F401

    gc.collect()
    gc.freeze()  # what is there already need not be looked through for every input
    used = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + CEILING, used + CEILING))
    for line in sys.stdin:
        action, path = json.loads(line)
        cost = measure(action, Path(path))
        print(json.dumps(dataclasses.astuple(cost)), flush=True)


if __name__ == "__main__":
    _serve()
