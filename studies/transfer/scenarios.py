"""Questions 1, 2, 4 and 5: the paper's four scenarios, α, the parts of Δ, the controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studies.lineage.make import FIRST_CHAT, SECOND_CHAT
from studies.lineage.model import Weights
from studies.lineage.skills import WORD_SKILLS
from studies.transfer.lab import Lab
from studies.transfer.measures import measure
from studies.transfer.mix import mix, permuted, randomised, without

WORDS_CHAT = ("repeat", "reverse", "first", "last", "count")
ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
WEIGHTS = ((1.0, 1.0), (0.9, 0.9), (0.75, 0.75), (0.5, 0.5), (1.0, 0.5), (0.5, 1.0))
PARTS = ("embedding", "attention", "mlp", "norms")
TASKS_TAUGHT = {
    "facts": ("old facts", "new facts"),
    "refuse": ("refuse",),
    **{skill: (skill,) for skill in WORD_SKILLS},
}


@dataclass(frozen=True)
class Scenario:
    """One of the paper's: what the new base read, and which chat trainings are moved to it."""

    name: str
    new_base: str
    chats: tuple[tuple[str, ...], ...]

    @property
    def abilities(self) -> tuple[str, ...]:
        """Everything that the chat trainings teach: what direct learns at one go."""
        return tuple(ability for chat in self.chats for ability in chat)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that test what was taught."""
        return tuple(task for ability in self.abilities for task in TASKS_TAUGHT[ability])


SCENARIOS = (
    Scenario("new general base", "general", (FIRST_CHAT,)),
    Scenario("task-specific Δ", "general", (WORDS_CHAT,)),
    Scenario("continued base with new knowledge", "domain", (FIRST_CHAT,)),
    Scenario("several Δ", "general", (FIRST_CHAT, SECOND_CHAT)),
)


def run_scenario(lab: Lab, scenario: Scenario, final: bool) -> dict:
    """Every model's scores on the scenario's tasks, and α's; and what was measurable before.

    With `final` the questions are about the final people, and only α = 1 is tried.
    """
    tasks = lab.tasks(final)
    base, new = lab.base, lab.new_base(scenario.new_base)
    posts = [lab.chatted("base", chat) for chat in scenario.chats]
    direct = lab.chatted(scenario.new_base, scenario.abilities)

    def scored(weights: Weights) -> dict[str, float]:
        return lab.score(weights, tasks, scenario.tasks)

    def at(scales: Sequence[float]) -> dict[str, float]:
        terms = [(post, base, scale) for post, scale in zip(posts, scales, strict=True)]
        return scored(mix(new, terms))

    one = (1.0,) * len(posts)
    result: dict = {
        "seed": lab.seed,
        "scenario": scenario.name,
        "tasks": scenario.tasks,
        "models": {
            "base": scored(base),
            **{f"post {i + 1}" if i else "post": scored(post) for i, post in enumerate(posts)},
            "new base": scored(new),
            "ParamΔ": at(one),
            "direct": scored(direct),
        },
    }
    if not final:
        result["alpha"] = {str(alpha): at([alpha] * len(posts)) for alpha in ALPHAS}
        if len(posts) > 1:
            result["weights"] = {f"{a:g}, {b:g}": at((a, b)) for a, b in WEIGHTS}
        text = lab.held_out(scenario.new_base)
        result["measures"] = measure(base, posts[0], new, lab.shape, text)
    return result


def run_parts(lab: Lab) -> dict:
    """The first scenario with one part of Δ left out at a time."""
    scenario = SCENARIOS[0]
    tasks = lab.tasks(final=False)
    base, new = lab.base, lab.new_base(scenario.new_base)
    post = lab.chatted("base", scenario.chats[0])
    scores = {
        part: lab.score(mix(new, [(without(post, base, part), base, 1.0)]), tasks, scenario.tasks)
        for part in ("nothing", *PARTS)
    }
    return {"seed": lab.seed, "tasks": scenario.tasks, "without": scores}


def run_controls(lab: Lab, other: Lab) -> dict:
    """The first scenario with a Δ that should not work: `other` is the lab of another seed."""
    scenario = SCENARIOS[0]
    tasks = lab.tasks(final=False)
    base, new = lab.base, lab.new_base(scenario.new_base)
    post = lab.chatted("base", scenario.chats[0])
    deltas = {
        "the true Δ": (post, base, 1.0),
        "α = −1": (post, base, -1.0),
        "Δ of an unrelated base": (other.chatted("base", scenario.chats[0]), other.base, 1.0),
        "permuted Δ": (permuted(post, base, lab.seed), base, 1.0),
        "random Δ of the same norms": (randomised(post, base, lab.seed), base, 1.0),
    }
    scores = {
        name: lab.score(mix(new, [term]), tasks, scenario.tasks) for name, term in deltas.items()
    }
    return {"seed": lab.seed, "tasks": scenario.tasks, "controls": scores}
