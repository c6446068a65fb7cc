"""Pickles that `torch.save` writes, interpreted without running code: bytes in, inert values out.

A pickle is a program. `Machine` knows the few instructions that `torch.save` writes and imports
nothing. A name such as ``torch._utils._rebuild_tensor_v2`` stands for a function of this module.
Any other name stands for code that is not available: its result is an `Opaque`, which keeps only
the name. The standard unpickler with a guarded `find_class` would not do: it hashes
whatever it is given, and a tuple that is nested a million times, or shared with itself thirty times
over, as a key of a dict ends the process or never ends.

A few bytes can ask for much: an OrderedDict of the same long list again and again, a shape of 64
axes for each of a million tensors. So an `Allowance` counts the work and the memory of everything
that is made, and both are limited by the size of the file.

Source: `torch.serialization` and `torch._weights_only_unpickler` of torch 2.x; `pickletools`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paramdelta.errors import CheckpointError
from paramdelta.text import shown

MAX_PICKLE = 64_000_000  # bytes; 160 a tensor are usual
MAX_AXES = 64  # the limit of torch
MAX_WORD = 1024  # characters of a tensor's name, of a storage's key and of a name of code
ELSEWHERE = (
    "use a safetensors release of the model; or, only where you trust the file and have its code, "
    "load it with torch and save model.state_dict() with safetensors"
)
DAMAGED = "the file is damaged or not what torch.save writes: get it again"
_AHEAD = 9  # bytes: the longest instruction without a counted argument
_STRIDE = 4096  # instructions between two looks at the allowance
_MAX_LONG = 1024  # bytes of an integer


# -- values ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DType:
    """What a dtype's or a storage class's name stands for; ``name``: of safetensors."""

    name: str


@dataclass(slots=True)
class Storage:
    """A run of ``count`` elements that tensors share; ``key``: its name in the file."""

    key: str
    dtype: str
    count: int


@dataclass(slots=True)
class Strided:
    """A tensor as the pickle describes it: ``first`` and ``strides`` count elements."""

    storage: Storage
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Opaque:
    """Stands for a value that is not read. ``kind``: what it is, for messages.

    ``foreign``: it was to be made by code that is not known here; it could be anything.
    """

    kind: str
    foreign: bool = False


@dataclass(frozen=True)
class Maker:
    """Stands for a function or a class: arguments -> inert value.

    ``name``: that of the code. ``foreign``: the code is not known here; what it makes is `Opaque`.
    """

    make: "Callable[[Machine, tuple[Any, ...]], Any]"
    name: str
    foreign: bool = False


class _Key:
    """Stands for a key of a dict that is not a string. No such key is needed."""

    __slots__ = ()


def kind(value: Any) -> str:
    """What a value is, in a word or two: "tensor", "dict of 3", "int"."""
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, Opaque):
        return value.kind
    if isinstance(value, Maker):
        return f"code {value.name}"
    names = {Strided: "tensor", Storage: "storage", DType: "dtype", type(None): "None"}
    return names.get(type(value), type(value).__name__)


# -- limits and bytes ------------------------------------------------------------------------------


class Allowance:
    """The work and the memory that may be spent on a file of ``size`` bytes.

    A unit of work is about 0.3 µs: one instruction, or the share of an element in a longer one. A
    tensor needs 65 units and 2.5 KB. So only a file with more than 30,000 tensors of a few bytes
    each, and no larger ones, is refused though torch wrote it.

    ``foreign``: names of code that the pickles asked for and that is not known here.
    """

    def __init__(self, size: int, where: str) -> None:
        self.where = where
        self.foreign: set[str] = set()
        self.work = min(1_500_000 + size // 10, 20_000_000)
        self.memory = min(32_000_000 + 8 * size, 1_000_000_000)

    def spend(self, work: int, memory: int) -> None:
        """Take from it; raises CheckpointError where too little is left."""
        self.work -= work
        self.memory -= memory
        if self.work < 0 or self.memory < 0:
            raise error(
                "the pickle asks for too much "
                + ("work" if self.work < 0 else "memory")
                + " for a file of its size",
                self.where,
                "what torch.save writes",
                "",
                code="pickle-too-large",
            )


class Stream:
    """Bytes of a file from ``start`` to ``stop``, read in growing blocks when they are needed."""

    def __init__(self, read: Callable[[int, int], bytes], start: int, stop: int) -> None:
        self.position = 0
        self.data = b""
        self.read = read
        self.start = start
        self.size = min(stop - start, MAX_PICKLE)
        self.have = 0
        self.end = "the end of the data" if self.size < MAX_PICKLE else "more than 64 MB"

    def fill(self, until: int) -> bytes:
        """Have the first ``until`` bytes, and zeros after the last one; raises ValueError."""
        if until > self.size + _AHEAD:
            raise ValueError(f"{self.end} inside an instruction")
        if until > self.have:
            stop = min(self.size, max(until, 2 * self.have, 65536))
            more = self.read(self.start + self.have, stop - self.have)
            self.data = self.data[: self.have] + more + bytes(_AHEAD * (stop == self.size))
            self.have = stop
        return self.data


# -- the machine -----------------------------------------------------------------------------------


class Machine:
    """Interprets pickles: values that hold no code, from instructions that call none.

    ``storages``: all that the pickles named, by key.
    """

    def __init__(self, stream: Stream, allowance: Allowance) -> None:
        self.stream = stream
        self.where = allowance.where
        self.spend = allowance.spend
        self.asked = allowance.foreign
        self.storages: dict[str, Storage] = {}
        self._opaque: dict[tuple[str, bool], Opaque] = {}
        self._foreign: dict[str, Maker] = {}

    def run(self) -> Any:
        """The value of the next pickle in the stream; raises CheckpointError."""
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: list[Any] = []
        self.far: dict[int, Any] = {}  # memo entries that are not numbered one after the other
        try:
            self._interpret()
            return self.stack.pop()
        except (LookupError, ValueError) as problem:
            got = str(problem) if isinstance(problem, ValueError) else "a value that is not there"
            raise error(
                "the pickle cannot be read", self.where, "what torch.save writes", shown(got)
            ) from None

    def _interpret(self) -> None:
        stream, steps, number = self.stream, _STEPS, int.from_bytes
        data, position = stream.data, stream.position
        safe = len(data) - _AHEAD
        while True:
            for _ in range(_STRIDE):
                if position > safe:
                    data = stream.fill(position + _AHEAD)
                    safe = len(data) - _AHEAD
                step = steps[data[position]]
                if step is None and position >= stream.size:
                    raise ValueError(f"{stream.end}, and no end of the pickle")
                if step is None:
                    raise ValueError(f"instruction {data[position]:#04x}, which is not used")
                action, size, argument = step
                position += 1
                value: Any = None
                if size:
                    value = number(data[position : position + size], "little")
                    position += size
                if argument is not None:
                    value, position = argument(stream, position, value)
                    data = stream.data
                    safe = len(data) - _AHEAD
                if action is None:  # the end
                    stream.position = position
                    return
                action(self, value)
            self.spend(_STRIDE, 16 * _STRIDE)  # a reference on a stack and one in the memo

    def push(self, value: Any) -> None:
        """Any plain value."""
        self.stack.append(value)

    def integer(self, value: int) -> None:
        """A number that may be large."""
        self.spend(0, 32)
        self.stack.append(value)

    def text(self, value: str) -> None:
        """A string."""
        self.spend(2, 56 + 2 * len(value))  # to look into its size would cost more
        self.stack.append(value)

    def opaque(self, kind: str, foreign: bool = False) -> Opaque:
        """The one `Opaque` of a kind."""
        key = kind, foreign
        if key not in self._opaque:
            self._opaque[key] = Opaque(kind, foreign)
        return self._opaque[key]

    def nothing(self, _: Any) -> None:
        """Protocol and frame."""

    def mark(self, _: Any) -> None:
        """Begin a run of values."""
        self.spend(1, 88)
        self.marked.append(self.stack)
        self.stack = []

    def run_of_values(self) -> list[Any]:
        """The values since the last mark."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def empty_list(self, _: Any) -> None:
        """A new list."""
        self.spend(1, 88)
        self.stack.append([])

    def empty_dict(self, _: Any) -> None:
        """A new dict."""
        self.spend(1, 200)
        self.stack.append({})

    def tuple_of_run(self, _: Any) -> None:
        """A tuple of the values since the last mark."""
        values = tuple(self.run_of_values())
        self.spend(0, 56 + 8 * len(values))
        self.stack.append(values)

    def tuple_of_last(self, count: int) -> None:
        """A tuple of the last values."""
        self.spend(1, 56 + 8 * count)
        self.stack.append(tuple(self.last(count)))

    def frozen_set(self, _: Any) -> None:
        """A set of the values since the last mark."""
        self.run_of_values()
        self.stack.append(self.opaque("frozenset"))

    def drop(self, _: Any) -> None:
        """Forget the top of the stack, or, where there is nothing on it, the last mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.marked.pop()

    def drop_run(self, _: Any) -> None:
        """Forget the values since the last mark."""
        self.run_of_values()

    def last(self, count: int) -> list[Any]:
        """The last values, taken from the stack."""
        if count > len(self.stack):
            raise IndexError
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def remember(self, number: int | None) -> None:
        """Put the top of the stack into the memo, under the next number if none is given."""
        memo, value = self.memo, self.stack[-1]
        if number is None:
            number = len(memo) + len(self.far)
        if number == len(memo):
            memo.append(value)
        elif number < len(memo):
            memo[number] = value
        else:
            self.spend(1, 150)
            self.far[number] = value

    def recall(self, number: int) -> None:
        """Get a value from the memo."""
        memo = self.memo
        self.stack.append(memo[number] if number < len(memo) else self.far[number])

    def named(self, names: tuple[str, str]) -> None:
        """What a name of code stands for here: one of our functions, or an `Opaque`."""
        module, name = names
        full = f"{module}.{name}"
        self.spend(3, 0)
        if module.partition(".")[0] in _DANGEROUS or full in _DANGEROUS:
            raise error(
                "the pickle asks to run a command; it was not run",
                self.where,
                "names that torch.save uses for tensors",
                shown(full),
                "do not load this file with torch: it may be malicious",
                code="pickle-runs-code",
            )
        known = _KNOWN.get(full) or self._foreign.get(full)
        if known is None:
            known = self._foreign[full] = Maker(_foreign(full), full, foreign=True)
            self.asked.add(full)
            self.spend(3, 500 + sys.getsizeof(full))
        self.stack.append(known)

    def named_by_stack(self, _: Any) -> None:
        """As `named`, with both names on the stack."""
        module, name = self.last(2)
        self.named((_word(module), _word(name)))

    def call(self, _: Any) -> None:
        """Call one of our own functions. A call of an `Opaque` makes an `Opaque`."""
        make, values = self.last(2)
        self.spend(2, 0)
        if isinstance(make, Maker) and isinstance(values, tuple):
            self.stack.append(make.make(self, values))
        elif isinstance(make, Opaque) and make.foreign:
            self.stack.append(make)
        else:
            raise ValueError("a call of something that is not a function")

    def call_with_keywords(self, _: Any) -> None:
        """As `call`, with a dict of further arguments, which no known function has."""
        make, values, _keywords = self.last(3)
        if not isinstance(make, Maker | Opaque) or not make.foreign:
            raise ValueError("a call with keywords of something that has none")
        self.stack += [make, values]
        self.call(None)

    def set_state(self, _: Any) -> None:
        """Give an object attributes: those of a dict (``_metadata``) or an `Opaque` are dropped."""
        self.last(1)
        if not isinstance(self.stack[-1], dict | Opaque):
            raise ValueError(f"attributes for a {kind(self.stack[-1])}")

    def storage(self, _: Any) -> None:
        """A storage from ("storage", class, key, place, count) and, in old files, a view of it."""
        (fields,) = self.last(1)
        self.spend(3, 150)
        if not isinstance(fields, tuple) or len(fields) not in (5, 6) or fields[0] != "storage":
            raise ValueError("an outside object that is not a storage")
        _, dtype, key, _, count = fields[:5]
        if isinstance(dtype, Maker) and dtype.foreign:
            self.stack.append(self.opaque(dtype.name, foreign=True))
            return
        if not isinstance(dtype, DType) or (len(fields) == 6 and fields[5] is not None):
            raise ValueError("a malformed storage")
        storage = Storage(_word(key), dtype.name, _size(count))
        known = self.storages.setdefault(key, storage)
        if known != storage:
            raise ValueError(f"two descriptions of storage '{key}'")
        self.stack.append(known)

    def append(self, _: Any) -> None:
        """Put one value into the list on top of the stack."""
        self.extend(self.last(1))

    def append_run(self, _: Any) -> None:
        """Put the values since the last mark into the list on top of the stack."""
        self.extend(self.run_of_values())

    def extend(self, values: list[Any]) -> None:
        """Put values into the list, or the opaque set, on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            self.spend(0, 10 * len(values))
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise ValueError(f"list items for a {kind(target)}")

    def set_item(self, _: Any) -> None:
        """Put a key and its value into the dict on top of the stack."""
        value, key, target = self.stack.pop(), self.stack.pop(), self.stack[-1]
        if isinstance(target, dict):
            self.spend(1, 80)
            target[key if isinstance(key, str) else _Key()] = value
        else:
            self.update([key, value])

    def set_run(self, _: Any) -> None:
        """Put the keys and values since the last mark into the dict on top of the stack."""
        self.update(self.run_of_values())

    def update(self, values: list[Any]) -> None:
        """Put keys and values, in turns, into the dict on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, dict):
            self.put(target, values)
        elif not isinstance(target, Opaque):
            raise ValueError(f"dict items for a {kind(target)}")

    def put(self, target: dict[Any, Any], values: list[Any]) -> None:
        """Put keys and values, in turns, into a dict."""
        if len(values) % 2:
            raise ValueError("a key without a value")
        self.spend(len(values) // 2, 40 * len(values))
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[key if isinstance(key, str) else _Key()] = value


# -- arguments of instructions ---------------------------------------------------------------------


def _counted(stream: Stream, position: int, count: int) -> int:
    """Where so many bytes end, all of which are there; raises ValueError."""
    end = position + count
    if end > stream.have:
        if end > stream.size:
            raise ValueError(f"{stream.end} inside a value")
        stream.fill(end)
    return end


def _unicode(stream: Stream, position: int, count: int) -> tuple[str, int]:
    end = _counted(stream, position, count)
    return stream.data[position:end].decode("utf-8", "surrogatepass"), end


def _old_text(stream: Stream, position: int, count: int) -> tuple[str, int]:
    """A string of Python 2."""
    end = _counted(stream, position, count)
    return stream.data[position:end].decode(), end


def _skipped(stream: Stream, position: int, count: int) -> tuple[bytes, int]:
    """Bytes, which no tensor needs."""
    return b"", _counted(stream, position, count)


def _float(stream: Stream, position: int, _: int) -> tuple[float, int]:
    """A float, which no tensor needs."""
    return 0.0, position


def _signed(stream: Stream, position: int, value: int) -> tuple[int, int]:
    return value - (value >> 31 << 32), position


def _long(stream: Stream, position: int, count: int) -> tuple[int, int]:
    if count > _MAX_LONG:
        raise ValueError(f"an integer of {count} bytes")
    end = _counted(stream, position, count)
    return int.from_bytes(stream.data[position:end], "little", signed=True), end


def _lines(stream: Stream, position: int, _: None) -> tuple[tuple[str, str], int]:
    """Two lines: a module and a name."""
    if position + 2 * MAX_WORD > stream.have:
        stream.fill(min(position + 2 * MAX_WORD, stream.size))
    middle = stream.data.find(b"\n", position, position + MAX_WORD)
    end = stream.data.find(b"\n", middle + 1, middle + 1 + MAX_WORD)
    if middle < 0 or end < 0:
        raise ValueError("a name without an end")
    data = stream.data
    return (data[position:middle].decode(), data[middle + 1 : end].decode()), end + 1


def _word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_WORD:
        raise ValueError("a name that is not a short string")
    return value


# -- what names stand for --------------------------------------------------------------------------


def _foreign(name: str) -> Callable[[Machine, tuple[Any, ...]], Opaque]:
    def make(machine: Machine, values: tuple[Any, ...]) -> Opaque:
        """What copyreg's functions make is of the class that they are given."""
        first = values[0] if values else None
        made = first.name if name in _REBUILD and isinstance(first, Maker) else name
        return machine.opaque(made, foreign=True)

    return make


def _beside(name: str) -> Callable[[Machine, tuple[Any, ...]], Opaque]:
    return lambda machine, values: machine.opaque(name)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:  # True is no size
        raise ValueError("a size that is not a number of elements")
    return value


def _sizes(machine: Machine, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MAX_AXES:
        raise ValueError(f"a shape that is not a tuple of at most {MAX_AXES} sizes")
    machine.spend(len(value) // 2, 0)
    for size in value:
        _size(size)
    return value


def _tensor(machine: Machine, values: tuple[Any, ...], dtype: Any = None) -> Strided | Opaque:
    """From (storage, first element, shape, strides, …)."""
    storage, first, shape, strides = values[:4]
    machine.spend(3, 120)
    if isinstance(storage, Opaque) and storage.foreign:
        return storage
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if dtype is not None and not isinstance(dtype, DType):
        raise ValueError("a tensor without a dtype")
    name = dtype.name if dtype is not None else storage.dtype
    shape, strides = _sizes(machine, shape), _sizes(machine, strides)
    if len(shape) != len(strides):
        raise ValueError("a shape and strides of different lengths")
    return Strided(storage, name, _size(first), shape, strides)


def _rebuild_tensor(machine: Machine, values: tuple[Any, ...]) -> Strided | Opaque:
    if len(values) != 4:
        raise ValueError("a tensor with the wrong arguments")
    return _tensor(machine, values)


def _rebuild_tensor_v2(machine: Machine, values: tuple[Any, ...]) -> Strided | Opaque:
    """And (requires_grad, hooks, metadata)."""
    if len(values) not in (6, 7):
        raise ValueError("a tensor with the wrong arguments")
    _check_metadata(values[6:])
    return _tensor(machine, values)


def _rebuild_tensor_v3(machine: Machine, values: tuple[Any, ...]) -> Strided | Opaque:
    """As before, with the dtype between hooks and metadata: the storage is one of bytes."""
    if len(values) not in (7, 8):
        raise ValueError("a tensor with the wrong arguments")
    _check_metadata(values[7:])
    return _tensor(machine, values, values[6])


def _check_metadata(values: tuple[Any, ...]) -> None:
    if any(values):
        raise ValueError("a tensor whose numbers are to be negated or conjugated")


def _rebuild_parameter(machine: Machine, values: tuple[Any, ...]) -> Any:
    """From (tensor, requires_grad, hooks) and, of some, attributes."""
    if len(values) not in (3, 4) or not isinstance(values[0], Strided | Opaque):
        raise ValueError("a parameter with the wrong arguments")
    return values[0]


def _ordered_dict(machine: Machine, values: tuple[Any, ...]) -> dict[Any, Any]:
    """Empty, or, from Python 2, of a list of pairs."""
    if len(values) > 1 or not all(isinstance(value, list) for value in values):
        raise ValueError("an OrderedDict with the wrong arguments")
    result: dict[Any, Any] = {}
    pairs = values[0] if values else []
    machine.spend(2 * len(pairs), 200)
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("an OrderedDict of something that is not a pair")
        machine.put(result, list(pair))
    return result


def _default_dict(machine: Machine, values: tuple[Any, ...]) -> dict[Any, Any]:
    """Empty; what a missing key would get is not needed."""
    machine.spend(1, 200)
    return {}


def _shape(machine: Machine, values: tuple[Any, ...]) -> tuple[int, ...]:
    return _sizes(machine, values[0] if len(values) == 1 else values)


_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32",
    "uint16": "U16", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
# Values that may appear among weights but are not weights: numbers, sets, options.
_BESIDE = (
    "torch.device", "torch.complex128", "collections.Counter", "argparse.Namespace",
    "_codecs.encode", "numpy.dtype", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", "_io.BytesIO", "pathlib.PosixPath", "pathlib.Path",
    "datetime.datetime", *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "bytearray", "complex", "slice", "range")
    ),
)  # fmt: skip
_REBUILD = ("copyreg._reconstructor", "copyreg.__newobj__", "copy_reg._reconstructor")
# Code that no training script saves and that malicious files call.
_DANGEROUS = {
    "os", "posix", "nt", "subprocess", "socket", "shutil", "runpy", "pty", "ctypes", "webbrowser",
    "commands", "popen2", "_posixsubprocess", *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("eval", "exec", "compile", "execfile", "open", "input", "__import__", "apply")
    ),
}  # fmt: skip

_KNOWN: dict[str, Maker | DType] = {
    "collections.OrderedDict": Maker(_ordered_dict, "function"),
    "collections.defaultdict": Maker(_default_dict, "function"),
    "torch.Size": Maker(_shape, "function"),
    "torch._utils._rebuild_tensor": Maker(_rebuild_tensor, "function"),
    "torch._utils._rebuild_tensor_v2": Maker(_rebuild_tensor_v2, "function"),
    "torch._utils._rebuild_tensor_v3": Maker(_rebuild_tensor_v3, "function"),
    "torch._utils._rebuild_parameter": Maker(_rebuild_parameter, "function"),
    "torch._utils._rebuild_parameter_with_state": Maker(_rebuild_parameter, "function"),
    "torch.storage.UntypedStorage": DType("U8"),
    **{f"torch.{name}": DType(dtype) for name, dtype in _DTYPES.items()},
    **{
        f"{module}.{name}": DType(dtype)
        for module in ("torch", "torch.cuda")
        for name, dtype in _STORAGES.items()
    },
    **{name: Maker(_beside(name.rpartition(".")[2]), "function") for name in _BESIDE},
}


# -- the instructions ------------------------------------------------------------------------------

_Action = Callable[[Machine, Any], None]
_Argument = Callable[[Stream, int, Any], tuple[Any, int]]


def _pushed(value: Any) -> _Action:
    return lambda machine, _: machine.stack.append(value)


def _set(machine: Machine, _: Any) -> None:
    machine.stack.append(machine.opaque("set"))


def _tuple_of(count: int) -> _Action:
    return lambda machine, _: machine.tuple_of_last(count)


# By instruction: what it does (None: the pickle ends), the bytes of its fixed argument, and what is
# made of that argument.
_INSTRUCTIONS: dict[bytes, tuple[_Action | None, int, _Argument | None]] = {
    b".": (None, 0, None),
    b"\x80": (Machine.nothing, 1, None),  # protocol
    b"\x95": (Machine.nothing, 8, None),  # frame
    b"K": (Machine.push, 1, None),  # integers
    b"M": (Machine.integer, 2, None),
    b"J": (Machine.integer, 4, _signed),
    b"\x8a": (Machine.integer, 1, _long),
    b"\x8b": (Machine.integer, 4, _long),
    b"G": (Machine.push, 8, _float),
    b"\x8c": (Machine.text, 1, _unicode),  # strings
    b"X": (Machine.text, 4, _unicode),
    b"\x8d": (Machine.text, 8, _unicode),
    b"U": (Machine.text, 1, _old_text),
    b"T": (Machine.text, 4, _old_text),
    b"C": (Machine.push, 1, _skipped),  # bytes
    b"B": (Machine.push, 4, _skipped),
    b"\x8e": (Machine.push, 8, _skipped),
    b"\x96": (Machine.push, 8, _skipped),
    b"N": (_pushed(None), 0, None),
    b"\x88": (_pushed(True), 0, None),
    b"\x89": (_pushed(False), 0, None),
    b")": (_pushed(()), 0, None),
    b"]": (Machine.empty_list, 0, None),
    b"}": (Machine.empty_dict, 0, None),
    b"\x8f": (_set, 0, None),
    b"(": (Machine.mark, 0, None),
    b"t": (Machine.tuple_of_run, 0, None),
    b"\x85": (_tuple_of(1), 0, None),
    b"\x86": (_tuple_of(2), 0, None),
    b"\x87": (_tuple_of(3), 0, None),
    b"\x91": (Machine.frozen_set, 0, None),
    b"a": (Machine.append, 0, None),
    b"e": (Machine.append_run, 0, None),
    b"\x90": (Machine.append_run, 0, None),  # items of a set
    b"s": (Machine.set_item, 0, None),
    b"u": (Machine.set_run, 0, None),
    b"0": (Machine.drop, 0, None),
    b"1": (Machine.drop_run, 0, None),
    b"q": (Machine.remember, 1, None),
    b"r": (Machine.remember, 4, None),
    b"\x94": (Machine.remember, 0, None),
    b"h": (Machine.recall, 1, None),
    b"j": (Machine.recall, 4, None),
    b"c": (Machine.named, 0, _lines),
    b"\x93": (Machine.named_by_stack, 0, None),
    b"R": (Machine.call, 0, None),
    b"\x81": (Machine.call, 0, None),  # an object of a class
    b"\x92": (Machine.call_with_keywords, 0, None),
    b"b": (Machine.set_state, 0, None),
    b"Q": (Machine.storage, 0, None),
}
_STEPS = [_INSTRUCTIONS.get(bytes([code])) for code in range(256)]


def error(
    what: str,
    where: str,
    expected: str,
    got: str,
    remedy: str = DAMAGED,
    *,
    code: str = "invalid-torch-file",
) -> CheckpointError:
    """A CheckpointError about a file of torch's."""
    return CheckpointError(
        what,
        code=code,
        where=where,
        expected=expected,
        got=got or None,
        remedy=remedy,
    )
