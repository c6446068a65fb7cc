"""PyTorch's own weight files (.bin, .pt, .pth, .ckpt): read without running code, without torch.

Only the pickle (see `unpickle`) and the directory are read. Where a tensor's bytes are follows from
them:

- Since torch 1.6 the file is a zip archive, uncompressed, with ``data.pkl`` and one entry for each
  storage (``data/0``, …).
- Before, it was five pickles (magic number, protocol, system, the object, keys of the storages) and
  then the storages, each after its count of elements.

What training scripts save is rarely the bare weights. It holds them under a name, beside an
optimizer, options and often a second, averaged copy. `read_pickle` finds these branches, takes the
only one, and asks for a choice where there are several.

Source: `torch.serialization` of torch 2.x.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

from paramdelta.dtypes import DTYPES
from paramdelta.errors import CheckpointError
from paramdelta.formats import archive, magic
from paramdelta.formats.archive import Read
from paramdelta.formats.permuted import Permuted
from paramdelta.formats.unpickle import (
    ELSEWHERE,
    MAX_PICKLE,
    MAX_WORD,
    Allowance,
    Machine,
    Opaque,
    Stream,
    Strided,
    error,
    kind,
)
from paramdelta.formats.view import Tensor, Transposed, View
from paramdelta.storage.blob import Blob
from paramdelta.storage.reader import Reader
from paramdelta.text import shown
from paramdelta.units import show_size

MAX_LISTED = 100  # ignored values, and branches, that are listed one by one
_DEPTH = 2  # branches inside branches: {"model": {"state_dict": …}}
# Names of branches that are a model's weights, and of those that belong to its training.
_WEIGHTS = re.compile(
    r"state_?dict|model|module|net|param|weight|ema|avg|averag|swa|shadow|generator|discriminator|"
    r"teacher|student"
)
_TRAINING = re.compile(r"optim|sched|scaler|rng|callback|loops|hyper_?param")
_USUAL = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    ``tensors``: in the order of the state dict. ``ignored``: what else the file holds, each by its
    place and kind ("epoch (int)"). ``sha256``: over all that was read to find this out. ``key``:
    the name of the branch that was taken, "" if the tensors are at the top.
    """

    tensors: tuple[View, ...]
    ignored: tuple[str, ...]
    sha256: str
    key: str = ""


def read_pickle(reader: Reader, blob: Blob, key: str | None = None) -> Contents:
    """Find the tensors of a file that `torch.save` wrote.

    ``key``: the name of the branch with the weights, such as "ema" or "model/state_dict". None: the
    only one there is.

    Raises:
        CheckpointError: damaged, hostile, or in need of code to be understood; several branches and
            no key, or a key that names none of them.
        StorageError: the file cannot be read.
    """
    where = blob.url
    allowance = Allowance(blob.size, where)
    held, offsets, digest = _read_object(reader, blob, allowance)
    place, state = _chosen(held, key, where)
    tensors = []
    for name, value in state.items():
        if not isinstance(value, Strided):
            continue
        allowance.spend(15, 600)
        if not isinstance(name, str) or name == "__metadata__" or not _is_text(name):
            got = shown(name) if isinstance(name, str) else "not a string"
            raise error("invalid tensor name", where, f"text, at most {MAX_WORD} long", got)
        tensors.append(_view(name, value, offsets, f"{where}, tensor '{shown(name)}'", blob))
    return Contents(tuple(tensors), tuple(_ignored(held, place)), digest, "/".join(place))


def foreign_code(reader: Reader, blob: Blob) -> frozenset[str]:
    """The code that a file of `torch.save` asks for besides that of tensors and plain values.

    Raises:
        CheckpointError: damaged or hostile.
        StorageError: the file cannot be read.
    """
    allowance = Allowance(blob.size, blob.url)
    _read_object(reader, blob, allowance)
    return frozenset(allowance.foreign)


def _read_object(
    reader: Reader, blob: Blob, allowance: Allowance
) -> tuple[Any, dict[str, int], str]:
    """The object, the offset of each storage that it uses, and the digest."""
    read: Read = partial(reader.get, blob)
    is_zip = read(0, min(4, blob.size)) == b"PK\3\4"
    return (_read_archive if is_zip else _read_legacy)(read, blob.size, allowance, blob.url)


# -- which branch holds the weights ----------------------------------------------------------------


_Place: TypeAlias = tuple[str, ...]
"""The names that lead to a branch from the top."""


def _chosen(held: Any, key: str | None, where: str) -> tuple[_Place, dict[Any, Any]]:
    """The branch with the weights: its place and its dict of tensors; raises as `read_pickle`."""
    found = {"/".join(place): (place, state) for place, state in _branches(held)}
    if key is None:
        asked = [name for name in found if not _TRAINING.search(name.lower())]
        asked = [n for n in asked if not n or _WEIGHTS.search(n.lower())] or asked
    else:
        asked = [name for name in found if name == key]
        asked = asked or [name for name in found if name.startswith(key + "/")]
    if len(asked) == 1:
        place, state = found[asked[0]]
        _check_known(state, asked[0], where)
        return place, state
    if not found:
        raise _without_tensors(held, where)
    names = [name for name in asked or found if name][:8]
    raise error(
        "cannot tell which of these are the weights" if key is None else "no such set of weights",
        where,
        "one set of weights" if key is None else f"'{shown(key)}'",
        ", ".join(f"'{shown(name)}' ({_count(found[name][1])} tensors)" for name in names),
        f"name the one that you mean: {where.rpartition('/')[2]}#{shown((names or [''])[0])}",
        code="ambiguous-weights",
    )


def _branches(held: Any) -> list[tuple[_Place, dict[Any, Any]]]:
    """The dicts of tensors and their places, at most `MAX_LISTED` of them.

    A dict that holds tensors is a branch itself, unless one of the usual names in it leads to
    another: then the tensors beside it are losses or statistics. A dict with two names counts once.
    """
    seen: set[tuple[int, int]] = set()
    found: dict[int, tuple[_Place, dict[Any, Any]]] = {}

    def walk(held: Any, place: _Place) -> None:
        if not isinstance(held, dict) or (id(held), len(place)) in seen or len(found) == MAX_LISTED:
            return
        seen.add((id(held), len(place)))
        before = len(found)
        has_tensors = any(isinstance(value, Strided) for value in held.values())
        for name, value in held.items() if len(place) < _DEPTH else ():
            if isinstance(name, str) and (name in _USUAL or not has_tensors):
                walk(value, (*place, name))
        if has_tensors and len(found) == before:
            found.setdefault(id(held), (place, held))

    walk(held, ())
    return list(found.values())


def _check_known(state: dict[Any, Any], key: str, where: str) -> None:
    """Nothing among the weights may be an object that only foreign code can make."""
    for name, value in state.items():
        # torch keeps what is not a tensor under such a name
        if isinstance(value, Opaque) and value.foreign and not _is_extra(name):
            name = shown(name) if isinstance(name, str) else "?"
            raise error(
                "among the weights is an object that only its own code can make; no code was run",
                f"{where}, '{name}'" + (f" in {shown(key)}" if key else ""),
                "tensors",
                shown(value.kind),
                ELSEWHERE,
                code="pickle-runs-code",
            )


def _is_extra(name: Any) -> bool:
    return isinstance(name, str) and name.endswith("_extra_state")


def _without_tensors(held: Any, where: str) -> CheckpointError:
    """The error for a file in which no dict of tensors can be found."""
    values = [held, *(held.values() if isinstance(held, dict) else ())]
    foreign = next((v for v in values if isinstance(v, Opaque) and v.foreign), None)
    items = list(islice(held.items(), 8)) if isinstance(held, dict) else []
    got = f"a {kind(held)}" + (": " + ", ".join(_described((), items)) if items else "")
    if foreign is not None:
        return error(
            "the weights are in an object that only its own code can make; no code was run",
            where,
            "names and tensors",
            shown(foreign.kind) if held is foreign else got,
            ELSEWHERE,
            code="pickle-runs-code",
        )
    return error("no dict of tensors here", where, "names and tensors", got, "save state_dict()")


def _count(state: dict[Any, Any]) -> int:
    return sum(isinstance(value, Strided) for value in state.values())


def _ignored(held: Any, place: _Place) -> Iterator[str]:
    """What the file holds besides the tensors of the chosen branch, by place and kind."""
    listed = _all_ignored(held, place)
    yield from islice(listed, MAX_LISTED)
    more = sum(1 for _ in listed)
    if more:
        yield f"and {more} more"


def _all_ignored(held: Any, place: _Place) -> Iterator[str]:
    for depth, name in enumerate(place):
        yield from _described(place[:depth], ((k, v) for k, v in held.items() if k != name))
        held = held[name]
    yield from _described(place, ((k, v) for k, v in held.items() if not isinstance(v, Strided)))


def _described(place: _Place, others: Iterable[tuple[Any, Any]]) -> Iterator[str]:
    start = "".join(shown(name) + "/" for name in place)
    for name, value in others:
        yield f"{start}{shown(name) if isinstance(name, str) else '?'} ({shown(kind(value))})"


def _is_text(name: str) -> bool:
    """Whether it is short, and UTF-8 can write it: pickles can hold half a surrogate pair."""
    try:
        return len(name) <= MAX_WORD and bool(name.encode() or True)
    except UnicodeEncodeError:
        return False


# -- one tensor ------------------------------------------------------------------------------------


def _view(name: str, tensor: Strided, offsets: dict[str, int], where: str, blob: Blob) -> View:
    """A tensor as a view, checked against its storage."""
    dtype, storage, shape = DTYPES[tensor.dtype], tensor.storage, tensor.shape
    elements = math.prod(shape)
    offset = offsets[storage.key] + tensor.first * dtype.size
    order = _order(tensor) if elements else list(range(len(shape)))
    if order is None:
        raise error(
            "the tensor is a view that leaves out or repeats numbers of its storage",
            where,
            "its elements one after the other, in any order of the axes",
            f"shape {list(shape)}, strides {list(tensor.strides)}",
            "load the file with torch and save the tensors contiguous",
        )
    held = storage.count * DTYPES[storage.dtype].size
    if (tensor.first + elements) * dtype.size > held:
        raise error(
            "the tensor reaches beyond its storage",
            where,
            f"at most {held} bytes",
            f"{elements} elements of {dtype.size} bytes from element {tensor.first} on",
        )
    if order == sorted(order):
        return Tensor(name, dtype.name, shape, blob, offset, elements * dtype.size)
    laid = tuple(shape[axis] for axis in order)
    stored = Tensor(name, dtype.name, laid, blob, offset, elements * dtype.size)
    if len(shape) == 2:
        return Transposed(name, dtype.name, shape, stored)
    axes = tuple(order.index(axis) for axis in range(len(order)))
    return Permuted(name, dtype.name, shape, stored, axes)


def _order(tensor: Strided) -> list[int] | None:
    """The axes from the outermost to the innermost in memory; None where there are gaps.

    An axis of one element has a stride that means nothing, and stays where it is if it can.
    """
    sizes, strides = tensor.shape, tensor.strides
    axes = [axis for axis, size in enumerate(sizes) if size != 1]
    axes.sort(key=lambda axis: -strides[axis])
    expected = 1
    for axis in reversed(axes):
        if strides[axis] != expected:
            return None
        expected *= sizes[axis]
    if axes == sorted(axes):
        return list(range(len(sizes)))
    return [axis for axis, size in enumerate(sizes) if size == 1] + axes


# -- the zip archive -------------------------------------------------------------------------------


def _read_archive(
    read: Read, size: int, allowance: Allowance, where: str
) -> tuple[Any, dict[str, int], str]:
    """The object, the offset of each storage that it uses, and the digest."""
    where = allowance.where
    start, stop = archive.find_directory(read, size, where)
    directory = read(start, stop - start)
    listed = list(archive.listed(directory, where))
    other = magic.of_archive([entry.name.decode("utf-8", "replace") for entry in listed])
    if other is not None:
        other.check(where)
    entries = archive.locate(read, listed, start, where)
    roots = {name.split("/", 1)[0] for name in entries}
    root = next(iter(roots)) if len(roots) == 1 else ""
    if f"{root}/data.pkl" not in entries:
        raise error(
            "a zip archive, but not one that torch.save writes",
            where,
            "one folder with data.pkl",
            ", ".join(shown(name) for name in sorted(entries)[:4]) or "no entries",
        )
    if f"{root}/byteorder" in entries:
        entry = entries[f"{root}/byteorder"]
        order = read(entry.begin, min(entry.size, 16))
        _check_order(order == b"little", order.decode("latin-1"), where)
    entry = entries[f"{root}/data.pkl"]
    if entry.size > MAX_PICKLE:
        raise error(
            "the pickle is too large",
            where,
            f"at most {show_size(MAX_PICKLE)}",
            show_size(entry.size),
            code="pickle-too-large",
        )
    stream = Stream(read, entry.begin, entry.begin + entry.size)
    text = stream.fill(entry.size)[: entry.size]
    machine = Machine(stream, allowance)
    held = machine.run()
    offsets = {}
    for storage in machine.storages.values():
        entry = entries.get(f"{root}/data/{storage.key}", archive.Entry(0, -1))
        unit = DTYPES[storage.dtype].size
        if not 0 <= entry.size - storage.count * unit < unit:
            raise error(
                f"storage '{shown(storage.key)}' is not as the pickle says",
                where,
                f"an entry of {storage.count * unit} bytes",
                f"{entry.size} bytes" if entry.size >= 0 else "no such entry",
            )
        offsets[storage.key] = entry.begin
    return held, offsets, hashlib.sha256(text + directory).hexdigest()


def _check_order(little: bool, got: str, where: str) -> None:
    if not little:
        raise error(
            "written on a machine with the other byte order",
            where,
            "little",
            shown(got),
            "load it with torch and save it with safetensors",
        )


# -- before torch 1.6 ------------------------------------------------------------------------------

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def _read_legacy(
    read: Read, size: int, allowance: Allowance, where: str
) -> tuple[Any, dict[str, int], str]:
    """The object, the offset of each storage that it uses, and the digest."""
    where = allowance.where
    stream = Stream(read, 0, size)
    machine = Machine(stream, allowance)
    start = [machine.run()]
    if start == [_MAGIC]:
        start += [machine.run(), machine.run()]
    if start[:2] != [_MAGIC, _PROTOCOL] or not isinstance(start[2], dict):
        raise error(
            "neither a zip archive nor what torch.save wrote before 1.6",
            where,
            "a magic number, then 1001",
            shown(kind(start[-1])),
        )
    _check_order(start[2].get("little_endian") is True, "big", where)
    held, keys = machine.run(), machine.run()
    digest = hashlib.sha256(stream.data[: stream.position])
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise error("the storages have no list of keys", where, "a list of strings", kind(keys))
    if len(keys) != len(machine.storages) or set(keys) != machine.storages.keys():
        raise error(
            "the storages are not those that the pickle uses",
            where,
            f"{len(machine.storages)} of them",
            f"{len(keys)} keys",
        )
    offsets = {}
    position = stream.position
    for key in keys:
        storage = machine.storages[key]
        count = int.from_bytes(read(position, 8), "little") if position + 8 <= size else -1
        if count != storage.count:
            raise error(
                f"storage '{shown(key)}' is not as the pickle says",
                where,
                f"{storage.count} elements at byte {position}",
                str(count) if count >= 0 else "the end of the file",
            )
        offsets[key] = position + 8
        position += 8 + count * DTYPES[storage.dtype].size
    if position != size:
        problem = "is truncated" if position > size else "has bytes that belong to no tensor"
        code = "truncated-file" if position > size else "invalid-torch-file"
        raise error(f"the file {problem}", where, f"{position} bytes", f"{size} bytes", code=code)
    return held, offsets, digest.hexdigest()
