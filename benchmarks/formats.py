"""What other formats cost beside the plain case: FP8 inputs, and vocabularies that differ.

    python -m benchmarks.formats [--rounds 5]

The same weights as in compare.py, in turns: plain bfloat16; all matrices but embedding and head as
FP8 in blocks of 128 × 128 (as DeepSeek-V3 ships); the new base's vocabulary extended at the end
(rows are runs); and shuffled (every row by itself: the worst there can be). The tokenizers are
synthetic: 128 256 tokens without merges.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import machine, page_cache
from benchmarks.compare import CACHES, Contender, Lineage, _make, _versions, run_once, summarize
from benchmarks.compare import TINY as TINY_SHAPE
from benchmarks.meter import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "formats.json"
EXTENDED = 4096  # tokens that the new base has at its end and the others lack
CASES = ("paramdelta", "fp8", "extended", "shuffled")


def quantized(plain: Lineage, folder: Path) -> None:
    """The lineage with FP8 matrices and float32 scales for each block of 128 × 128."""
    from safetensors.torch import load_file, save_file

    made = folder / "made"
    if not made.exists():
        for source in plain.inputs:
            target = folder / source.name
            target.mkdir(parents=True, exist_ok=True)
            weight_map = {}
            for shard in sorted(source.glob("*.safetensors")):
                tensors = {}
                for name, tensor in load_file(shard).items():
                    tensors |= _fp8(name, tensor)
                save_file(tensors, target / shard.name, metadata={"format": "pt"})
                weight_map |= dict.fromkeys(tensors, shard.name)
            index = {"metadata": {}, "weight_map": weight_map}
            (target / "model.safetensors.index.json").write_text(json.dumps(index))
            config = json.loads((source / "config.json").read_text())
            config["quantization_config"] = {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "weight_block_size": [128, 128],
            }
            (target / "config.json").write_text(json.dumps(config))
        made.touch()


def _fp8(name: str, tensor):
    import torch

    if tensor.dim() != 2 or "embed" in name or "lm_head" in name:
        return {name: tensor}
    rows, columns = tensor.shape
    blocks = tensor.float().reshape(-(-rows // 128), -1, columns // 128, 128)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
    codes = (blocks / scale).to(torch.float8_e4m3fn).reshape(rows, columns)
    return {name: codes, f"{name}_scale_inv": scale.reshape(scale.shape[0], -1).contiguous()}


def with_tokenizers(plain: Lineage, folder: Path, new: list[str], old: list[str]) -> None:
    """The plain lineage's files, with tokenizers of these tokens beside them."""
    for source in plain.inputs:
        target = folder / source.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for path in source.iterdir():
            if path.suffix == ".safetensors":
                (target / path.name).symlink_to(path)
            else:  # small files are not read through links out of a folder
                shutil.copy(path, target)
        tokens = new if source.name == "new" else old
        vocab = {token: number for number, token in enumerate(tokens)}
        tokenizer = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []}
        (target / "tokenizer.json").write_text(json.dumps(tokenizer))


def make(data: Path) -> None:
    """Make what is missing. In a child: the process that measures has to stay small (meter.py)."""
    plain = Lineage(data / "lineage")
    _make(plain, [])
    size = json.loads((plain.folder / "made.json").read_text())["vocab"]
    tokens = [f"t{number}" for number in range(size)]
    shuffled = random.Random(0).sample(tokens, size)
    extended = tokens[:-EXTENDED] + [f"new{number}" for number in range(EXTENDED)]
    quantized(plain, data / "fp8")
    with_tokenizers(plain, data / "extended", extended, tokens[:-EXTENDED])
    with_tokenizers(plain, data / "shuffled", shuffled, tokens)


def main() -> None:
    """Measure every case, warm and cold, in turns, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT / ".cache" / "bench")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--make", action="store_true", help="only make the checkpoints")
    options = parser.parse_args()
    data = options.data.resolve()
    if options.make:
        make(data)
        return
    command = [sys.executable, "-m", "benchmarks.formats", "--make", "--data", str(data)]
    subprocess.run(command, check=True, cwd=ROOT)
    folders = {"paramdelta": "lineage"} | {name: name for name in CASES[1:]}
    cases = {name: Lineage(data / folder) for name, folder in folders.items()}
    tiny = Lineage(data / "tiny")
    _make(tiny, TINY_SHAPE)
    contender = Contender("paramdelta", _command)
    runs: list[dict] = []
    for number in range(options.rounds + 1):  # the first lets the machine settle
        for cache in CACHES:
            for name, lineage in cases.items():
                reading = run_once(contender, lineage, tiny, data / "out", cache)
                print(f"round {number} {cache} {name}: {reading.wall_s:.2f} s", flush=True)
                if number:
                    run = {"contender": name, "cache": cache, "round": number}
                    runs.append(run | {k: v for k, v in vars(reading).items() if k != "output"})
        report = {
            "machine": machine.describe(data),
            "versions": _versions(Path("absent")),
            "caches_dropped_by": page_cache.drop(cases["paramdelta"].files()),
            "rounds": number,
            "bytes_in": {n: sum(p.stat().st_size for p in c.files()) for n, c in cases.items()},
            "summary": summarize(runs),
            "runs": runs,
        }
        options.results.write_text(json.dumps(report, indent=1) + "\n")


def _command(lineage: Lineage, out: Path) -> list[str]:
    post, base, new = map(str, lineage.inputs)
    program = str(Path(sys.executable).with_name("paramdelta"))
    return [program, "mix", "--post", post, "--base", base, "--new-base", new, "--out", str(out)]


if __name__ == "__main__":
    main()
