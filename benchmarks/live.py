"""Loading a mix with `paramdelta.load`, beside plain loads of checkpoints with transformers.

    python -m benchmarks.live [--rounds 3] [--data DIR]

Two lineages of random weights: a dense Llama, and a Qwen3-MoE whose experts transformers joins.
Each contender runs in a process of its own, in turns, with the sources in the page cache:

- plain: from_pretrained of one checkpoint;
- three: from_pretrained of post, base and new base, one after the other, each dropped;
- load: `paramdelta.load` of the mix;
- scale: `set_scale` of a loaded mix to 0.5; the load before it is not timed.

Every element of each loaded model is read once within the time: transformers maps files, which are
read only when they are used. Seconds are those of the work, without imports. Kernels are compiled
before.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import machine, make_checkpoints, page_cache
from benchmarks.llama import Llama
from benchmarks.meter import ROOT, measure

RESULTS = ROOT / "benchmarks" / "results" / "live.json"
DATA = ROOT / ".cache" / "live"
DENSE = Llama(hidden=2048, layers=8, intermediate=7168, heads=32, kv_heads=8, vocab=32000)
EXPERTS = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
}
WARM = (
    "from paramdelta import load; from paramdelta.demo import tour; load(tour.recipe('plain', 1))"
)
CONTENDERS = ("plain", "three", "load", "scale")
ROLES = ("post", "base", "new")


def make(data: Path) -> dict[str, Path]:
    """Both lineages, made unless they are there."""
    make_checkpoints.make(data / "dense", DENSE)
    if not (data / "experts" / "made").exists():
        measure([sys.executable, "-m", "benchmarks.live", "--make", str(data / "experts")])
        (data / "experts" / "made").touch()
    return {"dense": data / "dense", "experts": data / "experts"}


def _make_experts(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**EXPERTS)).bfloat16()
    for role, noise in (("base", 0), ("post", 0.0005), ("new", 0.001)):
        with torch.no_grad():
            for value in model.parameters():
                value += noise * torch.randn_like(value)
        model.save_pretrained(folder / role)


def run(contender: str, folder: Path) -> float:
    """Run one contender in this process; seconds."""
    import time

    import torch
    import transformers

    import paramdelta

    transformers.utils.logging.disable_progress_bar()
    recipe = paramdelta.Recipe(folder / "new", [paramdelta.Delta(folder / "post", folder / "base")])

    def plain(role: str) -> None:
        touch(transformers.AutoModelForCausalLM.from_pretrained(folder / role))

    def touch(model: torch.nn.Module) -> None:
        for value in model.parameters():
            value.detach().view(torch.int16).max()

    if contender == "scale":
        model = paramdelta.load(recipe)
    begin = time.perf_counter()
    if contender == "plain":
        plain("new")
    elif contender == "three":
        for role in ROLES:
            plain(role)
    elif contender == "load":
        touch(paramdelta.load(recipe))
    else:
        paramdelta.set_scale(model, 0.5)
    return time.perf_counter() - begin


def summarize(runs: list[dict]) -> dict[str, dict[str, float]]:
    """By lineage: medians, and what the mix costs beside plain loads."""
    summary = {}
    for lineage in dict.fromkeys(run["lineage"] for run in runs):
        own = {
            name: [run for run in runs if (run["lineage"], run["contender"]) == (lineage, name)]
            for name in CONTENDERS
        }
        row = {}
        for name, each in own.items():
            row[f"{name}_s"] = statistics.median(run["seconds"] for run in each)
            row[f"{name}_peak_bytes"] = max(run["peak_rss_bytes"] for run in each)
        pairs = zip(own["load"], own["three"], strict=True)
        row["load_to_three"] = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
        row["extra_bytes"] = row["load_peak_bytes"] - row["plain_peak_bytes"]
        row["extra_scale_bytes"] = row["scale_peak_bytes"] - row["load_peak_bytes"]
        summary[lineage] = row
    return summary


def main() -> None:
    """Make the checkpoints, measure, and write the results after every round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        _make_experts(options.make)
        return
    if options.run:
        print(json.dumps({"seconds": run(options.run[0], Path(options.run[1]))}))
        return
    lineages = make(options.data)
    sizes = {
        name: sum(path.stat().st_size for path in (folder / "new").glob("*.safetensors"))
        for name, folder in lineages.items()
    }
    report: dict = {"machine": machine.describe(options.data), "bytes_each": sizes}
    runs: list[dict] = []
    measure([sys.executable, "-c", WARM])
    for number in range(1, options.rounds + 1):
        for name, folder in lineages.items():
            page_cache.warm(folder.rglob("*.safetensors"))
            for contender in CONTENDERS:
                command = ["-m", "benchmarks.live", "--run", contender, str(folder)]
                reading = measure([sys.executable, *command])
                found = asdict(reading) | json.loads(reading.output.splitlines()[-1])
                found.pop("output")
                print(f"round {number} {name} {contender}: {found['seconds']:.2f} s", flush=True)
                who = {"lineage": name, "contender": contender, "round": number}
                runs.append(who | found)
        report |= {"rounds": number, "summary": summarize(runs), "runs": runs}
        options.results.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
