"""How large the models are and how long each stage trains."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Size:
    """One setting of the study; steps are optimiser steps of `rows` rows of `length` tokens."""

    name: str
    hidden: int
    layers: int
    heads: int
    mlp: int
    vocabulary: int
    length: int
    rows: int
    base_steps: int
    chat_steps: int
    continuations: tuple[int, ...]  # in the order in which they are run
    base_rate: float
    continuation_rate: float
    chat_rate: float
    scored: int  # held-out questions and rows per measure
    answered: int  # held-out questions answered greedily
    answer_tokens: int  # longest answer asked for, and longest given
    tokenizer_chars: int  # text that the tokenizer is trained on

    def at_effort(self, effort: float) -> Size:
        """The same models with every number of training steps multiplied."""

        def scaled(steps: int) -> int:
            return max(2, round(steps * effort))

        return replace(
            self,
            base_steps=scaled(self.base_steps),
            chat_steps=scaled(self.chat_steps),
            continuations=tuple(scaled(s) for s in self.continuations),
        )


SMALL = Size(
    name="small",
    hidden=512,
    layers=8,
    heads=8,
    mlp=1408,
    vocabulary=16384,
    length=512,
    rows=64,
    base_steps=3000,
    chat_steps=150,
    continuations=(200, 50, 800),
    base_rate=1.5e-3,
    continuation_rate=4e-4,
    chat_rate=2e-4,
    scored=512,
    answered=256,
    answer_tokens=200,
    tokenizer_chars=60_000_000,
)
BASE = replace(
    SMALL, name="base", hidden=768, layers=12, heads=12, mlp=2048, base_rate=8e-4, base_steps=2000
)
TINY = Size(
    name="tiny",
    hidden=96,
    layers=3,
    heads=3,
    mlp=256,
    vocabulary=2048,
    length=256,
    rows=16,
    base_steps=1600,
    chat_steps=80,
    continuations=(120, 30),
    base_rate=4e-3,
    continuation_rate=1e-3,
    chat_rate=1e-3,
    scored=48,
    answered=16,
    answer_tokens=150,
    tokenizer_chars=4_000_000,
)
SIZES = {size.name: size for size in (TINY, SMALL, BASE)}
