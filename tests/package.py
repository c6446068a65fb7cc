"""Build wheel and sdist, install each into a clean environment, and mix: `make package`.

Takes the folder for the two files. Needs `build` and `hatchling`; installing needs an index.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRY = """
import importlib.resources, sys
import paramdelta
from paramdelta import Delta, Recipe, mix, verify
lineage = importlib.resources.files("paramdelta") / "demo" / "lineage"
assert (importlib.resources.files("paramdelta") / "py.typed").is_file()
recipe = Recipe(lineage / "new-base", [Delta(lineage / "post", lineage / "base")])
assert mix(recipe, sys.argv[1], check=True).plan.mixed == 38
assert verify(sys.argv[1], share=1).elements > 900_000
assert not {"torch", "transformers"} & set(sys.modules)
"""


def main(out: Path) -> None:
    """Build, look inside, install, try."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("paramdelta/py.typed", "paramdelta/demo/lineage/post/model.safetensors"):
        assert name in inside, name
        assert f"src/{name}" in packed, name
    assert {"pyproject.toml", "LICENSE", "README.md", "tests/conftest.py"} <= packed
    assert not [name for name in inside if "tests/" in name or "__pycache__" in name]
    for file in (wheel, sdist):
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB", flush=True)
        _try(file)


def _try(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder) / "venv", with_pip=True)
        run = str(Path(folder) / "venv" / "bin" / "python")
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        install = [run, "-m", "pip", "install", "-q", "--disable-pip-version-check", str(file)]
        for command in (
            install,
            [run, "-m", "paramdelta", "--version"],
            [str(Path(run).with_name("paramdelta")), "mix", "--help"],
            [run, "-c", TRY, str(Path(folder) / "out")],
        ):
            subprocess.run(command, check=True, cwd=folder, env=clean, stdout=subprocess.DEVNULL)
    print("  installed into a clean environment; the shipped lineage was mixed and verified")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
