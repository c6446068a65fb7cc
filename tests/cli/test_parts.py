"""`paramdelta mix` with parts."""

import json

import pytest

from paramdelta.cli.app import main


def run(capsys, *arguments):
    """Exit code, and what was printed to both streams."""
    with pytest.raises(SystemExit) as caught:
        main(["mix", *map(str, arguments)])
    return caught.value.code or 0, *capsys.readouterr()


def test_parts_and_their_end(wide, tmp_path, capsys):
    """A part says what is left; --finish refuses until nothing is, and may be repeated."""
    given = [*wide.options, "--out", tmp_path / "out", "--shard-size", "1MB"]
    code, out, _ = run(capsys, *given, "--part", "1/2")
    assert code == 0
    assert "left to other parts" in out
    code, _, err = run(capsys, *given, "--finish")
    assert code == 3
    assert "shards of the output are missing" in err
    code, out, _ = run(capsys, *given, "--part", "2/2", "--json")
    done = json.loads(out.splitlines()[-1])
    assert (code, done["event"], done["missing"]) == (0, "part", [])
    for _ in range(2):
        assert run(capsys, *given, "--finish")[0] == 0
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--part", "1/2", "--finish"],
        ["--part", "1/2", "--fresh"],
        ["--finish", "--fresh"],
        ["--finish", "--engine", "ray"],
        ["--engine", "dask"],
        ["--staging", "x"],
    ],
)
def test_options_that_exclude_each_other(wide, tmp_path, capsys, options):
    """Nothing is written."""
    given = [*wide.options, "--out", tmp_path / "out", *options]
    assert run(capsys, *given)[0] == 2
    assert list(tmp_path.iterdir()) == []
