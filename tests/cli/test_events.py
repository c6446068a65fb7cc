"""What --json prints is what its schema says."""

import json

import pytest

from paramdelta.cli.show.events import SCHEMA
from tests.cli.test_app import run

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def schema():
    """The schema as the command prints it."""
    found = json.loads(run("--json-schema").stdout)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def events_of(schema, *arguments):
    """The events of a command, each as the schema says."""
    ran = run(*arguments, "--json")
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert found, ran.stderr
    for event in found:
        assert event["schema"] == SCHEMA
        schema.validate(event)
    return [event["event"] for event in found]


def test_every_command(schema, lineage, tmp_path):
    """Commands in a row, with every kind of event that they give."""
    out, recipe = str(tmp_path / "out"), tmp_path / "recipe.yaml"
    recipe.write_text(lineage.recipe(0.5).to_yaml())
    assert events_of(schema, "plan", *lineage.options, "--tensors") == ["plan"]
    assert events_of(schema, "plan", str(recipe), "--explain", "lm_head*") == ["explain"]
    assert events_of(schema, "recipe", "show", str(recipe)) == ["recipe"]
    mixed = events_of(schema, "mix", *lineage.options, "--out", out)
    assert (mixed[0], set(mixed[1:-1]), mixed[-1]) == ("plan", {"progress"}, "done")
    assert "done" in events_of(schema, "verify", out)
    assert events_of(schema, "check", out)[-1] == "check"
    assert events_of(schema, "card", out) == ["done"]
    swept = ["sweep", str(recipe), "--scale", "0.5,1", "--out", str(tmp_path / "swept")]
    assert events_of(schema, *swept)[-1] == "done"
    assert events_of(schema, "clean", str(tmp_path)) == ["done"]
    pair = ["--post", str(lineage.post), "--base", str(lineage.base)]
    assert events_of(schema, "extract", *pair, "--out", str(tmp_path / "delta"))[-1] == "done"


@pytest.mark.parametrize(
    "arguments",
    [
        ("mix",),
        ("plan", "--nonsense"),
        ("nonsense",),
        ("verify", "/absent"),
        ("plan", "--workers", "0"),
    ],
)
def test_errors(schema, arguments):
    """Usage errors are events, too."""
    assert events_of(schema, *arguments) == ["error"]


def test_the_schema_can_fail(schema):
    """An event without its keys, or of another version, is refused."""
    for wrong in (
        {"event": "progress", "schema": 1},
        {"event": "done", "schema": 2},
        {"event": "x"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            schema.validate(wrong)
