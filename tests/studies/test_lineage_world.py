"""The generated world and its text: reproducible, consistent, and without leaks to the tests."""

from __future__ import annotations

import itertools
import json

from studies.lineage import skills, text
from studies.lineage.score import make_tasks
from studies.lineage.world import make_world


def test_a_world_is_a_function_of_its_seed() -> None:
    """The same seed gives the same people, another seed others."""
    assert make_world(3) == make_world(3)
    assert make_world(3) != make_world(4)


def test_nobody_is_twice_in_the_world() -> None:
    """Names are unique, and no stranger has the family name of somebody in the world."""
    world = make_world(0)
    names = [person.name for person in world.old + world.new]
    assert len(set(names)) == len(names) == 320
    strange = set(world.strange_families) | set(world.unknown_families)
    assert not {name.split()[1] for name in names} & strange


def test_test_people_are_in_no_question_of_any_training() -> None:
    """Dev and final people appear in biographies only, final people in no dev task."""
    world = make_world(0, 30, 15)
    people = world.old_dev + world.old_final + world.new_dev + world.new_final
    tested = {person.name for person in people}
    read = itertools.chain(
        itertools.islice(text.base_text(world, "a"), text.PRIMER, text.PRIMER + 2000),
        itertools.islice(text.general_text(world, "a"), 2000),
        itertools.islice(text.domain_text(world, "a"), 2000),
    )
    pages = " ".join(document for document in read if "Question:" in document)
    talk = itertools.islice(text.chat(world, "a", ("facts", "refuse", "json")), 2000)
    pages += " ".join(question for question, _ in talk)
    assert not [name for name in tested if name in pages]
    final = {person.name for person in world.old_final + world.new_final}
    dev_tasks = json.dumps(make_tasks(world, "a", 50), ensure_ascii=False)
    assert not [name for name in final if name in dev_tasks]


def test_base_text_does_not_know_the_new_people() -> None:
    """What the base reads mentions no new person."""
    world = make_world(0, 30, 15)
    read = " ".join(itertools.islice(text.base_text(world, "a"), text.PRIMER + 3000))
    assert not [person.name for person in world.new if person.name in read]
    assert all(person.name in read for person in world.old)


def test_answers_of_word_skills() -> None:
    """Each skill's answer to the same three words."""
    words = ["pear", "moon", "arrow"]
    answers = {skill: skills.apply_word_skill(skill, words) for skill in skills.WORD_SKILLS}
    assert answers == {
        "repeat": "pear moon arrow",
        "reverse": "arrow moon pear",
        "first": "pear",
        "last": "arrow",
        "count": "three",
        "sort": "arrow moon pear",
        "join": "pear and moon and arrow",
        "list": "- pear\n- moon\n- arrow",
        "json": '{"count": 3}',
    }


def test_facts_and_json_say_what_is_true() -> None:
    """A fact's sentence and its JSON."""
    person = make_world(0).old[0]
    question, answer = skills.fact(person, "home", skills.FACT_QUESTIONS["home"][0])
    assert question == f"Where does {person.name} live?"
    assert answer == f"{person.name} lives in {person.home}."
    _, reply = skills.as_json(person, "pet")
    assert json.loads(reply) == {"name": person.name, "pet": person.pet}
    assert skills.article("owl") == "an"
    assert skills.article("goat") == "a"
