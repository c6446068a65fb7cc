"""The generated world: who is in it and what is true of them. Knows nothing of text.

Everybody and everything personal here is made up. A `World` is a pure function of its seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_CONSONANTS = "bdgklmnprstvz"
_VOWELS = "aeiou"

JOBS = (  # noqa: SIM905 (a table of words reads best as text)
    "baker carpenter doctor farmer gardener judge lawyer mason miller nurse painter pilot "
    "plumber porter potter sailor singer smith tailor teacher waiter weaver writer builder"
).split()
FOODS = (  # noqa: SIM905 (a table of words reads best as text)
    "beans bread cabbage carrots cheese cherries dumplings figs fish grapes honey lentils "
    "mushrooms noodles nuts olives onions pancakes pears peas plums rice soup turnips"
).split()
PETS = (  # noqa: SIM905 (a table of words reads best as text)
    "badger canary cat crow dog donkey duck falcon fox frog goat goose hamster hare hen "
    "lizard mouse owl parrot pony rabbit swan turtle weasel"
).split()
ATTRIBUTES = ("home", "job", "food", "pet", "birth")


@dataclass(frozen=True)
class Person:
    """One made-up person."""

    name: str
    home: str
    job: str
    food: str
    pet: str
    birth: str


@dataclass(frozen=True)
class World:
    """Two generations of people, and the families that nobody in the world belongs to.

    Old people are in the text that the base reads, new people only in what the new base reads.
    Of each, the asked are those about whom the text holds questions and answers (and of whom,
    if old, the chat training asks); dev and final are never asked about in any training. Dev
    people may be used for choosing settings, final people only for the last figures.
    """

    old_asked: tuple[Person, ...]
    old_dev: tuple[Person, ...]
    old_final: tuple[Person, ...]
    new_asked: tuple[Person, ...]
    new_dev: tuple[Person, ...]
    new_final: tuple[Person, ...]
    first_names: tuple[str, ...]
    strange_families: tuple[str, ...]
    unknown_families: tuple[str, ...]

    @property
    def old(self) -> tuple[Person, ...]:
        """Everybody in the base's text."""
        return self.old_asked + self.old_dev + self.old_final

    @property
    def new(self) -> tuple[Person, ...]:
        """Everybody who is only in the new base's text."""
        return self.new_asked + self.new_dev + self.new_final


def make_world(seed: int, old: int = 240, new: int = 80) -> World:
    """A world of `old` + `new` people.

    Two thirds of the old and a third of the new are asked about; a third of the others are final.
    `strange_families` are for refusals in training, `unknown_families` for refusals in tests.
    """
    draw = random.Random(f"world {seed}")
    taken = set(JOBS) | set(FOODS) | set(PETS)
    first_names = _names(draw, 32, 2, taken)
    families = _names(draw, 32, 3, taken)
    towns = _names(draw, 24, 3, taken)
    outside = _names(draw, 600, 3, taken)
    pairs = [f"{first} {family}" for first in first_names for family in families]
    people = [
        Person(
            name,
            home=draw.choice(towns),
            job=draw.choice(JOBS),
            food=draw.choice(FOODS),
            pet=draw.choice(PETS),
            birth=str(draw.randint(1970, 1999)),
        )
        for name in draw.sample(pairs, old + new)
    ]
    old_asked, old_dev, old_final = _split(people[:old], old * 2 // 3)
    new_asked, new_dev, new_final = _split(people[old:], new // 3)
    return World(
        old_asked,
        old_dev,
        old_final,
        new_asked,
        new_dev,
        new_final,
        tuple(first_names),
        tuple(outside[:500]),
        tuple(outside[500:]),
    )


def _names(draw: random.Random, count: int, syllables: int, taken: set[str]) -> list[str]:
    """`count` names nobody has yet, e.g. "Romido"; adds them to `taken`."""
    names: list[str] = []
    while len(names) < count:
        sounds = (draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range(syllables))
        name = "".join(sounds).capitalize()
        if name.lower() not in taken:
            taken.add(name.lower())
            names.append(name)
    return names


def _split(people: list[Person], asked: int) -> tuple[tuple[Person, ...], ...]:
    """(asked, dev, final) with twice as many dev as final."""
    dev = asked + (len(people) - asked) * 2 // 3
    return tuple(people[:asked]), tuple(people[asked:dev]), tuple(people[dev:])
