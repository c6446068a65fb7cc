"""`paramdelta demo`: the tour on the shipped lineage."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class DemoRecipe(str, Enum):
    """What the demo mixes."""

    plain = "plain"
    several = "several"


def demo(
    recipe: Annotated[
        DemoRecipe, typer.Option(help="plain: one Δ; several: a second post's Δ as well.")
    ] = DemoRecipe.plain,
    scale: Annotated[
        float, typer.Option("--scale", "--alpha", metavar="α", help="Factor of the Δ.")
    ] = 1.0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the mixed model goes.")] = Path(
        "demo-out/paramdelta"
    ),
) -> None:
    """Mix a tiny shipped lineage of models and talk to the result: three acts, under a minute.

    Needs torch and transformers: pip install "paramdelta[hf]".
    """
    from paramdelta import api
    from paramdelta.cli.show.demo import show_conversation, show_scores
    from paramdelta.cli.show.plan import show_start
    from paramdelta.cli.show.progress import reporter
    from paramdelta.cli.show.results import show_mix, show_verify
    from paramdelta.cli.show.terminal import say
    from paramdelta.demo import tour
    from paramdelta.demo.chat import require_packages

    require_packages()
    say("Act 1: the mix", bold=True)
    plan = api.plan(tour.recipe(recipe.value, scale))
    show_start(plan, as_json=False)
    with reporter("mixing", as_json=False) as progress:
        result = api.mix(plan, out, overwrite=True, progress=progress.mix)
    show_mix(result, as_json=False)
    show_verify(api.verify(out, share=1.0), out, as_json=False)

    say()
    say("Act 2: the same questions to all", bold=True)
    questions = tour.questions(recipe.value)
    show_conversation(questions, tour.ask(out, questions))

    say()
    say("Act 3: what came across", bold=True)
    show_scores(tour.score(out))
    say()
    say("Now with your own models:", bold=True)
    say(
        "  paramdelta plan --post POST --base OLD_BASE --new-base NEW_BASE",
        "  paramdelta chat --post POST --base OLD_BASE --new-base NEW_BASE",
        "  paramdelta mix  --post POST --base OLD_BASE --new-base NEW_BASE --out DIR",
        "where each is a folder or a Hub id such as org/name@revision.",
    )
