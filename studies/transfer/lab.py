"""One seed's world and its trained models, each trained when first asked for and kept on disk."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from studies.lineage import text
from studies.lineage.model import Shape, Weights, new_weights, rounded
from studies.lineage.score import Tasks, make_tasks, score
from studies.lineage.tokenizer import train_tokenizer
from studies.lineage.train import Course, batches, conversations, documents, train
from studies.lineage.world import World, make_world

TEXTS: dict[str, Callable[[World, str], Iterator[str]]] = {
    "base": text.base_text,
    "general": text.general_text,
    "domain": text.domain_text,
}


@dataclass(frozen=True)
class Programme:
    """All settings of the study but the seed; small, so that five seeds take an hour or so."""

    shape: Shape = field(
        default_factory=lambda: Shape(
            vocabulary=1024, width=64, layers=3, heads=4, kv_heads=4, inner=176
        )
    )
    old_people: int = 90
    new_people: int = 36
    items: int = 60
    pretraining: Course = field(
        default_factory=lambda: Course(2000, 4e-3, rows=18, length=120, warmup=100, final=0.02)
    )
    chat: Course = field(default_factory=lambda: Course(400, 6e-4, rows=20, length=56))
    continuation: Course = field(default_factory=lambda: Course(400, 3e-4, rows=24, length=120))


def tiny(programme: Programme) -> Programme:
    """The same study at a size that says nothing: for tests of the code."""

    def cut(course: Course) -> Course:
        return replace(course, steps=4, rows=2)

    return replace(
        programme,
        shape=Shape(vocabulary=512, width=16, layers=1, heads=2, kv_heads=1, inner=24),
        old_people=12,
        new_people=9,
        items=4,
        pretraining=cut(programme.pretraining),
        chat=replace(cut(programme.chat), length=96),
        continuation=replace(cut(programme.continuation), length=192),
    )


class Lab:
    """The models of one seed.

    Every model starts from its parent as saved in bf16, and is itself rounded to bf16; so the
    order in which models are asked for makes no difference.
    """

    def __init__(self, seed: int, programme: Programme, cache: Path, device: str = "cpu"):
        self.seed, self.programme, self.device = seed, programme, device
        self.cache = cache / f"seed-{seed}"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.world = make_world(seed, programme.old_people, programme.new_people)
        self.shape = programme.shape
        self.tokenizer = train_tokenizer(self.world, f"{seed} tokenizer", self.shape.vocabulary)

    @cached_property
    def base(self) -> Weights:
        """The pretrained base."""
        fresh = rounded(new_weights(self.shape, self.seed))
        return self._trained("base", fresh, "base", self.programme.pretraining)

    def new_base(self, kind: str) -> Weights:
        """The base continued on text of a kind: "general" or "domain"."""
        return self._trained(kind, self.base, kind, self.programme.continuation)

    def chatted(self, parent: str, abilities: Sequence[str]) -> Weights:
        """A model ("base", "general", "domain" or a waypoint's name) after chat training."""
        weights = self.base if parent == "base" else self._load(parent)
        turns = text.chat(self.world, f"{self.seed} {abilities}", abilities)
        sequences = conversations(self.tokenizer, turns)
        name = f"{parent}+{'-'.join(abilities)}"
        return self._kept(
            name,
            lambda: train(weights, self.shape, sequences, self.programme.chat, device=self.device),
        )

    def waypoints(self, rate: float, steps: Sequence[int]) -> dict[int, str]:
        """The base continued on general text at a constant rate: names of it after each of `steps`.

        One training, kept on the way.
        """
        names = {step: f"general-{rate:g}-{step}" for step in steps}
        if not all(self._path(name).exists() for name in names.values()):
            course = replace(self.programme.continuation, rate=rate, steps=max(steps), final=1.0)
            sequences = documents(self.tokenizer, text.general_text(self.world, str(self.seed)))

            def keep(step: int, weights: Weights) -> None:
                if step in names:
                    self._save(names[step], rounded(weights))

            train(self.base, self.shape, sequences, course, at_step=keep, device=self.device)
        return names

    def waypoint(self, name: str) -> Weights:
        """One of `waypoints`, by its name."""
        return self._load(name)

    def held_out(self, kind: str, count: int = 4) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Batches of text of a kind that no training saw."""
        stream = TEXTS[kind](self.world, f"{self.seed} held out")
        course = self.programme.continuation
        packed = batches(documents(self.tokenizer, stream), course.rows, course.length)
        return list(itertools.islice(packed, count))

    def tasks(self, final: bool) -> Tasks:
        """Test questions about dev people, or about final people."""
        return make_tasks(self.world, str(self.seed), self.programme.items, final)

    def score(self, weights: Weights, tasks: Tasks, names: Sequence[str]) -> dict[str, float]:
        """Per cent right of the named tasks."""
        scores = score(weights, self.shape, self.tokenizer, tasks, names, self.device)
        return {task: round(value, 2) for task, value in scores.items()}

    def _trained(self, name: str, parent: Weights, kind: str, course: Course) -> Weights:
        sequences = documents(self.tokenizer, TEXTS[kind](self.world, str(self.seed)))
        return self._kept(
            name, lambda: train(parent, self.shape, sequences, course, device=self.device)
        )

    def _kept(self, name: str, make: Callable[[], Weights]) -> Weights:
        if not self._path(name).exists():
            self._save(name, rounded(make()))
        return self._load(name)

    def _path(self, name: str) -> Path:
        return self.cache / f"{name}.safetensors"

    def _save(self, name: str, weights: Weights) -> None:
        half = {key: w.to(torch.bfloat16).cpu().contiguous() for key, w in weights.items()}
        unfinished = self._path(name).with_suffix(f".{os.getpid()}")
        save_file(half, unfinished)
        unfinished.replace(self._path(name))  # another process may be making the same

    def _load(self, name: str) -> Weights:
        return {key: w.float() for key, w in load_file(self._path(name)).items()}
