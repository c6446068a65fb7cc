"""PyTorch's own files: what torch.save writes is read to the byte, and nothing of it is run."""

import argparse
import json
import os
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramdelta import Delta, Recipe, mix, verify
from paramdelta.errors import CheckpointError, ParamDeltaError
from paramdelta.formats.permuted import Permuted
from paramdelta.formats.view import Tensor, Transposed
from paramdelta.storage.local import File
from tests import opening
from tests.attacks.hostile import archive, legacy, plain, state, storage, tensor, torch_file
from tests.checkpoints import encode

torch = pytest.importorskip("torch")

# A folder that all examples of a test share is meant; drawing may take as long as it does.
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
OWNGPT = Path(__file__).parents[3] / "shared" / "models" / "owngpt"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "BOOL": torch.bool, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def save(path, value, zipped=True, protocol=2):
    """What torch.save writes, in either format."""
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return path


def content(view):
    """All bytes of a view, read as the engine reads them."""
    data = bytearray(view.elements * view.kind.size)
    view.read(0, view.elements, memoryview(data), opening.fetch)
    return bytes(data)


def raw(value):
    """A tensor's bytes, row-major."""
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def check(path, expected):
    """The file holds just these tensors."""
    found = {view.name: view for view in opening.contents(path).tensors}
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == tuple(value.shape)
        assert DTYPES[found[name].dtype] == value.dtype
        assert content(found[name]) == raw(value)
    return found


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path, dtype, zipped):
    """Name, dtype, shape and bytes of a tensor of each dtype."""
    value = torch.arange(24).reshape(2, 3, 4).to(torch.float32).to(DTYPES[dtype])
    check(save(tmp_path / "x.bin", {"a.weight": value}, zipped), {"a.weight": value})


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path, protocol, zipped):
    """Whatever version of pickle was asked for; a module's state with its metadata."""
    expected = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    assert expected._metadata
    check(save(tmp_path / "x.pt", expected, zipped, protocol), expected)


@FORMATS
def test_every_shape(tmp_path, zipped):
    """Views that are runs, turned ones, shared storages, scalars, empty tensors, parameters."""
    base = torch.randn(10, 6)
    parameter = torch.nn.Parameter(torch.randn(3))
    parameter.sharded = "an attribute"
    expected = {
        "whole": base,
        "tied": base,
        "turned": base.T,
        "row": base[3],
        "rows": base[2:5],
        "lone column": torch.randn(5, 1).T,
        "turned rows": base[4:6].T,
        "vector of one": base[:1, :1],
        "scalar": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "none of many": base[:0],
        "parameter": parameter,
        "channels": torch.randn(2, 3, 4),
    }
    found = check(save(tmp_path / "x.bin", expected, zipped), expected)
    assert found["whole"].offset == found["tied"].offset
    assert isinstance(found["turned"], Transposed)
    assert isinstance(found["lone column"], Tensor)
    assert found["rows"].offset == found["whole"].offset + 2 * 6 * 4


@FORMATS
def test_a_turned_tensor_is_read_in_any_run(tmp_path, zipped):
    """Slices that begin and end inside a row."""
    value = torch.arange(35, dtype=torch.float32).reshape(5, 7).T
    (view,) = opening.contents(save(tmp_path / "x.bin", {"a": value}, zipped)).tensors
    flat = value.reshape(-1).numpy()
    for start in range(0, 35, 4):
        for stop in range(start, 36, 3):
            assert (view.array(start, stop, opening.fetch) == flat[start:stop]).all()


@pytest.mark.parametrize(
    "view",
    [
        torch.ones(1, 4).expand(3, 4),
        torch.ones(6, 6)[:, :3],
        torch.ones(8)[::2],
        torch.ones(2, 3, 4).permute(2, 1, 0)[:, :2],
        torch.ones(64).as_strided((4, 4), (3, 1)),
    ],
    ids=["expanded", "columns", "every other", "permuted columns", "overlapping"],
)
def test_other_views_are_refused(tmp_path, view):
    """Where the elements do not follow each other, the message says so and what to do."""
    path = save(tmp_path / "x.bin", {"a": view})
    with pytest.raises(CheckpointError, match=r"tensor 'a'(.|\n)*save the tensors contiguous"):
        opening.contents(path)


@FORMATS
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module"])
def test_training_checkpoints(tmp_path, wrapper, zipped):
    """The state dict is found in what a training script saved; the rest is told."""
    weights = OrderedDict({"a": torch.ones(3), "steps": 5, "nothing": None, "\x1b[2J": 0})
    held = {
        wrapper: weights,
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}},
        "args": argparse.Namespace(lr=0.1),
        "epoch": 3,
        "best": np.float64(0.5),
        "loss": torch.tensor(0.5),
        "seen": {1, 2},
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "shape": torch.Size([3]),
    }
    contents = opening.contents(save(tmp_path / "x.pt", held, zipped))
    assert [view.name for view in contents.tensors] == ["a"]
    assert contents.ignored == (
        "optimizer (dict of 1)", "args (Namespace)", "epoch (int)", "best (scalar)",
        "loss (tensor)", "seen (set)", "dtype (dtype)", "device (device)", "shape (tuple of 1)",
        f"{wrapper}/steps (int)", f"{wrapper}/nothing (None)",
        f"{wrapper}/\\x1b[2J (int)",
    )  # fmt: skip
    assert contents.key == wrapper
    contents = opening.contents(save(tmp_path / "x.pt", {"model": {"state_dict": weights}}, zipped))
    assert [view.name for view in contents.tensors] == ["a"]
    assert contents.key == "model/state_dict"


A, B = {"a": torch.ones(3)}, {"a": torch.zeros(3)}


@pytest.mark.parametrize(
    ("held", "key"),
    [
        ({"net": A, "step": 1}, "net"),
        ({"params": A}, "params"),
        ({"generator": A, "optim_g": {"state": B}}, "generator"),
        ({"anything": A}, "anything"),
        ({"model": A, "class_statistics": B}, "model"),
        ({"model": A, "module": A}, "model"),
        ({"state_dict": A, "callbacks": {"EMA": {"shadow": B}}}, "state_dict"),
        ({"model": {"state_dict": A, "optimizer": B}}, "model/state_dict"),
        ({"state_dict": A, "loss": torch.ones(1)}, "state_dict"),
        ({"a/b": A}, "a/b"),
        (A, ""),
        (A | {"extra": {"b": torch.ones(1)}}, ""),
    ],
)
def test_the_only_branch_is_found(tmp_path, held, key):
    """Where one dict of tensors can be the weights, it is taken, and its name is given."""
    contents = opening.contents(save(tmp_path / "x.pt", held))
    assert contents.key == key
    assert content(contents.tensors[0]) == raw(A["a"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("params", "params_ema"),
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("generator", "discriminator"),
        ("student", "teacher"),
        ("encoder", "decoder"),
    ],
)
def test_several_branches_need_a_choice(tmp_path, first, second):
    """The error lists them, and each can be taken by its name."""
    path = save(tmp_path / "x.pt", {first: A, second: {"deep": B}, "optimizer": A})
    with pytest.raises(CheckpointError, match="cannot tell") as error:
        opening.contents(path)
    assert f"'{first}' (1 tensors), '{second}/deep' (1 tensors)" in str(error.value)
    assert f"x.pt#{first}" in str(error.value)
    for key, expected in ((first, A), (second, B), (f"{second}/deep", B)):
        (view,) = opening.contents(path, key).tensors
        assert content(view) == raw(expected["a"])
    with pytest.raises(CheckpointError, match="no such set of weights"):
        opening.contents(path, "other")


def test_what_stands_beside_is_told_in_bounds(tmp_path):
    """A thousand other values are not listed one by one."""
    held = {"model": A} | {f"value{i}": i for i in range(1000)}
    ignored = opening.contents(save(tmp_path / "x.pt", held)).ignored
    assert len(ignored) == 101
    assert ignored[-1] == "and 900 more"


class Options(dict):
    """A class that the file names, as omegaconf's and Lightning's do."""


class Callback:
    """A class that is a key."""


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_objects_beside_the_weights_are_opaque(tmp_path, zipped, protocol):
    """Lightning checkpoints: objects of unknown classes, classes as keys; nothing is run."""
    held = {
        "state_dict": A,
        "hyper_parameters": Options(lr=0.1, path=Path("x")),
        "callbacks": {Callback: {"best": 1.0}},
        "callback": Callback(),
        "numbers": np.arange(3),
        "tree": __import__("fractions").Fraction(1, 3),
        "counts": __import__("collections").defaultdict(int, a=1),
    }
    contents = opening.contents(save(tmp_path / "x.ckpt", held, zipped, protocol))
    assert [view.name for view in contents.tensors] == ["a"]
    told = dict(entry[:-1].split(" (", 1) for entry in contents.ignored)
    assert told["hyper_parameters"] == f"{__name__}.Options"
    assert told["callbacks"] == "dict of 1"
    assert told["callback"] == f"{__name__}.Callback"
    assert told["counts"] == "dict of 1"


@pytest.mark.parametrize("name", ["os\nsystem", "builtins\neval", "subprocess\nPopen"])
def test_a_command_is_refused_wherever_it_is(tmp_path, name):
    """Unknown code beside the weights is ignored, but a command is refused anywhere."""
    call = f"c{name}\n".encode() + plain(("touch x",)) + b"R"
    path = tmp_path / "x.pt"
    path.write_bytes(archive(state(model=state(a=tensor())[2:-1], other=call)))
    with pytest.raises(CheckpointError, match="run a command; it was not run") as error:
        opening.contents(path)
    assert error.value.got == name.replace("\n", ".")


def test_two_descriptions_of_one_storage(tmp_path):
    """One storage has one size and dtype."""
    path = tmp_path / "x.pt"
    path.write_bytes(archive(state(a=tensor(), b=tensor(storage(count=8), shape=(2, 4)))))
    with pytest.raises(CheckpointError, match="two descriptions"):
        opening.contents(path)


def test_an_object_among_the_weights_is_refused(tmp_path):
    """It could be a tensor of a subclass; what torch itself keeps there is not."""
    path = save(tmp_path / "x.pt", A | {"b": Callback()})
    with pytest.raises(CheckpointError, match=r"only its own code can make(.|\n)*Callback"):
        opening.contents(path)
    held = A | {"layer._extra_state": Callback(), "step": np.float32(3), "kind": Callback}
    contents = opening.contents(save(path, held))
    assert contents.ignored[-1] == f"kind (code {__name__}.Callback)"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "rebuild_qtensor"),
        (lambda: torch.ones(3, 3).to_sparse(), "rebuild_sparse_tensor"),
        (lambda: torch.ones(3, dtype=torch.complex128), "ComplexDoubleStorage"),
    ],
    ids=["quantized", "sparse", "complex"],
)
def test_other_kinds_of_tensors_are_refused(tmp_path, make, message):
    """They are not a run of numbers; the message names what would be needed."""
    with pytest.raises(CheckpointError, match=message):
        opening.contents(save(tmp_path / "x.pt", A | {"b": make()}))


@FORMATS
@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_axes(tmp_path, zipped, data):
    """Permuted tensors of any shape, as torch saves them, are read as torch reads them."""
    shape = data.draw(st.lists(st.integers(1, 4), max_size=5))
    axes = data.draw(st.permutations(range(len(shape))))
    value = torch.arange(int(np.prod(shape)), dtype=torch.int16).reshape(shape).permute(axes)
    check(save(tmp_path / "x.pt", {"a": value}, zipped), {"a": value})


def test_channels_last(tmp_path):
    """Convolutions in channels_last, which were called overlapping once."""
    model = torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    found = check(save(tmp_path / "x.pt", model.state_dict()), model.state_dict())
    assert isinstance(found["weight"], Permuted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_script_is_named(tmp_path):
    """A program is called one, though its entries may be compressed."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        opening.contents(tmp_path / "x.pt")


def test_a_whole_model_is_refused(tmp_path):
    """A pickled module needs its class; the message names it and says how to go on."""
    path = save(tmp_path / "x.pt", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear") as error:
        opening.contents(path)
    assert "state_dict()" in str(error.value)


def test_a_lone_tensor_is_refused(tmp_path):
    """One tensor has no name."""
    with pytest.raises(CheckpointError, match="no dict of tensors"):
        opening.contents(save(tmp_path / "x.pt", torch.ones(2)))


# -- folders ---------------------------------------------------------------------------------------


def shards(folder, parts):
    """Pickles in shards, with their index."""
    folder.mkdir()
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"pytorch_model-{number:05d}-of-{len(parts):05d}.bin"
        save(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_shards_one_file_and_a_lone_file_agree(tmp_path):
    """However it is cut and named, the same tensors are found."""
    tensors = {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(1)}
    several = shards(tmp_path / "several", [{"a": tensors["a"]}, {k: tensors[k] for k in "bc"}])
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "pytorch_model.bin", tensors)
    save(tmp_path / "one" / "another.bin", {"no": torch.ones(1)})
    (tmp_path / "lone").mkdir()
    save(tmp_path / "lone" / "weights.pth", tensors)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (tmp_path / "lone" / name).write_bytes(b"never opened")
    file = str(tmp_path / "lone" / "weights.pth")
    for address in (str(several), str(tmp_path / "one"), str(tmp_path / "lone"), file):
        found = opening.checkpoint(address, "post").tensors
        assert {n: v.shape for n, v in found.items()} == {"a": (2,), "b": (3,), "c": (1,)}
    (several / "pytorch_model.bin.index.json").unlink()
    assert len(opening.checkpoint(several, "post").tensors) == 3


def test_safetensors_are_preferred(tmp_path):
    """Where both are, the pickles are not even opened."""
    (tmp_path / "model.safetensors").write_bytes(encode({"a": np.ones(2, np.float32)}))
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "x.pt"):
        (tmp_path / name).write_bytes(b"never opened")
    assert list(opening.checkpoint(tmp_path, "post").tensors) == ["a"]
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert list(opening.checkpoint(tmp_path, "post").tensors) == ["a"]


def test_an_index_that_lies(tmp_path):
    """A shard is absent; a tensor is not where the index says; a tensor stands in two shards."""
    for number, change in enumerate(("absent", "elsewhere", "twice")):
        folder = shards(tmp_path / str(number), [{"a": torch.ones(2)}, {"b": torch.ones(2)}])
        second = folder / "pytorch_model-00002-of-00002.bin"
        if change == "absent":
            second.unlink()
        else:
            save(second, {"c" if change == "elsewhere" else "a": torch.ones(2)})
        with pytest.raises(CheckpointError):
            opening.checkpoint(folder, "post")


def test_the_digest_sees_other_weights(tmp_path):
    """An archive's directory holds checksums, so other weights of the same shape differ."""
    one = opening.contents(save(tmp_path / "x.pt", {"a": torch.ones(1000)}))
    other = opening.contents(save(tmp_path / "x.pt", {"a": torch.zeros(1000)}))
    assert one.sha256 != other.sha256


# -- what is read, and what is not -----------------------------------------------------------------


class Meter:
    """Counts the bytes that are read from files."""

    def __init__(self, monkeypatch):
        self.count = 0
        read_into = File.read_into

        def counted(file, buffer, offset):
            self.count += len(buffer)
            read_into(file, buffer, offset)

        monkeypatch.setattr(File, "read_into", counted)


def test_opening_reads_no_weights(tmp_path, monkeypatch):
    """10 GB in one archive (so with 64-bit sizes), 6 GB in an old file: under 100 kB are read."""
    count = 5 * 2**28  # 5 GiB of float32
    names = [f"layer.{i}.weight" for i in range(2)]
    tensors = {
        n: tensor(storage(str(i), count), 0, (count,), (1,)) for i, n in enumerate(names)
    } | {"small": tensor(storage("2", 1), 0, (1,), (1,))}
    path = tmp_path / "x.pt"
    sparse_archive(path, state(**tensors), [count * 4, count * 4, 4])
    meter = Meter(monkeypatch)
    found = {view.name: view for view in opening.contents(path).tensors}
    assert [found[n].size for n in names] == [count * 4] * 2
    assert content(found["small"]) == struct.pack("<f", 7)
    assert meter.count < 100_000

    start = legacy(counts=())
    start = start.replace(plain(16) + b"tQ", plain(count) + b"tQ")
    start = start.replace(plain((4, 4)), plain((count,))).replace(plain((4, 1)), plain((1,)))
    with path.open("wb") as file:
        file.write(start + struct.pack("<q", count))
        file.truncate(len(start) + 8 + count * 4)
    meter.count = 0
    (view,) = opening.contents(path).tensors
    assert (view.offset, view.size) == (len(start) + 8, count * 4)
    assert meter.count < 100_000


def sparse_archive(path, pickled, sizes):
    """An archive with holes in the place of weights; zip64 where torch would write it."""
    directory = b""
    with path.open("wb") as file:
        for name, size in [("a/data.pkl", len(pickled))] + [
            (f"a/data/{i}", size) for i, size in enumerate(sizes)
        ]:
            begin, wide = file.tell(), b""
            for value in (size, size, begin):
                wide += struct.pack("<Q", value) if value >= 2**32 - 1 else b""
            extra = struct.pack("<2H", 1, len(wide)) + wide if wide else b""
            small, where = min(size, 2**32 - 1), min(begin, 2**32 - 1)
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 0, 0, len(name), 0))
            file.write(name.encode())
            if name == "a/data.pkl":
                file.write(pickled)
            else:
                file.seek(size - 4, os.SEEK_CUR)
                file.write(struct.pack("<f", 7))
            lengths = (len(name), len(extra), 0, 0, 0, 0)
            directory += struct.pack(
                "<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, small, small, *lengths, where
            )
            directory += name.encode() + extra
        start, entries = file.tell(), len(sizes) + 1
        file.write(directory)
        end = file.tell()
        record = (44, 45, 45, 0, 0, entries, entries, len(directory), start)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", *record))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        short = (0, 0, entries, entries, len(directory), 2**32 - 1, 0)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", *short))


def test_neither_torch_nor_the_pickles_code_is_used(tmp_path):
    """A process that opens a file imports no torch; one that a hostile pickle names is not run."""
    good = save(tmp_path / "good.pt", {"a": torch.ones(2)})
    marker = tmp_path / "owned"
    bad = tmp_path / "bad.pt"
    call = b"cos\nsystem\n" + plain((f"touch {marker}",)) + b"R"
    bad.write_bytes(archive(state(a=tensor(), b=call)))
    code = (
        "import sys; from paramdelta.planning.sources import Opener\n"
        "from paramdelta.storage.reader import Reader\n"
        "o = Opener(Reader()).checkpoint\n"
        f"print(len(o({str(good)!r}, 'post').tensors), 'torch' in sys.modules)\n"
        f"o({str(bad)!r}, 'post')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "1 False\n"
    assert "os.system" in result.stderr
    assert not marker.exists()


# -- noise -----------------------------------------------------------------------------------------

GOOD = {
    "zip": torch_file({"a": np.ones((4, 3), np.float32), "b": np.ones(2, np.float32)}),
    "legacy": legacy(),
}
PIECES = st.sampled_from(
    [
        *(
            bytes([code])
            for code in b"}])(t\x85\x86\x87suaeN\x88\x89QRb\x81\x93\x94.\x8f\x90\x91021"
        ),
        *map(plain, ("a", "model", "torch", 3, -1, 2**70, b"x")),
        *(b"q\0", b"h\0", tensor(), storage(), b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"),
        *(b"ctorch\nfloat16\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_parameter\n"),
        *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"cargparse\nNamespace\n", b"cos\nsystem\n"),
    ]
)


def opened_or_refused(path, data):
    """Nothing but a ParamDeltaError comes out, or tensors that lie inside the file."""
    path.write_bytes(data)
    try:
        contents = opening.contents(path)
    except ParamDeltaError:
        return
    for view in contents.tensors:
        for part in view.parts:
            assert 0 <= part.offset <= part.offset + part.size <= len(data)
            assert part.size == part.elements * part.kind.size


@pytest.mark.filterwarnings("ignore:invalid escape")  # pickletools decodes what is refused then
@pytest.mark.parametrize("form", GOOD)
@given(data=st.data())
@settings(max_examples=300, suppress_health_check=CHECKS)
def test_damaged_files(tmp_path, form, data):
    """Good files with bytes changed, cut out and put in."""
    damaged = bytearray(GOOD[form])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
        if kind == "change":
            damaged[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del damaged[at : at + data.draw(st.integers(1, 8))]
        else:
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    opened_or_refused(tmp_path / "x.pt", bytes(damaged))


@pytest.mark.parametrize("form", GOOD)
def test_every_flipped_byte(tmp_path, form):
    """A good file with any one byte changed."""
    good = GOOD[form]
    for at in range(len(good)):
        for value in (0, 0x28, 0x52, 0x71, 0xFF, good[at] ^ 1):
            opened_or_refused(tmp_path / "x.pt", good[:at] + bytes([value]) + good[at + 1 :])


@given(st.lists(PIECES, max_size=30))
@settings(max_examples=500, suppress_health_check=CHECKS)
def test_pickles_of_random_instructions(tmp_path, pieces):
    """Well-formed instructions in any order."""
    opened_or_refused(tmp_path / "x.pt", archive(b"\x80\x02" + b"".join(pieces) + b"."))


@given(st.binary(max_size=200))
@settings(suppress_health_check=CHECKS)
def test_noise_is_refused(tmp_path, data):
    """Random bytes."""
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(CheckpointError):
        opening.contents(tmp_path / "x.pt")


# -- mixing ----------------------------------------------------------------------------------------


def mixed(tmp_path, post, base, new, name="out"):
    """Mix files, verify the output, and give its tensors."""
    mix(Recipe(str(new), (Delta(str(post), str(base)),)), str(tmp_path / name))
    verify(str(tmp_path / name))
    found = opening.checkpoint(tmp_path / name, "output").tensors
    return {n: np.frombuffer(content(v), "<f4").reshape(v.shape) for n, v in found.items()}


@FORMATS
def test_a_mix_of_pickles(tmp_path, zipped):
    """Turned tensors and unaligned storages (old files) included: equal to float64, rounded."""
    chance = torch.Generator().manual_seed(7)
    base = {"a.weight": torch.randn(40, 30, generator=chance).T, "b": torch.ones(3)}
    post = {n: v + 0.01 * torch.randn(v.shape, generator=chance) for n, v in base.items()}
    new = {n: v + 0.01 * torch.randn(v.shape, generator=chance) for n, v in base.items()}
    paths = [save(tmp_path / f"{i}.pt", t, zipped) for i, t in enumerate((post, base, new))]
    for name, value in mixed(tmp_path, *paths).items():
        exact = new[name].double() + (post[name].double() - base[name].double())
        assert (value == exact.float().numpy()).all()


@pytest.mark.skipif(not OWNGPT.is_dir(), reason="needs ../shared/models/owngpt")
def test_a_real_pair(tmp_path):
    """Somebody's GPT and its fine-tune: the base as new base gives the fine-tune's bytes; a moved
    one gives what float64 gives. Its causal masks are constants.
    """
    files = [OWNGPT / "gpt_finetuned.pt", OWNGPT / "gpt_pretrained.pt"]
    post, base = (torch.load(f, weights_only=True)["model_state_dict"] for f in files)
    opened = opening.checkpoint(files[0], "post")
    assert opened.ignored == ("config (dict of 6)",)
    check(files[0], post)
    same = mixed(tmp_path, *files, files[1], "same")
    assert {n: v.tobytes() for n, v in same.items()} == {n: raw(v) for n, v in post.items()}
    new = {n: v if "tril" in n else v + 0.01 * torch.randn(v.shape) for n, v in base.items()}
    moved = save(tmp_path / "new.pt", {"model_state_dict": new})
    result = mixed(tmp_path, *files, moved, "moved")
    assert result.keys() == new.keys()
    for name, value in result.items():
        exact = new[name].double() + (post[name].double() - base[name].double())
        assert (value == exact.float().numpy()).all(), name
