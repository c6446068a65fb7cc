"""A sweep from end to end: the bytes of its mixes, from one pass, shared, resumed, refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from paramdelta import (
    Delta,
    Interrupted,
    MisfitError,
    Recipe,
    StorageError,
    UsageError,
    mix,
    plan,
    sweep,
    verify,
)
from paramdelta.formats.view import Tensor
from paramdelta.output import place
from paramdelta.output.folder import FolderWriter
from paramdelta.output.guard import Guard
from paramdelta.output.lock import LOCK
from paramdelta.output.place import Place, place_of
from paramdelta.planning.sweep import make_sweep
from paramdelta.recipe.schedule import preset
from paramdelta.schemes.sum import SUM
from paramdelta.schemes.ties import Ties
from paramdelta.storage.reader import Reader
from tests import opening
from tests.checkpoints import fp8, llama, moved, save
from tests.cli.test_app import run
from tests.footprint import sparse
from tests.memory import linux, printed
from tests.unfinished import interrupted

SCALES = (0.5, 0.75, 1.0, 1.25)


def content(folder):
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tensors(folder):
    """The bytes of every tensor of a checkpoint, whatever file it is in."""
    return {
        name: Path(tensor.blob.url).read_bytes()[tensor.offset : tensor.offset + tensor.size]
        for name, tensor in opening.checkpoint(folder, "output").tensors.items()
    }


def large(tmp_path: Path, **choices) -> Recipe:
    """A recipe for linear layers only, whose embeddings and head are 2 MB."""
    base = llama(hidden=128, layers=3, vocab=4000)
    for number, name in enumerate(("base", "post", "new")):
        save(tmp_path / name, moved(base, number), config_json={"model_type": "llama"})
    delta = Delta(str(tmp_path / "post"), str(tmp_path / "base"), preset("linear-only"))
    return Recipe(str(tmp_path / "new"), (delta,), **choices)


@pytest.mark.parametrize("workers", [1, 5])
def test_every_output_is_what_mix_writes(lineage, tmp_path, workers):
    """Folder by folder and file by file the same bytes, lock and card included; verify agrees."""
    result = sweep(lineage.recipe(), SCALES, tmp_path / "out", workers=workers, memory="60MB")
    assert [m.scale for m in result.members] == list(SCALES)
    for member in result.members:
        folder = mix(lineage.recipe(member.scale), tmp_path / "mix" / member.folder.name).folder
        assert content(member.folder) == content(folder)
        assert member.folder == tmp_path / "out" / f"scale-{member.scale}"
        assert not member.shared
        verify(member.folder, share=1.0)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        f"scale-{scale}" for scale in SCALES
    )


def test_scales_multiply_every_delta(lineage, tmp_path):
    """Several Δ and a schedule: each number times the scale, 0 and negative ones included."""
    second = save(tmp_path / "second", moved(llama(), 5))
    rules = [
        {"match": "*.mlp.*", "layers": {"0-1": [0.5, 0.25]}},
        {"match": "*lm_head*", "value": 0},
    ]
    extra = Delta(str(second), str(lineage.base), [*rules, -0.5])
    recipe = Recipe(str(lineage.new), (*lineage.recipe(0.8).deltas, extra))
    result = sweep(recipe, (0, -1, 0.3), tmp_path / "out")
    for member in result.members:
        factor = member.scale
        rules[0]["layers"] = {"0-1": [0.5 * factor, 0.25 * factor]}
        deltas = (
            *lineage.recipe(0.8 * factor + 0.0).deltas,
            Delta(str(second), str(lineage.base), [*rules, -0.5 * factor + 0.0]),
        )
        one = Recipe(str(lineage.new), deltas)
        assert content(member.folder) == content(
            mix(one, tmp_path / f"{factor}" / member.folder.name).folder
        )
    assert tensors(result.members[0].folder) == tensors(lineage.new)


def test_operands_that_cancel_out_at_one_scale(lineage, tmp_path):
    """Onto the base itself, 1 is post alone and 0 is base alone; the outputs are right with 0.5."""
    recipe = Recipe(str(lineage.base), lineage.recipe().deltas)
    made = make_sweep(recipe, (0.5, 1, 0))
    assert made.bytes_to_read == 2 * made.plans[0].bytes_to_write
    result = sweep(recipe, (0.5, 1, 0), tmp_path / "out")
    for member in result.members:
        one = Recipe(str(lineage.base), lineage.recipe(member.scale).deltas)
        folder = mix(one, tmp_path / "mix" / member.folder.name).folder
        assert content(member.folder) == content(folder)
    assert tensors(result.members[1].folder) == tensors(lineage.post)
    assert tensors(result.members[2].folder) == tensors(lineage.base)


@pytest.mark.parametrize("ties", [None, {"density": 0.5}])
def test_sparse_deltas(lineage, tmp_path, ties):
    """DARE and TIES, whose thresholds are looked for once: what each mix writes."""
    second = save(tmp_path / "second", moved(llama(), 5))
    deltas = (
        Delta(str(lineage.post), str(lineage.base), 0.8),
        Delta(str(second), str(lineage.base), -0.4, dare={"drop": 0.5, "seed": 3}),
    )
    recipe = Recipe(str(lineage.new), deltas, scheme=Ties(**ties) if ties else SUM)
    result = sweep(recipe, (0, 0.5, 2), tmp_path / "out")
    for member in result.members:
        one = recipe.times(member.scale)
        folder = mix(one, tmp_path / "mix" / member.folder.name).folder
        assert content(member.folder) == content(folder)
        verify(member.folder, share=1.0)
    made = make_sweep(recipe, (0, 0.5, 2))
    assert made.bytes_to_read == plan(recipe).bytes_to_read
    assert result.read <= made.bytes_to_read


@pytest.mark.parametrize("dtype", ["auto", "F32"])
def test_shared_tensors_are_one_file(tmp_path, dtype):
    """What no scale changes has files of its own, one on disk; every tensor is as mix writes it."""
    recipe = large(tmp_path, dtype=None if dtype == "auto" else dtype)
    result = sweep(recipe, SCALES, tmp_path / "out", shard_size="1MB")
    size = result.members[0].size
    for member in result.members:
        one = recipe.times(member.scale)
        folder = mix(one, tmp_path / "mix" / member.folder.name, shard_size="1MB").folder
        mine, theirs = content(member.folder), content(folder)
        for files in (mine, theirs):  # weights are laid out in other files, which the lock lists
            lock = json.loads(files[LOCK])
            del lock["outputs"]
            files[LOCK] = lock
        small = [n for n in theirs if "safetensors" not in n]
        assert [mine[n] for n in small] == [theirs[n] for n in small]
        assert tensors(member.folder) == tensors(folder)
        assert member.shared > size / 2
        verify(member.folder, share=1.0)
    shared = [n for n in (m.folder for m in result.members) for n in n.glob("*.safetensors")]
    links = {path.stat().st_ino for path in shared}
    first = result.members[0]
    assert len(links) < len(shared)
    assert result.written == pytest.approx(4 * (size - first.shared) + first.shared, rel=0.01)


def test_without_hard_links_every_folder_has_its_own(tmp_path, monkeypatch):
    """Where the system has no links, the shared files are written into each folder."""

    def link(*_):
        raise OSError("no links here")

    recipe = large(tmp_path)
    linked = sweep(recipe, (0.5, 1), tmp_path / "linked")
    monkeypatch.setattr(os, "link", link)
    result = sweep(recipe, (0.5, 1), tmp_path / "out")
    for one, other in zip(linked.members, result.members, strict=True):
        assert content(one.folder) == content(other.folder)
        assert one.shared
        assert not other.shared


def test_operands_are_fetched_once(lineage, tmp_path, monkeypatch):
    """However many scales: as many bytes as one mix, and no element twice."""
    fetched = []
    read = Reader.read

    def counting(self, blob, offset, into):
        if self.once:  # a worker; planning and digests read besides
            fetched.append((blob, offset, len(into)))
        read(self, blob, offset, into)

    made = plan(lineage.recipe())
    monkeypatch.setattr(Reader, "read", counting)
    result = sweep(lineage.recipe(), SCALES, tmp_path / "out")
    assert len(set(fetched)) == len(fetched)
    assert sum(size for *_, size in fetched) == result.read == made.bytes_to_read
    assert result.written == 4 * made.bytes_to_write


@pytest.mark.parametrize("dare", [None, {"drop": 0.5}])
def test_fp8_with_fresh_scales(tmp_path, monkeypatch, dare):
    """Codes and their scales for every output, from operands that are fetched once; at scale 0 they
    are as they are stored.
    """
    for number, name in enumerate(("base", "post", "new")):
        weights = {**llama(), **fp8(number, a=(512, 700), b=(128, 520), c=(1, 1))}
        save(tmp_path / name, weights, config_json={"model_type": "llama"})
    post, base, new = (str(tmp_path / name) for name in ("post", "base", "new"))
    reads = []
    fetch = Tensor.read
    monkeypatch.setattr(
        Tensor, "read", lambda *a: (reads.append((a[0].blob, a[0].name, *a[1:3])), fetch(*a))
    )
    recipe = Recipe(new, (Delta(post, base, dare=dare),), "fp8-block")
    sweep(recipe, (0.5, 1.5), tmp_path / "once")
    codes = [read for read in reads if read[1].endswith("a.weight")]
    assert len(codes) == len(set(codes)) >= 9
    result = sweep(recipe, (0, 0.5, 1), tmp_path / "out")
    for member in result.members:
        one = recipe.times(member.scale)
        folder = mix(one, tmp_path / "mix" / member.folder.name).folder
        assert content(member.folder) == content(folder)


def test_interrupted_and_resumed(tmp_path, monkeypatch):
    """Ctrl-C says how to go on; the same call reads only what is missing, to the same bytes."""
    recipe = large(tmp_path)
    whole = sweep(recipe, SCALES, tmp_path / "whole", memory="60MB", workers=2)
    out = tmp_path / "out"
    for after in (3, 20):
        with monkeypatch.context() as patch:
            interrupted(patch, after)
            with pytest.raises(Interrupted, match="same command"):
                sweep(recipe, SCALES, out, memory="60MB", workers=2)
        assert not list(out.glob("scale-*"))
        assert not list(out.glob(".scale-*/*.safetensors"))
    calls = []
    result = sweep(recipe, SCALES, out, progress=calls.append, memory="60MB", workers=2)
    assert calls[-1].resumed > 0
    assert 0 < result.read < whole.read
    for one, other in zip(whole.members, result.members, strict=True):
        theirs, mine = content(one.folder), content(other.folder)
        assert mine == theirs
        assert other.shared == one.shared


def test_stopped_between_two_outputs(tmp_path, monkeypatch):
    """Finished folders are kept, the others come from what is done: nothing is read again."""
    recipe = large(tmp_path)
    publish = Place.publish
    calls = iter(range(10))

    def stop(self):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return publish(self)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "publish", stop)
        with pytest.raises(Interrupted):
            sweep(recipe, SCALES, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("scale-*"))) == 2
    result = sweep(recipe, SCALES, tmp_path / "out")
    assert [m.kept for m in result.members] == [True, True, False, False]
    assert result.read == result.written == 0
    assert all(m.shared == result.members[0].shared > 0 for m in result.members)
    again = sweep(recipe, SCALES, tmp_path / "out")
    assert all(m.kept for m in again.members)
    for member in result.members:
        verify(member.folder, share=1.0)


def test_finished_outputs_are_kept_or_refused(lineage, tmp_path):
    """The same one is kept, another is refused before anything is written, or replaced if asked."""
    out = tmp_path / "out"
    mix(lineage.recipe(0.5), out / "scale-0.5")
    before = (out / "scale-0.5" / "model.safetensors").stat()
    result = sweep(lineage.recipe(), (0.5, 1), out)
    assert [m.kept for m in result.members] == [True, False]
    assert (out / "scale-0.5" / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    other = Recipe(str(lineage.base), lineage.recipe().deltas)
    with pytest.raises(UsageError, match="exists already") as error:
        sweep(other, (2, 1), out)
    assert "scale-1.0" in error.value.where
    assert not (out / "scale-2.0").exists()
    assert not place_of(out / "scale-2.0").staging.exists()
    assert not any(m.kept for m in sweep(other, (0.5, 1), out, overwrite=True).members)
    assert tensors(out / "scale-1.0") == tensors(lineage.post)
    assert all(m.kept for m in sweep(other, (0.5, 1), out, overwrite=True).members)
    assert not any(m.kept for m in sweep(other, (0.5, 1), out, overwrite=True, fresh=True).members)


def test_a_finished_output_of_changed_sources_is_not_kept(lineage, tmp_path):
    """If a source is younger than an output, or a weight file is gone, it is not the same."""
    sweep(lineage.recipe(), (0.5, 1), tmp_path / "out")
    os.utime(lineage.post / "model-00001-of-00002.safetensors")
    with pytest.raises(UsageError, match="exists already"):
        sweep(lineage.recipe(), (0.5, 1), tmp_path / "out")
    sweep(lineage.recipe(), (0.5, 1), tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "scale-0.5" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="exists already"):
        sweep(lineage.recipe(), (0.5, 1), tmp_path / "out")


@pytest.mark.parametrize("bare", [False, True])
def test_an_unfinished_sweep_of_another_recipe(tmp_path, monkeypatch, bare):
    """It is refused; and files that finished outputs share are never written over."""
    recipe = large(tmp_path)
    publish = Place.publish

    def stop(self):
        if self.out.name == "scale-1.0":
            raise KeyboardInterrupt
        return publish(self)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "publish", stop)
        with pytest.raises(Interrupted):
            sweep(recipe, (0.5, 1), tmp_path / "out")
    before = content(tmp_path / "out" / "scale-0.5")
    other = Recipe(str(tmp_path / "post"), recipe.deltas)
    with pytest.raises(MisfitError, match="another recipe"):
        sweep(other, (1, 2), tmp_path / "out")
    # Somebody removes the journal: what the finished output shares must not be written over.
    unfinished = place_of(tmp_path / "out" / "scale-1.0")
    unfinished.journal.unlink()
    assert any(path.stat().st_nlink > 1 for path in unfinished.staging.iterdir())
    if bare:  # as it is before the small files are written
        for path in unfinished.staging.iterdir():
            if path.suffix != ".safetensors":
                path.unlink()
    sweep(other, (1, 2), tmp_path / "out")
    assert content(tmp_path / "out" / "scale-0.5") == before
    verify(tmp_path / "out" / "scale-1.0", share=1.0)


def test_scales_that_cannot_be_meant(lineage, tmp_path):
    """None, twice the same, not finite; and outputs on inputs."""
    for scales, words in (
        ((), "needs a scale"),
        ((1, 0.5, 1.0), "is given twice"),
        ((float("nan"),), "not a finite"),
    ):
        with pytest.raises(UsageError, match=words):
            sweep(lineage.recipe(), scales, tmp_path / "out")
    with pytest.raises(UsageError, match="lies on an input"):
        sweep(lineage.recipe(), (1,), lineage.post)
    assert not (tmp_path / "out").exists()


def test_too_little_disk_for_all_is_refused_beforehand(tmp_path, monkeypatch):
    """Room for all outputs is asked for, what they share once, before anything is written."""
    recipe = large(tmp_path)
    whole = sweep(recipe, SCALES, tmp_path / "whole")
    first = whole.members[0]
    needed = first.size * 4 - first.shared * 3
    monkeypatch.setattr(place, "free_space", lambda out: (needed - 1, tmp_path))
    with pytest.raises(StorageError, match="too little free space"):
        sweep(recipe, SCALES, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(place, "free_space", lambda out: (needed, tmp_path))
    sweep(recipe, SCALES, tmp_path / "out")


def test_one_failing_output_stops_all(lineage, tmp_path, monkeypatch):
    """An error of one file is told with its place; no folder appears, and the same call resumes."""
    write = FolderWriter.write

    def failing(self, stream, offset, data):
        if "scale-0.75" in self.paths[0] and stream > 2:
            raise StorageError("cannot write the file", code="io-failed", where=self.paths[0])
        return write(self, stream, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(FolderWriter, "write", failing)
        with pytest.raises(StorageError, match=r"scale-0\.75"):
            sweep(lineage.recipe(), SCALES, tmp_path / "out")
    assert not list((tmp_path / "out").glob("scale-*"))
    assert len(sweep(lineage.recipe(), SCALES, tmp_path / "out").members) == 4


def test_no_file_stays_open(lineage, tmp_path):
    """No file descriptor stays open after a sweep, nor after one that was refused."""
    sweep(lineage.recipe(), SCALES, tmp_path / "out")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    sweep(lineage.recipe(), (2, 3), tmp_path / "out")
    busy = Guard(tmp_path / "out" / ".scale-5.0.paramdelta-lock", "scale-5.0")
    with pytest.raises(MisfitError, match="another run"):
        sweep(lineage.recipe(), (4, 5), tmp_path / "out")
    busy.release()
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert before == after


def test_not_finite_numbers_by_output(lineage, tmp_path):
    """What each mix would report: a sum that is too large at one scale, an infinity at all."""
    base = {"w": np.array([1.0, 1.0], np.float32), "v": np.array([1.0, np.inf], np.float32)}
    post = {"w": np.array([3e38, 1.0], np.float32), "v": np.array([2.0, 1.0], np.float32)}
    new = base | {"v": np.ones(2, np.float32)}
    for name, weights in (("b", base), ("p", post), ("n", new)):
        save(tmp_path / name, weights)
    recipe = Recipe(str(tmp_path / "n"), (Delta(str(tmp_path / "p"), str(tmp_path / "b")),))
    result = sweep(recipe, (0.5, 2), tmp_path / "out")
    for member in result.members:
        one = mix(recipe.times(member.scale), tmp_path / "mix" / member.folder.name)
        assert member.not_finite == one.not_finite
    assert ("w", "result") in result.members[1].not_finite
    assert ("w", "result") not in result.members[0].not_finite


def test_the_command(lineage, tmp_path):
    """A table at the end, or events; the folders are those of the api."""
    out = tmp_path / "out"
    options = [*lineage.options, "--scale", "0.5,1,1.25", "--out", str(out)]
    result = run("sweep", *options)
    assert result.returncode == 0, result.stderr
    for text in ("scale", "shared", "scale-0.5", "scale-1.0", "scale-1.25", "written"):
        assert text in result.stdout
    assert run("verify", str(out / "scale-1.25"), "--full").returncode == 0
    again = run("sweep", *options, "--json")
    events = [json.loads(line) for line in again.stdout.splitlines()]
    assert events[0]["event"] == "plan"
    assert events[0]["scales"] == [0.5, 1.0, 1.25]
    assert [one["mixed"] for one in events[0]["plans"]] == [21] * 3
    assert events[-1]["event"] == "done"
    assert all(one["kept"] for one in events[-1]["outputs"])
    path = tmp_path / "recipe.yaml"
    path.write_text(lineage.recipe(0.5).to_yaml())
    assert run("sweep", str(path), "--scale", "1,2", "--out", str(tmp_path / "r")).returncode == 0
    for mine, theirs in (("scale-1.0", "scale-0.5"), ("scale-2.0", "scale-1.0")):
        assert tensors(tmp_path / "r" / mine) == tensors(out / theirs)
    negative = run("sweep", *lineage.options, "--scale", "-0.5", "--out", str(out))
    assert negative.returncode == 0, negative.stderr
    assert (out / "scale--0.5" / "model.safetensors").is_file()
    wrong = run("sweep", *lineage.options, "--scale", "0.5,x", "--out", str(out))
    assert wrong.returncode == 2
    assert "invalid scales" in wrong.stderr
    assert run("sweep", *lineage.options, "--out", str(out)).returncode == 2


MEASURE = """
from paramdelta import Delta, Recipe, sweep
from paramdelta.api import _budget
from paramdelta.planning.sweep import make_sweep
post, base, new, out, memory, dtype = sys.argv[1:7]
tiny, other = sys.argv[7:9]
recipe = Recipe(new, (Delta(post, base),), None if dtype == "auto" else dtype)
small = Recipe(tiny, (Delta(other, tiny),), None if dtype == "auto" else dtype)
sweep(small, (0.5, 2), out + "-warm", memory=memory, workers=4)
with Growth() as growth:
    sweep(recipe, (0.25, 0.5, 0.75, 1, 1.25, 1.5), out, memory=memory, workers=4)
made = make_sweep(recipe, (0.25, 0.5, 0.75, 1, 1.25, 1.5))
print(growth.bytes, _budget(made, memory, 4).projected)
"""


@linux
@pytest.mark.parametrize("dtype", ["auto", "fp8-block"])
def test_memory_stays_under_what_was_projected(tmp_path, dtype):
    """Six outputs of 34 MB grow the process by less than projected, and than was given."""
    entries = {f"m{i}.weight": ("BF16", (4096, 2048), 2) for i in range(2)}
    if dtype == "fp8-block":
        entries = {f"m{i}.weight": ("F8_E4M3", (4096, 2048), 1) for i in range(4)}
        entries |= {f"m{i}.weight_scale_inv": ("F32", (32, 16), 4) for i in range(4)}
    for name in ("base", "post", "new"):
        sparse(tmp_path / name / "model.safetensors", entries)
    tiny = [str(save(tmp_path / n, llama(k) | fp8(k, a=(9, 9)))) for k, n in enumerate(("s", "t"))]
    folders = [tmp_path / name for name in ("post", "base", "new", "out")]
    memory = 150_000_000 if dtype == "auto" else 400_000_000
    grown, projected = printed(MEASURE, *folders, memory, dtype, *tiny)
    assert 0 < grown <= projected <= memory
