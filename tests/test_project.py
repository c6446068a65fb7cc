"""The files of the project: metadata, workflows, and the instructions of the container."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from paramdelta.version import __version__

ROOT = Path(__file__).parent.parent
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_the_citation_has_the_version():
    """CITATION.cff is YAML, of the version of the package, and names the paper."""
    stated = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert stated["version"] == __version__
    assert "2504.21023" in stated["preferred-citation"]["url"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_workflows(path):
    """Each is YAML, runs targets that exist, and gives a token no right that it does not need."""
    content = yaml.safe_load(path.read_text("utf-8"))
    for target in re.findall(r"run: make ([a-z-]+)", path.read_text("utf-8")):
        assert target in TARGETS
    if path.parent.name == "workflows":
        assert content["permissions"] == {"contents": "read"}
        assert (ROOT / ".ci" / "run").is_file()


def test_the_container(tmp_path):
    """Its instructions, one after the other: what they copy is there, and what they run works.

    Where docker is absent, the second stage is done by hand: a user's home that is read-only, the
    variables of the image, and the command that is its entry point.
    """
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line and line[0].isupper()]
    by_name = dict(steps)
    assert by_name["USER"] != "root"
    assert [rest for name, rest in steps if name == "FROM"][-1].endswith("-slim")
    given = dict(re.findall(r"(\w+)=(\S+)", by_name["ENV"]))
    assert given.pop("PATH").endswith("bin:$PATH")
    # What the image sets has to be enough where nothing but /tmp can be written.
    assert all(value.startswith("/tmp/") or value == "1" for value in given.values())
    lineage = ROOT / "src" / "paramdelta" / "demo" / "lineage"
    names = ("post", "base", "new-base")
    options = [part for name in names for part in (f"--{name}", str(lineage / name))]
    given["NUMBA_CACHE_DIR"] = str(tmp_path / "numba")
    ran = subprocess.run(
        [sys.executable, "-m", "paramdelta", "plan", *options],
        env=given | {"PYTHONPATH": str(ROOT / "src"), "HOME": "/nonexistent"},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
