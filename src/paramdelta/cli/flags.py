"""Replaces Python's parameters in messages by options of the command line.

The library speaks of parameters: "pass `overwrite=True`", "leave `dtype` out". With backticks they
stand out, and here they become "pass --overwrite" and "leave --dtype out".
"""

import ast
import re
import shlex
from functools import cache
from typing import Any, overload

_PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


@overload
def with_flags(text: str) -> str: ...
@overload
def with_flags(text: str | None) -> str | None: ...
def with_flags(text: str | None) -> str | None:
    """The text with options instead of parameters. What is not a parameter stays as it is."""
    return None if text is None else _PARAMETER.sub(_flag, text)


def _flag(found: re.Match[str]) -> str:
    name, value = found.groups()
    flag = _flags().get(name)
    if flag is None:
        return found[0]
    if value is None:
        return flag
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return f"{flag} {value}"
    if given is True:
        return flag
    if given is False:
        return _flags().get(f"no_{name}", found[0])
    values = given if isinstance(given, (tuple, list)) else (given,)
    return " ".join(f"{flag} {shlex.quote(str(each))}" for each in values)


@cache
def _flags() -> dict[str, str]:
    """The option of every parameter, of all commands."""
    import typer.main

    from paramdelta.cli.app import app

    found: dict[str, str] = {}
    left: list[Any] = [typer.main.get_command(app)]
    while left:
        command = left.pop()
        left += getattr(command, "commands", {}).values()
        for parameter in command.params:
            if parameter.param_type_name == "option":
                found.setdefault(parameter.name, max(parameter.opts, key=len))
                for off in parameter.secondary_opts:
                    found.setdefault(f"no_{parameter.name}", off)
    return found
