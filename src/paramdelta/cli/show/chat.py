"""A conversation in the terminal, or with lines from a pipe."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from paramdelta.cli.show.terminal import say, stream
from paramdelta.errors import ParamDeltaError, UsageError

if TYPE_CHECKING:
    from paramdelta.live.chat import Chat

HELP = (
    "/scale 0.8      mix at another scale; a number for each Δ, or one for all",
    "/compare TEXT   put a text to base, post, new base and ParamΔ; alone: the last one again",
    "/clear          start a new conversation",
    "/exit           end; so does Ctrl-D",
)


def converse(chat: "Chat") -> None:
    """Answer what the user says until the end of the input.

    From a pipe, an error ends the conversation. In a terminal it is shown.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        say(f"  {chat.recipe.formula}", "  /help lists the commands", err=True)
    for text in _lines(interactive):
        if not (_tried(chat, text) if interactive else _run(chat, text)):
            return


def _tried(chat: "Chat", text: str) -> bool:
    """As `_run`; an error is shown, and the conversation goes on."""
    try:
        return _run(chat, text)
    except ParamDeltaError as error:
        say(*f"error: {error}".splitlines(), err=True)
        return True


def _lines(interactive: bool) -> Iterator[str]:
    while True:
        try:
            if interactive:
                import readline  # noqa: F401 - input() edits lines with it

                text = input("> ")
            else:
                text = sys.stdin.readline()
                if not text:
                    return
        except EOFError:
            say()
            return
        if text.strip():
            yield text.strip()


def _run(chat: "Chat", text: str) -> bool:
    """Do what a line asks for; whether the conversation goes on."""
    command, _, rest = text.partition(" ")
    said = [message["content"] for message in chat.messages if message["role"] == "user"]
    if command == "/exit":
        return False
    if command == "/help":
        say(*HELP)
    elif command == "/clear":
        chat.clear()
    elif command == "/scale":
        chat.set_scale(_scale(rest))
        say(f"  {chat.recipe.formula}", err=True)
    elif command == "/compare":
        if not rest and not said:
            raise UsageError("nothing was said yet", code="nothing-said", expected="/compare TEXT")
        chat.compare(rest or said[-1], lambda name: say(f"{name}:", bold=True), stream)
    elif command.startswith("/"):
        raise UsageError(
            f"unknown command {command}", code="unknown-chat-command", remedy="see /help"
        )
    else:
        chat.answer(text, stream)
        say()
    return True


def _scale(text: str) -> float | list[float]:
    try:
        found = [float(number) for number in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found:
        raise UsageError("invalid scale", code="invalid-scale", expected="/scale 0.8", got=text)
    return found[0] if len(found) == 1 else found
