"""A few architectures of `tests.architectures`; `make architectures` tries all of transformers."""

import json
from pathlib import Path

import pytest

from tests.architectures import RESULT, architectures, quiet, survey

pytest.importorskip("transformers")


@pytest.mark.hf
@pytest.mark.parametrize("name", ["ArceeForCausalLM", "Gemma4AudioModel", "MptForCausalLM"])
def test_an_architecture(tmp_path, name):
    """Built, mixed, checked, loaded, compared; none of these is in the table of families."""
    with quiet():
        done = survey(name, architectures()[name], tmp_path)
    assert done["verdict"] == "right", done


def test_the_page_says_what_was_measured():
    """The figures of README and docs/families.md are those of the survey, which found no fault."""
    done = json.loads(RESULT.read_text(encoding="utf-8"))
    assert {verdict.partition(":")[0] for verdict in done["others"].values()} == {"not built"}
    root = Path(__file__).parents[1]
    page = (root / "docs" / "families.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert f"{len(done['right'])} classes of {done['model types']} model types" in readme
    said = f"{len(done['right'])} classes of {done['model types']} model types came out right"
    assert said in " ".join(page.split())
    assert f"{len(done['others'])} classes" in " ".join(page.split())
