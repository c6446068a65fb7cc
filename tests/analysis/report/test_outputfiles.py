"""A mix with a report: more files in the folder, which verify knows, and more on the card."""

import json

import pytest

from paramdelta import analyze, mix, verify
from paramdelta.analysis.report.outputfiles import PAGE
from tests.checkpoints import encode
from tests.cli.test_app import run
from tests.unfinished import interrupted


def test_the_folder_has_the_page(lineage, tmp_path):
    """Page, pictures and card; the weights are those of a mix without, and verify knows all."""
    plain = mix(lineage.recipe(), tmp_path / "plain").folder
    out = mix(lineage.recipe(), tmp_path / "out", report=True).folder
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert (out / PAGE).read_text(encoding="utf-8") == analyze(out).to_html()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "## What Δ is like" in card
    for name in ("norms", "profile"):
        picture = f"paramdelta.{name}.svg"
        assert f"({picture})" in card
        text = (out / picture).read_text(encoding="utf-8")
        assert text.startswith("<svg xmlns=")
        assert str(tmp_path) not in text
    known = json.loads((out / "paramdelta.lock.json").read_text())["outputs"]
    assert PAGE in known
    verify(out, share=1.0)


def test_a_killed_run_ends_in_the_same_bytes(lineage, tmp_path, monkeypatch):
    """The page does not depend on the run."""
    from paramdelta import Interrupted

    whole = mix(lineage.recipe(), tmp_path / "whole", report=True).folder
    with monkeypatch.context() as patch:
        interrupted(patch, 7)
        with pytest.raises(Interrupted):
            mix(lineage.recipe(), tmp_path / "out", report=True)
    out = mix(lineage.recipe(), tmp_path / "out", report=True).folder
    for file in whole.iterdir():
        if file.name != "README.md":  # names the folder
            assert (out / file.name).read_bytes() == file.read_bytes(), file.name


def test_from_the_command_line(lineage, tmp_path):
    """`mix --report`, and the page of `analyze --report` replaces only a page."""
    result = run("mix", *lineage.options, "--out", str(tmp_path / "out"), "--report")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / PAGE).is_file()
    page = tmp_path / "page.html"
    for _ in range(2):
        assert run("analyze", *lineage.options, "--report", str(page)).returncode == 0
    page.write_bytes(encode({}))
    result = run("analyze", *lineage.options, "--report", str(page), "--json")
    assert result.returncode == 2
    assert "report-exists" in result.stdout
    assert page.read_bytes() == encode({})
    assert "no-folder" in run(
        "analyze", *lineage.options, "--report", str(tmp_path / "x" / "y.html"), "--json"
    ).stdout  # fmt: skip


def test_recipes_side_by_side(lineage, tmp_path):
    """`--compare` puts several recipes into one page."""
    files = [tmp_path / f"{name}.yaml" for name in "ab"]
    for file, scale in zip(files, (1.0, 0.5), strict=True):
        file.write_text(lineage.recipe(scale).to_yaml())
    page = tmp_path / "page.html"
    result = run("analyze", str(files[0]), "--compare", str(files[1]), "--report", str(page))
    assert result.returncode == 0, result.stderr
    text = page.read_text(encoding="utf-8")
    assert "Recipes side by side" in text
    assert ">a.yaml</a>" in text
    assert ">b.yaml</a>" in text
    missing = run("analyze", str(files[0]), "--compare", str(files[1]), "--json")
    assert "missing-option" in missing.stdout
