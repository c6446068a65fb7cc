"""Writes docs/study-encoders.md from template.md and the results.

    python -m studies.encoders.page

The words that depend on the results (what holds, what is undecided) are chosen here from the
intervals, by the rules of the preregistration.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

from studies import pages
from studies.encoders.analysis import (
    ROLES,
    Arm,
    Direction,
    Estimate,
    directions,
    estimate,
    read_arm,
)
from studies.encoders.settings import PREREGISTRATION, SETTINGS, Settings, digest, read_settings

TEMPLATE = Path(__file__).parent / "template.md"
FOLDER = Path("docs/study-encoders")
NONE = "–"
FEWEST = 3  # seeds that the registration demands for a claim
TITLES = {"code": "code search", "medical": "medical questions"}


class Findings:
    """All arms of a results folder, analyzed when first asked for."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """The arms, some perhaps without a completed seed."""
        order = self.settings.order
        return {name: read_arm(self.folder, name, order) for name in self.settings.arms}

    @cached_property
    def found(self) -> dict[str, dict[str, Direction]]:
        """{arm: {skill: measures}} of the arms that have a completed seed."""
        return {
            name: directions(arm, self.settings.resamples)
            for name, arm in self.arms.items()
            if arm.seeds
        }

    def rows(self, cells: Callable[[Direction], list[str]]) -> list[list[str]]:
        """One row per arm and direction."""
        return [
            [f"{arm} (n = {len(self.arms[arm].seeds)})", TITLES[skill], *cells(direction)]
            for arm, both in self.found.items()
            for skill, direction in both.items()
        ]


def shown(found: Estimate | None) -> str:
    """An estimate, or a dash where the registration forbids to report it."""
    return NONE if found is None else str(found)


def scores(findings: Findings, name: str) -> str:
    """Scores of all roles: on the skill, on the domain, or on both."""

    def cells(direction: Direction) -> list[str]:
        place = {"skill": direction.skill, "domain": direction.domain}.get(name, name)
        return [str(estimate(direction.scores[role][place])) for role in ROLES]

    return pages.table(["arm", "skill", *ROLES], findings.rows(cells))


def claims(direction: Direction, gain: Estimate, ratio: Estimate) -> list[str]:
    """The verdicts on the two claims, or that there are too few seeds for any."""
    if direction.seeds < FEWEST:
        return ["too few seeds"] * 2
    more = {"above 0": "holds", "below 0": "refuted"}.get(gain.verdict, "undecided")
    return [more, "holds" if ratio.low >= 95 else "does not hold"]


def primary(findings: Findings) -> str:
    """The two primary measures and the two claims."""

    def cells(direction: Direction) -> list[str]:
        gain, ratio = estimate(direction.gain()), direction.share_of_direct("both")
        return [
            str(gain),
            str(estimate(direction.room())),
            shown(direction.share_of_gain()),
            *claims(direction, gain, ratio),
        ]

    head = [
        "Gain",
        "direct's gain",
        "share of the gain, %",
        "more than one has",
        "≥ 95 % of direct",
    ]
    return pages.table(["arm", "skill", *head], findings.rows(cells))


def differences(findings: Findings) -> str:
    """Paired differences in points."""

    def cells(direction: Direction) -> list[str]:
        skill, domain = direction.skill, direction.domain
        wanted = [
            ("post", skill),
            ("direct", skill),
            ("new base", domain),
            ("direct", domain),
            ("direct", "both"),
            ("average", "both"),
        ]
        return [str(estimate(direction.difference("ParamΔ", *pair))) for pair in wanted]

    head = [
        "− post, skill",
        "− direct, skill",
        "− new base, domain",
        "− direct, domain",
        "− direct, both",
        "− average, both",
    ]
    return pages.table(["arm", "skill", *head], findings.rows(cells))


def ratios(findings: Findings) -> str:
    """Gap closed and the paper's ratio, in percent."""

    def cells(direction: Direction) -> list[str]:
        benchmarks = ("humaneval", "mbpp") if direction.skill == "code" else ()
        gaps = [direction.gap_closed(name) for name in (direction.skill, *benchmarks)]
        return [
            *(shown(gap) for gap in [*gaps, None, None][:3]),
            str(direction.share_of_direct(direction.skill, "post")),
            str(direction.share_of_direct(direction.skill)),
            str(direction.share_of_direct(direction.skill, capped=True)),
            str(direction.share_of_direct("both", "new base")),
            str(direction.share_of_direct("both")),
        ]

    head = [
        "gap closed, skill",
        "HumanEval",
        "MBPP",
        "post / direct, skill",
        "ParamΔ / direct, skill",
        "capped",
        "new base / direct, both",
        "ParamΔ / direct, both",
    ]
    return pages.table(["arm", "skill", *head], findings.rows(cells))


def hard_negatives(findings: Findings) -> str:
    """How often the right document comes first within its own file or disease, in percent."""

    def cells(direction: Direction) -> list[str]:
        return [str(estimate(direction.near[role][direction.skill])) for role in ROLES]

    return pages.table(["arm", "skill", *ROLES], findings.rows(cells))


def geometry(findings: Findings) -> str:
    """Norms of what the two trainings did, their cosine, and whether both mixes are equal."""
    rows = []
    for name in findings.found:
        arm = findings.arms[name]
        for seed, record in zip(arm.seeds, arm.records["mix"], strict=True):
            norms = record["norms"]
            rows.append(
                [
                    name,
                    str(seed),
                    f"{norms['code']:.2f}",
                    f"{norms['medical']:.2f}",
                    f"{record['cosine']:.3f}",
                    "yes" if record["same_in_both_directions"] else "no",
                ]
            )
    head = ["arm", "seed", "‖Δ code‖", "‖Δ medical‖", "cosine", "both mixes have the same bytes"]
    return pages.table(head, rows)


def progress(findings: Findings) -> str:
    """Which seeds were registered and which are complete."""
    rows = []
    for name, arm in findings.arms.items():
        registered = [seed for a, seed in findings.settings.order if a == name]
        rows.append(
            [
                name,
                f"{findings.settings.arms[name]:g}",
                ", ".join(map(str, registered)),
                ", ".join(map(str, arm.seeds)) or "none",
            ]
        )
    return pages.table(["arm", "rate", "registered seeds", "completed seeds"], rows)


def data(findings: Findings) -> str:
    """Sizes of the data."""
    rows = [
        [name, str(part["pairs"]), str(part["groups"]), f"`{part['sha256'][:12]}`"]
        for name, part in findings.settings.data.items()
    ]
    return pages.table(["part", "pairs", "groups", "SHA-256"], rows)


def result(findings: Findings) -> str:
    """The first paragraph: what the completed seeds of the usual arm say."""
    usual = findings.arms["usual"]
    registered = sum(arm == "usual" for arm, _ in findings.settings.order)
    if not usual.seeds:
        return (
            f"**No result yet.** None of the {registered} registered seeds is complete. "
            "This page is generated from the results and will hold them when they exist."
        )
    both = findings.found["usual"]
    scores_of = both["code"].scores
    points = {role: estimate(scores_of[role]["both"]).value for role in ROLES}
    medical = estimate(both["medical"].scores["direct"]["both"]).value
    sentences = [f"**The result, after {len(usual.seeds)} of {registered} registered seeds.**"]
    if len(usual.seeds) < FEWEST:
        sentences.append(
            f"**The registration demands {FEWEST} seeds for any claim, so nothing is claimed yet.**"
        )
    sentences.append(
        "Mean of code search and medical questions (MRR@10 × 100): "
        f"base {points['base']:.1f}, the model trained on code {points['post']:.1f}, "
        f"the model trained on medical questions {points['new base']:.1f}, "
        f"their ParamΔ {points['ParamΔ']:.1f}, direct {points['direct']:.1f} (code last) "
        f"and {medical:.1f} (medical last), the plain average of the two models "
        f"{points['average']:.1f}."
    )
    sentences += [_sentence(skill, direction) for skill, direction in both.items()]
    return " ".join(sentences)


def _sentence(skill: str, direction: Direction) -> str:
    gain = estimate(direction.gain())
    on_skill = estimate(direction.difference("ParamΔ", "post", skill))
    verdict = {
        "above 0": "gives more than the better of post and new base",
        "below 0": "gives less than the better of post and new base",
        "undecided": "is not clearly different from the better of post and new base",
    }[gain.verdict]
    return (
        f"With {TITLES[skill]} as the skill, ParamΔ {verdict}: {gain} points. "
        f"On the skill alone the difference from post, unchanged, is {on_skill} points."
    )


def values(findings: Findings, name: str) -> str:
    """A named value of the template."""
    settings = findings.settings
    plain = {
        "result": lambda: result(findings),
        "steps": lambda: str(settings.course.steps),
        "batch": lambda: str(settings.course.groups * settings.course.per_group),
        "query length": lambda: str(settings.query_length),
        "document length": lambda: str(settings.document_length),
        "resamples": lambda: f"{settings.resamples:,}",
        "settings digest": lambda: digest(SETTINGS),
        "preregistration digest": lambda: digest(PREREGISTRATION),
        "python": lambda: settings.python,
    }
    return plain[name]()


TABLES: dict[str, Callable[[Findings], str]] = {
    "progress": progress,
    "data": data,
    "primary": primary,
    "both": partial(scores, name="both"),
    "skill": partial(scores, name="skill"),
    "domain": partial(scores, name="domain"),
    "humaneval": partial(scores, name="humaneval"),
    "mbpp": partial(scores, name="mbpp"),
    "differences": differences,
    "ratios": ratios,
    "hard negatives": hard_negatives,
    "geometry": geometry,
}


def render(template: str, folder: Path, settings: Settings) -> str:
    """The page."""
    findings = Findings(folder, settings)
    return pages.render(template, partial(values, findings), lambda name: TABLES[name](findings))


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m studies.encoders.page", description=__doc__)
    parser.add_argument("--page", type=Path, default=Path("docs/study-encoders.md"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="with the results")
    options = parser.parse_args()
    template = TEMPLATE.read_text(encoding="utf-8")
    page = render(template, options.folder, read_settings())
    options.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
