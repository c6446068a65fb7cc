"""Outputs of the compatibility matrix load in their library, in a child process.

That the check finds nothing in any of them is a step of the matrix: tests/integration.
"""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from paramdelta import mix
from paramdelta.checks import check
from tests.integration.families import FAMILIES, save_family

pytestmark = pytest.mark.hf


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen2.5", "T5", "ViT", "Mamba 2"])
def test_loads(tmp_path, name):
    """No key too few or too many, no warning, and a few tokens where it generates."""
    out = mix(save_family(FAMILIES[name], tmp_path), tmp_path / "out").folder
    report = check(out, load=True)
    assert report.findings == ()
    assert report.checked[-1] == "loading"
