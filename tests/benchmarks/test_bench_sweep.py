"""The measurement of a sweep, tiny: alike files, counted bytes, no folder of this machine."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import page_cache, sweep
from benchmarks.meter import Reading, measure


@pytest.mark.slow
def test_a_tiny_sweep_beside_mixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round: the same files, and at most 5/8 of the bytes for two scales."""
    results = tmp_path / "sweep.json"
    options = ["--rounds=1", "--cache=warm", "--scales=0.5,1", "--data", str(tmp_path / "data")]
    shape = ["--layers=1", "--hidden=64", "--vocab=512", "--intermediate=128"]
    command = ["sweep", *options, "--results", str(results), *shape]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(page_cache, "DROP", tmp_path / "no" / "such" / "file")
    monkeypatch.setattr(os, "sync", lambda: None)  # it waits for all that others write
    prepared = set()

    def measured(command: list[str]) -> Reading | None:
        """A reading; a command that only brings code into memory runs once."""
        if str(tmp_path / "data" / "tiny") in " ".join(command):
            if command[1] in prepared:
                return None
            prepared.add(command[1])
        return measure(command)

    monkeypatch.setattr(sweep, "measure", measured)
    sweep.main()
    text = results.read_text()
    assert str(tmp_path) not in text
    report = json.loads(text)
    assert report["files_alike"]
    row = report["summary"]["warm"]
    assert row["weight_bytes_ratio"] <= report["bytes_ratio_at_most"] == 5 / 8
    assert row["wall_ratio"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts bytes on Linux")
def test_bytes_of_a_child_are_counted(tmp_path: Path) -> None:
    """What a child reads and writes, threads included, and none of its parent's."""
    path = tmp_path / "file"
    code = f"""
import pathlib, threading
path = pathlib.Path({str(path)!r})
path.write_bytes(bytes(3_000_000))
thread = threading.Thread(target=path.read_bytes)
thread.start()
thread.join()
"""
    reading = measure([sys.executable, "-c", code])
    assert 3_000_000 <= reading.written_bytes < 3_100_000
    assert 3_000_000 <= reading.read_bytes < 20_000_000
