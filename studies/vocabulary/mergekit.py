"""What a user of mergekit would try on such a lineage, from the plain recipe to the best one.

The arithmetic is asked for in float32, so that a row that differs is another row and not another
rounding. The environment is that of the benchmarks.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.mergekit import ENVIRONMENT, program
from studies.vocabulary.tokens import CHAT

OLD, NEW = "old base", "new base"


@dataclass(frozen=True)
class Attempt:
    """One recipe and its options. ``what``: how the page calls it."""

    what: str
    recipe: dict[str, Any]
    options: tuple[str, ...] = ()


def attempts(folders: dict[str, Path]) -> Iterator[Attempt]:
    """Every recipe, on these three folders.

    base + (post − base) + (new − base), with the old base as mergekit's ``base_model``; and
    new + (post − new) − (base − new), with the new one.
    """
    post, base, new = (str(folders[role].resolve()) for role in ("post", "base", "new-base"))

    def model(path: str, weight: float) -> dict[str, Any]:
        return {"model": path, "parameters": {"weight": weight}}

    def recipe(base_model: str, **more: Any) -> dict[str, Any]:
        from_old = base_model == OLD
        return {
            "merge_method": "task_arithmetic",
            "base_model": base if from_old else new,
            "models": [model(post, 1.0), model(new, 1.0) if from_old else model(base, -1.0)],
            "parameters": {"normalize": False},
            "dtype": "float32",
            "out_dtype": "bfloat16",
            **more,
        }

    yield Attempt("plain", recipe(OLD))
    yield Attempt("`--allow-crimes`", recipe(OLD), ("--allow-crimes",))
    yield Attempt("`--unsafe-truncate-embeddings`", recipe(OLD), ("--unsafe-truncate-embeddings",))
    yield Attempt("`tokenizer_source: base`", recipe(OLD, tokenizer_source="base"))
    yield Attempt("`tokenizer_source: union`", recipe(OLD, tokenizer_source="union"))
    yield Attempt("`tokenizer_source:` post", recipe(OLD, tokenizer_source=post))
    yield Attempt("`tokenizer_source:` new base", recipe(OLD, tokenizer_source=new))
    yield Attempt("from the new base, plain", recipe(NEW))
    yield Attempt("from the new base, `union`", recipe(NEW, tokenizer_source="union"))
    # The best that can be had: the new base's tokenizer, and the chat tokens named one by one.
    tokens = {token: {"source": post} for token in CHAT}
    yield Attempt(
        "from the new base, its tokenizer, chat tokens listed, `chat_template: auto`",
        recipe(NEW, tokenizer={"source": new, "tokens": tokens}, chat_template="auto"),
    )


@dataclass(frozen=True)
class Outcome:
    """How a command ended. ``error``: the last line that it printed where it failed."""

    status: int
    error: str = ""


def run(attempt: Attempt, environment: Path, work: Path, out: Path) -> Outcome:
    """Run mergekit; `out` is a checkpoint if it went well."""
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(attempt.recipe, sort_keys=False), encoding="utf-8")
    command = [program(environment), path, out, "--quiet", "--lora-merge-cache", work / "lora"]
    done = subprocess.run(
        [*command, *attempt.options],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    return Outcome(done.returncode, "" if done.returncode == 0 else last_line(done.stderr, work))


def last_line(text: str, work: Path) -> str:
    """The last line of what a program printed, without colours and without this machine's paths."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = re.sub(r"\x1b\[[0-9;]*m", "", lines[-1]) if lines else ""
    return line.replace(f"{work.resolve()}/", "")
