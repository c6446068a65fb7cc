"""Runs killed with SIGKILL at random moments and resumed end in the same bytes."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paramdelta.errors import CheckpointError
from tests import opening
from tests.checkpoints import fp8, llama, moved, save

# Commits follow each other closely, so that a kill leaves something to resume from.
CODE = """
from paramdelta.cli.app import main
from paramdelta.engine import threads
threads.COMMIT_SECONDS = 0.02
main()
"""
PROGRAM = [sys.executable, "-c", CODE]
COMMAND = [*PROGRAM, "mix"]


def digest(folder: Path) -> str:
    """One hash of every file of a folder, names included."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def is_loadable(folder: Path) -> bool:
    """Whether a loader would take the folder for a checkpoint: by its standard names."""
    if not folder.is_dir():
        return False
    if not any(
        (folder / n).exists() for n in ("model.safetensors", "model.safetensors.index.json")
    ):
        return False
    try:
        opening.checkpoint(folder, "output")
    except CheckpointError:
        return False
    return True


def run_or_kill(command: list[str], seconds: float) -> tuple[subprocess.Popen, str]:
    """A command that ended by itself, or was killed after so many seconds; what it printed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    stdout = process.stdout.read().decode()
    process.stdout.close()
    return process, stdout


def kill_and_resume(tmp_path: Path, runs: int, seed: int, dtype: str = "auto") -> None:
    """``runs`` times: start, kill at random moments until it ends by itself, compare."""
    base = llama(hidden=256, layers=6, vocab=2000)
    sets = {"base": base, "post": moved(base, 1), "new": moved(base, 2)}
    for number, (name, tensors) in enumerate(sets.items()):
        if dtype == "fp8-block":
            tensors |= fp8(number, **{f"m{i}": (1500, 700) for i in range(6)})
        save(tmp_path / name, tensors, config_json={"model_type": "llama"})
    options = [f"--{n}={tmp_path / n.replace('-base', '')}" for n in ("post", "base", "new-base")]
    options += ["--shard-size", "2MB", "--memory", "80MB", "--workers", "2", "--dtype", dtype]

    # What is timed must not compile: the runs that are killed have compiled code.
    subprocess.run([*COMMAND, *options, "--out", str(tmp_path / "first" / "out")], check=True)
    began = time.monotonic()
    subprocess.run([*COMMAND, *options, "--out", str(tmp_path / "whole" / "out")], check=True)
    duration = time.monotonic() - began
    expected = digest(tmp_path / "whole" / "out")
    chance = random.Random(seed)
    out, staging = tmp_path / "out", tmp_path / ".out.paramdelta-partial"
    kills = resumed = 0
    for _ in range(runs):
        while True:
            command = [*COMMAND, *options, "--out", str(out), "--json"]
            process, stdout = run_or_kill(command, chance.uniform(0.3, 1.1) * duration)
            if process.returncode == 0:
                resumed += '"bytes_resumed": 0,' not in stdout.splitlines()[-1]
                assert not list(tmp_path.glob(".out*"))
                break
            assert process.returncode == -signal.SIGKILL, stdout
            kills += 1
            if out.exists():  # killed after the rename: it is whole
                break
            if is_loadable(staging):  # killed between the last name and the rename: whole too
                assert not list(staging.glob("*.part"))
        assert digest(out) == expected
        for path in out.iterdir():
            path.unlink()
        out.rmdir()
    print(f"{runs} runs, {kills} kills, {resumed} runs that ended had resumed")
    assert kills >= runs // 4
    assert resumed or runs < 20


def test_a_few_kills(tmp_path):
    """Three runs, killed at random: the same bytes each time."""
    kill_and_resume(tmp_path, 3, seed=1)


def test_a_few_kills_of_a_quantized_output(tmp_path):
    """The same with FP8 and its scales, two places that a slice is written to."""
    kill_and_resume(tmp_path, 2, seed=3, dtype="fp8-block")


def kill_and_resume_a_sweep(tmp_path: Path, runs: int, seed: int) -> None:
    """The same with three outputs that share files: whatever is there at a kill is whole."""
    base = llama(hidden=256, layers=4, vocab=2500)
    for number, name in enumerate(("base", "post", "new")):
        save(tmp_path / name, moved(base, number), config_json={"model_type": "llama"})
    options = [f"--{n}={tmp_path / n.replace('-base', '')}" for n in ("post", "base", "new-base")]
    options += ["--preset", "linear-only", "--scale", "0.5,1,1.5", "--shard-size", "2MB"]
    command = [*PROGRAM, "sweep", *options, "--memory", "80MB", "--workers", "2", "--json"]

    # What is timed must not compile: the runs that are killed have compiled code.
    subprocess.run([*command, "--out", str(tmp_path / "first")], check=True)
    began = time.monotonic()
    arguments = [*command, "--out", str(tmp_path / "whole")]
    whole = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    duration = time.monotonic() - began
    size = json.loads(whole.splitlines()[-1])["bytes_written"]
    expected = {path.name: digest(path) for path in (tmp_path / "whole").iterdir()}
    chance = random.Random(seed)
    out = tmp_path / "out"
    kills = kept = resumed = 0
    for _ in range(runs):
        while True:
            arguments = [*command, "--out", str(out)]
            process, stdout = run_or_kill(arguments, chance.uniform(0.5, 1.1) * duration)
            for path in out.glob("scale-*"):
                assert digest(path) == expected[path.name]
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, stdout
            kills += 1
        done = json.loads(stdout.splitlines()[-1])
        kept += sum(member["kept"] for member in done["outputs"])
        resumed += done["bytes_written"] < size
        assert {path.name for path in out.iterdir()} == expected.keys()
        shutil.rmtree(out)
    print(f"{runs} runs, {kills} kills, {kept} outputs kept, {resumed} runs that ended had resumed")
    assert kills >= runs // 4
    assert resumed or runs < 20


def test_a_few_kills_of_a_sweep(tmp_path):
    """Three sweeps, killed at random: the same folders each time."""
    kill_and_resume_a_sweep(tmp_path, 3, seed=4)


@pytest.mark.slow
def test_fifty_kills_of_a_sweep(tmp_path):
    """Fifty sweeps, killed at random: the same folders each time."""
    kill_and_resume_a_sweep(tmp_path, 50, seed=5)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    """A hundred runs, killed at random: a hundred identical outputs."""
    kill_and_resume(tmp_path, 100, seed=2)
