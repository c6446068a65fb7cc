"""Options of a recipe: one field each, for Python, YAML and the command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from paramdelta.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Option:
    """How a field of a recipe is written, and which values it takes.

    ``help`` and ``metavar``: for the command line. ``flag``: its name there; by default the
    field's. ``values``: all valid values; empty if others decide. ``several``: whether it is a list
    of texts. ``convert``: the stored value of what was given.
    """

    help: str
    metavar: str
    flag: str = ""
    values: tuple[str, ...] = ()
    several: bool = False
    convert: Callable[[Any], Any] | None = None

    def checked(self, name: str, value: Any) -> Any:
        """The value as it is stored; raises UsageError."""
        if self.several:
            value = (value,) if isinstance(value, str) else tuple(value)
        if self.convert is not None:
            value = self.convert(value)
        if self.values and value not in self.values:
            raise UsageError(
                f"{name}: {value!r} is not valid",
                code="invalid-option",
                expected="one of " + ", ".join(self.values),
                remedy=did_you_mean(str(value), self.values),
            )
        return value


def option(default: Any, help: str, metavar: str, **about: Any) -> Any:  # noqa: A002 - argparse's
    """A dataclass field that is an option; ``about``: further fields of `Option`."""
    several = isinstance(default, tuple)
    return field(
        default=default, metadata={"option": Option(help, metavar, several=several, **about)}
    )


def options(kind: type) -> Mapping[str, Option]:
    """The options of a dataclass by the names of their fields."""
    return {
        each.name: each.metadata["option"] for each in fields(kind) if "option" in each.metadata
    }
