"""The public face of the package."""

import subprocess
import sys

import paramdelta


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
