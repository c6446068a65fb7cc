"""A mix into FP8 with fresh scales, from end to end: bytes, resuming, verification, memory."""

import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from paramdelta import Delta, MisfitError, Recipe, StorageError, UsageError, mix, plan, verify
from paramdelta.api import budget_for
from paramdelta.cli.app import app
from paramdelta.engine.memory import MAX_BUFFER
from paramdelta.output.folder import FolderWriter
from paramdelta.output.place import place_of
from tests import opening
from tests.checkpoints import bf16, fp8, save
from tests.footprint import grown_and_projected, sparse
from tests.memory import linux
from tests.mixing import job_of
from tests.numbers import fp8_values
from tests.output.test_kill import digest

VALUES = fp8_values("F8_E4M3")
SHAPES = {"a": (300, 200), "b": (128, 256), "c": (1, 5), "d": (257, 3000), "e": (2100, 129)}
CONFIG = {
    "model_type": "deepseek_v3",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


@pytest.fixture
def recipe(tmp_path):
    """Three checkpoints of matrices in FP8, cut blocks among them, and a norm in BF16."""
    for seed, role in enumerate(("base", "post", "new")):
        tensors = fp8(seed, **SHAPES) | {"norm.weight": bf16(np.full(64, 1 + seed / 8))}
        save(tmp_path / role, tensors, config_json=CONFIG)
    return of(tmp_path)


def of(folder, new="new", post="post", base="base", **choices):
    """The recipe for three folders."""
    choices = {"dtype": "fp8-block"} | choices
    delta = Delta(str(folder / post), str(folder / base), choices.pop("scale", 1.0))
    return Recipe(str(folder / new), (delta,), **choices)


def stored(folder):
    """Everything that a checkpoint stores, by name, as arrays."""
    dtypes = {"F8_E4M3": np.uint8, "F32": np.float32, "BF16": np.uint16}
    found = {}
    for name, tensor in opening.checkpoint(folder, "output").tensors.items():
        data = np.memmap(tensor.blob.url, dtypes[tensor.dtype], "r", tensor.offset, tensor.elements)
        found[name] = np.array(data).reshape(tensor.shape)
    return found


def values(tensors, name):
    """A matrix in float64: codes times the scales of their blocks."""
    codes, scales = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale_inv"]
    wide = scales.astype(np.float64).repeat(128, 0).repeat(128, 1)
    return VALUES[codes] * wide[: codes.shape[0], : codes.shape[1]]


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_the_output_is_the_sum_requantized(tmp_path, recipe, scale):
    """Every scale is that of its block's largest sum, every number within half a step of the sum;
    the output's folder verifies, and is read again as FP8.
    """
    result = mix(of(tmp_path, scale=scale), tmp_path / "out", memory="80MB")
    assert result.not_finite == {}
    roles = {role: stored(tmp_path / role) for role in ("new", "post", "base", "out")}
    for name, (rows, columns) in SHAPES.items():
        new, post, base = (values(roles[role], name) for role in ("new", "post", "base"))
        exact = new + scale * (post - base)
        scales = roles["out"][f"{name}.weight_scale_inv"]
        for i in range(0, rows, 128):
            for j in range(0, columns, 128):
                largest = np.abs(exact[i : i + 128, j : j + 128]).max()
                assert abs(scales[i // 128, j // 128] * 448 / largest - 1) < 2**-23
        wide = scales.astype(np.float64).repeat(128, 0).repeat(128, 1)[:rows, :columns]
        ulp = np.ldexp(1.0, np.maximum(np.frexp(exact / wide)[1] - 4, -9))
        error = np.abs(values(roles["out"], name) - exact)
        assert (error <= wide * ulp / 2 * (1 + 1e-6)).all()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == CONFIG["quantization_config"]
    found = verify(tmp_path / "out", share=1.0)
    assert found.elements == found.total == sum(v.size for v in roles["new"].values())
    assert found.tensors == len(roles["out"])
    again = plan(of(tmp_path, new="out", dtype=None))
    assert {t.dtype for t in again.tensors} == {"BF16"}


def test_a_share_is_verified_too(tmp_path, recipe):
    """A sample takes whole blocks, at least one of every tensor."""
    mix(recipe, tmp_path / "out")
    found = verify(tmp_path / "out", share=0.01)
    assert found.tensors == 11
    assert 0 < found.elements <= found.total


def test_an_old_base_as_new_base_gives_back_post(tmp_path, recipe):
    """base' = base (a copy of it elsewhere, so that nothing cancels in the plan): what comes out is
    post, codes and scales, for the largest number of its blocks is 448.
    """
    post = stored(tmp_path / "post")
    for name, (rows, columns) in SHAPES.items():
        post[f"{name}.weight"][0:rows:128, 0:columns:128] = 0x7E
    save(tmp_path / "full", post, config_json=CONFIG)
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    mix(of(tmp_path, new="copy", post="full"), tmp_path / "out")
    found = stored(tmp_path / "out")
    assert all(np.array_equal(found[name], post[name]) for name in post)


def test_what_has_no_delta_keeps_its_codes_and_scales(tmp_path, recipe):
    """A matrix that only the new base has is copied as it is stored, whatever its largest code."""
    extra = fp8(9, mtp=(130, 140))
    save(tmp_path / "more", stored(tmp_path / "new") | extra, config_json=CONFIG)
    made = mix(of(tmp_path, new="more"), tmp_path / "out").plan
    found = stored(tmp_path / "out")
    assert all(np.array_equal(found[name], extra[name]) for name in extra)
    assert (made.mixed, made.copied) == (6, 1)
    assert "mtp.weight" not in next(f.tensors for f in made.findings if f.code == "requantized")
    assert verify(tmp_path / "out", share=1.0).tensors == len(found)


def test_tasks_are_whole_blocks_and_fill_the_output(recipe):
    """Every byte of codes, scales and the rest is made once, whatever the buffers."""
    made = plan(recipe)
    for buffer in (64, 4096, MAX_BUFFER):
        job, covered = job_of(made, buffer), []
        for task in job.tasks():
            tensor, ranges = made.tensors[task.tensor], job.ranges(task)
            covered += ranges
            assert len(ranges) == len(tensor.streams)
            if len(ranges) == 2:
                rows, columns = tensor.shape
                assert task.start % (128 * columns) == 0
                assert task.stop % (128 * columns) == 0 or task.stop == rows * columns
        covered.sort()
        assert covered[0][0] == 0
        assert covered[-1][1] == made.bytes_to_write
        assert all(one[1] == other[0] for one, other in itertools.pairwise(covered))


def test_progress_ends_at_the_total(tmp_path, recipe):
    """Scales count as bytes that are done."""
    calls = []
    mix(recipe, tmp_path / "out", progress=calls.append)
    assert calls[-1].done == calls[-1].total == plan(recipe).bytes_to_write


def test_stopped_anywhere_and_resumed_is_the_whole(tmp_path, recipe, monkeypatch):
    """Stopped after any number of writes, between a band's scales and its codes too: resumed, the
    bytes are those of a run that was not stopped, and no task is run again that is there.
    """
    mix(recipe, tmp_path / "whole" / "out", shard_size="1MB")
    expected = digest(tmp_path / "whole" / "out")
    write, whole, done = FolderWriter.write, [], 0
    job = job_of(plan(recipe), MAX_BUFFER)
    for task in job.tasks():  # bytes of whole tasks after so many writes
        whole += [done] * len(job.ranges(task))
        done += job.cost(task)
    for stop in range(len(whole)):
        left = stop

        def failing(self, stream, offset, data):
            nonlocal left
            if left == 0:
                raise StorageError("stopped", code="stopped")
            left -= 1
            return write(self, stream, offset, data)

        out = tmp_path / "run" / "out"
        out.parent.mkdir(exist_ok=True)
        monkeypatch.setattr(FolderWriter, "write", failing)
        with pytest.raises(StorageError, match="stopped"):
            mix(recipe, out, shard_size="1MB", workers=1)
        monkeypatch.setattr(FolderWriter, "write", write)
        assert place_of(out).staging.is_dir()
        result = mix(recipe, out, shard_size="1MB", workers=2)
        assert result.resumed == whole[stop]
        assert digest(out) == expected
        shutil.rmtree(out)


def altered(folder, name, element, size):
    """Flip the lowest bit of one element of the output."""
    tensor = opening.checkpoint(folder, "output").tensors[name]
    with Path(tensor.blob.url).open("r+b") as file:
        file.seek(tensor.offset + element * size)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("element", [0, 59_999, 31_415])
def test_one_altered_code_is_found(tmp_path, recipe, element):
    """The lowest bit of one code is enough, and is named by tensor and element."""
    mix(recipe, tmp_path / "out")
    altered(tmp_path / "out", "a.weight", element, 1)
    with pytest.raises(MisfitError, match=rf"'a\.weight', element {element}"):
        verify(tmp_path / "out", share=1.0)


@pytest.mark.parametrize("element", [0, 5])
def test_one_altered_scale_is_found(tmp_path, recipe, element):
    """The last bit of one scale is enough, though no code would be another one beside it."""
    mix(recipe, tmp_path / "out")
    altered(tmp_path / "out", "a.weight_scale_inv", element, 4)
    with pytest.raises(MisfitError, match=rf"'a\.weight_scale_inv', element {element}"):
        verify(tmp_path / "out", share=1.0)


def test_not_finite_numbers_are_reported(tmp_path):
    """NaN of a source is counted there; a sum that no scale holds is counted against the result."""
    new, post = fp8(0, a=(4, 4), b=(4, 4)), fp8(1, a=(4, 4), b=(4, 4))
    new["a.weight"][1, 1] = 0x7F
    new["b.weight_scale_inv"][:] = post["b.weight_scale_inv"][:] = 3e38
    new["b.weight"][:] = post["b.weight"][:] = 0x7E
    base = fp8(2, a=(4, 4), b=(4, 4))
    for role, tensors in (("new", new), ("post", post), ("base", base)):
        save(tmp_path / role, tensors, config_json=CONFIG)
    result = mix(of(tmp_path), tmp_path / "out")
    assert result.not_finite == {("a.weight", "new base"): 1, ("b.weight", "result"): 16}
    out = stored(tmp_path / "out")
    assert np.isnan(VALUES[out["a.weight"]]).sum() == 1
    assert (out["b.weight"] == 0x7E).all()
    verify(tmp_path / "out", share=1.0)


def test_too_little_memory_for_a_band(tmp_path):
    """128 rows of a wide matrix must fit; fewer workers where there is little more."""
    for role in ("post", "base", "new"):
        wide(tmp_path / role, 128, 50_000)
    made = plan(of(tmp_path))
    budget = budget_for(made, 256_000_000, 8)
    assert budget.projected <= 256_000_000
    assert 1 <= budget.workers < 8
    with pytest.raises(UsageError, match="too little") as error:
        budget_for(made, 100_000_000, 8)
    assert "128 whole rows" in error.value.expected


def wide(folder, rows, columns):
    """A sparse matrix in FP8."""
    grid = (-(-rows // 128), -(-columns // 128))
    entries = {
        "w.weight": ("F8_E4M3", (rows, columns), 1),
        "w.weight_scale_inv": ("F32", grid, 4),
    }
    sparse(folder / "model.safetensors", entries)
    return folder


@linux
@pytest.mark.parametrize(("shape", "memory"), [((4096, 18432), "256MB"), ((60_000, 512), "90MB")])
def test_measured_memory_stays_under_the_projected(tmp_path, shape, memory):
    """Wide and narrow matrices are requantized within the projected memory."""
    paths = [wide(tmp_path / role, *shape) for role in ("post", "base", "new")]
    size = int(memory.removesuffix("MB")) * 1_000_000
    grown, projected = grown_and_projected(paths, size, "fp8-block")
    assert 0 < grown <= projected <= size


@pytest.mark.skipif(sys.platform == "win32", reason="the terminal's encoding")
def test_the_commands(tmp_path, recipe):
    """plan, mix and verify with --dtype fp8-block; the plan names scales and config.json's form."""
    options = ["--dtype", "fp8-block"]
    for role, option in (("post", "--post"), ("base", "--base"), ("new", "--new-base")):
        options += [option, str(tmp_path / role)]
    run = CliRunner().invoke
    shown = run(app, ["plan", *options, "--tensors"])
    assert shown.exit_code == 0
    assert "6 mixed, 0 copied" in shown.output
    assert "a.weight_scale_inv  F32 [3, 2]  stored with a.weight" in shown.output
    assert "parameters, F8_E4M3 + F32 + BF16" in shown.output
    assert "[requantized]" in shown.output
    assert run(app, ["mix", *options, "--out", str(tmp_path / "out")]).exit_code == 0
    assert run(app, ["verify", str(tmp_path / "out"), "--full"]).exit_code == 0
    assert "dtype: fp8-block" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    listed = run(app, ["plan", *options, "--tensors", "--json"])
    tensors = json.loads(listed.output.splitlines()[0])["terms"]
    streams = {stream["name"]: stream for tensor in tensors for stream in tensor["streams"]}
    assert {n: s["shape"] for n, s in streams.items()} == {
        name: list(array.shape) for name, array in stored(tmp_path / "out").items()
    }
    plain = run(app, ["plan", *options[2:], "--json"])
    assert json.loads(plain.output.splitlines()[0])["bytes_to_write"] > 0
