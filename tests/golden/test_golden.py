"""Every output is, byte for byte, the one that was recorded.

If a change of the bytes is meant: `python -m tests.golden.record`, and say why in the commit.
"""

import json

import pytest

from tests.golden.cases import CASES, SETTINGS, carry_out
from tests.golden.codecs import codecs
from tests.golden.record import FILE

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))
HERE = codecs()


def _parameters():
    for name, case in CASES.items():
        yield pytest.param(name, id=name, marks=[pytest.mark.hf] if case.torch else [])


@pytest.mark.parametrize("name", _parameters())
def test_the_bytes_are_those_recorded(tmp_path, name):
    """Every file of the output has the recorded digest, and nothing else is there."""
    case, expected = CASES[name], RECORDED["cases"][name]
    if case.torch:
        pytest.importorskip("torch")
    found = carry_out(case, tmp_path, SETTINGS[0])
    assert found.inputs == expected["inputs"], "the inputs differ, so the outputs must"
    same = not case.codec or HERE[case.codec] == RECORDED["codecs"][case.codec]
    if same:
        assert found.files == expected["files"]
        assert found.facts == expected["facts"]
    else:  # another library's bytes: what does not depend on them has to agree all the same
        assert found.files.keys() == expected["files"].keys()
        for key, value in expected["facts"].items():
            wanted = pytest.approx(value, rel=1e-9) if key == "kept" else value
            assert found.facts[key] == wanted


def test_every_case_is_recorded():
    """The table and the record have the same names."""
    assert list(CASES) == list(RECORDED["cases"])
