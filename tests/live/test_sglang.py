"""The plugin for SGLang, with stand-ins for SGLang: it cannot be installed without a GPU."""

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from paramdelta import plan, tensors  # noqa: E402
from paramdelta.demo import tour  # noqa: E402
from paramdelta.live import sglang  # noqa: E402
from paramdelta.live.folder import write_recipe  # noqa: E402


@dataclass
class Source:
    """What SGLang's loader is asked for."""

    model_or_path: str
    prefix: str = ""


def test_a_folder_with_a_recipe_gives_the_mix(tmp_path):
    """Every tensor with its prefix; the loader's own reading is not asked."""
    recipe = tour.recipe("plain", 0.5)
    write_recipe(plan(recipe), tmp_path)
    found = dict(sglang.weights(None, None, Source(str(tmp_path), "model.")))
    expected = {f"model.{name}": value for name, value in tensors(recipe, framework="torch")}
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_other_folders_are_left_to_the_loader(tmp_path):
    """The wrapped method gets what it was called with."""
    source = Source(str(tmp_path))
    assert sglang.weights(lambda *given: given, "loader", source) == ("loader", source)


def test_it_is_registered_around_the_method(monkeypatch):
    """The registry of SGLang gets the target, the hook and its kind."""
    got = []
    registry = ModuleType("hook_registry")
    registry.HookRegistry = SimpleNamespace(register=lambda *given: got.append(given))
    registry.HookType = SimpleNamespace(AROUND="around")
    for name in ("sglang", "sglang.srt", "sglang.srt.plugins"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "sglang.srt.plugins.hook_registry", registry)
    sglang.register()
    assert got == [(sglang.TARGET, sglang.weights, "around")]
