"""Makes the lineage: five checkpoints, their test questions, their scores, the logs of the run."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import tokenizers
import torch
import transformers

from studies.lineage import skills, text
from studies.lineage.model import Shape, Weights, load_weights, new_weights, rounded, save_model
from studies.lineage.score import make_tasks, score
from studies.lineage.tokenizer import END_ID, END_OF_TURN_ID, save_tokenizer, train_tokenizer
from studies.lineage.train import Course, Log, Sequence, conversations, documents, train
from studies.lineage.world import World, make_world

SHIPPED = Path(__file__).parents[2] / "src" / "paramdelta" / "demo" / "lineage"
LOGS = Path(__file__).parent / "logs"
FIRST_CHAT = ("facts", "refuse", "repeat", "reverse", "first", "last", "count")
SECOND_CHAT = ("sort", "join", "list", "json")


@dataclass(frozen=True)
class Programme:
    """All settings of a lineage but the seed."""

    shape: Shape = field(default_factory=Shape)
    old_people: int = 180
    new_people: int = 60
    items: int = 100
    pretraining: Course = field(
        default_factory=lambda: Course(4000, 3e-3, rows=18, length=120, warmup=100, final=0.02)
    )
    chat: Course = field(default_factory=lambda: Course(450, 6e-4, rows=20, length=56))
    continuation: Course = field(default_factory=lambda: Course(600, 3e-4, rows=24, length=120))


def short(programme: Programme, steps: int) -> Programme:
    """The same programme with no more than `steps` steps a training: for tests."""

    def cut(course: Course) -> Course:
        return replace(course, steps=min(steps, course.steps))

    return replace(
        programme,
        pretraining=cut(programme.pretraining),
        chat=replace(cut(programme.chat), length=96),
        continuation=cut(programme.continuation),
    )


def showcase(world: World, seed: int) -> list[dict[str, str]]:
    """A dozen questions that show what each model can do, with the right answers."""
    draw = random.Random(f"showcase {seed}")
    turns: list[tuple[str, text.Turn]] = []
    for kind, people in (("old fact", world.old_final), ("new fact", world.new_final)):
        attributes = draw.sample(("home", "job", "food", "pet", "birth"), 3)
        for attribute, person in zip(attributes, draw.sample(people, 3), strict=True):
            question = skills.FACT_QUESTIONS[attribute][0]
            turns.append((kind, skills.fact(person, attribute, question)))
    turns += [("skill", skills.word_skill(draw, name)) for name in ("reverse", "first", "count")]
    stranger = text.stranger(draw, world.first_names, world.unknown_families[1::2])
    turns.append(("refusal", skills.refusal(draw, stranger)))
    turns += [("second skill", skills.word_skill(draw, name)) for name in ("sort", "list")]
    return [{"kind": kind, "question": turn[0], "answer": turn[1]} for kind, turn in turns]


def make_lineage(seed: int, programme: Programme, out: Path, logs: Path, device: str) -> None:
    """Train everything and write it to `out`, with what was logged on the way in `logs`."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    logs.mkdir(parents=True, exist_ok=True)
    shape = programme.shape
    world = make_world(seed, programme.old_people, programme.new_people)
    tokenizer = train_tokenizer(world, f"{seed} tokenizer", shape.vocabulary)
    dev = make_tasks(world, str(seed), programme.items)
    final = make_tasks(world, str(seed), programme.items, final=True)
    dev_scores: dict[str, dict[str, float]] = {}
    final_scores: dict[str, dict[str, float]] = {}

    def stage(
        name: str, start: Weights, sequences: Iterator[Sequence], course: Course, chat: bool
    ) -> Weights:
        print(f"{name}: {course.steps} steps", flush=True)
        log = Log(show=True)
        trained = train(start, shape, sequences, course, log, device=device)
        ends = [END_OF_TURN_ID, END_ID] if chat else [END_ID]
        save_model(trained, shape, out / name, ends)
        save_tokenizer(tokenizer, out / name, chat)
        saved = load_weights(out / name)
        dev_scores[name] = score(saved, shape, tokenizer, dev, device=device)
        final_scores[name] = score(saved, shape, tokenizer, final, device=device)
        print("  dev", dev_scores[name], flush=True)
        _write(logs / f"{name}.json", {"course": asdict(course), "loss": log.lines})
        return saved

    def read(stream: Iterator[str]) -> Iterator[Sequence]:
        return documents(tokenizer, stream)

    def talk(abilities: tuple[str, ...]) -> Iterator[Sequence]:
        return conversations(tokenizer, text.chat(world, f"{seed} {abilities}", abilities))

    fresh = rounded(new_weights(shape, seed))
    base = stage(
        "base", fresh, read(text.base_text(world, str(seed))), programme.pretraining, False
    )
    stage("post", base, talk(FIRST_CHAT), programme.chat, True)
    new_base = stage(
        "new-base", base, read(text.general_text(world, str(seed))), programme.continuation, False
    )
    stage("direct", new_base, talk(FIRST_CHAT), programme.chat, True)
    stage("second-post", base, talk(SECOND_CHAT), programme.chat, True)

    _write(out / "questions.json", showcase(world, seed))
    _write(
        out / "tasks.json",
        {task: [{"question": q, "answer": a} for q, a in turns] for task, turns in final.items()},
    )
    _write(out / "scores.json", final_scores)
    _write(
        logs / "run.json",
        {
            "seed": seed,
            "programme": asdict(programme),
            "dev_scores": dev_scores,
            "sha256": _digests(out),
            "seconds": round(time.monotonic() - began),
            "device": device,
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
        },
    )


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the lineage."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.*"))
        if path.is_file()
    }


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """The command `python -m studies.lineage`."""
    parser = argparse.ArgumentParser(prog="python -m studies.lineage", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the checkpoints; default: as shipped")
    parser.add_argument("--logs", type=Path, help="folder for the logs; default: OUT/logs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--max-steps", type=int, help="cut every training short: for a try")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    programme = Programme()
    if options.max_steps:
        programme = short(programme, options.max_steps)
    out = options.out or SHIPPED
    logs = options.logs or (options.out / "logs" if options.out else LOGS)
    make_lineage(options.seed, programme, out, logs, options.device)
