"""paramdelta beside mergekit, scheme by scheme, on the same small checkpoints: do they agree?

    python -m benchmarks.schemes

Every configuration is run by mergekit as it stands, and imported and mixed by paramdelta. For DARE
mergekit is given paramdelta's masks (`fixed_mask`). Inputs, arithmetic of mergekit and outputs are
float32, so that what differs is rounding: it is reported in units of 2⁻²⁴ of the largest operand.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import paramdelta
from benchmarks import machine, mergekit
from benchmarks.llama import Llama
from benchmarks.meter import ROOT
from paramdelta.recipe.mergekit import import_mergekit

RESULTS = ROOT / "benchmarks" / "results" / "schemes.json"
ENVIRONMENT = ROOT / ".venv-mergekit"
SHAPE = Llama(hidden=128, layers=4, intermediate=256, heads=4, kv_heads=2, vocab=512)
MODELS = ("a", "b", "c")

SCHEMES = {
    "task_arithmetic": """
merge_method: task_arithmetic
base_model: base
models:
  - {model: a, parameters: {weight: 0.7}}
  - {model: b, parameters: {weight: [0.2, 0.9, -0.5]}}
  - {model: c, parameters: {weight: [{filter: mlp, value: 0.5}, {value: 0.25}]}}
parameters: {lambda: 0.9}
""",
    "task_arithmetic, normalized": """
merge_method: task_arithmetic
base_model: base
models:
  - {model: a, parameters: {weight: 0.7}}
  - {model: b, parameters: {weight: 0.5}}
parameters: {normalize: true}
""",
    "the ParamΔ trick": """
merge_method: task_arithmetic
base_model: base
models:
  - {model: a, parameters: {weight: 1.0}}
  - {model: b, parameters: {weight: 1.0}}
""",
    "linear": """
merge_method: linear
models:
  - {model: a, parameters: {weight: 0.5}}
  - {model: b, parameters: {weight: 0.3}}
  - {model: c, parameters: {weight: 0.9}}
""",
    "ties": """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: 1.0, density: 0.2}}
  - {model: b, parameters: {weight: 1.0, density: 0.2}}
  - {model: c, parameters: {weight: 1.0, density: 0.2}}
""",
    "ties, weights and densities": """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.7, density: [0.9, 0.5, 0.2]}}
  - {model: b, parameters: {weight: [0.4, 0.9], density: 0.5}}
  - {model: c, parameters: {weight: 0.3, density: [{filter: mlp, value: 0.3}, {value: 0.6}]}}
parameters: {lambda: 1.2, int8_mask: true}
""",
    "ties, not normalized": """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.7, density: 0.4}}
  - {model: b, parameters: {weight: 0.6, density: 0.4}}
parameters: {normalize: false}
""",
    "dare_linear": """
merge_method: dare_linear
base_model: base
models:
  - {model: a, parameters: {weight: 0.7, density: 0.1}}
  - {model: b, parameters: {weight: 0.6, density: 0.4}}
parameters: {rescale: false}
""",
    "dare_ties": """
merge_method: dare_ties
base_model: base
models:
  - {model: a, parameters: {weight: 0.7, density: 0.5}}
  - {model: b, parameters: {weight: 0.6, density: 0.5}}
  - {model: c, parameters: {weight: 0.6, density: 0.5}}
parameters: {rescale: false, normalize: true}
""",
}


def make(folder: Path, seed: int = 0) -> None:
    """A base and three models of it, in float32."""
    chance = np.random.default_rng(seed)
    base = {
        name: chance.normal(0, 0.02, shape).astype(np.float32)
        for name, shape in SHAPE.tensors().items()
    }
    for model in ("base", *MODELS):
        move = 0 if model == "base" else 0.002
        tensors = {n: t + chance.normal(0, move, t.shape).astype("f4") for n, t in base.items()}
        (folder / model).mkdir(parents=True)
        save_file(tensors, folder / model / "model.safetensors", {"format": "pt"})
        config = {**SHAPE.config(), "torch_dtype": "float32"}
        (folder / model / "config.json").write_text(json.dumps(config))


def compare(folder: Path, name: str) -> dict[str, object]:
    """Run one scheme with both on the checkpoints of `folder`; how far they are apart."""
    work = folder / name.replace(" ", "-").replace(",", "")
    work.mkdir()
    config = work / "mergekit.yml"
    text = re.sub(r"model: (base|a|b|c)\b", rf"model: {folder}/\1", SCHEMES[name])
    config.write_text(text + "dtype: float32\n")
    imported = import_mergekit(config)
    planned = paramdelta.plan(imported.recipe)
    paramdelta.mix(planned, work / "ours")
    paramdelta.verify(work / "ours", share=1.0)
    _run_mergekit(planned, config, work)
    ours, theirs = (load_file(work / which / "model.safetensors") for which in ("ours", "theirs"))
    operands = [load_file(folder / m / "model.safetensors") for m in ("base", *MODELS)]
    apart, equal, total, beyond = 0.0, 0, 0, 0
    for tensor, value in theirs.items():
        largest = np.max([np.abs(each[tensor]) for each in operands], axis=0).astype(np.float64)
        units = np.abs(ours[tensor].astype(np.float64) - value) / (largest * 2.0**-24)
        apart = max(apart, float(units.max()))
        beyond += int((units > 16).sum())
        equal += int((ours[tensor] == value).sum())
        total += value.size
    return {
        "same_tensors": ours.keys() == theirs.keys(),
        "numbers": total,
        "equal_share": round(equal / total, 4),
        "largest_difference": round(apart, 2),
        "beyond_16": beyond,
        "notes": [f"{key}: {what}".replace(f"{folder}/", "") for key, what in imported.notes],
    }


def _run_mergekit(planned: paramdelta.Plan, config: Path, work: Path) -> None:
    command: list[str | Path]
    if any(delta.dare is not None for delta in planned.recipe.deltas):
        keys = {
            tensor.name: [[p.sparsity.key, p.sparsity.cutoff] for p in tensor.pairs if p.sparsity]
            for tensor in planned.tensors
        }
        (work / "keys.json").write_text(json.dumps(keys))
        script = Path(__file__).with_name("fixed_mask.py")
        command = [ENVIRONMENT / "bin" / "python", "-I", script, work / "keys.json", config]
    else:
        command = [mergekit.program(ENVIRONMENT), *mergekit.PLAIN, config]
    done = subprocess.run(
        [*command, work / "theirs"],
        env=os.environ | mergekit.ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"mergekit failed:\n{done.stderr}")


def main() -> None:
    """Compare all schemes and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    mergekit.ensure_environment(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder)
        found = {name: compare(folder, name) for name in SCHEMES}
        results = {
            "mergekit": mergekit.VERSION,
            "unit": "2^-24 of the largest operand",
            "machine": machine.describe(folder),
            "schemes": found,
        }
    for name, each in found.items():
        print(f"{name:<30} {each['equal_share']:7.2%} equal, {each['largest_difference']} units")
    options.out.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
