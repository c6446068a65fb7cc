"""Runs the study, one JSON file per seed and part. Resumable."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from studies.crossed.combine import added, common, delta, norm, scaled, total
from studies.crossed.lineage import FIRST, SECOND, Lineage
from studies.crossed.settings import PREREGISTRATION, SETTINGS, Settings, read_settings

SCALES = (1.1, 1.2)
FORM_STEPS = 150


def run_cells(line: Lineage) -> dict:
    """Every cell of shift length × Δ length: scores of all models, norms of shift and Δ."""
    settings = line.settings
    posts = line.chatted("post", line.base, settings.delta_steps)
    bases = line.new_bases()
    deltas = {steps: delta(post, line.base) for steps, post in posts.items()}
    result: dict = {
        "read": line.read,
        "base": line.scores(line.base),
        "post": {str(steps): line.scores(post) for steps, post in posts.items()},
        "new base": {str(steps): line.scores(new) for steps, new in bases.items()},
        "delta norm": {str(steps): norm(d) for steps, d in deltas.items()},
        "shift norm": {str(steps): norm(delta(new, line.base)) for steps, new in bases.items()},
        "cells": [],
    }
    middle = (settings.several["shift_steps"], settings.several["delta_steps"])
    for shift, new in bases.items():
        directs = line.chatted(f"direct-{shift}", new, settings.delta_steps)
        for steps, direct in directs.items():
            cell = {
                "shift": shift,
                "delta": steps,
                "ParamΔ": line.scores(added(new, deltas[steps])),
                "direct": line.scores(direct),
            }
            if (shift, steps) == middle:
                cell["scales"] = {
                    f"{scale:g}": line.scores(added(new, scaled(deltas[steps], scale)))
                    for scale in SCALES
                }
            result["cells"].append(cell)
    return result


def run_several(line: Lineage) -> dict:
    """Combinations of two Δ in the middle cell."""
    settings = line.settings
    steps = settings.several["delta_steps"]
    base, new = line.base, line.new_bases()[settings.several["shift_steps"]]

    def chatted(name: str, start: dict, abilities: tuple[str, ...], **options: object) -> dict:
        return line.chatted(name, start, (steps,), abilities, **options)[steps]

    first = chatted("first", base, FIRST)
    second = chatted("second", base, SECOND)
    chained = chatted("chained", first, SECOND)
    rehearsed = chatted("rehearsed", base, SECOND, rehearsed=FIRST)
    form_steps = min(FORM_STEPS, steps)
    form = line.chatted("form", base, (form_steps,), ("refuse",))[form_steps]
    direct = line.chatted("direct-several", new, (steps,))[steps]
    one, two = delta(first, base), delta(second, base)
    mixes = {
        "sum": total(one, two),
        "half": scaled(total(one, two), 0.5),
        "common once": total(one, two, scaled(common(one, two), -1)),
        "form once": total(one, two, scaled(delta(form, base), -1)),
        "chained": total(one, delta(chained, first)),
        "rehearsed": scaled(total(one, delta(rehearsed, base)), 0.5),
    }
    return {
        "models": {
            "first post": line.scores(first),
            "second post": line.scores(second),
            "chained post": line.scores(chained),
            "rehearsed post": line.scores(rehearsed),
            "new base": line.scores(new),
            "direct": line.scores(direct),
        },
        "mixes": {name: line.scores(added(new, change)) for name, change in mixes.items()},
        "norms": {name: norm(change) for name, change in mixes.items()},
    }


PARTS: dict[str, Callable[[Lineage], dict]] = {"cells": run_cells, "several": run_several}


def run(settings: Settings, cache: Path, out: Path, stamp: dict) -> None:
    """Every seed in the registered order; what has a result file is not run again."""
    out.mkdir(parents=True, exist_ok=True)
    for seed in settings.seeds:
        for part, make in PARTS.items():
            path = out / f"seed-{seed}-{part}.json"
            if not path.exists():
                began = time.process_time()
                found = {"seed": seed, **make(Lineage(seed, settings, cache)), **stamp}
                found["cpu_seconds"] = round(time.process_time() - began)
                unfinished = path.with_suffix(f".{os.getpid()}")
                text = json.dumps(found, ensure_ascii=False, indent=1)
                unfinished.write_text(text + "\n", encoding="utf-8")
                unfinished.replace(path)
                print(f"{path.name}: done", flush=True)


def toy(settings: Settings) -> Settings:
    """The same study at a size that shows only that the code runs: two seeds, a few steps."""
    return replace(
        settings,
        seeds=settings.seeds[:2],
        shape=replace(settings.shape, vocabulary=512, width=16, layers=1, heads=2, kv_heads=2),
        old_people=12,
        new_people=9,
        items=4,
        pretraining=replace(settings.pretraining, steps=4, rows=2, length=192),
        continuation=replace(settings.continuation, rows=2, length=192),
        chat=replace(settings.chat, rows=2, length=96),
        shift_steps=(1, 2),
        delta_steps=(1, 3),
        several={"shift_steps": 2, "delta_steps": 3},
        primer=10,
    )


def main() -> None:
    """The command `python -m studies.crossed`."""
    parser = argparse.ArgumentParser(prog="python -m studies.crossed", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("build/crossed"), help="trained models")
    parser.add_argument("--out", type=Path, default=Path("docs/study-crossed"), help="JSON files")
    parser.add_argument("--toy", action="store_true", help="a size that says nothing: for a try")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    stamp = {
        "settings_sha256": hashlib.sha256(SETTINGS.read_bytes()).hexdigest(),
        "preregistration_sha256": hashlib.sha256(PREREGISTRATION.read_bytes()).hexdigest(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    settings = read_settings()
    if options.toy:
        settings, stamp = toy(settings), {"toy": True}
        options.out = options.cache / "toy-results"
        options.cache /= "toy"
    run(settings, options.cache, options.out, stamp)


if __name__ == "__main__":
    main()
