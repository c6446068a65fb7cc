"""Options that several commands share: a command takes them as one object.

`flat` gives typer the command that it understands, with one parameter for each option.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from paramdelta.cli.show.terminal import be_quiet
from paramdelta.errors import Interrupted, UsageError
from paramdelta.recipe import Delta, Recipe, preset, read_recipe
from paramdelta.recipe.option import Option, options
from paramdelta.units import parse_number

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]


@dataclass(frozen=True)
class Options:
    """Base of all option objects. Each field is an option, annotated as typer wants it."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """The parameters that typer is to see."""
        return [_parameter(each.name, each.type, each.default) for each in fields(cls)]

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Options":
        """The object from the values of its parameters, which are taken out of ``given``."""
        return cls(**{each.name: given.pop(each.name) for each in fields(cls)})


@dataclass(frozen=True)
class Choices(Options):
    """Options of `Recipe`. ``given``: those that were given, by field."""

    names: ClassVar[Sequence[str]] = tuple(options(Recipe))
    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """See `Options.parameters`."""
        return [_choice(name, options(Recipe)[name]) for name in cls.names]

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Choices":
        """See `Options.of`."""
        found = {name: given.pop(name) for name in cls.names}
        return cls({name: value for name, value in found.items() if value is not None})

    def applied(self, recipe: Recipe) -> Recipe:
        """A recipe with these choices. Lists are added to its own."""
        changes = dict(self.given)
        for name, value in self.given.items():
            if options(Recipe)[name].several:
                changes[name] = (*getattr(recipe, name), *value)
        return replace(recipe, **changes)


class FitChoices(Choices):
    """Only the options that say how two checkpoints fit together."""

    names = ("allow", "vocabulary", "maps")


def folder_to_write(text: str) -> Path:
    """The value of an option that names an output. "" is not the current folder."""
    from paramdelta.output.place import check_local

    check_local(text)
    return Path(text)


@dataclass(frozen=True)
class RecipeOptions(Options):
    """What to mix: a recipe file, or options for one Δ; and choices for both."""

    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE.yaml]",
            help="A recipe instead of the options; - reads it from standard input.",
        ),
    ] = None
    post: Annotated[
        str | None,
        typer.Option(
            metavar="P", help="Post-trained model or LoRA adapter: folder, weight file or Hub id."
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            metavar="B", help="The base that post was trained from; an adapter needs none."
        ),
    ] = None
    delta: Annotated[
        str | None,
        typer.Option(metavar="Δ", help="A Δ that extract stored, instead of --post and --base."),
    ] = None
    new_base: Annotated[
        str | None, typer.Option(metavar="N", help="The base that the Δ is added to.")
    ] = None
    scale: Annotated[
        str | None,
        typer.Option("--scale", "--alpha", metavar="α", help="Factor of the Δ.  [default: 1.0]"),
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Add the Δ to some tensors only: linear-only, skip-embeddings, attention-only, "
            "mlp-only, experts-only.",
        ),
    ] = None
    choices: Choices = field(default_factory=Choices)

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """See `Options.parameters`."""
        own = [_parameter(e.name, e.type, None) for e in fields(cls) if e.name != "choices"]
        return [*own, *Choices.parameters()]

    @classmethod
    def of(cls, given: dict[str, Any]) -> "RecipeOptions":
        """See `Options.of`."""
        own = {e.name: given.pop(e.name) for e in fields(cls) if e.name != "choices"}
        return cls(choices=Choices.of(given), **own)

    def recipe(self) -> Recipe:
        """The recipe that they describe.

        Raises:
            UsageError: neither a file nor the options that a recipe needs, or both.
        """
        if self.file is not None:
            alone = ("post", "base", "delta", "new_base", "scale", "preset")
            if any(getattr(self, name) is not None for name in alone):
                raise UsageError(
                    "a recipe file and options for the same thing",
                    code="recipe-and-options",
                    expected="either RECIPE.yaml, or --post, --base, --new-base, --scale and "
                    "--preset",
                )
            return self.choices.applied(read_recipe(self.file))
        needed = {"--post": self.post or self.delta, "--new-base": self.new_base}
        missing = [name for name, value in needed.items() if value is None]
        if missing or self.new_base is None:
            raise UsageError(
                "missing " + ", ".join(missing),
                code="missing-option",
                expected="--post P --base B --new-base N, --delta Δ --new-base N, or RECIPE.yaml",
            )
        scale = 1.0 if self.scale is None else parse_number(self.scale, "--scale")
        factor = scale if self.preset is None else preset(self.preset, scale, "--preset")
        delta = Delta(self.post or "", self.base, factor, self.delta)
        return self.choices.applied(Recipe(self.new_base, [delta]))


@dataclass(frozen=True)
class RunOptions(Options):
    """How a command uses the machine."""

    memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            envvar="PARAMDELTA_MEMORY",
            help="Memory beyond the interpreter and its libraries.",
        ),
    ] = "256MB"
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=256,
            envvar="PARAMDELTA_WORKERS",
            help="Threads.  [default: one per processor]",
        ),
    ] = None


KeepDownloads = Annotated[
    bool,
    typer.Option(
        "--keep-downloads",
        help="Download models from the Hub into its cache first. By default they are read where "
        "they are.",
    ),
]


@dataclass(frozen=True)
class OutputOptions(Options):
    """How an output is written."""

    shard_size: Annotated[
        str,
        typer.Option(metavar="SIZE", envvar="PARAMDELTA_SHARD_SIZE", help="Largest weight file."),
    ] = "5GB"
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier output once the new one is complete."),
    ] = False
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Discard an unfinished run instead of resuming it."),
    ] = False
    keep_downloads: KeepDownloads = False


@dataclass(frozen=True)
class TalkOptions(Options):
    """How much a command says. Every command takes them."""

    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print errors and what --json asks for, only.")
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the log to standard error as well.")
    ] = False
    log_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="PARAMDELTA_LOG_FILE",
            help="Append the log to this file, with times.",
        ),
    ] = None

    def apply(self) -> None:
        """Arrange it for the rest of the process."""
        be_quiet(self.quiet)
        if self.verbose or self.log_file is not None:
            from paramdelta.cli.show.log import start_log

            start_log(self.verbose, self.log_file)


@dataclass(frozen=True)
class CheckOptions(Options):
    """Whether the output is looked at before it is put in place."""

    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            envvar="PARAMDELTA_CHECK",
            help="Look at the output as a loader does, and do not put it in place if it would not "
            "work.",
        ),
    ] = True
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse an output with NaN or infinite numbers.")
    ] = False


class Stopped(Exception):
    """Carries `Interrupted` through typer, which turns every KeyboardInterrupt into its own."""

    def __init__(self, error: Interrupted) -> None:
        super().__init__(error.what)
        self.error = error


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """The command with single options instead of its option objects.

    A parameter of the command itself replaces the option of an object with the same name.
    """
    groups: dict[str, type[Options]] = {}
    parameters: dict[str, inspect.Parameter] = {}
    talk = {each.name: each for each in TalkOptions.parameters()}
    own = inspect.signature(command).parameters
    for name, parameter in own.items():
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Options):
            groups[name] = parameter.annotation
            given = parameter.annotation.parameters()
            parameters |= {each.name: each for each in given if each.name not in own}
        else:
            parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    parameters |= talk

    def run(**given: Any) -> None:
        TalkOptions(**{name: given.pop(name, each.default) for name, each in talk.items()}).apply()
        single = {name: given[name] for name in own if name not in groups}
        defaults = {e.name: e.default for kind in groups.values() for e in kind.parameters()}
        left = defaults | {name: value for name, value in given.items() if name not in single}
        try:
            command(**{name: kind.of(left) for name, kind in groups.items()}, **single)
        except Interrupted as error:
            raise Stopped(error) from None

    run.__doc__ = command.__doc__
    run.__name__ = command.__name__
    run.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    return run


def _choice(name: str, of: Option) -> inspect.Parameter:
    kind: Any = list[str] | None if of.several else str | None
    flag = f"--{of.flag or name.replace('_', '-')}"
    given = typer.Option(flag, metavar=of.metavar, help=of.help)
    return _parameter(name, Annotated[kind, given], None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)
