"""What a file is, from its first bytes: real files of each library, and names that lie."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.errors import CheckpointError
from paramdelta.formats import magic
from tests import opening
from tests.attacks.hostile import GOOD, legacy, torch_file
from tests.checkpoints import encode

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"


def zipped(**entries: bytes) -> bytes:
    """A zip archive; __ stands for a slash in a name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in entries.items():
            file.writestr(name.replace("__", "/"), data)
    return stream.getvalue()


def tarred(*names: str) -> bytes:
    """A tar archive of empty files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def saved(save, *values) -> bytes:
    """What a function of numpy writes."""
    stream = io.BytesIO()
    save(stream, *values)
    return stream.getvalue()


ARRAYS = pickle.dumps({"a": np.ones(3)}, 4)
FILES = {
    "safetensors": (encode(GOOD), magic.SAFETENSORS),
    "zip": (torch_file(GOOD), magic.ZIP),
    "legacy": (legacy(), magic.TORCH),
    "legacy, protocol 4": (pickle.dumps(0x1950A86A20F9469CFC6C, 4), magic.TORCH),
    "empty": (b"", magic.EMPTY),
    "zeros": (bytes(5000), magic.ZEROS),
    "lfs": (POINTER, magic.LFS),
    "html": (b"\n<!DOCTYPE html><html><title>401</title></html>", magic.HTML),
    "xml": (b'\xef\xbb\xbf<?xml version="1.0"?><Error/>', magic.XML),
    "json": (b'{"error": "Repository not found"}', magic.JSON),
    "message": (b"Invalid username or password.", magic.MESSAGE),
    "cut text": ("Zugriff verweigert: ü".encode()[:-1], magic.MESSAGE),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(64), magic.GGUF),
    "ggml": (b"tjgg\x03\0\0\0" + bytes(64), magic.GGML),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x051.8.1:\x90\x02", magic.ONNX),
    "npy": (saved(np.save, np.ones(2)), magic.NUMPY),
    "npz": (saved(lambda stream: np.savez(stream, a=np.ones(2))), magic.NPZ),
    "npz, small": (saved(lambda stream: np.savez_compressed(stream, a=np.ones(2))), magic.NPZ),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), magic.HDF5),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(64), magic.TFLITE),
    "tensorflow": (b'model_checkpoint_path: "model.ckpt-5"\n', magic.TENSORFLOW),
    "flax": (b"\x81\xa6params\x82\xa5dense" + bytes(64), magic.FLAX),
    "flax, many": (b"\xde\x00\x20\xd9\x30transformer" + bytes(64), magic.FLAX),
    "nemo": (tarred("./model_config.yaml", "./model_weights.ckpt"), magic.NEMO),
    "tar": (tarred("weights.bin"), magic.TAR),
    "old torch": (tarred("sys_info", "pickle", "tensors", "storages"), magic.OLD_TAR),
    "numpy pickle": (ARRAYS, magic.ARRAYS),
    "numpy pickle 2": (pickle.dumps({"a": np.ones(3)}, 2), magic.ARRAYS),
    "sklearn": (b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x15sklearn.linear_model\x94", magic.SKLEARN),
    "pickle": (pickle.dumps({"a": [1, 2]}, 4), magic.PICKLE),
    "old pickle": (pickle.dumps({"a": [1, 2]}, 0), magic.PICKLE),
    "gzip": (gzip.compress(b"x" * 99), magic.COMPRESSED),
    "zlib": (zlib.compress(ARRAYS), magic.COMPRESSED),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00" + bytes(20), magic.COMPRESSED),
    "noise": (b"\xc3\x99\x01\x00\x80" * 30, magic.UNKNOWN),
}


@pytest.mark.parametrize("name", FILES)
def test_first_bytes_decide(name):
    """Each kind is recognized whatever the file is called."""
    data, kind = FILES[name]
    for called in ("", "model.safetensors", "pytorch_model.bin", "checkpoint.pth.tar"):
        assert magic.identify(data[: magic.HEAD], len(data), called) is kind


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_says_what_it_is(tmp_path, name):
    """The error has the words of its kind and says what to do; no other kind is refused so."""
    data, kind = FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    if kind.reader is None and kind is not magic.UNKNOWN:
        with pytest.raises(CheckpointError, match=r"^this is ") as error:
            opening.weights(path)
        assert kind.what in error.value.what
        assert error.value.remedy
        assert error.value.where == str(path)
    elif name in ("safetensors", "zip", "legacy"):
        assert opening.weights(path)
    else:
        with pytest.raises(CheckpointError):
            opening.weights(path)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("a/data.pkl", "a/version", "a/data/0"), None),
        (("a/data.pkl", "a/constants.pkl", "a/code/__torch__.py"), magic.SCRIPT),
        (("a.npy", "b/c.npy"), magic.NPZ),
        (("metadata.json", "config.json", "model.weights.h5"), magic.KERAS),
        (("x/archive_format", "x/models/model.json", "x/data/weights/w"), magic.EXPORTED),
        (("serialized_exported_program.json", "version"), magic.EXPORTED),
        (("pictures/1.jpg",), magic.OTHER_ZIP),
        ((), magic.OTHER_ZIP),
    ],
)
def test_archives_by_their_entries(names, kind):
    """A zip archive is what its entries are."""
    assert magic.of_archive(names) is kind


def test_other_archives_are_named(tmp_path):
    """An archive that no first entry gives away is named once its directory is read."""
    path = tmp_path / "model.bin"
    path.write_bytes(zipped(config__json=b"{}", model__weights=b""))
    with pytest.raises(CheckpointError, match=r"a zip archive that torch\.save did not write"):
        opening.weights(path)


def test_names_decide_where_bytes_do_not():
    """Files without a magic number, and pieces of tensors that look whole."""
    noise = FILES["noise"][0]
    assert magic.identify(noise, 150, "model.ckpt.data-00000-of-00001") is magic.TENSORFLOW
    assert magic.identify(noise, 150, "weights.NPZ") is magic.NPZ
    assert magic.identify(torch_file(GOOD), 999, "__0_0.distcp") is magic.DISTRIBUTED
    assert magic.identify(gzip.compress(b""), 20, "m.nemo") is magic.NEMO
    found = magic.named(["config.json", "tf_model.h5", "model-Q4_K_M.gguf", "m.safetensors"])
    assert found == {"tf_model.h5": magic.HDF5, "model-Q4_K_M.gguf": magic.GGUF}


def test_folders_by_the_files_in_them(tmp_path):
    """A folder with other weights only says what they are; checkpoint.pth.tar is a torch file."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="HDF5") as error:
        opening.checkpoint(folder)
    assert error.value.got == "tf_model.h5"
    assert "from_tf" in str(error.value.remedy)
    for name in ("checkpoint.pth.tar", "model.pt.tar"):
        folder = tmp_path / name[:5]
        folder.mkdir()
        (folder / name).write_bytes(torch_file(GOOD))
        assert opening.checkpoint(folder).tensors.keys() == GOOD.keys()


def test_every_kind_has_words():
    """A kind that cannot be read says what to do; only two readers exist."""
    kinds = [value for value in vars(magic).values() if isinstance(value, magic.Kind)]
    assert len(kinds) > 25
    for kind in kinds:
        assert (kind.reader is None) == bool(kind.remedy) or kind is magic.UNKNOWN
    assert len({kind.what for kind in kinds}) == len(kinds)


@given(st.binary(max_size=600), st.integers(0, 2**63), st.text(max_size=10))
def test_any_bytes_have_a_kind(start, size, name):
    """Nothing raises, whatever the bytes."""
    assert isinstance(magic.identify(start, size, name), magic.Kind)


@given(st.dictionaries(st.text(max_size=5), st.integers()), st.integers(0, 3))
def test_every_safetensors_header_is_recognized(header, pad):
    """Any JSON object behind a length, with leading white space."""
    text = b" " * pad + json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text
    assert magic.identify(data, len(data)) is magic.SAFETENSORS


@given(
    st.one_of(
        st.sampled_from([0x280, 0x380, 0x480, 0x580, 0x8B1F, 0x9C78]), st.integers(2, 1 << 20)
    )
)
def test_a_safetensors_file_of_any_header_length_is_recognized(length):
    """Also where the length has the bytes that pickles and compressed files begin with."""
    data = length.to_bytes(8, "little") + b"{" + b" " * (length - 2) + b"}"
    assert magic.identify(data, len(data)) is magic.SAFETENSORS
