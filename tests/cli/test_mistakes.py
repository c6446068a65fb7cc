"""The mistakes of newcomers: each is answered with what is wrong, where, and what to do."""

import builtins
import sys

import pytest

from tests.cli.test_app import run


def told(result, *texts, code=2):
    """Check that a command failed with its exit code, in words that hold all texts."""
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for text in texts:
        assert text in result.stderr, result.stderr


def warned(result, *texts):
    """Check that a plan was made, and that its findings hold all texts."""
    assert result.returncode == 0, result.stderr
    for text in texts:
        assert text in result.stdout, result.stdout


def test_unknown_scheme_of_the_output(lineage, tmp_path):
    """The address is shown as it was written, before any checkpoint is opened."""
    result = run("mix", *lineage.options, "--out", "foo://bucket/x")
    told(result, "cannot be written to foo://", "got: foo://bucket/x", "write to a folder here")
    assert result.stdout == ""


def test_swapped_post_and_base(lineage):
    """A template that only base has says so."""
    given = [str(lineage.base), str(lineage.post), str(lineage.new)]
    (lineage.post / "chat_template.jinja").write_text("{{ messages }}")
    result = run("plan", "--post", given[0], "--base", given[1], "--new-base", given[2])
    warned(result, "template-only-in-base", "check that post and base are not swapped")


def test_unknown_finding(lineage):
    """--allow lists what can be accepted, and where the codes stand."""
    told(run("plan", *lineage.options, "--allow", "foo"), "'foo'", "in brackets", "missing-in-post")
    told(run("plan", *lineage.options, "--allow", "missing-post"), "did you mean 'missing-in-post'")


def test_a_scale_out_of_all_proportion(lineage):
    """A scale of 100 is a warning."""
    warned(run("plan", *lineage.options, "--scale", "100"), "scale-extreme", "100 times over")


@pytest.mark.parametrize("command", ["plan", "verify", "check", "recipe"])
def test_a_wrong_path(lineage, tmp_path, command):
    """The nearest path that exists is proposed."""
    (tmp_path / "recipe.yaml").write_text("new_base: a\ndeltas: [{post: b, base: c}]\n")
    given = {
        "plan": ["plan", *lineage.options[2:], "--post", str(lineage.post.parent / "psot")],
        "verify": ["verify", str(lineage.post.parent / "psot")],
        "check": ["check", str(lineage.post.parent / "psot")],
        "recipe": ["plan", str(tmp_path / "recpie.yaml")],
    }
    meant = tmp_path / "recipe.yaml" if command == "recipe" else lineage.post
    result = run(*given[command])
    told(result, f"did you mean '{meant}'?", code=4 if command == "check" else 2)


def test_a_folder_without_a_model(lineage, tmp_path):
    """Empty, or with a tokenizer alone: each is named as what it is."""
    for name, text in (("empty", "the folder is empty"), ("tokens", "holds a tokenizer, and no")):
        (tmp_path / name).mkdir()
        if name == "tokens":
            (tmp_path / name / "tokenizer.json").write_text("{}")
        arguments = ["plan", *lineage.options[2:], "--post", str(tmp_path / name)]
        told(run(*arguments), "no weights here", text, str(tmp_path / name), code=3)


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_gguf_of_another_architecture(lineage, tmp_path, whole):
    """The file is named as GGUF, with what can be read and what to do instead."""
    (tmp_path / "gguf").mkdir()
    file = tmp_path / "gguf" / "model.gguf"
    file.write_bytes(b"GGUF" + bytes([3, *[0] * 19]))
    post = str(file.parent if whole else file)
    result = run("plan", *lineage.options[2:], "--post", post)
    told(result, "GGUF", "architecture", "use the model's safetensors release", code=3)


def test_config_json_as_weights(lineage):
    """The file that was given is named as what it is."""
    result = run("plan", *lineage.options[2:], "--post", str(lineage.post / "config.json"))
    told(result, "a JSON document, not weights", "give the folder", code=3)


def test_mergekit_given_to_plan(tmp_path):
    """The command that converts it is named."""
    (tmp_path / "mergekit.yml").write_text("merge_method: linear\nmodels: []\n")
    result = run("plan", str(tmp_path / "mergekit.yml"))
    told(result, "a configuration of mergekit", "paramdelta recipe import")


def test_a_folder_as_recipe(lineage):
    """A model in the place of the recipe: the options for models are named."""
    told(run("plan", str(lineage.post)), "a folder, not a recipe", "--post, --base and --new-base")


def test_verify_of_something_else(lineage, tmp_path):
    """A folder that is not there, and one that paramdelta did not write."""
    told(run("verify", str(tmp_path / "absent")), "no such folder")
    told(run("verify", str(lineage.post)), "did not write", "paramdelta.lock.json", code=3)


def test_demo_without_torch(monkeypatch):
    """Said before the first act, with the command that installs it."""
    find = builtins.__import__

    def absent(name, *arguments, **more):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(name)
        return find(name, *arguments, **more)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(builtins, "__import__", absent)
    result = run("demo")
    told(result, "needs torch and transformers", "pip install torch transformers", sys.executable)
    assert "Act 1" not in result.stdout


def test_dtypes_that_cannot_be_mixed(lineage):
    """Integers are for quantizers; a mistyped name gets the nearest."""
    told(run("plan", *lineage.options, "--dtype", "int8"), "'int8'", "quantize the output")
    told(run("plan", *lineage.options, "--dtype", "blfoat16"), "did you mean 'bfloat16'?")


def test_a_decimal_comma(lineage):
    """The number with a point is proposed."""
    told(run("plan", *lineage.options, "--scale", "1,5"), "--scale", "write a decimal point: 1.5")
    told(run("plan", *lineage.options, "--alpha", "one"), "is not a number", "got: one")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["mix", "--newbase", "x"], "did you mean --new-base?"),
        (["mix", "--poost", "x"], "did you mean --post?"),
        (["verfy"], "Did you mean 'verify'?"),
        (["plan", "--workers", "0"], "--workers"),
    ],
)
def test_mistyped_options_and_commands(arguments, text):
    """One style: what is wrong, and the nearest name."""
    result = run(*arguments)
    told(result, text)
    assert result.stderr.startswith("error: ")
