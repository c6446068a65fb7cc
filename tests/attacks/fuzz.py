"""Inputs made at random from good ones: each is opened or refused, within the budget.

Quick form: `test_fuzz` draws a few hundred. Long form, as many as fit into some minutes:

    python -m tests.attacks.fuzz --minutes 60 [--target pickle] [--engine atheris]

The ledger, benchmarks/results/fuzz.json, sums up all runs. An input that gives a new outcome or a
new message becomes a seed for others. With atheris, which is no dependency, the new lines that it
reaches decide instead. Inputs that break a rule are written to ``tests/attacks/corpus/TARGET``, and
stay there once the fault is mended: `test_fuzz` opens them all.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.attacks import folders
from tests.attacks.budget import ACTIONS, Cost, Worker
from tests.attacks.ggufs import GOOD as GGUF
from tests.attacks.hostile import GOOD, archive, legacy, plain, state, storage, tensor, torch_file
from tests.checkpoints import encode

CORPUS = Path(__file__).parent / "corpus"
LEDGER = Path(__file__).parents[2] / "benchmarks" / "results" / "fuzz.json"
LIMIT = 10_000_000  # bytes of an input
_KEPT = 2_000  # seeds of one target


Seeds = tuple[bytes, ...] | Callable[[], tuple[bytes, ...]]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    ``given``: good inputs, or a function that makes them. ``words``: pieces that mean something in
    it. ``place``: writes an input into a folder and gives the path to open with ``action``.
    """

    name: str
    action: str
    given: Seeds
    words: tuple[bytes, ...]
    place: Callable[[Path, bytes], Path]

    @cached_property
    def seeds(self) -> tuple[bytes, ...]:
        """Good inputs."""
        return self.given() if callable(self.given) else self.given

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


def _journal(folder: Path, data: bytes) -> Path:
    (folder / "identity.json").write_text(json.dumps(_IDENTITY))
    return _as("journal")(folder, data)


def _lines(*entries: object) -> bytes:
    """The lines of a journal."""
    texts = [json.dumps(entry).encode() for entry in entries]
    return b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts)


def _resealed(folder: Path, data: bytes) -> Path:
    """A journal whose lines all have their checksums: what a run with a fault could write."""
    texts = [line[9:] for line in data.split(b"\n")]
    return _journal(
        folder, b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in texts if text)
    )


def _record(kind: str) -> Seeds:
    return lambda: (folders.record(kind),)


def _file(name: str) -> Seeds:
    return lambda: (folders.FILES[name].encode(),)


def _lineage(name: str) -> Callable[[Path, bytes], Path]:
    return lambda _, data: folders.lineage_with(name, data)


def _model(name: str) -> Callable[[Path, bytes], Path]:
    return lambda _, data: folders.model_with(name, data)


def _output(kind: str) -> Callable[[Path, bytes], Path]:
    return lambda _, data: folders.output_with(kind, data)


_JSON_WORDS = (
    *b'[ ] { } , : " \\ \\u0041 \\ud800 0 -1 1e999 NaN true null 18446744073709551616 "a":'.split(),
    *(b" \n", b"[[[[[[[[", b'"__metadata__":', "😀".encode(), b"\xff", b"\0"),
)
_PATHS = (*_JSON_WORDS, b"../", b"/", b"~/", b"hf://org/name", b"s3://b/x", folders.HOME)
_FOLDER_WORDS = (
    *(
        *_PATHS,
        b"org/name--code.Class",
        b"code.",
        b"\x1b[2J",
        b"---\n",
        b"&a [",
        b"*a,",
        b"{%",
        b"}}",
    ),
    *(
        b'"vocab_size":',
        b'"eos_token_id":',
        b'"text_config":{',
        b'"quantization_config":{',
        b"from .",
    ),
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
_IDENTITY = {
    "digest": "0", "shards": [["model.safetensors", 16]],
    "sources": [{"path": "post", "size": 1, "version": "1-1", "header_sha256": "0"}],
}  # fmt: skip
_JOURNAL = _lines(
    _IDENTITY, {"leaves": {"model.safetensors": {"0": "00ff"}}}, {"done": [0, 8]},
    {"done": [8, 16]}, {"put": "config.json"},
)  # fmt: skip
_RECIPE = b"""new_base: org/new
deltas:
  - post: org/post
    base: ./base
    scale:
      - {match: "*.mlp.*", layers: {0-3: 0.5, 4-7: [1, 0]}}
      - {preset: linear-only, value: 1.5}
      - 0.1
    dare: {drop: 0.5, seed: 1}
  - {delta: org/delta, scale: -1}
ties: {density: 0.2}
dtype: bf16
vocabulary: token
"""
_MERGEKIT = b"""merge_method: dare_ties
base_model: {model: {path: org/base}}
models:
  - model: org/base+org/lora
    parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
  - model: org/b-it
    parameters:
      weight:
        - {filter: mlp, value: 0.5}
        - value: 1
parameters: {normalize: true, int8_mask: true, lambda: 1.1}
dtype: bfloat16
tokenizer_source: union
"""
_YAML_WORDS = (
    *b"&a |*a|!!set |!!python/name:os.system |: |- |? |\n|  |[|{|'|||~|.inf|.nan|0x10".split(b"|"),
    *b"1e999 2024-02-30 1_000 0o17 <<: null".split(), "\u2028".encode(), b"\0", b"\xff",
)  # fmt: skip
_RECIPE_WORDS = (*_YAML_WORDS, b"ties:", b"dare:", b"scale:", b"match: ", b"layers: ", b"0-9", b"*")
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 2**31, 2**63, 10**40, 1e308, float("inf"), float("nan"), "", "0", "a",
    "..", "../x", "/etc/passwd", "\ud800", "\0", "\x1b[2J", "\u202e", "a" * 5_000, "a.b--c.D", [],
    {}, [[]], [None], [0, 1], ["a"], {"": None}, {"a": [1]}, [["a", "b"]] * 50,
    {"a": {"a": {"a": {}}}},
)  # fmt: skip
_ODD_NAMES = ("", "a", "0", "-1", "../x", "\ud800", "\x1b[2J", "model_type", "__class__")
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
            _YAML_WORDS,
            _as("x.yaml"),
        ),
        Target("recipe", "recipe", (_RECIPE,), _RECIPE_WORDS, _as("recipe.yaml")),
        Target("mergekit", "mergekit", (_MERGEKIT,), _RECIPE_WORDS, _as("merge.yml")),
        Target("journal", "journal", (_JOURNAL,), _JSON_WORDS, _journal),
        Target("sealed-journal", "journal", (_JOURNAL,), _JSON_WORDS, _resealed),
        *(
            Target(f"{kind}-record", "output", _record(kind), _PATHS, _output(kind))
            for kind in ("mix", "delta", "lora")
        ),
        *(
            Target(f"plan-{name}", "plan", _file(name), _FOLDER_WORDS, _lineage(name))
            for name in folders.FILES
        ),
        *(
            Target(f"check-{name}", "check", _file(name), _FOLDER_WORDS, _model(name))
            for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "code.py")
        ),
    )
}  # fmt: skip


def mutated(data: bytes, target: Target, chance: random.Random) -> bytes:
    """A changed input: bytes and numbers, pieces cut, moved and repeated, words put in."""
    changed = bytearray(data)
    for _ in range(1 + int(chance.expovariate(0.7))):
        at = chance.randint(0, len(changed))
        end = min(len(changed), at + int(chance.expovariate(0.1)) + 1)
        match chance.randrange(12):
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
            case 6 | 7:
                word = chance.choice(target.words)
                changed[at:at] = word * chance.choice((1, 1, 1, 1, 1, 3, 100, 100_000))
            case 8 | 9 | 10 | 11:
                changed = bytearray(_restructured(bytes(changed), chance))
            case _:
                pass
        del changed[LIMIT // 2 :]
    return bytes(changed)


def _restructured(data: bytes, chance: random.Random) -> bytes:
    """JSON of which one value is another one, is gone or is there twice; other data as it is."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if not isinstance(content, (dict, list)):
        return data
    places: list[tuple[Any, Any]] = []
    pending = [content]
    while pending:
        node = pending.pop()
        found = node.items() if isinstance(node, dict) else enumerate(node)
        places += [(node, key) for key, _ in found]
        children = node.values() if isinstance(node, dict) else node
        pending += [child for child in children if isinstance(child, (dict, list))]
    if not places:
        return data
    node, key = chance.choice(places)
    match chance.randrange(5):
        case 0:
            del node[key]
        case 1:
            other, name = chance.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                node[key] = other[name]
        case 2 if isinstance(node, dict):
            node[chance.choice(_ODD_NAMES)] = node.pop(key)
        case _:
            node[key] = chance.choice(_ODD)
    with contextlib.suppress(ValueError, RecursionError):  # a value that holds itself
        return json.dumps(content).encode()
    return data


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


class Fuzzer:
    """Opens changed inputs of one target, for as long as it is told, in several rounds.

    ``count``: inputs so far. ``found``: those that broke a rule, and how.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self.count = 0
        self.found: list[tuple[Path, str]] = []
        self._chance = random.Random(seed)
        self._seeds = [*target.seeds, *(path.read_bytes() for path in target.corpus())]
        self._known: set[tuple[str, str]] = set()

    def round(self, seconds: float) -> float:
        """Go on for some seconds; the seconds of processor time that it took."""
        before, end = sum(os.times()[:4]), time.monotonic() + seconds
        with Worker() as worker:
            while time.monotonic() < end:
                self._one(worker)
        return sum(os.times()[:4]) - before

    def _one(self, worker: Worker) -> None:
        data = mutated(self._chance.choice(self._seeds), self.target, self._chance)
        cost = opened(worker, self.target, data)
        self.count += 1
        news = cost.outcome, re.sub(r"[\d']+|/\S+", "", cost.message)[:300]
        if cost.problem is not None and (news not in self._known or cost.outcome == "opened"):
            self.found.append((kept(self.target, data), cost.problem))
        if news not in self._known and len(data) < 20_000:
            self._known.add(news)
            self._seeds = [*self._seeds, data][-_KEPT:]


def note(ledger: Path, name: str, seconds: float, inputs: int, problems: list[str]) -> None:
    """Add a round to the ledger: minutes of processor time, inputs and findings of each target.

    ``clean_minutes``: since the last finding.
    """
    told = json.loads(ledger.read_text()) if ledger.exists() else {}
    entry = told.setdefault(name, {"minutes": 0, "clean_minutes": 0, "inputs": 0, "findings": 0})
    entry["minutes"] = round(entry["minutes"] + seconds / 60, 2)
    entry["clean_minutes"] = 0 if problems else round(entry["clean_minutes"] + seconds / 60, 2)
    entry["inputs"] += inputs
    entry["findings"] += len(problems)
    entry["commit"] = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=CORPUS.parent
    ).stdout.strip()
    ledger.write_text(json.dumps(dict(sorted(told.items())), indent=2) + "\n")


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
    """Fuzz for some minutes, a target after the other in rounds; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--round", type=float, default=60.0, help="seconds of one target at a time")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--engine", choices=("plain", "atheris"), default="plain")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    options = parser.parse_args()
    targets = [TARGETS[name] for name in options.target or TARGETS]
    if options.engine == "atheris":
        guided(targets[0], 60 * options.minutes)  # does not come back
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    fuzzers = [Fuzzer(target, seed) for target in targets]
    seconds = min(options.round, 60 * options.minutes / len(targets))
    end = time.monotonic() + 60 * options.minutes - seconds / 2
    while time.monotonic() < end:
        for fuzzer in fuzzers:
            count, known = fuzzer.count, len(fuzzer.found)
            used = fuzzer.round(seconds)
            news = fuzzer.found[known:]
            problems = [problem for _, problem in news]
            note(options.ledger, fuzzer.target.name, used, fuzzer.count - count, problems)
            for path, problem in news[:20]:
                shown = problem.splitlines()[0][:200]
                print(f"{fuzzer.target.name}: {path}: {shown}", flush=True)
    return any(fuzzer.found for fuzzer in fuzzers)


if __name__ == "__main__":
    sys.exit(main())
