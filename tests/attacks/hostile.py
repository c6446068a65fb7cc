"""Files made to hurt: each generator writes one hostile or damaged checkpoint folder.

`ATTACKS` maps a name to a function that fills a folder; opening it must raise a CheckpointError (or
StorageError) that names the problem, and must neither hang, nor allocate what the file claims, nor
leave the folder.
"""

import io
import json
import os
import pickle as standard
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.attacks import ggufs
from tests.checkpoints import encode

GOOD = {"a": np.ones((4, 4), np.float32), "b": np.ones(3, np.float32)}
INDEX = "model.safetensors.index.json"


def _file(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)


def _header(folder: Path, header: object, data: bytes = b"\0" * 64) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    _file(folder, struct.pack("<Q", len(text)) + text + data)


def _entry(dtype="F32", shape=(4, 4), offsets=(0, 64)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def _index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def truncated(folder: Path) -> None:
    """A shard whose download stopped."""
    _file(folder, encode(GOOD)[:-20])


def truncated_header(folder: Path) -> None:
    """A file that ends inside its header."""
    _file(folder, encode(GOOD)[:40])


def empty(folder: Path) -> None:
    """A file of no bytes."""
    _file(folder, b"")


def huge_header(folder: Path) -> None:
    """A header length that would take all memory."""
    _file(folder, struct.pack("<Q", 2**62) + b"{}" * 20)


def header_longer_than_file(folder: Path) -> None:
    """A header that ends one byte after the file."""
    _file(folder, struct.pack("<Q", 41) + b" " * 40)


def not_json(folder: Path) -> None:
    """Noise in place of the header."""
    _header(folder, b"\xff\xfe{{{")


def a_list(folder: Path) -> None:
    """JSON, but no object."""
    _header(folder, ["a"])


def nested(folder: Path) -> None:
    """JSON deep enough to exhaust a recursive parser."""
    _header(folder, b"[" * 200_000)


def huge_number(folder: Path) -> None:
    """An integer of ten thousand digits."""
    _header(folder, b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,64]}}')


def overlapping(folder: Path) -> None:
    """Two tensors on the same bytes."""
    _header(folder, {"a": _entry(), "b": _entry(offsets=(0, 64))})


def hole(folder: Path) -> None:
    """Bytes between two tensors: a place to hide something."""
    _header(folder, {"a": _entry(offsets=(16, 80))}, b"\0" * 80)


def out_of_range(folder: Path) -> None:
    """Data that lies behind the end of the file."""
    _header(folder, {"a": _entry(shape=(2**20,), offsets=(0, 2**22))})


def backwards(folder: Path) -> None:
    """An end before its begin."""
    _header(folder, {"a": _entry(offsets=(64, 0))})


def negative(folder: Path) -> None:
    """A negative offset."""
    _header(folder, {"a": _entry(offsets=(-64, 0))})


def negative_shape(folder: Path) -> None:
    """A shape whose product is right and whose sizes are not."""
    _header(folder, {"a": _entry(shape=(-4, -4))})


def wrong_size(folder: Path) -> None:
    """Shape and dtype that do not fill the byte range."""
    _header(folder, {"a": _entry(shape=(4, 5))})


def overflowing_shape(folder: Path) -> None:
    """A shape whose product wraps to the right number in 64 bits."""
    _header(folder, {"a": _entry(shape=(2**32, 2**32 + 1, 16))})


def unknown_dtype(folder: Path) -> None:
    """A dtype that does not exist."""
    _header(folder, {"a": _entry(dtype="F33")})


def boolean_shape(folder: Path) -> None:
    """true is no size."""
    _header(folder, {"a": _entry(shape=(True, 16))})


def duplicate_name(folder: Path) -> None:
    """One name twice: two readers could see two models."""
    entry = json.dumps(_entry())
    _header(folder, f'{{"a": {entry}, "a": {entry}}}'.encode())


def metadata_not_text(folder: Path) -> None:
    """Metadata of the wrong kind."""
    _header(folder, {"__metadata__": {"format": 1}, "a": _entry()})


def trailing_bytes(folder: Path) -> None:
    """Something behind the last tensor."""
    _file(folder, encode(GOOD) + b"surprise")


def escaping_index(folder: Path) -> None:
    """An index that names a file above its folder."""
    (folder.parent / "x.safetensors").write_bytes(encode(GOOD))
    _index(folder, {"a": "../x.safetensors", "b": "../x.safetensors"})


def absolute_index(folder: Path) -> None:
    """An index that names a file by its full path."""
    target = folder.parent / "y.safetensors"
    target.write_bytes(encode(GOOD))
    _index(folder, {"a": str(target), "b": str(target)})


def nul_index(folder: Path) -> None:
    """An index with a NUL in a file name."""
    _index(folder, {"a": "model\0.safetensors"})


def number_index(folder: Path) -> None:
    """An index whose shard is a number."""
    _index(folder, {"a": 7})


def absent_shard(folder: Path) -> None:
    """An index that names a shard that is not there."""
    (folder / "model-00001-of-00002.safetensors").write_bytes(encode(GOOD))
    _index(
        folder,
        dict.fromkeys(GOOD, "model-00001-of-00002.safetensors")
        | {"c": "model-00002-of-00002.safetensors"},
    )


def lying_index(folder: Path) -> None:
    """An index that promises a tensor that its shard lacks."""
    (folder / "model-00001-of-00001.safetensors").write_bytes(encode(GOOD))
    _index(folder, dict.fromkeys([*GOOD, "c"], "model-00001-of-00001.safetensors"))


def same_tensor_twice(folder: Path) -> None:
    """Two shards with one tensor."""
    for i in (1, 2):
        (folder / f"model-0000{i}-of-00002.safetensors").write_bytes(encode(GOOD))


def lone_shard(folder: Path) -> None:
    """One shard of two and no index."""
    (folder / "model-00001-of-00002.safetensors").write_bytes(encode(GOOD))


# -- pickles, assembled instruction by instruction -------------------------------------------------

BIN = "pytorch_model.bin"
STATE = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOAT = b"ctorch\nFloatStorage\n"
HOOKS = b"ccollections\nOrderedDict\n)R"


def plain(value: object) -> bytes:
    """The instructions for a value of Python's own."""
    return standard.dumps(value, 2)[2:-1]


def storage(key: object = "0", count: object = 16, kind: bytes = FLOAT) -> bytes:
    """The instructions for a storage."""
    return b"(" + plain("storage") + kind + plain(key) + plain("cpu") + plain(count) + b"tQ"


def tensor(held: bytes | None = None, first=0, shape=(4, 4), strides=(4, 1), more=b"") -> bytes:
    """The instructions for a tensor, by default all of storage 0."""
    held = storage() if held is None else held
    return (
        STATE + b"(" + held + plain(first) + plain(shape) + plain(strides) + b"\x89" + HOOKS + more
    ) + b"tR"


def state(**tensors: bytes) -> bytes:
    """A pickle of a dict, from the instructions for its values."""
    return b"\x80\x02}" + b"".join(plain(n) + v + b"s" for n, v in tensors.items()) + b"."


def archive(pickled: bytes, entries: dict[str, bytes] | None = None, how: int = 0) -> bytes:
    """A zip archive as torch writes it: the pickle, and by default 64 bytes of storage 0."""
    entries = {"a/data/0": bytes(64)} if entries is None else entries
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as file:
        for name, data in ({"a/data.pkl": pickled} | entries).items():
            file.writestr(zipfile.ZipInfo(name), data, how)
    return stream.getvalue()


def torch_file(tensors: dict[str, np.ndarray]) -> bytes:
    """What torch.save makes of a state dict of float32 tensors, each with its storage."""
    values, entries = {}, {"a/byteorder": b"little"}
    for number, (name, value) in enumerate(tensors.items()):
        strides = tuple(stride // value.itemsize for stride in value.strides)
        held = storage(str(number), value.size)
        values[name] = tensor(held, 0, value.shape, strides)
        entries[f"a/data/{number}"] = value.astype("<f4").tobytes()
    return archive(state(**values), entries)


def _bin(folder: Path, data: bytes) -> None:
    (folder / BIN).write_bytes(data)


def pickle(folder: Path) -> None:
    """A pickle that would run a command when loaded."""
    _bin(folder, b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")


def system(folder: Path) -> None:
    """The same, in the place of a tensor in an archive."""
    _bin(folder, archive(state(a=tensor(), b=b"cposix\nsystem\n" + plain(("touch x",)) + b"R")))


def evaluated(folder: Path) -> None:
    """Text that Python would run."""
    _bin(folder, archive(state(a=b"c__builtin__\neval\n" + plain(("1/0",)) + b"R")))


def nested_load(folder: Path) -> None:
    """A storage that is a pickle itself, for torch.load to open without any guard."""
    call = b"ctorch.storage\n_load_from_bytes\n" + plain((b"cos\nsystem\n",)) + b"R"
    _bin(folder, archive(state(a=call)))


def dotted_name(folder: Path) -> None:
    """A way through an admitted module to one that is not."""
    call = plain("torch._utils") + plain("sys.modules") + b"\x93"
    _bin(folder, archive(b"\x80\x04" + state(a=call)[2:]))


def extension_code(folder: Path) -> None:
    """A function by its number in copyreg's registry."""
    _bin(folder, archive(state(a=b"\x82\x01")))


def instance(folder: Path) -> None:
    """The oldest way to make an object."""
    _bin(folder, archive(state(a=b"(ios\nsystem\n")))


def state_of_a_tensor(folder: Path) -> None:
    """Attributes for something whose attributes mean something."""
    _bin(folder, archive(state(a=tensor() + plain({"shape": (1,)}) + b"b")))


def call_of_a_value(folder: Path) -> None:
    """A number called as a function."""
    _bin(folder, archive(state(a=plain(3) + b")R")))


def call_without_arguments(folder: Path) -> None:
    """A tensor of nothing."""
    _bin(folder, archive(state(a=STATE + b")R")))


def call_with_strings(folder: Path) -> None:
    """A tensor of the wrong kinds of things."""
    _bin(folder, archive(state(a=STATE + plain(("a", "b", "c", "d", "e", "f")) + b"R")))


def deep_key(folder: Path) -> None:
    """A tuple nested so deep that to hash it overflows the stack of the process."""
    _bin(folder, archive(b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns."))


def shared_key(folder: Path) -> None:
    """A tuple that holds itself twice, sixty times over: to hash it takes forever."""
    _bin(folder, archive(b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"Ns."))


def deep_list(folder: Path) -> None:
    """Lists in lists."""
    _bin(folder, archive(b"\x80\x02" + b"]" * 500_000 + b"a" * 499_999 + b"."))


def dict_of_itself(folder: Path) -> None:
    """A wrapper that wraps itself."""
    _bin(folder, archive(b"\x80\x02}q\0" + plain("model") + b"h\0s."))


def flood_of_dicts(folder: Path) -> None:
    """Nothing but empty dicts."""
    _bin(folder, archive(b"\x80\x02" + b"}" * 6_000_000 + b"."))


def huge_memo(folder: Path) -> None:
    """A memo number for which an array of the memo would take all memory; then no value."""
    _bin(folder, archive(b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff."))


def huge_string(folder: Path) -> None:
    """A string of 2^62 bytes."""
    _bin(folder, archive(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."))


def huge_bytearray(folder: Path) -> None:
    """A buffer to be made before it is filled."""
    _bin(folder, archive(b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x."))


def huge_count(folder: Path) -> None:
    """A storage of more elements than 64 bits can count."""
    _bin(folder, archive(state(a=tensor(storage(count=2**80), shape=(2**80,), strides=(1,)))))


def many_axes(folder: Path) -> None:
    """A shape whose product has a million digits."""
    axes = (2**62,) * 50_000
    _bin(folder, archive(state(a=tensor(shape=axes, strides=axes))))


def unfinished(folder: Path) -> None:
    """A pickle that stops in the middle."""
    _bin(folder, archive(state(a=tensor())[:-9]))


def empty_stack(folder: Path) -> None:
    """An instruction with nothing to work on."""
    _bin(folder, archive(b"\x80\x02\x86\x86t."))


def half_a_surrogate(folder: Path) -> None:
    """A name that no UTF-8 can write."""
    _bin(folder, archive(state(**{"\ud800": tensor()})))


def reserved_name(folder: Path) -> None:
    """A tensor with the name of the header's metadata."""
    _bin(folder, archive(state(__metadata__=tensor())))


def tensor_without_name(folder: Path) -> None:
    """A number where a tensor's name should be."""
    _bin(folder, archive(b"\x80\x02}" + plain(7) + tensor() + b"s" + state(b=tensor())[3:]))


def two_models(folder: Path) -> None:
    """Two dicts that could each be the weights."""
    inner = state(a=tensor())[2:-1]
    _bin(folder, archive(state(model=inner, state_dict=inner)))


def no_tensors(folder: Path) -> None:
    """A dict of numbers."""
    _bin(folder, archive(state(a=plain(1))))


def beyond_the_storage(folder: Path) -> None:
    """A tensor that ends behind its storage, in another's bytes."""
    entries = {"a/data/0": bytes(64), "a/data/1": bytes(64)}
    _bin(folder, archive(state(a=tensor(first=1), b=tensor(storage("1"))), entries))


def beyond_the_entry(folder: Path) -> None:
    """A storage that claims more than its entry has."""
    _bin(folder, archive(state(a=tensor(storage(count=32)))))


def negative_first(folder: Path) -> None:
    """A tensor that begins before its storage."""
    _bin(folder, archive(state(a=tensor(first=-4))))


def negative_shape_and_strides(folder: Path) -> None:
    """Sizes whose product is right and which are none."""
    _bin(folder, archive(state(a=tensor(shape=(-4, -4), strides=(-4, 1)))))


def true_size(folder: Path) -> None:
    """True is no size."""
    _bin(folder, archive(state(a=tensor(shape=(True, 16), strides=(16, 1)))))


def expanded(folder: Path) -> None:
    """One number that stands for 2^60."""
    _bin(folder, archive(state(a=tensor(shape=(2**60,), strides=(0,)))))


def negated(folder: Path) -> None:
    """Numbers that are to be read with the other sign."""
    _bin(folder, archive(state(a=tensor(more=plain({"neg": True})))))


def escaping_key(folder: Path) -> None:
    """A storage whose key leads out of the archive."""
    (folder.parent / "0").write_bytes(bytes(64))
    _bin(folder, archive(state(a=tensor(storage("../../../0")))))


def escaping_entry(folder: Path) -> None:
    """An entry whose name leads out of the folder."""
    _bin(folder, archive(state(a=tensor()), {"a/data/0": bytes(64), "a/../../x": b"x"}))


def two_roots(folder: Path) -> None:
    """Two pickles: two readers could see two models."""
    _bin(folder, archive(state(a=tensor()), {"a/data/0": bytes(64), "b/data.pkl": state()}))


def compressed(folder: Path) -> None:
    """Entries that would have to be inflated."""
    _bin(folder, archive(state(a=tensor()), how=zipfile.ZIP_DEFLATED))


def _changed(folder: Path, at: int, signature: bytes, form: str, value: int) -> None:
    """A good archive, whose last record of a kind has another number somewhere."""
    data = bytearray(archive(state(a=tensor())))
    struct.pack_into(form, data, data.rindex(signature) + at, value)
    _bin(folder, bytes(data))


def encrypted(folder: Path) -> None:
    """An entry that says it is encrypted."""
    _changed(folder, 8, b"PK\1\2", "<H", 1)


def overlapping_entries(folder: Path) -> None:
    """An entry whose header is said to be inside another's bytes."""
    _changed(folder, 42, b"PK\1\2", "<L", 8)


def entry_beyond_the_file(folder: Path) -> None:
    """An entry behind the end of the file."""
    _changed(folder, 42, b"PK\1\2", "<L", 2**31)


def entry_of_two_sizes(folder: Path) -> None:
    """An entry that is larger than its bytes."""
    _changed(folder, 24, b"PK\1\2", "<L", 640)


def header_of_another(folder: Path) -> None:
    """An entry whose own header has another name."""
    _changed(folder, 30, b"PK\3\4", "<B", ord("b"))


def header_that_is_longer(folder: Path) -> None:
    """A local header that pushes the bytes into the directory."""
    _changed(folder, 28, b"PK\3\4", "<H", 60)


def directory_elsewhere(folder: Path) -> None:
    """A directory that is said to be somewhere else."""
    _changed(folder, 16, b"PK\5\6", "<L", 3)


def huge_directory(folder: Path) -> None:
    """A directory said to be larger than the file."""
    _changed(folder, 12, b"PK\5\6", "<L", 2**31)


def name_twice(folder: Path) -> None:
    """Two entries of one name."""
    data = archive(state(a=tensor()), {"a/data/0": bytes(64), "a/data/1": bytes(64)})
    _bin(folder, data.replace(b"a/data/1", b"a/data/0"))


def truncated_archive(folder: Path) -> None:
    """An archive whose download stopped."""
    _bin(folder, archive(state(a=tensor()))[:-40])


def torch_script(folder: Path) -> None:
    """A program."""
    _bin(folder, archive(state(a=tensor()), {"a/data/0": bytes(64), "a/constants.pkl": b""}))


def other_zip(folder: Path) -> None:
    """Somebody's holiday pictures."""
    with zipfile.ZipFile(folder / BIN, "w") as file:
        file.writestr("pictures/1.jpg", b"")


def big_endian(folder: Path) -> None:
    """Bytes in the other order."""
    entries = {"a/data/0": bytes(64), "a/byteorder": b"big"}
    _bin(folder, archive(state(a=tensor()), entries))


def legacy(keys: object = ("0",), counts: tuple = (16,), little=True, rest: bytes = b"") -> bytes:
    """A file as torch before 1.6 wrote it, with one storage and what else is asked for."""
    information = {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}
    start = b"".join(standard.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, information))
    keys = list(keys) if isinstance(keys, tuple) else keys
    data = b"".join(struct.pack("<q", count) + bytes(64) for count in counts)
    return start + state(a=tensor()) + standard.dumps(keys, 2) + data + rest


def legacy_truncated(folder: Path) -> None:
    """A last storage that is cut off."""
    _bin(folder, legacy()[:-1])


def legacy_rest(folder: Path) -> None:
    """Something behind the last storage."""
    _bin(folder, legacy(rest=b"surprise"))


def legacy_count(folder: Path) -> None:
    """A storage of another length than the pickle says."""
    _bin(folder, legacy(counts=(17,)))


def legacy_negative_count(folder: Path) -> None:
    """A storage of less than nothing."""
    _bin(folder, legacy(counts=(-1,)))


def legacy_keys(folder: Path) -> None:
    """One storage twice."""
    _bin(folder, legacy(keys=("0", "0"), counts=(16, 16)))


def legacy_no_keys(folder: Path) -> None:
    """No list of storages."""
    _bin(folder, legacy(keys=7))


def legacy_big_endian(folder: Path) -> None:
    """Bytes in the other order."""
    _bin(folder, legacy(little=False))


def escaping_pickle_index(folder: Path) -> None:
    """An index of pickles that names a file above its folder."""
    (folder.parent / "x.bin").write_bytes(torch_file(GOOD))
    text = json.dumps({"weight_map": {"a": "../x.bin"}})
    (folder / "pytorch_model.bin.index.json").write_text(text)


def two_pickles(folder: Path) -> None:
    """Two files of no known name."""
    for name in ("one.pt", "two.pt"):
        (folder / name).write_bytes(torch_file(GOOD))


def nothing(folder: Path) -> None:
    """A folder with no weights."""


def config_not_json(folder: Path) -> None:
    """A config.json that is cut off."""
    _file(folder, encode(GOOD))
    (folder / "config.json").write_text('{"model_type": "lla')


def broken_link(folder: Path) -> None:
    """A link to a blob that is not in the cache."""
    _index(folder, {"a": "model-00001-of-00001.safetensors"})
    os.symlink("../../blobs/gone", folder / "model-00001-of-00001.safetensors")


ATTACKS: dict[str, Callable[[Path], None]] = {
    attack.__name__: attack
    for attack in (
        truncated, truncated_header, empty, huge_header, header_longer_than_file, not_json, a_list,
        nested, huge_number, overlapping, hole, out_of_range, backwards, negative, negative_shape,
        wrong_size, overflowing_shape, unknown_dtype, boolean_shape, duplicate_name,
        metadata_not_text, trailing_bytes, escaping_index, absolute_index, nul_index, number_index,
        absent_shard, lying_index, same_tensor_twice, lone_shard, pickle, nothing, config_not_json,
        broken_link, system, evaluated, nested_load, dotted_name, extension_code, instance,
        state_of_a_tensor, call_of_a_value, call_without_arguments, call_with_strings,
        deep_key, shared_key, deep_list, dict_of_itself,
        flood_of_dicts, huge_memo, huge_string, huge_bytearray, huge_count, many_axes,
        unfinished, empty_stack, half_a_surrogate, reserved_name, tensor_without_name,
        two_models, no_tensors, beyond_the_storage, beyond_the_entry, negative_first,
        negative_shape_and_strides, true_size, expanded, negated, escaping_key,
        escaping_entry, two_roots, compressed, encrypted, overlapping_entries,
        entry_beyond_the_file, entry_of_two_sizes, header_of_another, header_that_is_longer,
        directory_elsewhere, huge_directory, name_twice, truncated_archive, torch_script,
        other_zip, big_endian, legacy_truncated, legacy_rest, legacy_count,
        legacy_negative_count, legacy_keys, legacy_no_keys, legacy_big_endian,
        escaping_pickle_index, two_pickles,
    )
} | ggufs.ATTACKS  # fmt: skip
