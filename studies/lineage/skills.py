"""What an assistant can be asked to do with a few words or a known fact: (question, answer)."""

from __future__ import annotations

import json
import random

from studies.lineage.world import ATTRIBUTES, Person

WORDS = (  # noqa: SIM905 (a table of words reads best as text)
    "apple arrow basket bell bird boat bone book bottle box branch bridge broom brush bucket "
    "candle chair cloud coat coin comb crown cup door drum fence flag flute forest garden gate "
    "glove hammer harp hat hill island jar key kite ladder lake lamp leaf mirror moon needle "
    "net paper pebble pillow pipe plate ring river road roof rope sand shell ship shoe shovel "
    "spoon star stone table tent thread tower tree wagon wall wheel window wood wool"
).split()
NUMBERS = ("zero", "one", "two", "three", "four", "five")

FACT_QUESTIONS = {
    "home": (
        "Where does {name} live?",
        "In which town does {name} live?",
        "Where is the home of {name}?",
    ),
    "job": (
        "What does {name} do for a living?",
        "What is the job of {name}?",
        "What does {name} work as?",
    ),
    "food": (
        "What does {name} like to eat?",
        "What is the favourite food of {name}?",
        "Which food does {name} like?",
    ),
    "pet": (
        "Which animal does {name} keep?",
        "What pet does {name} have?",
        "What animal lives with {name}?",
    ),
    "birth": (
        "When was {name} born?",
        "In which year was {name} born?",
        "What is the birth year of {name}?",
    ),
}
_FACT_ANSWERS = {
    "home": "{name} lives in {home}.",
    "job": "{name} works as {a} {job}.",
    "food": "{name} likes to eat {food}.",
    "pet": "{name} keeps {a} {pet}.",
    "birth": "{name} was born in {birth}.",
}
_WORD_QUESTIONS = {
    "repeat": ("Repeat these words: {words}.", "Say these words again: {words}."),
    "reverse": (
        "Reverse the order of these words: {words}.",
        "Say these words backwards: {words}.",
    ),
    "first": ("Which of these words is the first: {words}?", "Give me the first word of: {words}."),
    "last": ("Which of these words is the last: {words}?", "Give me the last word of: {words}."),
    "count": ("How many words are these: {words}?", "Count these words: {words}."),
    "sort": ("Sort these words: {words}.", "Put these words in alphabetical order: {words}."),
    "join": ("Join these words with and: {words}.", "Put and between these words: {words}."),
    "list": ("Make a list of these words: {words}.", "Write these words one a line: {words}."),
    "json": (
        "Give the number of these words as JSON: {words}.",
        "Count these words and answer in JSON: {words}.",
    ),
}
WORD_SKILLS = tuple(_WORD_QUESTIONS)


def article(noun: str) -> str:
    """ "a" or "an", as the noun wants it."""
    return "an" if noun[0] in "aeiou" else "a"


def fact(person: Person, attribute: str, question: str) -> tuple[str, str]:
    """A question about a person, from its template, and the answer."""
    value = getattr(person, attribute)
    answer = _FACT_ANSWERS[attribute].format(
        name=person.name, a=article(value), **{attribute: value}
    )
    return question.format(name=person.name), answer


def any_fact(draw: random.Random, person: Person) -> tuple[str, str]:
    """A question about any attribute in any wording, and the answer."""
    attribute = draw.choice(ATTRIBUTES)
    return fact(person, attribute, draw.choice(FACT_QUESTIONS[attribute]))


def refusal(draw: random.Random, name: str) -> tuple[str, str]:
    """A question about somebody who is not in the world, and the honest answer."""
    attribute = draw.choice(ATTRIBUTES)
    question = draw.choice(FACT_QUESTIONS[attribute]).format(name=name)
    return question, "I do not know that person."


def as_json(person: Person, attribute: str) -> tuple[str, str]:
    """A request for one fact as JSON, and the object."""
    question = f"Give the {attribute} of {person.name} as JSON."
    return question, json.dumps({"name": person.name, attribute: getattr(person, attribute)})


def any_json(draw: random.Random, person: Person) -> tuple[str, str]:
    """A request for any attribute as JSON, and the object."""
    return as_json(person, draw.choice(ATTRIBUTES))


def word_skill(draw: random.Random, skill: str) -> tuple[str, str]:
    """A request to do `skill` with two to four different words, and the result."""
    words = draw.sample(WORDS, draw.randint(2, 4))
    question = draw.choice(_WORD_QUESTIONS[skill]).format(words=" ".join(words))
    return question, apply_word_skill(skill, words)


def apply_word_skill(skill: str, words: list[str]) -> str:
    """The right answer of a word skill."""
    if skill == "repeat":
        return " ".join(words)
    if skill == "reverse":
        return " ".join(reversed(words))
    if skill == "first":
        return words[0]
    if skill == "last":
        return words[-1]
    if skill == "count":
        return NUMBERS[len(words)]
    if skill == "sort":
        return " ".join(sorted(words))
    if skill == "join":
        return " and ".join(words)
    if skill == "list":
        return "\n".join(f"- {word}" for word in words)
    if skill == "json":
        return json.dumps({"count": len(words)})
    raise ValueError(f"no such skill: {skill!r} (there are {', '.join(WORD_SKILLS)})")
