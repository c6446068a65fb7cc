"""The demo's conversations and scores."""

from typing import TYPE_CHECKING

from paramdelta.cli.show.terminal import say

if TYPE_CHECKING:
    from paramdelta.demo.chat import Answer
    from paramdelta.demo.tour import Question, Scores

WIDTH = 66  # characters of an answer


def show_conversation(questions: "list[Question]", answers: "dict[str, list[Answer]]") -> None:
    """The same questions to every model; a right answer is marked."""
    for number, question in enumerate(questions):
        say(f"  {question.question}", bold=True)
        for name, given in answers.items():
            answer = given[number]
            right = answer.is_right(question.answer)
            text = " / ".join(answer.text.split("\n"))
            text = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
            cut = "" if answer.ended else "  (does not stop)"
            mark = "✓" if right else " "
            say(f" {name:<9} {text}{cut}", head=f"    {mark}", color="green")


def show_scores(result: "Scores") -> None:
    """Percent of right answers by task and model, and transfer efficiency."""
    models = ("base", "post", "new-base", "ParamΔ", "direct")
    say("  % right       " + "".join(f"{name:>10}" for name in models))
    for task in result.tasks:
        cells = "".join(f"{result.by_model[name][task]:10.0f}" for name in models)
        say(f"  {task:<14}{cells}")
    say(
        f"  transfer efficiency, ParamΔ / direct on what direct gets right: "
        f"{100 * result.efficiency:.0f} %"
    )
