"""Inputs made at random from good ones: each is opened or refused, within the budget.

Quick form: `test_fuzz` draws a few hundred. Long form, as many as fit into some minutes:

    python -m tests.attacks.fuzz --minutes 60 [--target pickle] [--engine atheris]

An input that gives a new outcome or a new message becomes a seed for others. With atheris, which is
not a dependency, the new lines that it reaches decide instead. Inputs that break a rule are written
to ``tests/attacks/corpus/TARGET``, and stay there once the fault is mended: `test_fuzz` opens them
all.
"""

import argparse
import hashlib
import json
import random
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.attacks.budget import ACTIONS, Cost, Worker
from tests.attacks.ggufs import GOOD as GGUF
from tests.attacks.hostile import GOOD, archive, legacy, plain, state, storage, tensor, torch_file
from tests.checkpoints import encode

CORPUS = Path(__file__).parent / "corpus"
LIMIT = 10_000_000  # bytes of an input
_KEPT = 2_000  # seeds of one target


@dataclass(frozen=True)
class Target:
    """One kind of input. ``words``: pieces that mean something in it.

    ``place``: writes an input into a folder and gives the path to open with ``action``.
    """

    name: str
    action: str
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    place: Callable[[Path, bytes], Path]

    def corpus(self) -> list[Path]:
        """The inputs that once broke a rule."""
        return sorted((CORPUS / self.name).glob("*"))


def _as(name: str) -> Callable[[Path, bytes], Path]:
    """The input is the file itself."""

    def place(folder: Path, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return place


def _header(folder: Path, data: bytes) -> Path:
    """The input is the JSON of a header, before the data of `GOOD`."""
    return _as("model.safetensors")(folder, len(data).to_bytes(8, "little") + data + bytes(76))


def _pickled(folder: Path, data: bytes) -> Path:
    """The input is the pickle in an archive that is right otherwise."""
    return _as("pytorch_model.bin")(folder, archive(data))


def _index(folder: Path, data: bytes) -> Path:
    for number in (1, 2):
        shard = encode({f"t{number}": np.ones(2, np.float32)})
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(shard)
    (folder / "model.safetensors.index.json").write_bytes(data)
    return folder


def _adapter(folder: Path, data: bytes) -> Path:
    prefix = "base_model.model.model.layers.0."
    factors = {
        f"{prefix}{module}.lora_{half}.weight": np.ones(shape, np.float32)
        for module in ("self_attn.q_proj", "mlp.up_proj")
        for half, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    (folder / "adapter_model.safetensors").write_bytes(encode(factors))
    (folder / "adapter_config.json").write_bytes(data)
    return folder


_JSON_WORDS = (
    *b'[ ] { } , : " \\ \\u0041 \\ud800 0 -1 1e999 NaN true null 18446744073709551616 "a":'.split(),
    *(b" \n", b"[[[[[[[[", b'"__metadata__":', "😀".encode(), b"\xff", b"\0"),
)
_HEADER = encode(GOOD, {"format": "pt"})
_CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": True,
    "rank_pattern": {"q_proj": 2, r"layers\.(0|1)\..*up_proj": 2, "^model.[a-z_]{1,9}$": 2},
    "alpha_pattern": {"(a|b)*c?": 1.5}, "base_model_name_or_path": "org/base", "revision": None,
}  # fmt: skip
_INDEX = {
    "metadata": {"total_size": 16},
    "weight_map": {f"t{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)},
}
_INSTRUCTIONS = tuple(
    bytes([code])
    for code in b"}])(t\x85\x86\x87suaeN\x88\x89QRb\x81\x92\x93\x94.\x8f\x90\x9101q\0h\0"
)
_NAMES = tuple(
    b"c" + name + b"\n"
    for name in (
        b"collections\nOrderedDict", b"collections\ndefaultdict", b"torch\nSize", b"torch\nfloat16",
        b"torch\nFloatStorage", b"torch\nQInt8Storage", b"torch._utils\n_rebuild_parameter",
        b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_tensor_v3", b"os\nsystem",
        b"argparse\nNamespace", b"copyreg\n_reconstructor", b"builtins\ngetattr", b"x.y\nZ",
    )
)  # fmt: skip
_VALUES = tuple(
    map(plain, ("a", "model", "ema", "torch", "storage", 3, -1, 2**70, b"x", 1.5, (1, 2), None))
)
_BODIES = (
    state(a=tensor()),
    state(model=state(a=tensor())[2:-1], ema=state(a=tensor())[2:-1]),
    state(
        a=tensor(shape=(2, 2, 4), strides=(8, 1, 2)), b=tensor(first=8, shape=(8,), strides=(1,))
    ),
    b"\x80\x02ccollections\nOrderedDict\n)R(" + plain("a") + tensor() + b"u}b.",
    b"\x80\x04" + plain("x") + plain("Y") + b"\x93)\x81}" + plain("k") + b"K\1sb.",
)

TARGETS = {
    target.name: target
    for target in (
        Target("header", "weights", (_HEADER[8:-76], b"{}"), _JSON_WORDS, _header),
        Target("safetensors", "weights", (_HEADER,), _JSON_WORDS, _as("model.safetensors")),
        Target(
            "pickle",
            "weights",
            _BODIES,
            (*_INSTRUCTIONS, *_NAMES, *_VALUES, tensor(), storage()),
            _pickled,
        ),
        Target(
            "torch",
            "weights",
            (torch_file(GOOD), legacy(), archive(_BODIES[1])),
            (*_INSTRUCTIONS, *_NAMES, b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"\xff" * 4),
            _as("pytorch_model.bin"),
        ),
        Target(
            "gguf",
            "folder",
            (GGUF,),
            (*(struct.pack("<Q", n) for n in (0, 1, 8, 2**31, 2**63)), b"blk.0.", bytes(3)),
            _as("model.gguf"),
        ),
        Target("index", "folder", (json.dumps(_INDEX).encode(),), (*_JSON_WORDS, b"../"), _index),
        Target(
            "adapter",
            "adapter",
            (json.dumps(_CONFIG).encode(),),
            (*_JSON_WORDS, b".*", b"(", b"|", b")+", b"{2,9}", b"[^", b"\\\\d", b"$", b"?"),
            _adapter,
        ),
        Target("json", "json", (json.dumps(_CONFIG).encode(),), _JSON_WORDS, _as("x.json")),
        Target(
            "yaml",
            "yaml",
            (b"a: [1, 2.5, x]\nb:\n  - c: 'd'\n    e: >\n      f\n", b"{a: 2024-02-30, b: ~}"),
            (b"&a ", b"*a", b"!!set ", b": ", b"- ", b"? ", b"\n", b"  ", b"[", b"{", b"'", b"|"),
            _as("x.yaml"),
        ),
    )
}  # fmt: skip


def mutated(data: bytes, target: Target, chance: random.Random) -> bytes:
    """A changed input: bytes and numbers, pieces cut, moved and repeated, words put in."""
    changed = bytearray(data)
    for _ in range(1 + int(chance.expovariate(0.7))):
        at = chance.randint(0, len(changed))
        end = min(len(changed), at + int(chance.expovariate(0.1)) + 1)
        match chance.randrange(8):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << chance.randrange(8)
            case 1:
                changed[at:end] = chance.randbytes(end - at)
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end] * chance.choice((1, 1, 2, 30, 1000))
            case 4:
                other = chance.choice(target.seeds)
                start = chance.randint(0, len(other))
                changed[at:end] = other[start : start + int(chance.expovariate(0.02))]
            case 5:
                number = chance.choice((0, 1, 255, 2**31, 2**32 - 1, 2**63, chance.getrandbits(40)))
                digits = list(re.finditer(rb"\d+", changed))
                if digits:
                    found = chance.choice(digits)
                    changed[found.start() : found.end()] = str(number).encode()
                else:
                    changed[at : at + 4] = (number & 0xFFFFFFFF).to_bytes(4, "little")
            case _:
                word = chance.choice(target.words)
                changed[at:at] = word * chance.choice((1, 1, 1, 1, 1, 3, 100, 100_000))
        del changed[LIMIT // 2 :]
    return bytes(changed)


def opened(worker: Worker, target: Target, data: bytes) -> Cost:
    """Open one input; a problem is looked at again in a fresh process before it is believed."""
    with tempfile.TemporaryDirectory() as folder:
        path = target.place(Path(folder), data)
        cost = worker.open(target.action, path)
        if cost.problem is not None:
            with Worker() as fresh:
                cost = fresh.open(target.action, path)
    return cost


def kept(target: Target, data: bytes) -> Path:
    """Write an input that broke a rule to the corpus, if it is small enough for one."""
    folder = CORPUS / target.name if len(data) < 4_000 else Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:12]
    path.write_bytes(data)
    return path


def fuzz(target: Target, seconds: float, seed: int) -> tuple[int, list[tuple[Path, str]]]:
    """Open changed inputs for some time; gives how many, and those that broke a rule."""
    chance = random.Random(seed)
    seeds = [*target.seeds, *(path.read_bytes() for path in target.corpus())]
    known: set[tuple[str, str]] = set()
    found: list[tuple[Path, str]] = []
    count, end = 0, time.monotonic() + seconds
    with Worker() as worker:
        while time.monotonic() < end:
            data = mutated(chance.choice(seeds), target, chance)
            cost = opened(worker, target, data)
            count += 1
            if cost.problem is not None:
                found.append((kept(target, data), cost.problem))
            news = cost.outcome, re.sub(r"[\d']+|/\S+", "", cost.message)[:300]
            if news not in known and len(data) < 20_000:
                known.add(news)
                seeds = [*seeds, data][-_KEPT:]
    return count, found


def guided(target: Target, seconds: float) -> None:
    """Let atheris look for inputs that reach new lines; it ends the process when it finds one."""
    import atheris

    with atheris.instrument_imports(include=["paramdelta"]):
        import paramdelta.documents
        import paramdelta.formats.adapter  # noqa: F401
    from paramdelta.errors import ParamDeltaError

    refusals = (
        (ParamDeltaError, ValueError) if target.action in ("json", "yaml") else ParamDeltaError
    )

    def one(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = target.place(Path(folder), data)
            try:
                ACTIONS[target.action](path)
            except refusals as error:
                if not all(line.isprintable() for line in str(error).split("\n")):
                    raise AssertionError(f"an unsafe message: {error!r}") from error

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(target.seeds):
            (Path(folder) / str(number)).write_bytes(seed)
        limits = ["-timeout=10", "-rss_limit_mb=1500", f"-max_total_time={int(seconds)}"]
        atheris.Setup([sys.argv[0], *limits, "-max_len=20000", folder], one)
        atheris.Fuzz()


def main() -> int:
    """Fuzz for some minutes, in turns; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--engine", choices=("plain", "atheris"), default="plain")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    targets = [TARGETS[name] for name in options.target or TARGETS]
    seconds = 60 * options.minutes / len(targets)
    failed = False
    for target in targets:
        if options.engine == "atheris":
            guided(target, 60 * options.minutes)  # does not come back
        seed = random.randrange(2**32) if options.seed is None else options.seed
        count, found = fuzz(target, seconds, seed)
        failed |= bool(found)
        print(f"{target.name:12} seed {seed}: {count} inputs, {len(found)} problems", flush=True)
        for path, problem in found[:20]:
            print(f"  {path}: {problem.splitlines()[0][:200]}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
