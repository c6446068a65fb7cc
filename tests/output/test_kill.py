"""Runs killed with SIGKILL at any change of the disk and resumed end in the same bytes."""

import hashlib
import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from paramdelta.errors import CheckpointError
from tests import opening
from tests.checkpoints import fp8, llama, moved, save
from tests.crash import Program, forks, spread

pytestmark = forks

# Small runs commit as long ones do: all the time.
OFTEN = {"paramdelta.engine.threads.COMMIT_SECONDS": 0.0}


def digest(folder: Path) -> str:
    """One hash of every file of a folder, names included; of an unfinished run inside, nothing."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
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


def lineage(tmp_path: Path, dtype: str = "auto") -> list[str]:
    """Three checkpoints of 3 MB or so; the options that name them."""
    base = llama(hidden=128, layers=3, vocab=4000)
    for number, name in enumerate(("base", "post", "new")):
        tensors = moved(base, number)
        if dtype == "fp8-block":
            tensors |= fp8(number, **{f"m{i}": (700, 300) for i in range(4)})
        save(tmp_path / name, tensors, config_json={"model_type": "llama"})
    options = [f"--{n}={tmp_path / n.replace('-base', '')}" for n in ("post", "base", "new-base")]
    return [*options, "--shard-size", "1MB", "--memory", "80MB", "--workers", "2", "--json"]


def kill_and_resume(tmp_path: Path, runs: int, seed: int, dtype: str = "auto") -> None:
    """``runs`` times: kill, later ones of a run at random, until it ends by itself; compare."""
    command = ["mix", *lineage(tmp_path, dtype), "--dtype", dtype, "--out"]
    chance = random.Random(seed)
    out, staging = tmp_path / "run" / "out", tmp_path / "run" / ".out.paramdelta-partial"
    out.parent.mkdir()  # as deep as the other one: recipe.yaml names sources as seen from there
    kills = resumed = 0
    with Program(tmp_path / "said", OFTEN) as program:
        program.warm_up([*command, str(tmp_path / "first" / "out")])
        whole = program.run([*command, str(tmp_path / "whole" / "out")])
        assert whole.code == 0, whole.err
        expected = digest(tmp_path / "whole" / "out")
        for at in spread(whole.calls, runs):
            again = [at, *(chance.randint(1, whole.calls) for _ in range(2)), 0]
            for number in again:
                ended = program.run([*command, str(out)], number)
                if ended.code == 0:
                    resumed += '"bytes_resumed": 0,' not in ended.out.splitlines()[-1]
                    break
                assert ended.killed, ended.err
                kills += 1
                if out.exists():  # killed after the rename: it is whole
                    break
                if is_loadable(staging):  # between the last name and the rename: whole too
                    assert not list(staging.glob("*.part"))
            assert digest(out) == expected
            shutil.rmtree(out)
            shutil.rmtree(staging, ignore_errors=True)
    print(f"{runs} runs of {whole.calls} calls, {kills} kills, {resumed} had resumed")
    assert kills >= runs // 2
    assert resumed


def test_a_few_kills(tmp_path):
    """Killed at twelve moments of a run: the same bytes each time."""
    kill_and_resume(tmp_path, 12, seed=1)


def test_a_few_kills_of_a_quantized_output(tmp_path):
    """The same with FP8 and its scales, two places that a slice is written to."""
    kill_and_resume(tmp_path, 12, seed=3, dtype="fp8-block")


def kill_and_resume_a_sweep(tmp_path: Path, runs: int, seed: int) -> None:
    """The same with three outputs that share files: whatever is there at a kill is whole."""
    command = ["sweep", *lineage(tmp_path), "--preset", "linear-only", "--scale", "0.5,1,1.5"]
    chance = random.Random(seed)
    out = tmp_path / "out"
    kills = kept = resumed = 0
    with Program(tmp_path / "said", OFTEN) as program:
        program.warm_up([*command, "--out", str(tmp_path / "first")])
        whole = program.run([*command, "--out", str(tmp_path / "whole")])
        assert whole.code == 0, whole.err
        size = json.loads(whole.out.splitlines()[-1])["bytes_written"]
        expected = {path.name: digest(path) for path in (tmp_path / "whole").iterdir()}
        for at in spread(whole.calls, runs):
            again = [at, *(chance.randint(1, whole.calls) for _ in range(2)), 0]
            for number in again:
                ended = program.run([*command, "--out", str(out)], number)
                for path in out.glob("scale-*"):
                    assert digest(path) == expected[path.name]
                if ended.code == 0:
                    break
                assert ended.killed, ended.err
                kills += 1
            done = json.loads(ended.out.splitlines()[-1])
            kept += sum(member["kept"] for member in done["outputs"])
            resumed += done["bytes_written"] < size
            assert {path.name for path in out.iterdir()} == expected.keys()
            shutil.rmtree(out)
    print(f"{runs} runs of {whole.calls} calls, {kills} kills, {kept} kept, {resumed} resumed")
    assert kills >= runs // 2
    assert kept
    assert resumed


def test_a_few_kills_of_a_sweep(tmp_path):
    """Killed at twelve moments of a sweep: the same folders each time."""
    kill_and_resume_a_sweep(tmp_path, 12, seed=4)


@pytest.mark.parametrize("sweep", [False, True], ids=["mix", "sweep"])
def test_kills_while_an_old_output_is_replaced(tmp_path, sweep):
    """At each of the last calls of a run with --overwrite: the output is the old one or the new
    one, whole, and the same command ends in the new one. Nothing is left beside it.
    """
    options = lineage(tmp_path)
    out = tmp_path / "out"
    last = out / "scale-2.0" if sweep else out
    command = ["sweep", *options, "--scale", "1,2"] if sweep else ["mix", *options, "--scale", "2"]
    command += ["--out", str(out), "--overwrite"]
    # Commits now and then, not all the time: then every run makes equally many calls.
    with Program(tmp_path / "said") as program:
        old = ["mix", *options, "--scale", "0.5", "--out", str(last)]
        program.warm_up(old)
        saved = shutil.copytree(out, tmp_path / "saved")
        before = digest(last)
        whole = program.run(command)
        assert whole.code == 0, whole.err
        after = digest(last)
        kills = 0
        for at in range(whole.calls - 20 if sweep else whole.calls - 12, whole.calls + 1):
            shutil.rmtree(out)
            shutil.copytree(saved, out)
            kills += program.run(command, at).killed
            assert digest(last) in (before, after), at
            ended = program.run(command)
            assert ended.code == 0, ended.err
            assert digest(last) == after, at
            assert not list(tmp_path.rglob(".*.paramdelta-*")), at
        assert kills > 8


@pytest.mark.slow
def test_fifty_kills_of_a_sweep(tmp_path):
    """Killed at fifty moments of a sweep: the same folders each time."""
    kill_and_resume_a_sweep(tmp_path, 50, seed=5)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    """Killed at a hundred moments of a run: a hundred identical outputs."""
    kill_and_resume(tmp_path, 100, seed=2)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_run_in_order(tmp_path, name):
    """Exit code 130 and a line that says how to go on; the same command then goes on."""
    command = ["mix", *lineage(tmp_path), "--out", str(tmp_path / "out")]
    with Program(tmp_path / "said", OFTEN) as program:
        program.warm_up([*command[:-1], str(tmp_path / "first")])
        whole = program.run([*command[:-1], str(tmp_path / "whole")])
        ended = program.run(command, whole.calls * 3 // 4, getattr(signal, name))
        assert ended.code == 130, ended.err
        assert "the same command continues" in ended.out + ended.err
        assert not (tmp_path / "out").exists()
        again = program.run(command)
        assert again.code == 0, again.err
        assert '"bytes_resumed": 0,' not in again.out.splitlines()[-1]
