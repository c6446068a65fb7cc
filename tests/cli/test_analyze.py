"""`paramdelta analyze` as a user meets it."""

import json
import unicodedata

import numpy as np

from paramdelta import Delta, Recipe
from paramdelta.cli.show.analysis import SPARKS, sparkline
from tests.checkpoints import llama, moved, save
from tests.cli.test_app import run
from tests.conftest import CONFIG


def columns(text):
    """How many columns of a terminal a line fills."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def test_the_table_fits_100_columns(tmp_path):
    """With several Δs, long names, and names that try to move the cursor."""
    names = {"model.layers.0." + "x" * 150 + ".weight", "model.layers.1.\x1b[2Jevil\u202e.weight"}
    tensors = {**llama(), **dict.fromkeys(names, llama()["lm_head.weight"])}
    folders = [
        str(save(tmp_path / role, moved(tensors, seed) if seed else tensors, config_json=CONFIG))
        for seed, role in enumerate(("base", "new", "one", "two"))
    ]
    recipe = Recipe(folders[1], [Delta(post, folders[0]) for post in folders[2:]])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    result = run("analyze", str(tmp_path / "recipe.yaml"), "--spectra")
    assert result.returncode == 0, result.stderr
    body = [line for line in result.stdout.splitlines() if str(tmp_path) not in line]
    assert max(map(columns, body)) <= 100
    assert "\x1b" not in result.stdout
    assert "\u202e" not in result.stdout
    for part in ("Δ 1", "Δ 2", "embedding", "by layer", "changed most", "cos Δ,S"):
        assert part in result.stdout


def test_json_is_the_result(lineage):
    """One event holds all numbers."""
    result = run("analyze", *lineage.options, "--json")
    event = json.loads(result.stdout.splitlines()[-1])
    assert event["event"] == "analysis"
    assert len(event["tensors"]) == 21


def test_what_can_be_given(lineage, tmp_path):
    """Two checkpoints, an output, but not an output with options, nor any folder."""
    two = run("analyze", *lineage.options[:4])
    assert two.returncode == 0
    assert "Δ = Θ_post − Θ_base" in two.stdout
    assert "‖S‖" not in two.stdout
    out = str(tmp_path / "out")
    assert run("mix", *lineage.options, "--out", out).returncode == 0
    assert run("analyze", out).returncode == 0
    assert "option-without-effect" in run("analyze", out, "--post", "x", "--json").stdout
    assert "not-an-output" in run("analyze", str(lineage.post), "--json").stdout


def test_plan_prints_the_cheap_part(lineage):
    """From its sample: how far the new base moved, and how such runs of the study came out."""
    text = run("plan", *lineage.options).stdout
    assert "times as far from base as post did" in text
    assert "In the study of small models, " in text


def test_sparklines():
    """From the least to the most; neighbors become one where there are too many."""
    assert sparkline([0, 1]) == "▁█"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline(list(np.linspace(0, 1, 800)), 8) == SPARKS
