"""Stored Δs are verified against post and base, or by all of their checksums."""

import json
import math
import shutil

import numpy as np
import pytest

from paramdelta import CheckpointError, MisfitError, UsageError, extract, mix, verify
from paramdelta.jobs.verify.origin import ABSENT
from tests import opening
from tests.checkpoints import bf16, encode, llama, moved, save

DELTA = "paramdelta.delta.json"


@pytest.fixture
def apart(tmp_path):
    """Post and base in one folder, the Δ in another where neither is found."""
    chance = np.random.default_rng(0)
    post = moved(llama(), 1) | {
        "wide": chance.normal(size=(40, 5000)),
        "signs": np.array([0.0, -0.0, 1.0, -0.0, math.inf, math.nan, 1e300]),
        "ids": np.arange(5),
    }
    base = llama() | {
        "wide": chance.normal(size=(40, 5000)).astype(np.float32),
        "signs": np.array([-0.0, -0.0, -0.0, 0.0, 1.0, 1.0, 1.0]),
        "ids": np.arange(5),
    }
    save(tmp_path / "in" / "post", post, config_json={"model_type": "llama"}, shards=2)
    save(tmp_path / "in" / "base", base, config_json={"model_type": "llama"})
    source = str(tmp_path / "in" / "post"), str(tmp_path / "in" / "base")
    extract(source, tmp_path / "out" / "delta")
    return tmp_path


def weights(folder):
    """The weight file, its header and where its data begins."""
    path = folder / "delta-00001-of-00001.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    return path, data, json.loads(data[8 : 8 + length]), 8 + length


def forget_digests(folder):
    """Make the list of files one without digests, with the sizes that are there now."""
    about = json.loads((folder / DELTA).read_text())
    for name, file in about["outputs"].items():
        file["digest"] = None
        file["size"] = (folder / name).stat().st_size
    (folder / DELTA).write_text(json.dumps(about))


def test_it_is_compared_with_post_and_base_that_are_named(apart):
    """Every number of it, and what it holds whole; also beside it without being named."""
    out, given = apart / "out" / "delta", apart / "in"
    found = verify(out, share=1.0, post=given / "post", base=given / "base")
    everything = sum(v.size for v in llama().values()) + 40 * 5000 + 7 + 5
    assert found.elements == found.total == everything
    assert found.how == "recomputed from post and base"
    assert found.notes == ()
    shutil.move(out, given / "delta")
    assert verify(given / "delta", share=1.0, seed=found.seed) == found


def test_without_them_its_checksums_are_compared(apart):
    """All blocks are decoded; the user is told that nothing was compared with the sources."""
    found = verify(apart / "out" / "delta", share=1.0)
    assert found.notes == (ABSENT,)
    assert found.how == "decoded, with all checksums"
    assert found.elements == found.total - 5


@pytest.mark.parametrize("share", [1.0, 0.01])
@pytest.mark.parametrize("named", [True, False])
def test_every_byte_counts(apart, share, named):
    """A flipped bit of a block, of a table, of the header, of a companion."""
    out = apart / "out" / "delta"
    options = {role: apart / "in" / role for role in ("post", "base")} if named else {}
    path, data, _, begin = weights(out)
    for offset in (9, begin + 3, begin + 100, len(data) // 2, len(data) - 1):
        data[offset] ^= 1
        path.write_bytes(data)
        with pytest.raises(MisfitError):
            verify(out, share=share, **options)
        data[offset] ^= 1
    path.write_bytes(data)
    verify(out, share=share, **options)
    (out / "config.json").write_text("{}")
    with pytest.raises(MisfitError, match=r"config\.json"):
        verify(out, share=share, **options)


def test_its_blocks_have_checksums_of_their_own(apart):
    """Where no digest is known, a damaged block is found by its frame."""
    out = apart / "out" / "delta"
    path, data, header, begin = weights(out)
    stop = begin + header["wide"]["data_offsets"][1]
    data[stop - 100] ^= 1
    path.write_bytes(data)
    forget_digests(out)
    with pytest.raises(CheckpointError, match="damaged: block 3") as error:
        verify(out, share=1.0)
    assert "'wide'" in error.value.where


def test_another_right_looking_number_is_found(apart):
    """A Δ of another post, consistent in itself, is not the Δ of this one."""
    given = apart / "in"
    tensors = moved(llama(), 2) | {
        "wide": np.zeros((40, 5000)),
        "signs": np.zeros(7),
        "ids": np.arange(5),
    }
    save(given / "other", tensors, config_json={"model_type": "llama"})
    extract((str(given / "other"), str(given / "base")), apart / "out" / "delta", overwrite=True)
    out = apart / "out" / "delta"
    about = json.loads((out / DELTA).read_text())
    files = sorted((given / "post").glob("*.safetensors"))
    listed = opening.checkpoint(given / "post").sources
    about["post"]["files"] = [
        {"name": f.name, "size": f.stat().st_size, "header_sha256": s.header_sha256}
        for f, s in zip(files, listed, strict=True)
    ]
    (out / DELTA).write_text(json.dumps(about))
    with pytest.raises(MisfitError, match="not what its sources give"):
        verify(out, share=1.0, post=given / "post", base=given / "base")


@pytest.mark.parametrize("element", [0, 1, 2, 3])
def test_signs_of_zeros_are_not_forgotten(apart, element):
    """Post and base at −0 must be stored as they are: their difference does not tell."""
    out, given = apart / "out" / "delta", apart / "in"
    verify(out, share=1.0, post=given / "post", base=given / "base")
    tensors = dict(opening.checkpoint(given / "post").tensors)
    tensor = tensors["signs"]
    data = bytearray((given / "post" / tensor.blob.name).read_bytes())
    data[tensor.offset + 8 * element + 7] ^= 0x80
    (given / "post" / tensor.blob.name).write_bytes(data)
    with pytest.raises(MisfitError, match=rf"'signs', element {element}"):
        verify(out, share=1.0, post=given / "post", base=given / "base")


def test_what_it_holds_whole_is_compared_too(apart):
    """Integers of post."""
    given = apart / "in"
    tensor = opening.checkpoint(given / "post").tensors["ids"]
    path = given / "post" / tensor.blob.name
    data = bytearray(path.read_bytes())
    data[tensor.offset + 16] ^= 1
    path.write_bytes(data)
    with pytest.raises(MisfitError, match="'ids', element 2"):
        verify(apart / "out" / "delta", share=1.0, post=given / "post", base=given / "base")


def test_a_wrong_post_is_refused(apart):
    """What the user names must be what the description names."""
    given = apart / "in"
    with pytest.raises(MisfitError, match="not the post that the Δ was taken from"):
        verify(apart / "out" / "delta", post=given / "base", base=given / "base")


def test_sources_of_a_mix_are_in_its_lock(lineage, tmp_path):
    """Naming them again could only contradict it."""
    out = mix(lineage.recipe(), tmp_path / "out").folder
    with pytest.raises(UsageError, match="names its sources"):
        verify(out, post=lineage.post)


def test_files_that_do_not_belong_are_found(apart):
    """As in the folder of a model."""
    (apart / "out" / "delta" / "model.safetensors").write_bytes(encode({"w": bf16([1.0])}))
    with pytest.raises(MisfitError, match=r"model\.safetensors does not belong"):
        verify(apart / "out" / "delta")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("outputs", []),
        ("outputs", None),
        ("post", None),
        ("post", {"name": 1, "files": []}),
        ("base", {"name": "x", "files": [{}]}),
        ("options", {"vocabulary": [], "maps": [], "allow": []}),
        ("options", {"vocabulary": "auto", "maps": [1], "allow": []}),
        ("files", ["../x.safetensors"]),
        ("delta_version", 9),
    ],
)
def test_malformed_descriptions_are_checkpoint_errors(apart, key, value):
    """Whatever is wrong with it."""
    path = apart / "out" / "delta" / DELTA
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {key: value}))
    with pytest.raises(CheckpointError):
        verify(apart / "out" / "delta")
