"""The demo's conversations and scores."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from paramdelta.demo.chat import Answer
    from paramdelta.demo.tour import Question, Scores

WIDTH = 66  # characters of an answer


def show_conversation(questions: "list[Question]", answers: "dict[str, list[Answer]]") -> None:
    """The same questions to every model; a right answer is marked."""
    for number, question in enumerate(questions):
        typer.secho(f"  {question.question}", bold=True)
        for name, given in answers.items():
            answer = given[number]
            right = answer.is_right(question.answer)
            text = " / ".join(answer.text.split("\n"))
            text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
            cut = "" if answer.ended else "  (does not stop)"
            mark = typer.style("✓", fg="green") if right else " "
            typer.echo(f"    {mark} {name:<9} {text}{cut}")


def show_scores(result: "Scores") -> None:
    """Percent of right answers by task and model, and transfer efficiency."""
    models = ("base", "post", "new-base", "ParamΔ", "direct")
    typer.echo("  % right       " + "".join(f"{name:>10}" for name in models))
    for task in result.tasks:
        cells = "".join(f"{result.by_model[name][task]:10.0f}" for name in models)
        typer.echo(f"  {task:<14}{cells}")
    typer.echo(
        f"  transfer efficiency, ParamΔ / direct on what direct gets right: "
        f"{100 * result.efficiency:.0f} %"
    )
