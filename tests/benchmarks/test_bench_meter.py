"""The measuring itself: a child's own memory and failures, medians, ratios, tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compare, page_cache, table
from benchmarks.meter import ROOT, ChildFailedError, measure


def test_each_child_has_its_own_peak() -> None:
    """A small child after a large one is not charged with the large one's memory.

    Measured from a small process, as the benchmarks are: a child's peak includes what it was
    forked from, and this one may have loaded torch.
    """
    code = """
import json, pathlib, sys, tempfile, threading, time
from benchmarks import meter

seen = pathlib.Path(tempfile.mkdtemp()) / "seen"
wait = f"import pathlib, time; seen = pathlib.Path({str(seen)!r})\\n"
wait += "while not seen.exists(): time.sleep(0.01)"

def tell():  # the large child may end once it was looked at
    linux = pathlib.Path("/proc/self/status").exists()
    while linux and not any(getattr(t, "peak", 0) > 2e8 for t in threading.enumerate()):
        time.sleep(0.01)
    time.sleep(0 if linux else 0.2)
    seen.touch()

threading.Thread(target=tell, daemon=True).start()
large = meter.measure([sys.executable, "-c", "b = b'x' * 201_000_000\\n" + wait])
small = meter.measure([sys.executable, "-c", "print('done')"])
seen.unlink()
seen.parent.rmdir()
print(json.dumps([large.peak_rss_bytes, large.peak_anonymous_bytes,
                  small.peak_rss_bytes, small.output]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True)
    large, anonymous, small, output = json.loads(result.stdout)
    assert large > 200_000_000
    if anonymous:
        assert anonymous > 200_000_000
    assert small < large - 100_000_000
    assert output == "done\n"


def test_a_failing_child_is_an_error() -> None:
    """No time is reported for a command that failed; its words are."""
    with pytest.raises(ChildFailedError, match="no such thing"):
        measure([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_dropping_keeps_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the cache is dropped, the files read the same afterwards."""
    monkeypatch.setattr(page_cache, "DROP", tmp_path / "no" / "such" / "file")
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    page_cache.drop([path])
    page_cache.warm([path])
    assert path.read_bytes() == b"weights"


def runs() -> list[dict]:
    """Three rounds in which mergekit takes 8, 10 and 20 times as long, on an uneven machine."""
    rest = {"user_s": 1.0, "system_s": 0.5, "peak_rss_bytes": 100, "peak_anonymous_bytes": None}
    walls = {"paramdelta": [1, 2, 1], "mergekit": [8, 20, 20]}
    return [
        {"contender": name, "cache": "warm", "round": number, "wall_s": wall, **rest}
        for name, times in walls.items()
        for number, wall in enumerate(times, 1)
    ]


def test_ratios_are_taken_in_turns() -> None:
    """The median of the rounds' ratios, not the ratio of the medians."""
    summary = compare.summarize(runs())["warm"]
    assert summary["mergekit"]["wall_s"] == 20
    assert summary["mergekit"]["times_paramdelta"] == 10
    assert summary["paramdelta"]["times_paramdelta"] == 1
    assert summary["paramdelta"]["cpu_s"] == 1.5


def test_compare_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The floor alone, tiny: results are written, name no folder of this machine, and print."""
    results = tmp_path / "compare.json"
    options = ["--rounds=1", "--only=floor,floor-fsync", "--data", str(tmp_path / "data")]
    shape = ["--layers=1", "--hidden=64", "--vocab=512", "--intermediate=128"]
    command = ["compare", *options, "--results", str(results), *shape]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(page_cache, "DROP", tmp_path / "no" / "such" / "file")
    compare.main()
    text = results.read_text()
    assert str(tmp_path) not in text
    report = json.loads(text)
    assert {run["contender"] for run in report["runs"]} == {"floor", "floor-fsync"}
    assert report["commands"]["floor"] == "python -m benchmarks.floor post base new out"
    capsys.readouterr()
    assert table.compared(report).splitlines()[2].startswith("| plain read and copy |")
