"""Exact-match scores: a reply counts only if every token is right and the turn ends there."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

import torch
from tokenizers import Tokenizer

from studies.lineage import skills, text
from studies.lineage.model import Shape, Weights, hidden_states, logits
from studies.lineage.text import Turn
from studies.lineage.tokenizer import turn_ids
from studies.lineage.world import ATTRIBUTES, Person, World

Tasks = dict[str, list[Turn]]


def make_tasks(world: World, seed: str, items: int, final: bool = False) -> Tasks:
    """`items` test questions a task, about dev people or, if `final`, about final people.

    No fact is asked for twice in a task, so there are fewer if there are too few people.
    """
    draw = random.Random(f"tasks {seed} {'final' if final else 'dev'}")
    old, new = (world.old_final, world.new_final) if final else (world.old_dev, world.new_dev)
    strangers = world.unknown_families[1::2] if final else world.unknown_families[::2]

    def about(people: Sequence[Person]) -> list[tuple[Person, str]]:
        known = [(person, attribute) for person in people for attribute in ATTRIBUTES]
        return draw.sample(known, min(items, len(known)))

    def facts(people: Sequence[Person]) -> list[Turn]:
        return [
            skills.fact(person, attribute, draw.choice(skills.FACT_QUESTIONS[attribute]))
            for person, attribute in about(people)
        ]

    tasks = {
        "old facts": facts(old),
        "new facts": facts(new),
        "refuse": [
            skills.refusal(draw, text.stranger(draw, world.first_names, strangers))
            for _ in range(items)
        ],
    }
    for skill in skills.WORD_SKILLS:
        tasks[skill] = [skills.word_skill(draw, skill) for _ in range(items)]
    return tasks


@torch.no_grad()
def right(
    weights: Weights, shape: Shape, tokenizer: Tokenizer, turns: Sequence[Turn], device: str = "cpu"
) -> list[bool]:
    """Which turns the model gets exactly right when it replies greedily.

    One forward pass a turn: a greedy reply is right exactly if, given the right reply so far,
    the likeliest next token is at every place the right one, the end of the turn included.
    """
    pairs = [turn_ids(tokenizer, turn) for turn in turns]
    weights = {name: w.to(device) for name, w in weights.items()}
    verdicts: list[bool] = []
    for start in range(0, len(pairs), 200):
        chunk = pairs[start : start + 200]
        length = max(len(prompt) + len(reply) for prompt, reply in chunk)
        ids = torch.zeros(len(chunk), length, dtype=torch.long)
        wanted = torch.full_like(ids, -1)
        for row, (prompt, reply) in enumerate(chunk):
            end = len(prompt) + len(reply)
            ids[row, :end] = torch.tensor(prompt + reply)
            wanted[row, len(prompt) - 1 : end - 1] = torch.tensor(reply)
        ids, wanted = ids.to(device), wanted.to(device)
        features = hidden_states(weights, shape, ids, None)
        places = wanted >= 0
        wrong = torch.zeros_like(places)
        wrong[places] = logits(weights, features[places]).argmax(-1) != wanted[places]
        verdicts += (~wrong.any(dim=1)).tolist()
    return verdicts


def score(
    weights: Weights,
    shape: Shape,
    tokenizer: Tokenizer,
    tasks: Mapping[str, Sequence[Turn]],
    names: Iterable[str] | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Per cent right of each task (of those in `names`, if given)."""
    chosen = list(names or tasks)
    verdicts = right(weights, shape, tokenizer, [t for n in chosen for t in tasks[n]], device)
    result, start = {}, 0
    for name in chosen:
        end = start + len(tasks[name])
        result[name] = 100 * sum(verdicts[start:end]) / len(tasks[name])
        start = end
    return result
