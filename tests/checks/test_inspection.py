"""An output is looked at before it gets its place."""

import pytest

from paramdelta import Delta, MisfitError, Recipe, mix
from tests.checkpoints import llama, moved, save
from tests.cli.test_app import run

WRONG = {"model_type": "never-heard-of", "vocab_size": 99, "tie_word_embeddings": False}
RIGHT = WRONG | {"vocab_size": 32}


def recipe(tmp_path, config):
    """Three models; the new base's config.json becomes the output's."""
    base = llama()
    for name, tensors in (("base", base), ("post", moved(base, 1)), ("new", moved(base, 2))):
        save(tmp_path / name, tensors, config_json=config)
    return Recipe(str(tmp_path / "new"), (Delta(str(tmp_path / "post"), str(tmp_path / "base")),))


def test_what_would_not_work_is_not_put_in_place(tmp_path):
    """99 rows are promised and 32 stored. Without the check the same call only finishes."""
    made = recipe(tmp_path, WRONG)
    with pytest.raises(MisfitError, match="vocab_size is 99") as caught:
        mix(made, tmp_path / "out", check=True)
    assert caught.value.code == "check-failed"
    assert not (tmp_path / "out").exists()
    done = mix(made, tmp_path / "out")
    assert done.report is None
    assert done.resumed == done.plan.bytes_to_write
    assert not list(tmp_path.glob(".out*"))


def test_an_old_output_stays(tmp_path):
    """A refused output does not replace it."""
    mix(recipe(tmp_path, RIGHT), tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").stat().st_ino
    with pytest.raises(MisfitError):
        mix(recipe(tmp_path, WRONG), tmp_path / "out", overwrite=True, check=True)
    assert (tmp_path / "out" / "model.safetensors").stat().st_ino == before


def test_the_report_of_a_good_output(tmp_path):
    """It passes; numbers are read with ``strict`` only."""
    done = mix(recipe(tmp_path, RIGHT), tmp_path / "out", check=True)
    assert done.report.passed
    assert "every number" not in done.report.checked


def test_strict_refuses_infinities(tmp_path):
    """Which are a warning otherwise, also if an earlier run wrote them."""
    base = llama()
    new = moved(base, 2)
    new["model.norm.weight"][3] = 0x7F80
    for name, tensors in (("base", base), ("post", moved(base, 1)), ("new", new)):
        save(tmp_path / name, tensors, config_json=RIGHT)
    made = Recipe(str(tmp_path / "new"), (Delta(str(tmp_path / "post"), str(tmp_path / "base")),))
    with pytest.raises(MisfitError, match=r"not finite|infinit|NaN"):
        mix(made, tmp_path / "out", strict=True)
    done = mix(made, tmp_path / "out", check=True)
    assert "not-finite" in {finding.code for finding in done.report.findings}


def test_the_command_checks_unless_told_not_to(tmp_path, monkeypatch):
    """Exit 3 and nothing in place; the message names the option; with it, exit 0."""
    monkeypatch.delenv("PARAMDELTA_CHECK")
    recipe(tmp_path, WRONG)
    places = {"--post": "post", "--base": "base", "--new-base": "new", "--out": "out"}
    options = [text for flag, name in places.items() for text in (flag, str(tmp_path / name))]
    failed = run("mix", *options)
    assert failed.returncode == 3
    assert "--no-check" in failed.stderr
    assert not (tmp_path / "out").exists()
    assert run("mix", *options, "--no-check").returncode == 0
    assert run("verify", str(tmp_path / "out")).returncode == 3
    assert run("verify", "--no-check", str(tmp_path / "out")).returncode == 0
