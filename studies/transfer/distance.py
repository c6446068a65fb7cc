"""Question 3: how far can the new base move before transfer breaks, and what foretells it?"""

from __future__ import annotations

from collections.abc import Sequence

from studies.transfer.figures import average, efficiency
from studies.transfer.lab import Lab
from studies.transfer.measures import measure
from studies.transfer.mix import mix
from studies.transfer.scenarios import SCENARIOS

MULTIPLES = (0.25, 0.5, 1, 2, 4, 8, 16)
RATES = (1e-4, 3e-4, 1e-3)


def run_distance(
    lab: Lab, rates: Sequence[float] = RATES, multiples: Sequence[float] = MULTIPLES
) -> list[dict]:
    """Transfer to the base continued for a multiple of the steps, at each learning rate.

    One entry a new base: how it was made, the predictors, the mean scores, the efficiency.
    """
    scenario = SCENARIOS[0]
    tasks, text = lab.tasks(final=False), lab.held_out("general")
    base, post = lab.base, lab.chatted("base", scenario.chats[0])
    usual = lab.programme.continuation.steps
    points = []
    for rate in rates:
        steps = {max(1, round(multiple * usual)): multiple for multiple in multiples}
        for step, name in lab.waypoints(rate, list(steps)).items():
            new = lab.waypoint(name)
            direct = lab.chatted(name, scenario.abilities)
            mixed = mix(new, [(post, base, 1.0)])
            means = {
                model: round(average(lab.score(w, tasks, scenario.tasks), scenario.tasks), 2)
                for model, w in (("new base", new), ("ParamΔ", mixed), ("direct", direct))
            }
            points.append(
                {
                    "seed": lab.seed,
                    "rate": rate,
                    "steps": step,
                    "multiple": steps[step],
                    "measures": measure(base, post, new, lab.shape, text),
                    "scores": means,
                    "efficiency": round(efficiency(means["ParamΔ"], means["direct"]), 2),
                }
            )
    return points
