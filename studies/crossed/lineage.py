"""The models of one seed, each trained when first asked for and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from studies.crossed.settings import Settings
from studies.lineage import text
from studies.lineage.model import Weights, new_weights, rounded
from studies.lineage.score import make_tasks, score
from studies.lineage.tokenizer import train_tokenizer
from studies.lineage.train import Course, conversations, documents, train
from studies.lineage.train import Sequence as Tokens
from studies.lineage.world import make_world

PAIRS = (("repeat", "reverse"), ("first", "last"), ("count", "json"), ("join", "list"))
SKILLS = tuple(skill for pair in PAIRS for skill in pair)
FIRST = ("facts", "refuse", "repeat", "reverse", "first", "last")
SECOND = ("count", "json", "join", "list")
EVERYTHING = FIRST + SECOND
FACTS = ("old facts", "new facts", "refuse")


class Lineage:
    """One seed: its world, tokenizer, models and test questions.

    Every model starts from its parent as saved in BF16 and is itself rounded to BF16, so the
    order in which models are asked for makes no difference.
    """

    def __init__(self, seed: int, settings: Settings, cache: Path) -> None:
        self.seed, self.settings = seed, settings
        self.cache = cache / f"seed-{seed}"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.world = make_world(seed, settings.old_people, settings.new_people)
        self.tokenizer = train_tokenizer(self.world, f"{seed} tokenizer", settings.shape.vocabulary)
        self.read = tuple(pair[seed % 2] for pair in PAIRS)

    @property
    def unread(self) -> tuple[str, ...]:
        """The word skills that no pretraining text contains."""
        return tuple(skill for skill in SKILLS if skill not in self.read)

    @cached_property
    def base(self) -> Weights:
        """The pretrained base."""
        course = self.settings.pretraining
        stream = text.base_text(self.world, str(self.seed), self.read, self.settings.primer)
        start = rounded(new_weights(self.settings.shape, self.seed))
        sequences = documents(self.tokenizer, stream)
        return self._waypoints("base", start, sequences, course, (course.steps,))[course.steps]

    def new_bases(self) -> dict[int, Weights]:
        """{steps: the base continued for so many steps}."""
        stream = text.general_text(self.world, str(self.seed), self.read)
        sequences = documents(self.tokenizer, stream)
        settings = self.settings
        return self._waypoints(
            "new-base", self.base, sequences, settings.continuation, settings.shift_steps
        )

    def chatted(
        self,
        name: str,
        start: Weights,
        steps: Sequence[int],
        abilities: Sequence[str] = EVERYTHING,
        rehearsed: Sequence[str] = (),
    ) -> dict[int, Weights]:
        """{steps: `start` after chat training of so many steps}.

        With `rehearsed`, every second conversation teaches those abilities instead.
        """
        turns = text.chat(self.world, f"{self.seed} {abilities}", abilities)
        if rehearsed:
            turns = _alternating(turns, text.chat(self.world, f"{self.seed} rehearsed", rehearsed))
        sequences = conversations(self.tokenizer, turns)
        return self._waypoints(name, start, sequences, self.settings.chat, steps)

    def scores(self, weights: Weights) -> dict[str, float]:
        """Percent right of every task, about final people; then of the groups and overall."""
        tasks = make_tasks(self.world, str(self.seed), self.settings.items, final=True)
        names = (*FACTS, *SKILLS)
        found = score(weights, self.settings.shape, self.tokenizer, tasks, names)
        for group, skills in (("skills in", self.read), ("skills out", self.unread)):
            found[group] = sum(found[skill] for skill in skills) / len(skills)
        groups = (*FACTS, "skills in", "skills out")
        found["overall"] = sum(found[group] for group in groups) / len(groups)
        return {name: round(value, 3) for name, value in found.items()}

    def _waypoints(
        self,
        name: str,
        start: Weights,
        sequences: Iterator[Tokens],
        course: Course,
        steps: Sequence[int],
    ) -> dict[int, Weights]:
        """One training, kept after each of `steps`."""
        paths = {step: self.cache / f"{name}-{step}.safetensors" for step in steps}
        if not all(path.exists() for path in paths.values()):
            print(f"seed {self.seed}: {name}, {max(steps)} steps", flush=True)

            def keep(step: int, weights: Weights) -> None:
                if step in paths:
                    _save(paths[step], weights)

            shape = self.settings.shape
            train(start, shape, sequences, replace(course, steps=max(steps)), at_step=keep)
        return {
            step: {key: w.float() for key, w in load_file(path).items()}
            for step, path in paths.items()
        }


def _alternating(first: Iterator[text.Turn], second: Iterator[text.Turn]) -> Iterator[text.Turn]:
    while True:
        yield next(first)
        yield next(second)


def _save(path: Path, weights: Weights) -> None:
    half = {key: w.detach().to(torch.bfloat16).contiguous() for key, w in weights.items()}
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file(half, unfinished)
    unfinished.replace(path)
