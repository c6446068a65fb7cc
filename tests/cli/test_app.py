"""The command line as a user meets it: its output, its exit code."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from unittest.mock import patch

import pytest

from paramdelta.cli.app import main
from paramdelta.version import __version__
from tests.checkpoints import llama, save


def run(*arguments):
    """Run `paramdelta` in this process and return what a finished process would have.

    An error that the command line does not turn into an exit code is raised.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["paramdelta", *arguments]))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def process(*arguments, **variables):
    """Run `paramdelta` in a process of its own, with these variables in its environment."""
    return subprocess.run(
        [sys.executable, "-c", "from paramdelta.cli.app import main; main()", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | variables,
    )


@pytest.mark.parametrize("run", [run, process], ids=["here", "process"])
def test_plan_mix_verify(lineage, tmp_path, run):
    """The three commands in a row, on a tiny lineage."""
    out = tmp_path / "out"
    planned = run("plan", *lineage.options)
    assert planned.returncode == 0, planned.stderr
    assert "21 mixed, 0 copied" in planned.stdout
    assert not out.exists()
    mixed = run("mix", *lineage.options, "--out", str(out))
    assert mixed.returncode == 0, mixed.stderr
    assert (out / "model.safetensors").is_file()
    verified = run("verify", str(out), "--full")
    assert verified.returncode == 0, verified.stderr
    assert "right" in verified.stdout


def test_a_mistake_ends_a_process_with_its_exit_code():
    """The exit code reaches the system, and the words its standard error."""
    result = process("verify", "/absent")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no such folder" in result.stderr
    assert "Traceback" not in result.stderr


def test_json_events(lineage, tmp_path):
    """Every line of --json is an object; the last says that it is done."""
    result = run("mix", *lineage.options, "--out", str(tmp_path / "out"), "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert events[0]["event"] == "plan"
    assert events[0]["mixed"] == 21
    assert events[-1]["event"] == "done"
    assert any(e["event"] == "progress" and e["done"] == e["total"] for e in events)
    planned = json.loads(run("plan", *lineage.options, "--json", "--tensors").stdout)
    assert [t["coefficient"] for t in planned["terms"][0]["terms"]] == [1.0, 1.0, -1.0]


def test_recipe_file(lineage, tmp_path):
    """A YAML recipe does what the options do."""
    path = tmp_path / "recipe.yaml"
    path.write_text(lineage.recipe(0.5).to_yaml())
    assert run("mix", str(path), "--out", str(tmp_path / "a")).returncode == 0
    options = [*lineage.options, "--scale", "0.5"]
    assert run("mix", *options, "--out", str(tmp_path / "b")).returncode == 0
    one, other = (tmp_path / n / "model.safetensors" for n in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_presets(lineage, tmp_path):
    """--preset with --scale gives the Δ to some tensors only; the plan has the table."""
    planned = run("plan", *lineage.options, "--preset", "linear-only", "--scale", "0.8")
    assert planned.returncode == 0, planned.stderr
    assert "14 mixed, 7 copied" in planned.stdout
    assert re.search(r"linear-only +0\.8 +14 tensors", planned.stdout)
    options = [*lineage.options, "--preset", "mlp-only"]
    assert run("mix", *options, "--out", str(tmp_path / "out")).returncode == 0
    assert run("verify", str(tmp_path / "out"), "--full").returncode == 0
    wrong = run("plan", *lineage.options, "--preset", "mlp")
    assert (wrong.returncode, "one of linear-only" in wrong.stderr) == (2, True)


def test_explain_and_recipe_show(lineage, tmp_path):
    """A recipe as a formula with its table; a tensor with its operands, rules and their lines."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"new_base: {lineage.new}\ndeltas:\n- post: {lineage.post}\n  base: {lineage.base}\n"
        '  scale:\n  - {match: "*.mlp.*", layers: {0-1: [1, 0.5]}}\n  - 0\n'
    )
    shown = run("recipe", "show", str(path))
    assert shown.returncode == 0, shown.stderr
    assert "Θ = Θ'_base + s(name)·(Θ_post − Θ_base)" in shown.stdout
    assert re.search(r"\*\.mlp\.\* +layers 0-1 +1 → 0\.5", shown.stdout)
    assert str(lineage.post) in shown.stdout
    event = json.loads(run("recipe", "show", str(path), "--json").stdout)
    assert event["deltas"][0]["scale"] == [{"match": "*.mlp.*", "layers": {"0-1": [1.0, 0.5]}}, 0.0]
    explained = run("plan", str(path), "--explain", "*.1.mlp.up*")
    assert explained.returncode == 0, explained.stderr
    for text in (
        "= Θ'_base + 0.5·(Θ_post − Θ_base)",
        "post/model-0000",
        "model.layers.1.mlp.up_proj.weight  BF16 [32, 16]",
        "rule *.mlp.*, layers 0-1 at 1 (",
        "recipe.yaml, line 6)",
    ):
        assert text in explained.stdout
    event = json.loads(run("plan", str(path), "--explain", "lm_head*", "--json").stdout)
    assert event["tensors"][0]["why"].startswith("scale 0: rule everything else")
    missed = run("plan", str(path), "--explain", "*.mlps.*")
    assert missed.returncode == 2
    assert "did you mean '*.mlp.*'?" in missed.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["mix"], 2, "missing --out"),
        (["plan"], 2, "missing --post, --new-base"),
        (["plan", "--post", "/absent"], 2, "missing --new-base"),
        (["plan", "--post", "/absent", "--base", "/absent", "--new-base", "/absent"], 2, "no such"),
        (["plan", "absent.yaml"], 2, "cannot read the recipe"),
        (["nonsense"], 2, "nonsense"),
        (["plan", "--nonsense"], 2, "nonsense"),
        (["verify", "/absent"], 2, "no such folder"),
        (["verify", "/absent", "--sample", "200%"], 2, "not a share"),
    ],
)
def test_mistakes_end_with_their_exit_code(arguments, code, text):
    """No traceback, the right exit code, and words."""
    result = run(*arguments)
    assert result.returncode == code
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_as_json():
    """With --json an error is an object too."""
    result = run("plan", "--post", "/a", "--base", "/a", "--new-base", "/a", "--json")
    event = json.loads(result.stdout)
    assert (event["event"], event["kind"], event["exit_code"]) == ("error", "UsageError", 2)


def test_misfit_exits_with_3(lineage, tmp_path):
    """A post that lacks a tensor is refused; --allow accepts it and says so."""
    tensors = llama(1)
    tensors.pop("model.norm.weight")
    save(tmp_path / "post", tensors)
    (tmp_path / "post" / "model.safetensors.index.json").unlink()
    result = run("mix", *lineage.options, "--out", str(tmp_path / "out"))
    assert result.returncode == 3
    assert "model.norm.weight" in result.stderr
    assert "--allow missing-in-post" in result.stderr
    assert not (tmp_path / "out").exists()
    options = [*lineage.options, "--allow", "missing-in-post"]
    result = run("mix", *options, "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert "copied from the new base" in result.stdout


def test_version_and_help():
    """--version, --help and -h."""
    assert run("--version").stdout.strip() == f"paramdelta {__version__}"
    for arguments in (["--help"], ["-h"], ["mix", "--help"]):
        result = run(*arguments)
        assert result.returncode == 0
        assert re.search(r"Usage: .*paramdelta", result.stdout)


def test_works_where_nothing_can_be_cached(lineage, tmp_path):
    """Numba's cache has no place to go: slower, but it works."""
    result = process(
        "mix", *lineage.options, "--out", str(tmp_path / "out"), NUMBA_CACHE_DIR="/proc/nowhere"
    )
    assert result.returncode == 0, result.stderr


def test_import_of_a_mergekit_configuration(lineage, tmp_path):
    """What is imported can be planned; the notes stand in the recipe, in --json, beside --out."""
    config = tmp_path / "mergekit.yml"
    config.write_text(f"""\
merge_method: ties
base_model: {lineage.base}
models: [{{model: {lineage.post}, parameters: {{weight: 1, density: 0.5}}}}]
tokenizer_source: union
""")
    printed = run("recipe", "import", str(config))
    assert printed.returncode == 0, printed.stderr
    assert "# tokenizer_source: not expressed" in printed.stdout
    events = json.loads(run("recipe", "import", str(config), "--json").stdout)
    assert events["recipe"]["ties"] == {"density": 0.5}
    assert "tokenizer_source" in [note["key"] for note in events["notes"]]
    recipe = tmp_path / "recipe.yaml"
    written = run("recipe", "import", str(config), "--out", str(recipe))
    assert "TIES(top50%(Θ_post − Θ_base))" in written.stdout
    assert recipe.read_text() == printed.stdout
    assert run("recipe", "import", str(config), "--out", str(recipe)).returncode == 2
    planned = run("plan", str(recipe))
    assert "base + TIES(top50%(post − base))" in planned.stdout
    config.write_text("merge_method: slerp\n")
    assert run("recipe", "import", str(config)).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp874"])
def test_terminals_that_lack_characters(lineage, encoding):
    """Δ and Θ become question marks where they cannot be shown; events are always ASCII."""
    shown = process("recipe", "--help", PYTHONIOENCODING=encoding)
    assert shown.returncode == 0, shown.stderr
    planned = process("plan", *lineage.options, "--preset", "mlp-only", PYTHONIOENCODING=encoding)
    assert planned.returncode == 0, planned.stderr
    assert "mlp-only" in planned.stdout
    events = process("plan", *lineage.options, "--json", PYTHONIOENCODING=encoding)
    assert events.stdout.isascii()
    assert json.loads(events.stdout)["event"] == "plan"


def test_plan_checks_the_place(lineage, tmp_path):
    """With --out the plan says whether the mix could be written there."""
    assert run("plan", *lineage.options, "--out", str(tmp_path / "out")).returncode == 0
    inside = run("plan", *lineage.options, "--out", str(lineage.post / "out"))
    assert (inside.returncode, "lies on an input" in inside.stderr) == (2, True)


def test_check(lineage, tmp_path):
    """A right folder, as words and as JSON; a broken one ends with 3; an absent one with 4."""
    from tests.checks.folders import edit, right

    folder = right(tmp_path / "model")
    edit(folder, "config.json", architectures=["LlamaModel"], model_type="unknown")
    found = run("check", str(folder), "--headers")
    assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("no findings\n")
    assert "numbers, as asked" in found.stdout
    edit(folder, "config.json", quantization_config={"quant_method": "fp8"})
    found = run("check", str(folder), "--json")
    assert found.returncode == 3
    facts = json.loads(found.stdout.splitlines()[-1])
    assert (facts["event"], facts["kind"], facts["passed"]) == ("check", "transformers", False)
    assert [finding["code"] for finding in facts["findings"]] == ["quantization-untrue"]
    assert run("check", str(tmp_path / "absent")).returncode == 4


@pytest.mark.parametrize("command", ["mix", "plan", "sweep", "extract"])
def test_an_empty_output_is_not_the_current_folder(lineage, tmp_path, monkeypatch, command):
    """--out "" comes from a variable that is not set."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    two = ["--post", str(lineage.post), "--base", str(lineage.base)]
    options = two if command == "extract" else lineage.options
    scales = ["--scale", "1"] if command == "sweep" else []
    result = run(command, *options, *scales, "--out", "")
    assert result.returncode == 2
    assert "folder on this machine" in result.stderr
    assert not list((tmp_path / "here").iterdir())
