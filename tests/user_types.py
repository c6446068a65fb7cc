"""Type checkers on a user's script: the package says what its functions take and give.

Not collected by default, for mypy takes a minute; `make lint` runs it.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MORE = """
import logging
from pathlib import Path

import paramdelta
from paramdelta import Dare, Progress, Rule, Schedule, Span, Ties, Verification, preset

logging.getLogger("paramdelta").setLevel(logging.INFO)


def shown(now: Progress) -> None:
    print(f"{now.done} of {now.total} bytes", now.stage)


layers = Schedule([Rule("*.mlp.*", layers=[Span(0, 15, 0.5, 1.0)]), Rule(value=1.0)])
deltas = [
    Delta(Path("chat"), "base", layers, dare=Dare(0.9)),
    Delta("code", Path("base"), preset("mlp-only", 0.8)),
]
several = Recipe(Path("new"), deltas, scheme=Ties(density=0.2), graft=["<|tool|>"], dtype="bf16")
made = paramdelta.mix(several, Path("out"), memory="1GB", workers=2, progress=shown)
print(Path(made.folder) / "config.json", made.plan.parameters, made.plan.to_dict()["formula"])
paramdelta.mix("recipe.yaml", "out", check=True)
paramdelta.sweep(Path("recipe.yaml"), [0.5, 1], "swept")
with paramdelta.progress_bar("verifying") as bar:
    right: Verification = paramdelta.verify(Path("out"), share=0.5, progress=bar)
print(right.elements, right.total)
print(paramdelta.check(Path("out"), load=True).passed)
stored = paramdelta.extract((Path("post"), "base"), "delta")
print(stored.folder, stored.read)
try:
    paramdelta.plan("recipe.yaml").check()
except paramdelta.MisfitError as error:
    print(error.code, error.what, error.where, error.remedy)
except paramdelta.Interrupted as stopped:
    print(stopped.remedy)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """README's examples in Python, and calls of everything else that is public."""
    pages = [(ROOT / name).read_text("utf-8") for name in ("README.md", "docs/python.md")]
    blocks = re.findall(r"```python\n(.*?)```", "\n".join(pages), re.DOTALL)
    assert blocks
    path = tmp_path_factory.mktemp("user") / "script.py"
    path.write_text("\n".join([*blocks, MORE]), encoding="utf-8")
    return path


def errors_of(command, script, wrong):
    """The complaints about the script, and about the same script with a mistake in it."""
    found = []
    for text in (script.read_text("utf-8"), script.read_text("utf-8") + wrong):
        script.with_name("checked.py").write_text(text, encoding="utf-8")
        ran = subprocess.run(
            [*command, str(script.with_name("checked.py"))],
            capture_output=True,
            text=True,
            cwd=script.parent,
            env={"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT / "src")}
            | {"MYPYPATH": str(ROOT / "src"), "HOME": str(script.parent)},
        )
        found.append((ran.returncode, ran.stdout + ran.stderr))
    return found


WRONG = "\nparamdelta.mix(3, 'out')\n"


def test_mypy(script):
    """Strict mypy finds nothing in the script, and finds a wrong call."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache" / "user")]
    (right, said), (wrong, _) = errors_of(command, script, WRONG)
    assert right == 0, said
    assert wrong == 1


def test_pyright(script):
    """Pyright finds nothing in the script, and finds a wrong call. basedpyright is its package
    for pip.
    """
    scripts = Path(sysconfig.get_path("scripts"))
    program = shutil.which("basedpyright", path=str(scripts)) or shutil.which("pyright")
    if program is None:
        pytest.skip("needs pyright, or basedpyright from pip")
    settings = script.with_name("pyrightconfig.json")
    settings.write_text('{"typeCheckingMode": "standard", "extraPaths": ["%s"]}' % (ROOT / "src"))
    (right, said), (wrong, _) = errors_of([program], script, WRONG)
    assert right == 0, said
    assert wrong == 1
