"""`paramdelta plan`: what a mix would do."""

import json
from pathlib import Path
from typing import Annotated

import typer

from paramdelta.cli import recipe as options


def plan(
    recipe: options.RecipeFile = None,
    post: options.Post = None,
    base: options.Base = None,
    delta: options.StoredDelta = None,
    new_base: options.NewBase = None,
    scale: options.Scale = None,
    preset: options.Preset = None,
    dtype: options.DType = None,
    allow: options.Allow = None,
    vocabulary: options.Vocabulary = None,
    graft: options.Graft = None,
    take: options.Take = None,
    maps: options.Map = None,
    head: options.Head = None,
    memory: options.Memory = "256MB",
    workers: options.Workers = None,
    shard_size: options.ShardSize = "5GB",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the mix would go: checks its disk.")
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor and its terms.")] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="TENSOR",
            help="Only this: formula, operands and rules of a tensor, or of all that a glob "
            "matches ('*.0.mlp*').",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what a mix would do, from headers alone: seconds, nothing is written.

    Exits with 3 if the mix would be refused.
    """
    from paramdelta import api
    from paramdelta.cli import show
    from paramdelta.output.lock import LOCK
    from paramdelta.output.place import check_room, find_place, free_space
    from paramdelta.planning.explanation import explain as find
    from paramdelta.planning.plan import summary, terms

    made = api.plan(
        options.make_recipe(
            recipe,
            post,
            base,
            new_base,
            scale,
            dtype,
            allow,
            vocabulary,
            graft,
            take,
            maps,
            head,
            preset,
            delta,
        )
    )
    if explain is not None:
        explanations = find(made, explain)
        if as_json:
            explained = [explanation.facts for explanation in explanations]
            typer.echo(json.dumps({"event": "explain", "tensors": explained}, ensure_ascii=False))
        else:
            show.explained(explanations)
        return
    budget = api.budget_for(made, memory, workers)
    layout = api.layout_for(made, shard_size)
    free, _ = free_space(out or Path("out"))
    if as_json:
        facts = summary(made) | {
            "projected_memory": budget.projected,
            "workers": budget.workers,
            "files": {shard.name: shard.size for shard in layout.shards},
            "free_disk": free,
        }
        if tensors:
            facts["terms"] = terms(made.tensors)
        typer.echo(json.dumps({"event": "plan", **facts}, ensure_ascii=False))
    else:
        show.plan(made, budget, layout, free, tensors)
    made.check()
    if out is not None:
        place = find_place(out, api.local_paths(made), True, LOCK)
        check_room(place, layout.size)
