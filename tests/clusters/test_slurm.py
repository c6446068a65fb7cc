"""The example for Slurm, with the real Slurm on this machine: `make test-slurm`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import paramdelta
from tests.buckets import contents
from tests.clusters.slurm import finished, slurm, why_not

SCRIPT = Path(__file__).parents[2] / "examples" / "cluster" / "slurm.sh"
pytestmark = pytest.mark.skipif(
    "PARAMDELTA_TEST_SLURM" not in os.environ or why_not() is not None,
    reason=why_not() or "takes a minute: make test-slurm",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A running Slurm, and paramdelta in the PATH of its jobs."""
    folder = tmp_path_factory.mktemp("slurm")
    program = folder / "bin" / "paramdelta"
    program.parent.mkdir()
    source = Path(paramdelta.__file__).parents[1]
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH={source} PARAMDELTA_CHECK=0 exec {sys.executable} "
        "-c 'from paramdelta.cli.app import main; main()' \"$@\"\n"
    )
    program.chmod(0o755)
    with slurm(folder / "slurm") as found:
        yield {**found, "PATH": f"{program.parent}:{found['PATH']}"}


def submit(environment, lineage, out, folder):
    """Run the example; it makes four parts, and finishes."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(lineage.recipe().to_yaml())
    command = [str(SCRIPT), str(recipe), str(out), "--shard-size", "1MB"]
    subprocess.run(command, env=environment, cwd=folder, check=True, timeout=60)


def logs(folder):
    """What the jobs printed."""
    return "\n".join(path.read_text() for path in folder.glob("slurm-*.out"))


def test_an_array_of_four(environment, wide, tmp_path):
    """Four parts and a job that depends on them: the bytes of one process."""
    out = tmp_path / "shared" / "out"
    submit(environment, wide, out, tmp_path)
    finished(environment)
    assert out.exists(), logs(tmp_path)
    expected = paramdelta.mix(wide.recipe(), tmp_path / "one" / "out", shard_size="1MB").folder
    assert contents(out) == contents(expected)


def test_a_part_that_is_requeued(environment, wide, tmp_path):
    """A part that Slurm stops and starts again does no harm."""
    out = tmp_path / "shared" / "out"
    submit(environment, wide, out, tmp_path)
    for _ in range(20):
        time.sleep(0.3)
        running = subprocess.run(
            ["squeue", "-h", "-t", "running", "-n", "mix", "-o", "%i"],
            env=environment, capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        if running:
            subprocess.run(["scontrol", "requeue", running[0]], env=environment, check=True)
            time.sleep(4)  # it ends first; then Slurm would wait for two minutes
            now = ["scontrol", "update", f"JobId={running[0]}", "StartTime=now"]
            subprocess.run(now, env=environment, check=False)
            break
    finished(environment)
    assert out.exists(), logs(tmp_path)
    expected = paramdelta.mix(wide.recipe(), tmp_path / "one" / "out", shard_size="1MB").folder
    assert contents(out) == contents(expected)
