"""The api from end to end: whole or not at all, resumed, refused, replaced."""

import json
import os
import resource
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import yaml

from paramdelta import (
    Delta,
    Interrupted,
    MisfitError,
    Recipe,
    StorageError,
    UsageError,
    mix,
    plan,
    read_recipe,
    verify,
)
from paramdelta.jobs.verify.rounding import rounded
from paramdelta.output import place
from paramdelta.output.place import place_of
from paramdelta.recipe import read_scale
from paramdelta.storage.digest import TreeDigest
from tests import opening
from tests.checkpoints import encode, llama, moved, save
from tests.cli.test_app import run
from tests.numbers import nearest
from tests.unfinished import interrupted


def weights(folder):
    """The bytes of the single weight file."""
    return (folder / "model.safetensors").read_bytes()


def test_identities_on_a_checkpoint(lineage, tmp_path):
    """base = new base gives post and post = base gives the new base, tensor by tensor."""
    post, base, new = str(lineage.post), str(lineage.base), str(lineage.new)
    for recipe, expected in (
        (Recipe(base, (Delta(post, base),)), moved(llama(), 1)),
        (Recipe(new, (Delta(base, base),)), moved(llama(), 2)),
    ):
        out = mix(recipe, tmp_path / "out", overwrite=True).folder
        import safetensors

        with safetensors.safe_open(out / "model.safetensors", "pt") as file:
            import torch

            for name, value in expected.items():
                found = file.get_tensor(name).view(torch.uint16).numpy()
                assert (found == value).all(), name


def test_interrupted_and_resumed(lineage, tmp_path, monkeypatch):
    """Ctrl-C keeps what is done and says how to go on; the same call ends in the same bytes."""
    whole = weights(mix(lineage.recipe(), tmp_path / "whole").folder)
    with monkeypatch.context() as patch:
        interrupted(patch, 7)
        with pytest.raises(Interrupted, match="same command"):
            mix(lineage.recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    staging = place_of(tmp_path / "out").staging
    assert not list(staging.glob("*.safetensors"))
    result = mix(lineage.recipe(), tmp_path / "out")
    assert result.resumed > 0
    assert weights(tmp_path / "out") == whole
    assert not staging.exists()
    assert not list(tmp_path.rglob(".*"))


def test_a_changed_source_is_not_resumed_from(lineage, tmp_path, monkeypatch):
    """If a source changed in between, it is named; --fresh starts again."""
    with monkeypatch.context() as patch:
        interrupted(patch, 5)
        with pytest.raises(Interrupted):
            mix(lineage.recipe(), tmp_path / "out")
    path = lineage.base / "model.safetensors"
    path.write_bytes(encode(moved(llama(), 9), {"format": "pt"}))
    with pytest.raises(MisfitError, match="changed") as error:
        mix(lineage.recipe(), tmp_path / "out")
    assert str(path) in error.value.where
    with pytest.raises(MisfitError, match="another recipe"):
        mix(
            Recipe(str(lineage.new), (Delta(str(lineage.post), str(lineage.new)),)),
            tmp_path / "out",
        )
    assert mix(lineage.recipe(), tmp_path / "out", fresh=True).resumed == 0


def test_a_lost_part_file_is_made_again(lineage, tmp_path, monkeypatch):
    """If somebody removed a half-written file, its journal is not believed."""
    whole = weights(mix(lineage.recipe(), tmp_path / "whole").folder)
    with monkeypatch.context() as patch:
        interrupted(patch, 5)
        with pytest.raises(Interrupted):
            mix(lineage.recipe(), tmp_path / "out")
    (place_of(tmp_path / "out").staging / "model.safetensors.part").unlink()
    assert mix(lineage.recipe(), tmp_path / "out").resumed == 0
    assert weights(tmp_path / "out") == whole


def test_existing_outputs_are_kept(lineage, tmp_path):
    """An output is not replaced unasked, nor is ever a folder that paramdelta did not write."""
    out = tmp_path / "out"
    mix(lineage.recipe(), out)
    before = weights(out)
    with pytest.raises(UsageError, match="exists already"):
        mix(lineage.recipe(0.5), out)
    assert weights(out) == before
    mix(lineage.recipe(0.5), out, overwrite=True)
    assert weights(out) != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "new", "out", "post"]
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="only what paramdelta wrote"):
        mix(lineage.recipe(), precious, overwrite=True)
    (tmp_path / "empty").mkdir()
    mix(lineage.recipe(), tmp_path / "empty")


def test_outputs_on_inputs_are_refused(lineage, tmp_path):
    """The output may not be an input, lie in one or contain one, through links neither."""
    os.symlink(lineage.post, tmp_path / "link")
    for out in (lineage.post, lineage.new / "mixed", tmp_path, tmp_path / "link"):
        with pytest.raises(UsageError, match="lies on an input"):
            mix(lineage.recipe(), out, overwrite=True)
    assert (lineage.post / "model.safetensors.index.json").exists()


def test_the_same_run_gives_the_same_bytes(lineage, tmp_path):
    """Workers, memory and a second run change nothing in any file."""
    one = mix(lineage.recipe(), tmp_path / "a" / "out", workers=1).folder
    other = mix(lineage.recipe(), tmp_path / "b" / "out", workers=7, memory="60MB").folder
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_card_and_lock(lineage, tmp_path):
    """The card has the Hub's metadata, the licenses and the recipe; the lock the digests."""
    (lineage.post / "README.md").write_text("---\nlicense: llama3\n---\n# Post\n")
    (lineage.new / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: de\n---\n")
    (lineage.base / "LICENSE").write_text("Some License\n\nmore")
    out = mix(lineage.recipe(0.8), tmp_path / "out").folder
    card = (out / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in metadata  # which would have to be ids of the Hub
    assert metadata["library_name"] == "transformers"
    assert metadata["license"] == "other"
    assert metadata["license_name"] == "apache-2.0-and-llama3-and-not-stated"
    assert {"merge", "paramdelta"} <= set(metadata["tags"])
    for text in ("llama3", "see its LICENSE (Some License)", "scale: 0.8", "0.8·(Θ_post"):
        assert text in card
    assert str(tmp_path) not in card  # no path of this machine is published
    lock = json.loads((out / "paramdelta.lock.json").read_text())
    assert lock["plan_sha256"] == plan(lineage.recipe(0.8)).digest
    assert len(lock["sources"][0]["files"]) == 3


def content_digest(path):
    """The digest of a file's bytes, read in one piece."""
    data = path.read_bytes()
    digest = TreeDigest(len(data))
    digest.update(0, memoryview(data))
    return digest.hexdigest()


@pytest.mark.parametrize("stopped", [False, True])
def test_the_lock_holds_the_digest_of_every_file(lineage, tmp_path, monkeypatch, stopped):
    """Of sources and outputs, with their sizes; also if the run was stopped and resumed."""
    if stopped:
        with monkeypatch.context() as patch:
            interrupted(patch, 9)
            with pytest.raises(Interrupted):
                mix(lineage.recipe(), tmp_path / "out", workers=1)
    result = mix(lineage.recipe(), tmp_path / "out")
    assert (result.resumed > 0) == stopped
    lock = json.loads((result.folder / "paramdelta.lock.json").read_text())
    names = {path.name for path in result.folder.iterdir()}
    assert lock["outputs"].keys() == names - {"README.md", "recipe.yaml", "paramdelta.lock.json"}
    for name, facts in lock["outputs"].items():
        path = result.folder / name
        assert facts == {"size": path.stat().st_size, "digest": content_digest(path)}
    for source, folder in zip(
        lock["sources"], (lineage.new, lineage.post, lineage.base), strict=True
    ):
        assert source["address"] == str(folder)
        for file in source["files"]:
            path = folder / file["name"]
            assert file["size"] == path.stat().st_size
            assert file["digest"] == content_digest(path)


def test_several_deltas_are_mixed(lineage, tmp_path):
    """Two Δ with their scales, against numpy in float64; verify agrees."""
    second = moved(llama(), 5)
    save(tmp_path / "second", second)
    recipe = lineage.recipe(0.75)
    extra = Delta(str(tmp_path / "second"), str(lineage.base), -0.5)
    recipe = Recipe(recipe.new_base, (*recipe.deltas, extra), "F32")
    out = mix(recipe, tmp_path / "out").folder
    verify(out, share=1.0)
    import safetensors.numpy

    def wide(tensors):
        return {n: (v.astype(np.uint32) << 16).view(np.float32) for n, v in tensors.items()}

    base, post, new, third = map(wide, (llama(), moved(llama(), 1), moved(llama(), 2), second))
    for name, found in safetensors.numpy.load_file(out / "model.safetensors").items():
        b = base[name].astype(np.float64)
        expected = new[name] + 0.75 * (post[name] - b) - 0.5 * (third[name] - b)
        np.testing.assert_allclose(found, expected.astype(np.float32), rtol=1e-6)


FULL = """
import resource, sys
from paramdelta.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
main(sys.argv[1:])
"""


def test_a_file_size_limit_is_a_clear_error(lineage, tmp_path):
    """Where no file may be so large: exit code 4, words, no output; afterwards it works."""
    command = [sys.executable, "-c", FULL, "mix", *lineage.options, "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 4, result.stderr
    assert "cannot allocate" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    assert run("mix", *lineage.options, "--out", str(tmp_path / "out")).returncode == 0


def test_too_little_disk_is_refused_beforehand(lineage, tmp_path, monkeypatch):
    """The plan's size is held against the free space before anything is written."""
    monkeypatch.setattr(place, "free_space", lambda out: (1000, tmp_path))
    with pytest.raises(StorageError, match="too little free space"):
        mix(lineage.recipe(), tmp_path / "out")
    assert not place_of(tmp_path / "out").staging.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(lineage, tmp_path):
    """On a tmpfs of 64 KB: exit code 4, and nothing that looks like a checkpoint."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)])
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        (small / "filler").write_bytes(b"x" * 40_000)
        result = run("mix", *lineage.options, "--out", str(small / "out"))
        assert result.returncode == 4, result.stderr
        assert "Traceback" not in result.stderr
        assert not (small / "out").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_progress_and_limits_do_not_leak(lineage, tmp_path):
    """No file descriptor stays open after a mix."""
    mix(lineage.recipe(), tmp_path / "warm")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    mix(lineage.recipe(), tmp_path / "out")
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert before == after
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0


def test_a_mix_by_schedule(tmp_path):
    """The recipe of the docs on a small model: every number is that of a float64 reference, rounded
    once; lock and card hold the schedule; verify recomputes it by its own path.
    """
    base = llama(layers=4)
    sets = {"old": base, "chat": moved(base, 1), "think": moved(base, 2), "new": moved(base, 3)}
    for name, tensors in sets.items():
        save(tmp_path / name, tensors)
    (tmp_path / "recipe.yaml").write_text(
        "new_base: new\n"
        "deltas:\n"
        "  - {post: chat, base: old, scale: 0.7}\n"
        "  - post: think\n"
        "    base: old\n"
        "    scale:\n"
        '      - {match: "*embed_tokens*", value: 0}\n'
        '      - {match: "*.mlp.*", layers: {0-1: 0.75, 2-3: [0.75, 0.125]}}\n'
        "      - attention-only\n"
        "      - 0.5\n"
    )
    recipe = read_recipe(tmp_path / "recipe.yaml")
    mix(recipe, tmp_path / "out")

    def second(name):
        if "embed_tokens" in name:
            return 0.0
        if ".mlp." in name:
            return (0.75, 0.75, 0.75, 0.125)[int(name.split(".")[2])]
        return 1.0 if ".self_attn." in name else 0.5

    def wide(role, name):
        return (sets[role][name].astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    tensors = opening.header(tmp_path / "out" / "model.safetensors")
    for tensor in tensors:
        name = tensor.name
        found = np.fromfile(tensor.blob.url, np.uint16, tensor.elements, offset=tensor.offset)
        found = (found.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        new, old = wide("new", name), wide("old", name)
        chat, think = wide("chat", name) - old, wide("think", name) - old  # exact in float64
        total = (new + 0.7 * chat + second(name) * think).reshape(-1)
        # 0.7 · 5 is no tie, but its float64 is one: there exact fractions say what is right.
        for at in np.flatnonzero(found != rounded(total, "BF16")):
            n, c, t = (Fraction(float(x.reshape(-1)[at])) for x in (new, chat, think))
            exact = n + Fraction(0.7) * c + Fraction(second(name)) * t
            assert found[at] == nearest(exact, "BF16"), (name, at)
            assert abs(total[at] - float(exact)) <= 1e-15, (name, at)
    lock = json.loads((tmp_path / "out" / "paramdelta.lock.json").read_text())
    assert read_scale(lock["recipe"]["deltas"][1]["scale"]) == recipe.deltas[1].scale
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Θ = Θ'_base + 0.7·(Θ_post1 − Θ_base1) + s₂(name)·(Θ_post2 − Θ_base2)" in card
    written = card.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "again.yaml").write_text(written)
    assert read_recipe(tmp_path / "again.yaml").deltas[1].scale == recipe.deltas[1].scale
    result = verify(tmp_path / "out", share=1.0)
    assert result.elements == result.total


def test_scale_0_is_a_copy_that_reads_nothing(lineage, tmp_path):
    """Where the coefficient is 0, post and base are not read, and need not even fit."""
    (lineage.post / "model.safetensors.index.json").unlink()
    for shard in lineage.post.glob("model-*"):
        shard.unlink()
    post = moved(llama(), 1) | {"model.embed_tokens.weight": np.ones((3, 5), np.float32)}
    save(lineage.post, post)
    scale = [{"match": ["*embed*", "*norm*"], "value": 0}, 1]
    recipe = Recipe(str(lineage.new), (Delta(lineage.post, lineage.base, scale),))
    made = plan(recipe)
    made.check()
    copied = {t.name: t.why for t in made.tensors if not t.mixed}
    assert len(copied) == 6
    assert copied["model.norm.weight"] == "scale 0: rule *embed*, *norm*"
    read = sum(t.nbytes * (3 if t.mixed else 1) for t in made.tensors)
    assert made.bytes_to_read == read
    assert mix(made, tmp_path / "out").moved == read + made.bytes_to_write
    verify(tmp_path / "out", share=1.0)
    with pytest.raises(MisfitError, match="shapes differ"):
        plan(lineage.recipe()).check()
