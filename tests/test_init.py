"""The public face of the package."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import paramdelta
from paramdelta import Delta, Interrupted, Recipe, UsageError


def test_all_is_exactly_what_is_visible():
    """`__all__` and `dir` agree, and every name can be had."""
    assert dir(paramdelta) == sorted(paramdelta.__all__)
    for name in paramdelta.__all__:
        assert getattr(paramdelta, name) is not None


def test_names_are_the_functions_even_after_imports():
    """`paramdelta.plan` is the function, whatever was imported before."""
    import paramdelta.planning.plan

    assert callable(paramdelta.plan)
    assert callable(paramdelta.mix)
    assert callable(paramdelta.verify)
    import paramdelta.checks.checker

    assert paramdelta.check.__module__ == "paramdelta.api"


def test_import_and_help_are_light():
    """Neither `import paramdelta` nor `--help` loads anything heavy."""
    heavy = "numpy numba llvmlite yaml rich huggingface_hub torch transformers safetensors pydantic"
    code = (
        "import sys, contextlib, io, paramdelta\n"
        "from paramdelta.cli.app import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        f"sys.exit(' '.join(m for m in '{heavy}'.split() if m in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_help_reads_well():
    """Every public name has a docstring of its own; functions say what each argument is."""
    for name in set(paramdelta.__all__) - {"__version__", "Address"}:
        found = getattr(paramdelta, name)
        assert len((found.__doc__ or "").split()) > 3, name
        assert not (found.__doc__ or "").startswith(f"{name}("), f"{name}: made by dataclass"


def test_a_recipe_file_in_the_place_of_a_recipe(lineage, tmp_path):
    """plan, mix, sweep and tensors read it, by text or `Path`."""
    path = tmp_path / "recipe.yaml"
    path.write_text(lineage.recipe().to_yaml())
    expected = paramdelta.plan(lineage.recipe()).digest
    assert paramdelta.plan(str(path)).digest == expected
    assert paramdelta.mix(path, str(tmp_path / "out")).plan.digest == expected
    assert [member.scale for member in paramdelta.sweep(path, [1], tmp_path / "swept").members] == [
        1
    ]
    assert len(dict(paramdelta.tensors(str(path)))) == 21


def test_paths_and_sequences(lineage, tmp_path):
    """Paths wherever an address is, lists wherever there are several."""
    recipe = Recipe(lineage.new, [Delta(lineage.post, lineage.base)], allow=["only-in-post"])
    assert recipe == lineage.recipe(allow=("only-in-post",))
    stored = paramdelta.extract([lineage.post, lineage.base], tmp_path / "delta")
    assert Delta(delta=stored.folder).delta == str(tmp_path / "delta")
    for wrong in ("post", [lineage.post], [lineage.post] * 3):
        with pytest.raises(UsageError, match="two models"):
            paramdelta.extract(wrong, tmp_path / "wrong")
    for wrong in (Delta("a", "b"), "ab", [{"post": "a"}], 3):
        with pytest.raises(UsageError, match="not a sequence of Delta"):
            Recipe("new", wrong)


def test_short_representations(lineage, tmp_path):
    """What a notebook shows of a plan and of results fits on a screen."""
    plan = paramdelta.plan(lineage.recipe())
    assert repr(plan).startswith(
        "<Plan Θ = Θ'_base + (Θ_post − Θ_base): 21 tensors mixed, 0 copied"
    )
    made = paramdelta.mix(plan, tmp_path / "out")
    assert len(repr(made)) < 600
    assert len(repr(paramdelta.verify(made.folder))) < 300


def test_cancelling_from_a_callback(lineage, tmp_path):
    """A progress callback that raises KeyboardInterrupt stops the run; the same call resumes it.

    `except Exception` does not swallow it.
    """

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        paramdelta.mix(lineage.recipe(), tmp_path / "out", progress=stop)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert not isinstance(caught.value, Exception)
    assert caught.value.to_dict()["code"] == "interrupted"
    assert "what to do" in str(caught.value)
    assert paramdelta.mix(lineage.recipe(), tmp_path / "out").folder.is_dir()


def test_log(lineage, tmp_path, caplog):
    """Plan, findings and results go to the logger "paramdelta"; by default nobody hears them."""
    with caplog.at_level(logging.INFO, "paramdelta"):
        paramdelta.mix(lineage.recipe(100.0), tmp_path / "out")
        paramdelta.verify(tmp_path / "out")
    text = caplog.text
    for part in ("planned <Plan", "warning: scale-extreme", "mixing into", "right: Verification"):
        assert part in text
    code = f"import paramdelta; paramdelta.plan({str(_recipe(lineage, tmp_path))!r})"
    quiet = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (quiet.stdout, quiet.stderr) == ("", "")


def _recipe(lineage, folder) -> Path:
    path = folder / "extreme.yaml"
    path.write_text(lineage.recipe(100.0).to_yaml())
    return path
