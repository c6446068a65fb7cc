"""Every hostile folder is refused with a clear error, as an input and on the command line."""

import pytest

from paramdelta.errors import CheckpointError
from tests import opening
from tests.attacks.hostile import ATTACKS
from tests.cli.test_app import run


@pytest.mark.parametrize("attack", ATTACKS)
def test_opening_it_is_refused(attack, tmp_path):
    """A CheckpointError that says what and where."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    ATTACKS[attack](folder)
    with pytest.raises(CheckpointError) as error:
        opening.checkpoint(folder, "post")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("attack", ["truncated", "huge_header", "escaping_index", "pickle"])
def test_mixing_it_loses_nothing(attack, tmp_path, lineage):
    """`mix` exits with 3, shows no traceback, and leaves nothing behind."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    ATTACKS[attack](folder)
    before = sorted(tmp_path.iterdir())
    options = ["--post", str(folder), "--base", str(lineage.base), "--new-base", str(lineage.new)]
    result = run("mix", *options, "--out", str(tmp_path / "out"))
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.iterdir()) == before
