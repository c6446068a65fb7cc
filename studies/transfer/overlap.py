"""How many test questions occur word for word in training: `python -m studies.transfer.overlap`.

Replays the text that each training of the study consumed, without training anything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from studies.lineage import text
from studies.lineage.make import FIRST_CHAT
from studies.lineage.score import make_tasks
from studies.lineage.tokenizer import train_tokenizer
from studies.lineage.train import Course, batches, conversations, documents
from studies.lineage.world import World, make_world
from studies.transfer.lab import Programme


def consumed(texts: Iterator, sequences_of, tokenizer, course: Course) -> list:
    """The texts that a training by `course` takes out of the endless stream `texts`."""
    taken: list = []

    def recorded() -> Iterator:
        for item in texts:
            taken.append(item)
            yield item

    packed = batches(sequences_of(tokenizer, recorded()), course.rows, course.length)
    for _ in range(course.steps):
        next(packed)
    return taken


def overlap(seed: int, programme: Programme, final: bool) -> dict[str, dict[str, float]]:
    """{where: {task: percent of the test questions that occur there}} for one seed.

    "chat" is the chat training of post and direct, "pretraining" what the base has read.
    """
    world: World = make_world(seed, programme.old_people, programme.new_people)
    tokenizer = train_tokenizer(world, f"{seed} tokenizer", programme.shape.vocabulary)
    turns = text.chat(world, f"{seed} {FIRST_CHAT}", FIRST_CHAT)
    chat = {turn[0] for turn in consumed(turns, conversations, tokenizer, programme.chat)}
    read = consumed(text.base_text(world, str(seed)), documents, tokenizer, programme.pretraining)
    pages = {
        line.removeprefix("Question: ")
        for document in read
        for line in document.split("\n")
        if line.startswith("Question: ")
    }
    tasks = make_tasks(world, str(seed), programme.items, final)
    return {
        where: {
            task: round(100 * sum(q in seen for q, _ in turns) / len(turns), 2)
            for task, turns in tasks.items()
        }
        for where, seen in (("chat", chat), ("pretraining", pages))
    }


def main() -> None:
    """Write docs/study/overlap.json."""
    parser = argparse.ArgumentParser(prog="python -m studies.transfer.overlap", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/study"))
    options = parser.parse_args()
    results = []
    for seed in range(1, options.seeds + 1):
        results.append({"seed": seed, **overlap(seed, Programme(), final=False)})
        print(results[-1], flush=True)
    record = {
        "command": f"python -m studies.transfer.overlap --seeds {options.seeds}",
        "results": results,
    }
    text_of = json.dumps(record, indent=1, ensure_ascii=False)
    (options.out / "overlap.json").write_text(text_of + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
