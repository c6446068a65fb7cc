"""Base, post, new bases, direct and ParamΔ, measured into one JSON file.

The file is written after every step, so that a run that is cut off keeps what it has measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer

from studies.gpu import delta as arithmetic
from studies.gpu.corpus import Corpus
from studies.gpu.measures import Measures, Scores
from studies.gpu.sizes import Size
from studies.gpu.tokens import (
    Rows,
    chat_rows,
    document_rows,
    encode_chats,
    train_tokenizer,
)
from studies.gpu.training import Source, Stage, State, Trainer

ALPHAS = (0.5, 0.8, 1.0, 1.2)
DOMAINS = ("medicine", "code")
QUESTIONS = ("arithmetic", "medicine_old", "medicine_new", "medicine_unseen")
RATIOS = (
    *((task, "accuracy") for task in QUESTIONS),
    ("arithmetic", "form"),
    ("arithmetic", "ended"),
    ("medicine_new", "ended"),
)
REPLAY = 0.25  # share of books in the text that a new base is continued on
BASE_MAKE_UP = {"books": 0.7, "medicine_old": 0.2, "arithmetic": 0.1}
PARAMDELTA = "alpha 1.0"


class Experiment:
    """One run of the study: what it trains on, what it measures, and its results so far."""

    def __init__(
        self, corpus: Corpus, size: Size, device: torch.device, out: Path, *, compiled: bool
    ) -> None:
        self.began = time.perf_counter()
        self.size = size
        self.out = out
        tokenizer = train_tokenizer(corpus, size.vocabulary, size.tokenizer_chars)
        self.rows = _training_rows(tokenizer, corpus, size)
        self.trainer = Trainer(size, device, compiled=compiled)
        self.measures = Measures(self.trainer, tokenizer, corpus)
        self.results: dict[str, object] = {
            "command": " ".join(["python -m studies.gpu", *sys.argv[1:]]),
            "machine": _machine(device),
            "size": asdict(size)
            | {"parameters": sum(p.numel() for p in self.trainer.model.parameters())},
            "data": corpus.describe()
            | {"training_tokens": {k: v.inputs.size for k, v in self.rows.items()}},
        }
        self.stages: list[Stage] = []
        self.models: list[dict[str, object]] = []
        self.cells: list[dict[str, object]] = []
        self.save()

    def run(self, seeds: list[int], minutes: float | None) -> None:
        """All cells, or those that could be started within the minutes given.

        A cell is one new base: a domain, a length of continuation and a seed. There is one base;
        the seed orders the data of chat training and of continuation.
        """
        base = self._pretrain(seeds[0])
        deltas: dict[int, State] = {}
        for steps in self.size.continuations:
            for seed in seeds:
                for domain in DOMAINS:
                    if minutes is not None and time.perf_counter() - self.began > 60 * minutes:
                        return
                    if seed not in deltas:
                        deltas[seed] = self._post(base, seed)
                    self._cell(base, deltas[seed], domain, steps, seed)

    def save(self) -> None:
        """Write the results so far; the file is whole at every moment."""
        self.results |= {
            "wall_seconds": round(time.perf_counter() - self.began, 1),
            "stages": [stage.as_json() for stage in self.stages],
            "models": self.models,
            "cells": self.cells,
            "summary": summary(self.cells),
        }
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(_rounded(self.results), indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.out)

    def _train(
        self,
        name: str,
        state: State,
        make_up: dict[str, float],
        steps: int,
        rate: float,
        seed: int,
    ) -> State:
        """One stage, written down and told."""
        sources = [Source(self.rows[k], share) for k, share in make_up.items()]
        state, stage = self.trainer.train(name, state, sources, steps, rate, seed)
        self.stages.append(stage)
        print(
            f"{time.perf_counter() - self.began:6.1f} s  {name}: loss {stage.first_loss:.3f} to "
            f"{stage.last_loss:.3f}, {stage.tokens_a_second / 1e3:.0f} k tokens/s",
            flush=True,
        )
        return state

    def _pretrain(self, seed: int) -> State:
        """The base, measured."""
        size = self.size
        fresh = self.trainer.fresh(seed)
        base = self._train("base", fresh, BASE_MAKE_UP, size.base_steps, size.base_rate, seed)
        self.models.append(
            {
                "model": "base",
                "seed": seed,
                "norm": arithmetic.norm(base),
                "scores": self.measures.of(base),
                "said": self.measures.said(base),
            }
        )
        self.save()
        return base

    def _post(self, base: State, seed: int) -> State:
        """Chat training of the base, measured; what it returns is Δ."""
        post = self._chat("base", base, seed)
        delta = arithmetic.difference(post, base)
        self.models.append(
            {
                "model": "post",
                "seed": seed,
                "delta_norm": arithmetic.norm(delta),
                "scores": self.measures.of(post),
                "said": self.measures.said(post),
            }
        )
        self.save()
        return delta

    def _chat(self, name: str, state: State, seed: int) -> State:
        """Chat training, the same for every base."""
        size = self.size
        chat = {"chat": 1.0}
        return self._train(f"chat of {name}", state, chat, size.chat_steps, size.chat_rate, seed)

    def _cell(self, base: State, delta: State, domain: str, steps: int, seed: int) -> None:
        """One new base: with every α, with the controls, and trained directly."""
        name = f"{domain} {steps}"
        make_up = {domain: 1 - REPLAY, "books": REPLAY}
        new = self._train(name, base, make_up, steps, self.size.continuation_rate, seed + 1000)
        direct = self._chat(name, new, seed)
        shift = arithmetic.difference(new, base)
        direct_delta = arithmetic.difference(direct, new)
        cell: dict[str, object] = {
            "domain": domain,
            "steps": steps,
            "seed": seed,
            "norms": {
                "delta": arithmetic.norm(delta),
                "shift": arithmetic.norm(shift),
                "direct_delta": arithmetic.norm(direct_delta),
                "shift_over_delta": arithmetic.norm(shift) / arithmetic.norm(delta),
                "cosine_delta_shift": arithmetic.cosine(delta, shift),
                "cosine_delta_direct": arithmetic.cosine(delta, direct_delta),
            },
        }
        scores = {"new": self.measures.of(new), "direct": self.measures.of(direct)}
        for alpha in ALPHAS:
            scores[f"alpha {alpha}"] = self.measures.of(arithmetic.add(new, delta, alpha))
        for name, control in (
            ("random", arithmetic.random_like(delta, seed)),
            ("permuted", arithmetic.permuted(delta, seed)),
        ):
            scores[name] = self.measures.of(arithmetic.add(new, control, 1.0))
        cell["scores"] = scores
        cell["said"] = {
            name: self.measures.said(state)
            for name, state in (
                ("new", new),
                ("direct", direct),
                (PARAMDELTA, arithmetic.add(new, delta, 1.0)),
            )
        }
        cell["transfer"] = {
            name: transfer(scores[name], scores["new"], scores["direct"])
            for name in scores
            if name not in {"new", "direct"}
        }
        self.cells.append(cell)
        self.save()


def transfer(mixed: Scores, new: Scores, direct: Scores) -> dict[str, float]:
    """How much of direct training a mixed model has.

    `recovered_…` is the share of the gap in answer loss between new base and direct that is
    closed: 1 is all of it, negative is worse than the new base. `ratio_…` is score over score.
    The two means are over the question sets. What direct itself has not gained is left out.
    """
    out: dict[str, float] = {}
    for task in QUESTIONS:
        gap = new[task]["loss"] - direct[task]["loss"]
        if gap > 0:
            out[f"recovered_{task}"] = (new[task]["loss"] - mixed[task]["loss"]) / gap
    for task, measure in RATIOS:
        if direct[task][measure] > 0:
            out[f"ratio_{measure}_{task}"] = mixed[task][measure] / direct[task][measure]
    for kind in ("recovered", "ratio_accuracy"):
        parts = [out[f"{kind}_{task}"] for task in QUESTIONS if f"{kind}_{task}" in out]
        if len(parts) == len(QUESTIONS):
            out[kind] = sum(parts) / len(parts)
    return out


def summary(cells: list[dict]) -> list[dict[str, object]]:
    """Over the seeds of each new base: mean, lowest and highest of transfer and norms."""
    groups: dict[tuple[str, int], list[dict]] = {}
    for cell in cells:
        groups.setdefault((cell["domain"], cell["steps"]), []).append(cell)
    return [
        {
            "domain": domain,
            "steps": steps,
            "seeds": len(group),
            "norms": _spread([c["norms"] for c in group]),
            "transfer": {
                mix: _spread([c["transfer"][mix] for c in group]) for mix in group[0]["transfer"]
            },
            "scores": {
                model: {
                    task: _spread([c["scores"][model][task] for c in group])
                    for task in group[0]["scores"][model]
                }
                for model in group[0]["scores"]
            },
        }
        for (domain, steps), group in sorted(groups.items())
    ]


def _spread(several: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, lowest and highest of each measure that all have."""
    out = {}
    for name in several[0]:
        if all(name in one for one in several):
            values = [one[name] for one in several]
            out[name] = {
                "mean": sum(values) / len(values),
                "low": min(values),
                "high": max(values),
            }
    return out


def _training_rows(tokenizer: Tokenizer, corpus: Corpus, size: Size) -> dict[str, Rows]:
    """All documents and the questions of chat training, packed."""
    rows = {k: document_rows(tokenizer, v, size.length) for k, v in corpus.documents.items()}
    chats = encode_chats(tokenizer, corpus.chat, size.length, size.answer_tokens)
    order = torch.randperm(len(chats), generator=torch.Generator().manual_seed(0)).tolist()
    rows["chat"] = chat_rows([chats[i] for i in order], size.length, packed=True)
    return rows


def _machine(device: torch.device) -> dict[str, object]:
    """What the run ran on, as far as results or times may depend on it."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": {n: importlib.metadata.version(n) for n in ("torch", "tokenizers", "numpy")},
    }


def _rounded(value: object) -> object:
    """Floats to six significant digits, all the way down."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return value
