"""Scores the lineage that ships with the package: `python -m studies.transfer.shipped`.

One lineage, one seed, width 128. Nothing is trained. Every verdict is kept, so that intervals
over questions can be computed from the JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from tokenizers import Tokenizer

from studies.lineage.make import SHIPPED
from studies.lineage.model import Shape, Weights, load_weights
from studies.lineage.score import right
from studies.transfer.measures import flat
from studies.transfer.mix import mix, part_of

ALPHAS = (0.5, 0.75, 0.9, 1.0, 1.1, 1.2, 1.25, 1.5, 2.0)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The saved tokenizer without the begin mark that it puts in front of plain text."""
    settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return Tokenizer.from_str(json.dumps({**settings, "post_processor": None}))


def verdicts(
    weights: Weights, tokenizer: Tokenizer, tasks: dict[str, list[dict[str, str]]]
) -> dict[str, str]:
    """{task: one digit per question, 1 if it is answered exactly right}."""
    found = {}
    for task, items in tasks.items():
        turns = [(item["question"], item["answer"]) for item in items]
        found[task] = "".join(
            "1" if good else "0" for good in right(weights, Shape(), tokenizer, turns)
        )
    return found


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Cosine of two vectors, rounded."""
    return round(float(first @ second / (first.norm() * second.norm())), 3)


def score_shipped(lineage: Path) -> dict:
    """Verdicts of every model and mix of the lineage, and the geometry of its two Δ."""
    tasks = json.loads((lineage / "tasks.json").read_text(encoding="utf-8"))
    tokenizer = read_tokenizer(lineage / "post")
    base, post, new, direct, second = (
        load_weights(lineage / name)
        for name in ("base", "post", "new-base", "direct", "second-post")
    )

    def at(*terms: tuple[Weights, float]) -> dict[str, str]:
        mixed = mix(new, [(trained, base, scale) for trained, scale in terms])
        return verdicts(mixed, tokenizer, tasks)

    models = {"base": base, "post": post, "post 2": second, "new base": new, "direct": direct}
    deltas = {"Δ": flat(post, base), "second Δ": flat(second, base), "shift": flat(new, base)}
    parts = {
        part: [name for name in base if part_of(name) == part]
        for part in ("embedding", "attention", "mlp", "norms")
    }

    def of_part(weights: Weights, part: str) -> torch.Tensor:
        names = parts[part]
        return flat({n: weights[n] for n in names}, {n: base[n] for n in names})

    return {
        "models": {name: verdicts(w, tokenizer, tasks) for name, w in models.items()},
        "alpha": {f"{alpha:g}": at((post, alpha)) for alpha in ALPHAS},
        "second Δ alone": at((second, 1.0)),
        "both Δ": {
            f"{a:g}, {b:g}": at((post, a), (second, b))
            for a, b in ((1, 1), (0.5, 0.5), (0.75, 0.75))
        },
        "norms": {name: round(float(vector.norm()), 3) for name, vector in deltas.items()},
        "cosines": {
            "Δ, second Δ": cosine(deltas["Δ"], deltas["second Δ"]),
            "Δ, shift": cosine(deltas["Δ"], deltas["shift"]),
            **{
                f"Δ, second Δ in {part}": cosine(of_part(post, part), of_part(second, part))
                for part in parts
            },
        },
    }


def main() -> None:
    """Write docs/study/shipped.json."""
    parser = argparse.ArgumentParser(prog="python -m studies.transfer.shipped", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/study"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        "command": "python -m studies.transfer.shipped",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **score_shipped(SHIPPED),
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (options.out / "shipped.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
