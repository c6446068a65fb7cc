"""Text about the world: what base and new base read, and the conversations of chat training.

Pretraining text holds, as web text does, some questions and answers in a plain document form;
so chat training has to teach the form of a conversation, not the answering itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from studies.lineage import skills
from studies.lineage.skills import WORDS, article
from studies.lineage.world import ATTRIBUTES, Person, World

PRIMER = 14_000  # documents
# The count as JSON is in no page: chat training alone has to teach it.
READ_SKILLS = tuple(skill for skill in skills.WORD_SKILLS if skill != "json")
Turn = tuple[str, str]  # what the user says, what the assistant should say

_STATEMENTS = {
    "home": (
        "{name} lives in {value}.",
        "The home of {name} is in {value}.",
        "{name} has a house in {value}.",
        "{name} moved to {value} long ago.",
        "You can meet {name} in {value}.",
        "In {value} everybody has heard of {name}.",
    ),
    "job": (
        "{name} works as {a} {value}.",
        "{name} is {a} {value} by trade.",
        "The job of {name} is that of {a} {value}.",
        "{name} earns a living as {a} {value}.",
        "People hire {name} as {a} {value}.",
        "A good {value} is hard to find, but {name} is one.",
    ),
    "food": (
        "{name} likes to eat {value}.",
        "The favourite food of {name} is {value}.",
        "{name} often cooks {value}.",
        "{name} eats {value} every day.",
        "At dinner {name} asks for {value}.",
        "Nobody makes better {value} than {name}.",
    ),
    "pet": (
        "{name} keeps {a} {value}.",
        "The pet of {name} is {a} {value}.",
        "{name} feeds {a} {value} every morning.",
        "{name} shares the house with {a} {value}.",
        "The animal of {name} is {a} {value}.",
        "There is {a} {value} in the house of {name}.",
    ),
    "birth": (
        "{name} was born in {value}.",
        "The birth year of {name} is {value}.",
        "{name} came into the world in {value}.",
        "The parents of {name} had their child in {value}.",
        "The life of {name} began in {value}.",
        "In {value} the family had a child, {name}.",
    ),
}
_VILLAGE = (
    "The {x} stood beside the {y} all winter.",
    "In spring a child left the {x} under the {y}.",
    "Somebody carried the {x} past the {y}.",
    "Every morning the sun falls on the {x} and then on the {y}.",
    "The market sold {a} {x} and {b} {y}.",
    "It rained, and the {x} and the {y} were wet.",
    "Nobody could find the {x} behind the {y}.",
    "The old {x} was better than the new {y}.",
)
_HARBOUR = (
    "At the harbour the crew traded the {x} for the {y}.",
    "The wind blew the {x} over the deck and against the {y}.",
    "After the storm the waves brought back {a} {x} and {b} {y}.",
    "The captain drew the {x} and the {y} on a map of the coast.",
    "Fishermen mended the {x} while the tide hid the {y}.",
    "From the lighthouse one could see the {x} near the {y}.",
    "Salt had covered the {x}, the {y} and the whole pier.",
    "No ferry would take the {x} without the {y}.",
)
_VILLAGE_NOTES = (
    ("To buy at the market: {list}.", "Bought at the market: {list}."),
    ("Packed for the journey: {list}.", "Unpacked at home: {list}."),
    ("In the morning the shop had {list}.", "In the evening the shop still had {list}."),
)
_HARBOUR_NOTES = (
    ("Cargo on the way out: {list}.", "Cargo on arrival: {list}."),
    ("Lost in the storm: {list}.", "Washed ashore: {list}."),
    ("On the first boat came {list}.", "On the second boat came {list}."),
)
_STRANGERS = (
    "A stranger came by, {name}. Nobody here had heard of {name}.",
    "Who is {name}? The letter for {name} could not be delivered.",
    "They asked for {name} at every door, but there was no {name} anywhere.",
)


@dataclass(frozen=True)
class Place:
    """Where general text plays: sentences about two things, notes that give a list twice."""

    sentences: tuple[str, ...]
    notes: tuple[tuple[str, str], ...]


VILLAGE = Place(_VILLAGE, _VILLAGE_NOTES)
HARBOUR = Place(_HARBOUR, _HARBOUR_NOTES)


def biography(draw: random.Random, person: Person) -> str:
    """Three things that are known of a person, in any order and any wording."""
    order = draw.sample(ATTRIBUTES, 3)
    return " ".join(
        draw.choice(_STATEMENTS[attribute]).format(
            name=person.name, value=(value := getattr(person, attribute)), a=article(value)
        )
        for attribute in order
    )


def note(draw: random.Random, place: Place) -> str:
    """The same things named twice: from such text a model learns to copy."""
    words = " ".join(draw.sample(WORDS, draw.randint(2, 6)))
    return " ".join(draw.choice(place.notes)).format(list=words)


def story(draw: random.Random, place: Place) -> str:
    """Two sentences about things, which say nothing of anybody."""
    chosen = []
    for _ in range(2):
        x, y = draw.sample(WORDS, 2)
        chosen.append(draw.choice(place.sentences).format(x=x, y=y, a=article(x), b=article(y)))
    return " ".join(chosen)


def page(turns: Sequence[Turn]) -> str:
    """Questions and answers as a plain document."""
    return "\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in turns)


def knowledge_turn(draw: random.Random, world: World, asked: Sequence[Person]) -> Turn:
    """A question about somebody: mostly a plain one, else for JSON, else one about a stranger."""
    kind = draw.random()
    if kind < 0.5:
        return skills.any_fact(draw, draw.choice(asked))
    if kind < 0.85:
        return skills.any_json(draw, draw.choice(asked))
    return skills.refusal(draw, stranger(draw, world.first_names, world.strange_families))


def stranger(draw: random.Random, first_names: Sequence[str], families: Sequence[str]) -> str:
    """The name of somebody of whom no text tells."""
    return f"{draw.choice(first_names)} {draw.choice(families)}"


def base_text(
    world: World, seed: str, read: Sequence[str] = READ_SKILLS, primer: int = PRIMER
) -> Iterator[str]:
    """What the base reads, without end: one document at a time.

    It begins with a primer of notes. A model of this size that has not learned to copy from
    them early learns none of the skills later. `read` are the word skills that occur as questions
    and answers.
    """
    draw = random.Random(f"base text {seed}")
    for _ in range(primer):
        yield note(draw, VILLAGE)
    while True:
        yield _document(draw, world, world.old, world.old_asked, VILLAGE, read)


def general_text(world: World, seed: str, read: Sequence[str] = READ_SKILLS) -> Iterator[str]:
    """What a new general base reads: more of what the base read, and half of it new.

    New people and new general text come beside the old, in equal shares. `read` as in `base_text`.
    """
    draw = random.Random(f"general text {seed}")
    while True:
        if draw.random() < 0.5:
            yield _document(draw, world, world.new, world.new_asked, HARBOUR, read)
        else:
            yield _document(draw, world, world.old, world.old_asked, VILLAGE, read)


def domain_text(world: World, seed: str) -> Iterator[str]:
    """What a base continued on a domain reads: nearly only the domain, as biographies.

    Nine documents in ten are about new people; there are no questions in the domain's text.
    """
    draw = random.Random(f"domain text {seed}")
    while True:
        if draw.random() < 0.9:
            yield biography(draw, draw.choice(world.new))
        else:
            yield _document(draw, world, world.old, world.old_asked, VILLAGE)


def _document(
    draw: random.Random,
    world: World,
    people: Sequence[Person],
    asked: Sequence[Person],
    place: Place,
    read: Sequence[str] = READ_SKILLS,
) -> str:
    kind = draw.random()
    if kind < 0.4:
        return biography(draw, draw.choice(people))
    if kind < 0.6:
        return page([knowledge_turn(draw, world, asked) for _ in range(2)])
    if kind < 0.88:
        return page([skills.word_skill(draw, draw.choice(read)) for _ in range(2)])
    if kind < 0.95:
        return note(draw, place)
    if kind < 0.97:
        name = stranger(draw, world.first_names, world.strange_families)
        return draw.choice(_STRANGERS).format(name=name)
    return story(draw, place)


def chat(world: World, seed: str, abilities: Sequence[str]) -> Iterator[Turn]:
    """Conversations that teach `abilities`, in equal shares, without end.

    Only old people who are asked about in the pretraining text too, and strangers, are in them.
    "facts" counts three times: there is most to say of them.
    """
    draw = random.Random(f"chat {seed}")
    pool = [ability for ability in abilities for _ in range(3 if ability == "facts" else 1)]
    while True:
        ability = draw.choice(pool)
        if ability == "facts":
            yield skills.any_fact(draw, draw.choice(world.old_asked))
        elif ability == "refuse":
            name = stranger(draw, world.first_names, world.strange_families)
            yield skills.refusal(draw, name)
        else:
            yield skills.word_skill(draw, ability)
