"""verify accepts what is right, finds what is wrong, and says whose fault it is."""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import paramdelta
from paramdelta import CheckpointError, Delta, MisfitError, Recipe, UsageError, mix, sweep, verify
from paramdelta.engine import threads
from paramdelta.jobs.verify import verification
from paramdelta.schemes.ties import Ties
from tests import opening
from tests.checkpoints import bf16, encode, llama, moved, save
from tests.engine import processes

LOCK = "paramdelta.lock.json"


@pytest.fixture
def out(lineage, tmp_path):
    """A plain mix, with companions."""
    (lineage.new / "modeling_x.py").write_text("x = 1")
    (lineage.post / "generation_config.json").write_text("{}")
    return mix(lineage.recipe(), tmp_path / "out").folder


def altered(path, offset=-1, bit=1):
    """Flip a bit of a file; its times stay as they were."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[offset] ^= bit
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("choices", [{}, {"scale": 0.37}, {"dtype": "F32"}, {"dtype": "F16"}])
def test_right_outputs_pass(lineage, tmp_path, choices):
    """Plain, scaled and converted mixes are verified in full."""
    mix(lineage.recipe(**choices), tmp_path / "out")
    result = verify(tmp_path / "out", share=1.0)
    assert result.elements == result.total == sum(v.size for v in llama().values())
    assert result.tensors == 21
    assert result.notes == ()


def test_ties_and_dare_pass(lineage, tmp_path):
    """Masks, thresholds and elections are found again."""
    save(tmp_path / "second", moved(llama(), 7, 0.01), config_json={"model_type": "llama"})
    deltas = [
        Delta(lineage.post, lineage.base, 0.8, dare={"drop": 0.4}),
        Delta(tmp_path / "second", lineage.base, -0.5),
    ]
    mix(Recipe(str(lineage.new), tuple(deltas), scheme=Ties(0.3)), tmp_path / "out")
    assert verify(tmp_path / "out", share=1.0).tensors == 21


def test_every_member_of_a_sweep_passes(lineage, tmp_path):
    """Folders whose files are links to each other."""
    for member in sweep(lineage.recipe(), [0.5, 1.0], tmp_path / "out").members:
        assert verify(member.folder, share=1.0).tensors == 21


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_one_flipped_bit_is_found(out, share):
    """A single changed bit is named by tensor and element, and the output is blamed."""
    altered(out / "model.safetensors", -2)
    with pytest.raises(MisfitError, match=r"lm_head\.weight.*element 511") as error:
        verify(out, share=share)
    assert "changed or damaged" in error.value.remedy


def test_every_byte_of_a_small_output_counts(lineage, tmp_path):
    """Whatever byte of the weight file is flipped, header and padding included: it is found."""
    tensors = {"a": bf16(np.arange(6.0).reshape(2, 3)), "b": np.arange(3), "c": np.ones(2, bool)}
    for role in ("base", "post", "new"):
        save(tmp_path / role, tensors, config_json={})
    delta = Delta(tmp_path / "post", tmp_path / "base")
    out = mix(Recipe(str(tmp_path / "new"), (delta,)), tmp_path / "out").folder
    path = out / "model.safetensors"
    size = path.stat().st_size
    for offset in (*range(0, 240, 7), *range(size - 60, size)):
        altered(path, offset)
        with pytest.raises(MisfitError):
            verify(out)
        altered(path, offset)
    verify(out)


def test_zeros_where_numbers_should_be_small(tmp_path):
    """Zero is not near to everything: its neighbors are the least numbers of the dtype."""
    for seed, role in enumerate(("base", "post", "new")):
        weights = bf16(np.random.default_rng(seed).normal(0, 1e-4, (64, 64)))
        save(tmp_path / role, {"w": weights}, config_json={})
    delta = Delta(tmp_path / "post", tmp_path / "base", 0.7)
    out = mix(Recipe(str(tmp_path / "new"), (delta,)), tmp_path / "out").folder
    (out / "model.safetensors").write_bytes(
        (out / "model.safetensors").read_bytes()[: -2 * 64 * 64] + bytes(2 * 64 * 64)
    )
    with pytest.raises(MisfitError, match="not what its sources give"):
        verify(out, share=1.0)


def test_not_a_number_where_there_should_be_one(out):
    """NaN in the output is a difference, and no crash."""
    path = out / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(MisfitError, match="got: nan"):
        verify(out, share=1.0)


def test_an_output_that_is_wrong_from_the_start_is_a_fault(lineage, tmp_path, monkeypatch):
    """If the files are as they were written, nobody but paramdelta is to blame."""
    from paramdelta.arithmetic import kernels

    right = kernels.mix_exact

    def wrong(new, plus, minus, out, wide):
        done = right(new, plus, minus, out, wide)
        out[0] ^= 1
        return done

    monkeypatch.setattr(kernels, "mix_exact", wrong)
    mix(lineage.recipe(), tmp_path / "out")
    with pytest.raises(MisfitError, match="element 0") as error:
        verify(tmp_path / "out", share=1.0)
    assert "please report this" in error.value.remedy


def test_a_missing_tensor_is_found(out):
    """Also if somebody changed the lock as well."""
    (out / "model.safetensors").write_bytes(encode({"a": np.ones(2, np.float32)}))
    with pytest.raises(MisfitError, match="not those that were written"):
        verify(out)
    lock = json.loads((out / LOCK).read_text())
    size = (out / "model.safetensors").stat().st_size
    lock["outputs"]["model.safetensors"] = {"size": size, "digest": None}
    (out / LOCK).write_text(json.dumps(lock))
    with pytest.raises(MisfitError, match="not those of the plan"):
        verify(out)


# -- files -----------------------------------------------------------------------------------------


def exchanged(one, other):
    """Give two files the names of each other."""
    one.rename(aside := one.with_suffix(".aside"))
    other.rename(one)
    aside.rename(other)


DAMAGES = {
    "config.json changed": lambda out: altered(out / "config.json", 3),
    "config.json deleted": lambda out: (out / "config.json").unlink(),
    "config.json grown": lambda out: (out / "config.json").write_text('{"model_type": "llama" }'),
    "generation_config.json": lambda out: altered(out / "generation_config.json", 0),
    "code changed": lambda out: altered(out / "modeling_x.py", 0),
    "index deleted": lambda out: (out / "model.safetensors.index.json").unlink(),
    "index changed": lambda out: altered(out / "model.safetensors.index.json", 20),
    "shard deleted": lambda out: sorted(out.glob("model-*.safetensors"))[1].unlink(),
    "shard added": lambda out: (out / "model-00009-of-00009.safetensors").write_bytes(b"x"),
    "single file added": lambda out: (out / "model.safetensors").write_bytes(encode({})),
    "pickle added": lambda out: (out / "pytorch_model.bin").write_bytes(b""),
    "code added": lambda out: (out / "evil.py").write_text(""),
    "adapter added": lambda out: (out / "adapter_config.json").write_text("{}"),
    "template added": lambda out: (out / "chat_template.jinja").write_text("x"),
    "code in a folder": lambda out: (
        (out / "sub").mkdir(),
        (out / "sub" / "tokenization.py").write_text(""),
    ),
    "two shards exchanged": lambda out: exchanged(*sorted(out.glob("model-*.safetensors"))[:2]),
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A mix in three shards, kept for all damages."""
    folder = tmp_path_factory.mktemp("sharded")
    base = llama(hidden=128, layers=4, vocab=2000)
    config = {"model_type": "llama", "hidden_size": 128}
    for seed, role in enumerate(("base", "post", "new")):
        save(folder / role, moved(base, seed), config_json=config, generation_config_json={})
    (folder / "new" / "modeling_x.py").write_text("x = 1")
    recipe = Recipe(str(folder / "new"), (Delta(folder / "post", folder / "base"),))
    out = mix(recipe, folder / "out", shard_size="1MB").folder
    assert len(list(out.glob("*.safetensors"))) == 3
    return out


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found(sharded, tmp_path, damage):
    """Whatever a loader may read: changed, missing or added; by a small sample already."""
    out = shutil.copytree(sharded, tmp_path / "copy")
    verify(out)
    DAMAGES[damage](out)
    with pytest.raises(MisfitError, match="the files of the output are not those"):
        verify(out)


def test_what_people_put_beside_a_model_is_a_note(out):
    """The card may be edited or removed, pictures and licenses added."""
    (out / "README.md").write_text("my own words")
    assert verify(out).notes == ()
    (out / "README.md").unlink()
    (out / "LICENSE").write_text("MIT")
    (out / "plot.png").write_bytes(b"")
    assert verify(out).notes == (
        "LICENSE was added",
        "plot.png was added",
        "README.md was removed",
    )


def test_a_difference_that_a_sample_misses_is_in_the_digest(tmp_path, monkeypatch):
    """A sample that looks elsewhere leaves the content digest, which sees every byte."""
    monkeypatch.setattr("paramdelta.jobs.verify.comparison.TASK", 64)
    for seed, role in enumerate(("base", "post", "new")):
        weights = bf16(np.random.default_rng(seed).normal(size=(1000, 16)))
        save(tmp_path / role, {"w": weights}, config_json={})
    recipe = Recipe(str(tmp_path / "new"), (Delta(tmp_path / "post", tmp_path / "base"),))
    out = mix(recipe, tmp_path / "out").folder
    altered(out / "model.safetensors")
    found = set()
    for seed in range(60):
        with pytest.raises(MisfitError) as error:
            verify(out, share=0.5, seed=seed)
        found.add(error.value.what)
    assert found == {
        "the output is not what its sources give",
        "the files of the output are not those that were written",
    }


# -- samples ---------------------------------------------------------------------------------------


def test_samples_look_at_different_places(tmp_path, monkeypatch):
    """Each time another sample, the same one by its seed, and in time everything."""
    monkeypatch.setattr("paramdelta.jobs.verify.comparison.TASK", 64)
    for role in ("base", "post", "new"):
        save(tmp_path / role, {"w": bf16(np.ones((100, 16)))}, config_json={})
    recipe = Recipe(str(tmp_path / "new"), (Delta(tmp_path / "post", tmp_path / "base"),))
    out = mix(recipe, tmp_path / "out").folder
    looked = []
    run = verification.Runner.run

    def watched(self, job, reader):
        if hasattr(job, "targets"):
            looked.append([task.start for task in job.tasks()])
        run(self, job, reader)

    monkeypatch.setattr(verification.Runner, "run", watched)
    results = [verify(out, share=0.2) for _ in range(40)]
    assert all(result.elements == 320 for result in results)
    assert len({result.seed for result in results}) == 40
    assert len(set(map(tuple, looked))) > 30
    assert set().union(*looked) == set(range(0, 1600, 64))
    verify(out, share=0.2, seed=results[7].seed)
    assert looked[-1] == looked[7]


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_shares_are_checked(out, share):
    """Above 0, at most 1."""
    with pytest.raises(UsageError, match="share"):
        verify(out, share=share)


# -- sources ---------------------------------------------------------------------------------------


def test_changed_sources_are_named(lineage, out):
    """A source with another header is no longer the one that the lock names."""
    for shard in lineage.post.glob("model*"):
        shard.unlink()
    (lineage.post / "model.safetensors").write_bytes(encode(llama(1)))
    with pytest.raises(MisfitError, match="sources are not those") as error:
        verify(out)
    assert str(lineage.post) in error.value.where
    assert "model.safetensors was not there" in error.value.got


@pytest.mark.parametrize("role", ["base", "post", "new"])
@pytest.mark.parametrize("share", [1.0, 0.01])
def test_a_source_with_other_numbers_is_named(lineage, out, role, share):
    """One bit of a source, with the same header, size and times: the source is to blame."""
    path = sorted(getattr(lineage, role).glob("*.safetensors"))[-1]
    altered(path)
    with pytest.raises(MisfitError, match="sources are not those") as error:
        verify(out, share=share)
    assert f"the content of {path.name} has changed" in error.value.got
    assert str(path.parent) in error.value.where


def test_a_source_that_changed_where_it_does_not_matter_is_named(tmp_path):
    """Post's integers go nowhere; its file is another one all the same."""
    tensors = {"w": bf16(np.ones((4, 4))), "ids": np.arange(4)}
    for role in ("base", "post", "new"):
        save(tmp_path / role, tensors, config_json={})
    recipe = Recipe(str(tmp_path / "new"), (Delta(tmp_path / "post", tmp_path / "base"),))
    out = mix(recipe, tmp_path / "out").folder
    altered(tmp_path / "post" / "model.safetensors")
    with pytest.raises(MisfitError, match="sources are not those"):
        verify(out, share=1.0)


def test_an_unknown_digest_of_a_source_is_not_compared(lineage, out):
    """A mix notes no digest of a file that it read in part; then a difference is left open."""
    lock = json.loads((out / LOCK).read_text())
    for source in lock["sources"]:
        for file in source["files"]:
            file["digest"] = None
    (out / LOCK).write_text(json.dumps(lock))
    assert verify(out, share=1.0).elements > 0
    altered(lineage.base / "model.safetensors")
    with pytest.raises(MisfitError, match="element 511") as error:
        verify(out, share=1.0)
    assert "a source may have changed" in error.value.remedy


def test_sources_that_are_gone_are_named(lineage, out):
    """A folder that was moved away."""
    shutil.rmtree(lineage.base)
    with pytest.raises(MisfitError, match="not here") as error:
        verify(out)
    assert error.value.where == str(lineage.base)


def test_nothing_is_downloaded_unless_asked_for(out, monkeypatch):
    """The Hub id of a lock is looked up in the cache alone."""
    from paramdelta.storage import hub

    asked = []

    def snapshot(repo, **options):
        from huggingface_hub.errors import LocalEntryNotFoundError

        asked.append((repo, options["local_files_only"]))
        raise LocalEntryNotFoundError("not there")

    def listing(api, repo, **options):
        asked.append((repo, False))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", listing)
    assert hub.download
    lock = json.loads((out / LOCK).read_text())
    lock["recipe"]["new_base"] = "someone/model@main"
    (out / LOCK).write_text(json.dumps(lock))
    with pytest.raises(MisfitError, match="not on this machine") as error:
        verify(out)
    assert error.value.where == "someone/model@main"
    assert "download" in error.value.remedy
    assert asked == [("someone/model", True)]
    with pytest.raises(paramdelta.StorageError):
        verify(out, download=True)
    assert asked[1:] == [("someone/model", False), ("someone/model", True)]


def test_a_place_behind_a_network_is_not_read_unless_asked_for(out, monkeypatch):
    """The same for any other kind of address."""
    from paramdelta.storage import store

    made = []
    store.register("mem", lambda once: made.append(once))
    lock = json.loads((out / LOCK).read_text())
    lock["recipe"]["deltas"][0]["post"] = "mem://bucket/post"
    (out / LOCK).write_text(json.dumps(lock))
    with pytest.raises(MisfitError, match="not on this machine"):
        verify(out)
    assert not made


def test_only_outputs_are_verified(tmp_path, lineage):
    """A folder without a lock, an absent one and a file."""
    for folder in (lineage.post, lineage.base / "model.safetensors"):
        with pytest.raises(MisfitError, match="did not write"):
            verify(folder)
    with pytest.raises(UsageError, match="no such folder"):
        verify(tmp_path / "absent")


# -- how it runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "memory"), [(1, "80MB"), (2, "256MB"), (5, "1GB")])
def test_the_answer_does_not_depend_on_workers_and_memory(out, workers, memory):
    """Neither what is right nor which difference is the first."""
    assert verify(out, share=1.0, workers=workers, memory=memory).elements > 0
    path = out / "model.safetensors"
    for offset in (-2, -700, -9000):
        altered(path, offset)
    with pytest.raises(MisfitError) as error:
        verify(out, share=1.0, workers=workers, memory=memory)
    first = min(
        (tensor.offset, name)
        for name, tensor in opening.checkpoint(out, "output").tensors.items()
        if tensor.offset + tensor.size > path.stat().st_size - 9000
    )[1]
    assert repr(first) in error.value.where


def test_too_little_memory_is_refused(out):
    """As mix does."""
    with pytest.raises(UsageError, match="too little"):
        verify(out, memory="20MB")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [None, Ties(0.4)], ids=str)
def test_its_jobs_run_in_processes(lineage, tmp_path, monkeypatch, scheme):
    """Thresholds, comparison and contents through pickles: the same answers."""
    choices = {} if scheme is None else {"scheme": scheme}
    out = mix(lineage.recipe(**choices), tmp_path / "out").folder
    expected = verify(out, share=1.0, seed=1)
    run = verification.Options.__dataclass_fields__["engine"]
    assert run.default is threads.run
    made = verification.Options.__init__

    def in_processes(self, *arguments, **options):
        made(self, *arguments, **options)
        object.__setattr__(self, "engine", processes.run)

    monkeypatch.setattr(verification.Options, "__init__", in_processes)
    assert verify(out, share=1.0, seed=1) == expected
    altered(out / "model.safetensors")
    with pytest.raises(MisfitError, match="element 511"):
        verify(out, share=1.0)


def test_progress_ends_at_the_total(out):
    """Bytes of the output, and of what is read for digests."""
    for share in (1.0, 0.01):
        calls = []
        verify(out, share=share, progress=calls.append)
        assert calls[-1].done == calls[-1].total > 0
        assert all(a.done <= b.done for a, b in itertools.pairwise(calls))


def test_hidden_files_do_not_matter(out):
    """What the Hub's client leaves beside a download is nobody's."""
    (out / ".cache").mkdir()
    (out / ".cache" / "x.py").write_text("")
    (out / ".gitattributes").write_text("")
    assert Path(out / ".cache").exists()
    verify(out)


def test_a_damaged_output_file_is_a_checkpoint_error(out):
    """A truncated weight file whose size the lock was made to agree with."""
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    lock = json.loads((out / LOCK).read_text())
    lock["outputs"]["model.safetensors"]["size"] = path.stat().st_size
    lock["outputs"]["model.safetensors"]["digest"] = None
    (out / LOCK).write_text(json.dumps(lock))
    with pytest.raises(CheckpointError, match="truncated"):
        verify(out)
