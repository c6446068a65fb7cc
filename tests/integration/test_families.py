"""Every family and format of the matrix, and that the page in the docs says what was found."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from tests.integration.families import (
    ADAPTER,
    FAMILIES,
    FORMATS,
    check,
    differences,
    forward_problems,
    load,
    reference_state,
    stored_problems,
)

pytestmark = pytest.mark.hf

DOCS = Path(__file__).parents[2] / "docs"
PAGE = runpy.run_path(str(DOCS / "families.py"))
LINES = (DOCS / "families.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", FAMILIES)
def test_family(tmp_path, name):
    """Nothing is refused or warned of, the mix verifies, the output loads without a word, files and
    loaded model equal the reference; and the page has this very line.
    """
    outcome = check(FAMILIES[name], tmp_path)
    assert outcome.passed, "\n".join(
        f"{step}: {line}" for step, lines in outcome.problems.items() for line in lines
    )
    assert PAGE["row"](name, FAMILIES[name], outcome) in LINES, "make docs"


@pytest.mark.parametrize("scales", ["block", "row", "tensor"])
@pytest.mark.parametrize("roles", ["new", "post", "post base"])
def test_some_in_fp8(tmp_path, roles, scales):
    """FP8 and BF16 among the three: the output is BF16 and its config speaks of no quantization."""
    family = replace(FAMILIES["DeepSeek-V3"], fp8=dict.fromkeys(roles.split(), scales))
    outcome = check(family, tmp_path)
    assert outcome.passed, outcome.problems


@pytest.mark.parametrize("name", [*FORMATS, ADAPTER])
def test_format(name):
    """The page says of a format what the check of reading and writing it gives."""
    read, write = PAGE["check_format"](name)
    line = PAGE["format_row"](name, read, write)
    assert line in LINES, "\n".join(["make docs, if this is meant:", *read, *(write or ())])


def test_page_has_these_rows_and_no_other():
    """Families and formats in the page's two tables are those of the matrix, in its order."""
    names = [found[1] for line in LINES if (found := re.match(r"\| (\S.*?) \|", line))]
    assert names == ["family", "---", *FAMILIES, "format", "---", *FORMATS, ADAPTER]
    introductions = PAGE["INTRODUCTION"] + PAGE["FORMATS"]
    assert set(introductions.splitlines()) <= set(LINES)


def test_checks_see_one_wrong_number(tmp_path):
    """One bit of one tensor of the output changed: both ways of comparing say so."""
    family = FAMILIES["Qwen3"]
    assert check(family, tmp_path).passed
    path = tmp_path / "out" / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"][3] *= 1 + 2**-7
    save_file(state, path, metadata={"format": "pt"})
    model, said = load(family.auto, tmp_path / "out")
    assert said == []
    reference = reference_state(family, tmp_path, model)
    lines = ["model.norm.weight: 1 of 32 elements differ"]
    assert stored_problems(family, tmp_path) == lines
    assert differences(model.state_dict(), reference) == lines
    (line,) = forward_problems(family, tmp_path, model, reference)
    assert line.startswith("logits: ")
