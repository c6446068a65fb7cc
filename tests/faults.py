"""Faults at each system call: a full disk, a failing device, a quota, too many files, a signal.

    python -m tests.faults [--only mix] [--calls 0] [--out benchmarks/results/faults.json]

strace makes one call of a command fail: call number N of its kind in every thread, or that one and
all later ones. All calls that change files are tried, all others that concern the output, and some
of the rest. After each:

- the command ended by itself, with exit code 0 and the right output, or with an error that has a
  message and with what was there before (or the right output, if only the end failed);
- the same command, undisturbed, ends in the right output, byte for byte;
- nothing is left beside it.

Needs Linux and strace. `tests/test_faults.py` runs a few.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import machine
from tests.crash import HANG, Ended, Program, spread
from tests.torture import Scenario, scenarios, state

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "faults.json"
SOME = 5  # calls of a kind that are tried where they do not concern the output

# What a kind of call can fail with; a number is what it returns instead. Kinds in `CHANGES` change
# files: a fault that stays (a disk that remains full) is tried with them as well.
FULL = ("ENOSPC", "EDQUOT", "EIO")
KINDS = {
    "write": (*FULL, "EINTR", "0"),
    "pwrite64": (*FULL, "EINTR", "EINVAL", "0"),
    "fallocate": (*FULL, "EOPNOTSUPP", "EINTR", "EFBIG"),
    "ftruncate": ("EIO", "EINTR", "EFBIG"),
    "fsync": (*FULL, "EINTR"),
    "fdatasync": (*FULL, "EINTR"),
    "rename": ("ENOSPC", "EIO", "EXDEV"),
    "renameat2": ("ENOSPC", "EIO", "EXDEV", "EINVAL", "ENOSYS", "EEXIST"),
    "unlink": ("EIO", "EBUSY", "EROFS"),
    "rmdir": ("EIO", "EBUSY", "ENOTEMPTY"),
    "mkdir": (*FULL, "EROFS"),
    "link": ("EMLINK", "EPERM", "EXDEV", "EIO"),
    "chmod": ("EPERM", "EIO"),
    "openat": ("EIO", "EMFILE", "ENOSPC", "EINTR"),
    "flock": ("ENOLCK", "EIO", "EAGAIN", "EINTR"),
    "close": ("EIO", "EINTR", "ENOSPC"),
    "preadv2": ("EIO", "EINTR"),
    "pread64": ("EIO", "EINTR"),
    "read": ("EIO", "EINTR"),
    "lseek": ("EIO",),
    "newfstatat": ("EIO", "EACCES"),
    "getdents64": ("EIO",),
    "fadvise64": ("EINVAL", "EIO"),
    "statfs": ("EIO",),
    "fcntl": ("EINVAL",),
    "ioctl": ("ENOTTY",),
    "clone3": ("EAGAIN",),
    "prlimit64": ("EPERM",),
    "getcwd": ("ENOENT",),
}
CHANGES = ("write", "pwrite64", "fallocate", "ftruncate", "fsync", "fdatasync", "rename")
CHANGES += ("renameat2", "unlink", "rmdir", "mkdir", "link", "chmod")
LASTING = ("ENOSPC", "EIO", "EMFILE", "EAGAIN")


@dataclass(frozen=True)
class Fault:
    """A fault of call number ``number``, from 1, of a kind in each thread; ``lasts``: and later."""

    kind: str
    error: str
    number: int
    lasts: bool

    @property
    def options(self) -> tuple[str, ...]:
        """The options of strace."""
        how = f"retval={self.error}" if self.error.isdigit() else f"error={self.error}"
        when = f"{self.number}{'+' if self.lasts else ''}"
        # Other calls are not shown, and cost less.
        return ("-e", f"trace={self.kind}", "-e", f"inject={self.kind}:{how}:when={when}")

    def __str__(self) -> str:
        return f"{self.kind} {self.number}{'+' if self.lasts else ''} {self.error}"


def all_scenarios(folder: Path) -> list[Scenario]:
    """Those of `tests.torture` without the check of the output, which runs a process of torch.

    Beside them: an output that fills the current folder, a mix that is resumed, verify and plan,
    which only read, and the import of a recipe, which writes one file.
    """
    known = []
    for each in scenarios(folder):
        more = ("--no-check",) if each.command[0] in ("mix", "sweep") else ()
        old = (*each.old, *more) if each.old is not None else None
        known.append(replace(each, command=(*each.command, *more), old=old))
    mix = known[0]
    (folder / "merge.yml").write_text(
        f"merge_method: task_arithmetic\nbase_model: {folder / 'base'}\nmodels:\n"
        f"- {{model: {folder / 'post'}, parameters: {{weight: 0.5}}}}\n"
    )
    return [
        *known,
        replace(mix, name="mix into the current folder", inside=True),
        replace(mix, name="mix resumed", resumed=True),
        Scenario("verify", ("verify", "OUT"), mix.command, reads=True),
        Scenario("plan", ("plan", *mix.command[1:4]), reads=True),
        Scenario("recipe import", ("recipe", "import", str(folder / "merge.yml"))),
    ]


class Bench:
    """One scenario, set up to be run again and again; a context manager.

    ``tried``: how many faults were injected, by kind of call. ``ends``: by exit code.
    """

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario = scenario
        self.place = folder / "place"
        self.out = self.place / "out"
        self.saved = folder / "saved"
        self.log = folder / "log"
        self.folder = folder
        self.tried: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()

    def __enter__(self) -> "Bench":
        self.program = Program(self.folder / "said", {})
        self.program.__enter__()
        scenario = self.scenario
        self.place.mkdir(parents=True)
        if scenario.old is not None:
            ended = self.program.run([*scenario.old, "--out", str(self.out)])
            assert ended.code == 0, ended.err
        if scenario.inside:
            self.out.mkdir()
        shutil.copytree(self.place, self.saved)
        self.before = state(self.out, scenario)
        self.program.warm_up(self.command(self.folder / "warm" / "out"), self.cwd)
        shutil.rmtree(self.folder / "warm", ignore_errors=True)
        self.reset()
        whole = self.program.run(self.command(), cwd=self.cwd)
        assert whole.code == 0, whole.err
        self.after = state(self.out, scenario)
        if scenario.resumed:
            self.reset()
            ended = self.program.run(self.command(), whole.calls // 2)
            assert ended.killed
            shutil.rmtree(self.saved)
            shutil.copytree(self.place, self.saved)
        return self

    def __exit__(self, *error: object) -> None:
        self.program.__exit__(None, None, None)
        for path in (self.place, self.saved):
            shutil.rmtree(path, ignore_errors=True)

    @property
    def cwd(self) -> str | None:
        """The folder in which the command runs."""
        return str(self.out) if self.scenario.inside else None

    def command(self, out: Path | None = None) -> list[str]:
        """The command line."""
        out = out or self.out
        if self.scenario.reads:
            return [str(self.out) if word == "OUT" else word for word in self.scenario.command]
        return [*self.scenario.command, "--out", "." if self.scenario.inside else str(out)]

    def reset(self) -> None:
        """Everything as it was before the first run."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.saved, self.place)

    def faults(self, calls: int) -> Iterator[Fault]:
        """The faults to try. ``calls``: at most so many calls of a kind; 0 for all."""
        self.reset()
        ended = self.program.trace(
            self.command(), ("-y", "-e", "trace=" + ",".join(KINDS)), self.log, self.cwd
        )
        assert ended.code == 0, ended.err
        for kind, numbers in self._calls(calls):
            for number in numbers:
                for error in KINDS[kind]:
                    yield Fault(kind, error, number, False)
                    if error in LASTING and (kind in CHANGES or number == numbers[0]):
                        yield Fault(kind, error, number, True)

    def _calls(self, most: int) -> Iterator[tuple[str, list[int]]]:
        """Numbers of calls of each kind that are tried."""
        lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            if match := re.match(r"(\d+) +(\w+)\(", line):
                lines[match[2]][match[1]].append(line)
        for kind, threads in lines.items():
            count = max(map(len, threads.values()))
            concern = {
                number
                for calls in threads.values()
                for number, line in enumerate(calls, 1)
                if kind in CHANGES or str(self.place) in line
            }
            numbers = sorted(concern | {*spread(count, SOME)})
            if most and len(numbers) > most:
                numbers = [numbers[number - 1] for number in spread(len(numbers), most)]
            yield kind, numbers

    def check(self, fault: Fault) -> None:
        """Try one fault; raises AssertionError."""
        self.reset()
        began = time.monotonic()
        ended = self.program.trace(self.command(), fault.options, self.log, self.cwd)
        text = self.log.read_text(errors="replace")
        self.tried[fault.kind] += "INJECTED" in text
        self.ends[str(ended.code)] += 1
        assert time.monotonic() - began < HANG, f"{fault}: hangs"
        self._check_end(fault, ended)
        # Files that are moved one by one stay where they are if no rename works any more.
        halves = self.scenario.inside and fault.lasts and fault.kind == "renameat2"
        for name, found in state(self.out, self.scenario).items() if not halves else ():
            assert found in (self.before.get(name), self.after[name]), f"{fault}: {name} differs"
        assert {*self.before} <= {*state(self.out, self.scenario)}, f"{fault}: an output is lost"
        if ended.code != 0:
            again = self.program.run(self.command(), cwd=self.cwd)
            whole = again.code == 2 and "exist" in again.err and self.scenario.old is None
            assert again.code == 0 or whole, f"{fault}: then {again.err}"
        assert state(self.out, self.scenario) == self.after, f"{fault}: then the output differs"
        left = [path.name for path in self.place.rglob("*") if "paramdelta-" in path.name]
        removing = fault.kind in ("unlink", "rmdir")  # may fail when there is nothing else to do
        kept = list(self.place.glob("**/*.kept-*"))
        assert not kept or "kept-" in ended.out + ended.err, f"{fault}: {kept} without a word"
        assert not left or removing, f"{fault}: {left} left over, after {ended.code}: {ended.err}"

    def failure(self, fault: Fault) -> str | None:
        """Try one fault; what went wrong."""
        try:
            self.check(fault)
        except AssertionError as error:
            return str(error)
        return None

    def _check_end(self, fault: Fault, ended: Ended) -> None:
        said = f"{fault}: exit code {ended.code}: {ended.err}"
        assert "Traceback" not in ended.err, said
        assert "fault of paramdelta" not in ended.err, said
        if ended.code == 0:
            assert state(self.out, self.scenario) == self.after, f"{fault}: exit code 0, but wrong"
        else:
            assert ended.code in (2, 3, 4), said
            if fault.kind != "write":  # which may have been the message
                assert "error: " in ended.err, said


def possible() -> str | None:
    """Why faults cannot be injected here; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=chdir:error=EIO", "true"],
        capture_output=True,
        text=True,
    )
    return f"strace cannot trace: {done.stderr.strip()}" if done.returncode else None


def try_all(
    chosen: Iterable[Scenario], folder: Path, calls: int
) -> Iterator[tuple[str, dict, list[str]]]:
    """Each scenario's name, its figures and what failed."""
    for number, scenario in enumerate(chosen):
        with Bench(scenario, folder / f"bench-{number}") as bench:
            failed = [said for fault in bench.faults(calls) if (said := bench.failure(fault))]
        told = {"faults": sum(bench.tried.values()), "failures": len(failed)}
        told |= {"exit codes": dict(sorted(bench.ends.items()))}
        told |= {"by call": dict(sorted(bench.tried.items()))}
        yield scenario.name, told, failed


def main(names: Sequence[str], calls: int, out: Path) -> int:
    """Try all; write the report; 1 if anything failed."""
    report: dict = {"scenarios": {}}
    broken = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report["machine"] = machine.describe(folder)
        report["machine"]["strace"] = subprocess.run(
            ["strace", "--version"], capture_output=True, text=True
        ).stdout.split()[3]
        chosen = [s for s in all_scenarios(folder / "sources") if not names or s.name in names]
        for scenario, told, failed in try_all(chosen, folder, calls):
            print(scenario, told, flush=True)
            for text in failed:
                print("  ", text, flush=True)
            report["scenarios"][scenario] = told
            broken |= bool(failed)
            out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return int(broken)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="a scenario")
    parser.add_argument("--calls", type=int, default=0, help="at most, of a kind; 0: all")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    raise SystemExit(main(given.only, given.calls, given.out))
