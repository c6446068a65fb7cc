"""Small inputs that ask for much work or memory: each generator writes one file or folder.

`AMPLIFIED` maps a name to (action, generator); the generator fills a folder and returns the path to
open with that action of `budget`. Every input is below 10 MB. Most are hostile; some are large but
valid. Opening each must stay within the budget, whatever the outcome.
"""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.attacks import folders, ggufs
from tests.attacks.fuzz import TARGETS
from tests.attacks.hostile import archive, legacy, plain, state, storage, tensor

LIMIT = 10_000_000  # bytes of an input


def _header(folder: Path, text: bytes, data: int = 64) -> Path:
    """A safetensors file from the text of its header and a size of its data."""
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + data)
    return path


def _pickle(folder: Path, pickled: bytes, entries: dict[str, bytes] | None = None) -> Path:
    path = folder / "pytorch_model.bin"
    path.write_bytes(archive(pickled, entries))
    return path


def _entry(name: str, shape: str = "16", begin: int = 0, end: int = 64) -> str:
    return f'"{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{begin},{end}]}}'


def _text(text: str) -> bytes:
    """The instruction for a string, which is not remembered."""
    return b"X" + struct.pack("<L", len(text)) + text.encode()


def _filled(piece: bytes, size: int = 9_000_000) -> bytes:
    return piece * (size // len(piece))


# -- headers ---------------------------------------------------------------------------------------


def overlapping_tensors(folder: Path) -> Path:
    """100,000 tensors on the same 64 bytes."""
    text = ",".join(_entry(f"layer.{i}.weight") for i in range(100_000))
    return _header(folder, b"{" + text.encode() + b"}")


def overlapping_late(folder: Path) -> Path:
    """100,000 tensors in order; the last one overlaps."""
    entries = [_entry(f"layer.{i}.weight", "1", 4 * i, 4 * i + 4) for i in range(100_000)]
    text = ",".join([*entries, _entry("last", "1", 4 * 99_999, 4 * 100_000)])
    return _header(folder, b"{" + text.encode() + b"}", 4 * 100_000)


def many_tensors(folder: Path) -> Path:
    """A valid file of 100,000 tensors."""
    text = ",".join(_entry(f"layer.{i}.weight", "1", 4 * i, 4 * i + 4) for i in range(100_000))
    return _header(folder, b"{" + text.encode() + b"}", 4 * 100_000)


def many_empty_tensors(folder: Path) -> Path:
    """As many tensors as fit in: all empty."""
    text = ",".join(
        f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(170_000)
    )
    return _header(folder, b"{" + text.encode() + b"}", 0)


def name_twice_of_many(folder: Path) -> Path:
    """One name of 100,000 is there twice, the last one."""
    entries = [_entry(f"layer.{i}.weight", "1", 4 * i, 4 * i + 4) for i in range(100_000)]
    text = ",".join([*entries, entries[-1]])
    return _header(folder, b"{" + text.encode() + b"}", 4 * 100_000)


def long_shape(folder: Path) -> Path:
    """A shape of a million axes whose product has millions of digits."""
    return _header(folder, b"{" + _entry("a", ",".join(["2147483647"] * 800_000)).encode() + b"}")


def long_number(folder: Path) -> Path:
    """A size of nine million digits."""
    return _header(folder, b"{" + _entry("a", "9" * 9_000_000).encode() + b"}")


def long_name(folder: Path) -> Path:
    """A name of nine million characters."""
    return _header(folder, b"{" + _entry("a." * 4_500_000).encode() + b"}")


def escaped_name(folder: Path) -> Path:
    """A name of nine megabytes of escapes, with no end."""
    return _header(folder, b'{"' + _filled(b"\\u0061"))


def many_escaped_names(folder: Path) -> Path:
    """Names that are all escapes."""
    text = ",".join(
        f'"\\u0061\\ud83d\\ude00{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        for i in range(120_000)
    )
    return _header(folder, b"{" + text.encode() + b"}", 0)


def many_lists(folder: Path) -> Path:
    """Three million empty lists in place of a tensor."""
    return _header(folder, b'{"a":[' + _filled(b"[],") + b"[]]}")


def many_objects(folder: Path) -> Path:
    """Objects of one key each."""
    return _header(folder, b'{"a":[' + _filled(b'{"":1},') + b"1]}")


def many_odd_entries(folder: Path) -> Path:
    """Entries with a further key, which no writer makes."""
    text = ",".join(
        f'"{i}":{{"x":1,"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(150_000)
    )
    return _header(folder, b"{" + text.encode() + b"}", 0)


def deep_lists(folder: Path) -> Path:
    """Nine million lists in each other."""
    return _header(folder, b'{"a":' + _filled(b"["))


def white_space(folder: Path) -> Path:
    """Nine megabytes of nothing, then an error."""
    return _header(folder, b'{"a":{"dtype":"F32","shape":[' + _filled(b" ") + b"x]}}")


def white_space_twice(folder: Path) -> Path:
    """White space before and behind a comma that must not be there."""
    half = _filled(b" \n", 4_500_000)
    return _header(folder, b'{"a":{"dtype":"F32"' + half + b"," + half + b",}}")


def much_metadata(folder: Path) -> Path:
    """Metadata of 600,000 keys."""
    text = ",".join(f'"{i:x}":"{i:x}"' for i in range(600_000))
    return _header(
        folder, b'{"__metadata__":{' + text.encode() + b"}," + _entry("a").encode() + b"}"
    )


# -- pickles ---------------------------------------------------------------------------------------


def ordered_dicts(folder: Path) -> Path:
    """A list of 20,000 pairs, of which an OrderedDict is made 100,000 times."""
    pairs = b"](" + b"".join(_text(f"k{i}") + b"N\x86" for i in range(20_000)) + b"e\x85q\0"
    make = b"ccollections\nOrderedDict\nq\1"
    return _pickle(folder, b"\x80\x02" + pairs + make + b"h\1h\0R" * 100_000 + b".")


def sizes(folder: Path) -> Path:
    """A shape of 64 axes, of which a torch.Size is made 1.3 million times."""
    start = b"ctorch\nSize\nq\0(" + b"K\2" * 64 + b"t\x85q\1"
    return _pickle(folder, b"\x80\x02" + start + b"h\0h\1R" * 1_300_000 + b".")


def shapes(folder: Path) -> Path:
    """Tensors with 64 axes, of values that are there once."""
    shape = b"(" + b"K\1" * 64 + b"t"
    start = b"ctorch._utils\n_rebuild_tensor\nq\xf0(" + storage() + b"K\0" + shape * 2 + b"tq\xf1"
    return _pickle(folder, b"\x80\x02" + start + b"h\xf0h\xf1R" * 1_300_000 + b".")


def tensors(folder: Path) -> Path:
    """One tensor under 600,000 names."""
    body = b"".join(_text(f"{i:x}") + b"h\xffs" for i in range(600_000))
    return _pickle(folder, b"\x80\x02" + tensor() + b"q\xff}" + body + b".")


def _flood(piece: bytes) -> Callable[[Path], Path]:
    return lambda folder: _pickle(folder, b"\x80\x04N]" + _filled(piece) + b".")


def flood_of_stored_strings(folder: Path) -> Path:
    """Strings of two wide characters, all remembered."""
    return _pickle(folder, b"\x80\x04" + _filled(b"\x8c\x08" + "😀😀".encode() + b"\x94") + b".")


def keys_of_dicts(folder: Path) -> Path:
    """A dict of small integers as keys."""
    return _pickle(folder, b"\x80\x02}" + _filled(b"K\0Ns") + b".")


def values_beside(folder: Path) -> Path:
    """900,000 numbers beside the weights."""
    body = b"".join(b"\x8c\x05" + f"{i:05x}".encode() + b"Ns" for i in range(900_000))
    model = plain("model") + state(a=tensor())[2:-1] + b"s"
    return _pickle(folder, b"\x80\x04}" + model + body + b".")


def shared_branches(folder: Path) -> Path:
    """A dict of 60,000 names of one dict of 60,000 names of one dict without tensors."""
    names = [_text(f"k{i}") for i in range(60_000)]
    inner = b"}q\0(" + b"".join(n + b"N" for n in names) + b"u"
    middle = b"}q\1(" + b"".join(n + b"h\0" for n in names) + b"u"
    outer = b"}(" + b"".join(n + b"h\1" for n in names) + b"u"
    return _pickle(folder, b"\x80\x02" + inner + middle + outer + b".")


def long_names_of_code(folder: Path) -> Path:
    """A module's name of a megabyte, asked for again and again."""
    name = b"X" + struct.pack("<L", 1_000_000) + b"m" * 1_000_000 + b"q\0"
    return _pickle(folder, b"\x80\x04" + name + _text("x") + b"q\1" + b"h\0h\1\x93" * 1_000_000)


def zip_extra(folder: Path) -> Path:
    """Entries with 64 KB of empty extra fields each."""
    extra = struct.pack("<2H", 9, 0) * 16_000
    return _zip(folder, [(f"a/data/{i}".encode(), extra) for i in range(140)])


def zip_entries(folder: Path) -> Path:
    """As many entries as fit in, all empty."""
    return _zip(folder, [(f"{i:x}".encode(), b"") for i in range(118_000)])


def _zip(folder: Path, entries: list[tuple[bytes, bytes]]) -> Path:
    """An archive with empty entries and extra fields in its directory."""
    data, directory = bytearray(), bytearray()
    for name, start in [(b"a/data.pkl", b""), *entries]:
        extra = start + struct.pack("<2HQ", 1, 8, len(data)) if start else b""
        body = b"\x80\x02}." if name == b"a/data.pkl" else b""
        wide = (len(body),) * 2
        begin = 0xFFFFFFFF if extra else len(data)  # so that the extra fields are looked through
        lengths = (zlib.crc32(body), *wide, len(name), len(extra), 0, 0, 0, 0, begin)
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, *lengths)
        directory += name + extra
        header = (zlib.crc32(body), len(body), len(body), len(name), 0)
        data += struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, *header) + name + body
    end = (0, 0, 65535, 65535, len(directory), len(data), 0)
    path = folder / "pytorch_model.bin"
    path.write_bytes(data + directory + struct.pack("<4s4H2LH", b"PK\5\6", *end))
    return path


def legacy_key_recalled(folder: Path) -> Path:
    """A list of 900,000 keys that are one string of four megabytes."""
    key = b"X" + struct.pack("<L", 4_000_000) + b"k" * 4_000_000 + b"q\0"
    keys = b"\x80\x02](" + key + b"h\0" * 900_000 + b"e."
    data = legacy(counts=())
    cut = data.rindex(b"\x80\x02")
    path = folder / "pytorch_model.bin"
    path.write_bytes(data[:cut] + keys)
    return path


def legacy_without_end(folder: Path) -> Path:
    """The old format, and instructions up to the end of the file."""
    data = legacy(counts=())
    path = folder / "pytorch_model.bin"
    path.write_bytes(data[: data.rindex(b"\x80\x02")] + b"\x80\x02" + _filled(b"N"))
    return path


def big_integers(folder: Path) -> Path:
    """A size of four megabytes."""
    number = b"\x8b" + struct.pack("<L", 4_000_000) + b"\x7f" * 4_000_000
    call = b"ctorch\nSize\n" + number + b"\x85\x85R"
    return _pickle(folder, b"\x80\x02" + call + b".")


# -- indexes and adapters --------------------------------------------------------------------------


def index_of_absent_shards(folder: Path) -> Path:
    """120,000 shards, none of which is there."""
    names = {f"t{i}": f"model-{i:06d}.safetensors" for i in range(200_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def index_of_lists(folder: Path) -> Path:
    """Three million empty lists."""
    text = b'{"weight_map":[' + _filled(b"[],") + b"[]]}"
    (folder / "model.safetensors.index.json").write_bytes(text)
    return folder


def index_of_objects(folder: Path) -> Path:
    """A million objects of one key."""
    text = b'{"weight_map":[' + _filled(b'{"":1},') + b"1]}"
    (folder / "model.safetensors.index.json").write_bytes(text)
    return folder


def _adapter(folder: Path, patterns: dict[str, int], modules: list[str]) -> Path:
    """An adapter of rank 1 whose modules are looked up in patterns."""
    header, position = [], 0
    for module in modules:
        for half in ("lora_A.weight", "lora_B.weight"):
            name = f"base_model.model.{module}.{half}"
            header.append(_entry(name, "1,1", position, position + 4))
            position += 4
    text = ("{" + ",".join(header) + "}").encode()
    _header(folder, text, position).rename(folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "alpha_pattern": patterns}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def patterns_and_modules(folder: Path) -> Path:
    """10,000 patterns, and 10,000 modules that none of them matches."""
    modules = [f"model.layers.{i}.mlp.gate_proj" for i in range(10_000)]
    return _adapter(folder, {f"layers.{i}.up_proj": 1 for i in range(10_000)}, modules)


def patterns_of_loops(folder: Path) -> Path:
    """Patterns of three loops, and long names that nearly match."""
    patterns = {f".*a.*a.*a{i}": 1 for i in range(20)}
    modules = [".".join(["a"] * 120) + f".{i}" for i in range(200)]
    return _adapter(folder, patterns, modules)


def patterns_of_groups(folder: Path) -> Path:
    """Groups of alternatives that begin alike."""
    patterns = {r"(a|.a|..)?(.|a.)*x": 1, r"(a.?){20}x": 1, r"((a.)*)*x": 1}
    return _adapter(folder, patterns, [".".join(["a"] * 100) + f".{i}" for i in range(100)])


_HEADERS = (
    overlapping_tensors, overlapping_late, many_tensors, many_empty_tensors, name_twice_of_many,
    long_shape, long_number, long_name, escaped_name, many_escaped_names, many_lists, many_objects,
    many_odd_entries, deep_lists, white_space, white_space_twice, much_metadata,
)  # fmt: skip
_PICKLES = (
    ordered_dicts, sizes, shapes, tensors, keys_of_dicts, values_beside, shared_branches,
    long_names_of_code, zip_extra, zip_entries, legacy_key_recalled, legacy_without_end,
    big_integers, flood_of_stored_strings,
)  # fmt: skip
_FLOODS = {
    "dicts": b"}", "lists": b"]", "marks": b"(", "nothing": b"N", "memo": b"N\x94",
    "tuples": b")\x85", "deep tuples": b"\x85", "sets": b"\x8f", "names": b"ctorch\nSize\n",
    "floats": b"G" + b"\1" * 8, "dicts in dicts": b"}K\0", "lists in lists": b"]a", "puts": b"Nq\0",
    "strings": b"\x8c\2ab", "tuples of two": b"NN\x86", "marked tuples": b"(t", "bytes": b"C\0",
    "byte arrays": b"\x96" + bytes(8),
}  # fmt: skip
_FOLDERS = (
    (index_of_absent_shards, "folder"), (index_of_lists, "folder"), (index_of_objects, "folder"),
    (patterns_and_modules, "adapter"), (patterns_of_loops, "adapter"),
    (patterns_of_groups, "adapter"),
)  # fmt: skip

# -- records, companions, code ---------------------------------------------------------------------


def _input(target: str, make: Callable[[], bytes]) -> tuple[str, Callable[[Path], Path]]:
    """An input of one of the fuzzer's targets."""
    return TARGETS[target].action, lambda folder: TARGETS[target].place(folder, make())


def _runs(order: int) -> bytes:
    """A journal of 250,000 runs of bytes, none beside another."""
    identity, *_ = TARGETS["journal"].seeds[0].split(b"\n")
    texts = [b'{"done": [%d, %d]}' % (2 * i, 2 * i + 1) for i in range(250_000)][::order]
    return identity + b"\n" + b"".join(b"%08x %s\n" % (zlib.crc32(t), t) for t in texts)


def _more(name: str, **keys: object) -> bytes:
    """A companion with more keys."""
    return json.dumps({**json.loads(folders.FILES[name]), **keys}).encode()


_INPUTS = {
    "journal backward": _input("journal", lambda: _runs(-1)),
    "roles": _input(
        "plan-tokenizer_config.json",
        lambda: _more("tokenizer_config.json", **{f"x{i}_token": "<s>" for i in range(150_000)}),
    ),
    "ends of lines in code": _input("check-code.py", lambda: b"\n" * 1_000_000),
    "open imports": _input("plan-code.py", lambda: b"from . import (\n" * 65_000),
    "files that are named": _input(
        "plan-config.json", lambda: _more("config.json", names=[f"{i}.txt" for i in range(500_000)])
    ),
}

AMPLIFIED: dict[str, tuple[str, Callable[[Path], Path]]] = {
    **{make.__name__: ("weights", make) for make in (*_HEADERS, *_PICKLES)},
    **{f"flood of {name}": ("weights", _flood(piece)) for name, piece in _FLOODS.items()},
    **{make.__name__: (action, make) for make, action in _FOLDERS},
    **{name: ("weights", make) for name, make in ggufs.AMPLIFIED.items()},
    **_INPUTS,
}
