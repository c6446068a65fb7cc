"""`paramdelta chat`: talk to a mix in the terminal."""

from typing import Annotated

import typer

from paramdelta.cli.options import RecipeOptions, RunOptions


def chat(
    recipe: RecipeOptions,
    run: RunOptions,
    device: Annotated[
        str | None,
        typer.Option(metavar="MAP", help="cpu, cuda, or auto.  [default: auto with accelerate]"),
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="The system prompt.")] = "",
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens of an answer, at most.")
    ] = 512,
) -> None:
    """Talk to a mix that is not written. /help lists what else you can do there.

    Lines from a pipe are answered one after the other. Needs torch and transformers: pip install
    "paramdelta[hf]".
    """
    from importlib.util import find_spec

    from paramdelta import api
    from paramdelta.cli.show.chat import converse
    from paramdelta.cli.show.findings import show_findings
    from paramdelta.live.chat import Chat

    plan = api.plan(recipe.recipe())
    show_findings(plan.findings, notes=False, err=True)
    places = device or ("auto" if find_spec("accelerate") else None)
    options = {"device_map": places, "memory": run.memory, "workers": run.workers}
    converse(Chat(plan, tokens, system, **options))
