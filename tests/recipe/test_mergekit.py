"""mergekit configurations as recipes: what they say, what is named, what is refused."""

import json
import textwrap

import pytest

from paramdelta import Delta, Recipe, UsageError, read_recipe
from paramdelta.recipe.mergekit import import_mergekit
from paramdelta.recipe.schedule import Rule, Schedule, Span
from paramdelta.schemes.dare import Dare
from paramdelta.schemes.sum import SUM
from paramdelta.schemes.ties import Ties


@pytest.fixture
def imported(tmp_path):
    """A function from a configuration's text to what is imported of it."""

    def read(text: str, layers: int | None = None):
        path = tmp_path / "mergekit.yml"
        path.write_text(textwrap.dedent(text))
        return import_mergekit(path, layers)

    return read


def reasons(made) -> str:
    """The notes as one text."""
    return "\n".join(f"{key}: {what}" for key, what in made.notes)


def test_task_arithmetic(imported, tmp_path):
    """B + λ Σ w (M − B), dtype and revision with it; the recipe can be read again."""
    made = imported("""
        merge_method: task_arithmetic
        base_model: org/base
        models:
          - model: org/base
          - model: org/chat@v2
            parameters: {weight: 0.7}
          - model: {model: {path: org/code, revision: main}}
            parameters: {weight: 1e-1}
        parameters: {lambda: 0.5, int8_mask: true}
        dtype: float32
        out_dtype: bfloat16
        """)
    assert made.recipe == Recipe(
        "org/base",
        (Delta("org/chat@v2", "org/base", 0.35), Delta("org/code@main", "org/base", 0.05)),
        "bf16",
    )
    assert [key for key, _ in made.notes] == ["parameters.int8_mask", "dtype"]
    path = tmp_path / "recipe.yaml"
    path.write_text(made.to_yaml())
    assert read_recipe(path) == made.recipe


@pytest.mark.parametrize(
    ("models", "post", "new"),
    [
        (("org/L3-Instruct", "org/L3.1"), "org/L3-Instruct", "org/L3.1"),
        (("org/L3.1", "org/L3-Instruct"), "org/L3-Instruct", "org/L3.1"),
        (("org/one", "org/two"), "org/one", "org/two"),
    ],
)
def test_the_paramdelta_trick_is_recognized(imported, models, post, new):
    """Post and new base at weight 1 over the old base: new + (post − base), and it is said."""
    made = imported(f"""
        merge_method: task_arithmetic
        base_model: org/L3
        models:
          - {{model: {models[0]}, parameters: {{weight: 1.0}}}}
          - {{model: {models[1]}, parameters: {{weight: 1}}}}
        """)
    assert made.recipe == Recipe(new, (Delta(post, "org/L3"),))
    assert "N + (P − B)" in reasons(made)
    assert ("does not say which" in reasons(made)) == ("org/one" in models)


def test_linear_is_normalized(imported):
    """Σ w Θ / Σ w with the first model, or base_model, in the place of the new base."""
    text = """
        merge_method: linear
        models:
          - {model: a, parameters: {weight: 1}}
          - {model: b, parameters: {weight: 2}}
          - {model: c, parameters: {weight: 1}}
        """
    assert imported(text).recipe == Recipe("a", (Delta("b", "a", 0.5), Delta("c", "a", 0.25)))
    moved = imported(text.replace("models:", "base_model: b\n        models:")).recipe
    assert moved == Recipe("b", (Delta("a", "b", 0.25), Delta("c", "b", 0.25)))
    with pytest.raises(UsageError, match="do not sum to 1"):
        imported(text.replace("models:", "parameters: {normalize: false}\n        models:"))


def test_ties_of_mergekits_own_example(imported):
    """Gradients become layers, filters become rules, each density is its model's."""
    made = imported(
        """
        models:
          - model: one
            parameters:
              density: [1, 0.7, 0.1]
              weight: 1.0
          - model: two
            parameters:
              density: 0.5
              weight: [0, 0.3, 0.7, 1]
          - model: three
            parameters:
              density: 0.33
              weight:
                - {filter: mlp, value: 0.5}
                - value: 0
        merge_method: ties
        base_model: base
        parameters: {normalize: true, int8_mask: true}
        dtype: float16
        tokenizer_source: union
        """,
        layers=5,
    )
    one, two, three = made.recipe.deltas
    spans = (Span(0, 1, 1.0, 0.85), Span(2, 4, 0.7, 0.1))
    assert one.density == Schedule((Rule(("*",), None, spans), Rule((), 1.0)))
    assert two.density == 0.5
    assert two.scale.rules[1] == Rule((), 0.0)
    layers = [
        s.at(n) for n in range(5) for s in two.scale.rules[0].layers if s.first <= n <= s.last
    ]
    assert layers == pytest.approx([0, 0.225, 0.5, 0.775, 1])
    assert three.scale == Schedule((Rule(("*mlp*",), 0.5), Rule((), 0.0)))
    assert made.recipe.scheme == Ties(1.0)
    named = [key for key, _ in made.notes]
    for key in ("parameters.int8_mask", "tokenizer_source", "dtype", "density", "models[1] weight"):
        assert key in named


def test_layers_are_those_of_config_json(imported, tmp_path):
    """A gradient asks the base model's folder how many layers there are; else it is refused."""
    text = f"""
        merge_method: task_arithmetic
        base_model: {tmp_path}/base
        models: [{{model: m, parameters: {{weight: [0, 1]}}}}]
        """
    with pytest.raises(UsageError, match="number of layers, which is not known") as caught:
        imported(text)
    assert "layers=N" in caught.value.remedy
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"num_hidden_layers": 9}))
    scale = imported(text).recipe.deltas[0].scale
    assert scale == Schedule((Rule(("*",), None, (Span(0, 8, 0.0, 1.0),)), Rule((), 0.0)))


DARE = """
    merge_method: {method}
    base_model: base
    models:
      - {{model: a, parameters: {{weight: 0.6, density: 0.1}}}}
      - {{model: b, parameters: {{weight: 0.4, density: {other}}}}}
    parameters: {{{shared}}}
    """


@pytest.mark.parametrize(
    ("method", "shared", "scales", "scheme"),
    [
        ("dare_linear", "", (0.6, 0.4), SUM),
        ("dare_linear", "rescale: false", (0.06, 0.04), SUM),
        ("dare_linear", "normalize: true, lambda: 2", (1.2, 0.8), SUM),
        ("dare_ties", "", (0.6, 0.4), Ties(1.0, 1.0, normalize=False)),
        ("dare_ties", "rescale: false, lambda: 2", (0.06, 0.04), Ties(1.0, 2.0, normalize=False)),
        ("dare_ties", "normalize: true, rescale: false", (0.6, 0.4), Ties(1.0, 0.1)),
    ],
)
def test_dare(imported, method, shared, scales, scheme):
    """Density is 1 − drop; with rescale: false, scales or λ take the paper's rescaling back."""
    made = imported(DARE.format(method=method, shared=shared, other=0.1))
    assert tuple(delta.scale for delta in made.recipe.deltas) == scales
    assert {delta.dare for delta in made.recipe.deltas} == {Dare(0.9)}
    assert made.recipe.scheme == scheme
    assert "torch's generator" in reasons(made)


def test_nothing_is_dropped_silently(imported):
    """Each key that a recipe has not is named with a reason."""
    made = imported("""
        merge_method: ties
        base_model: base
        models:
          - model: {model: a, override_architecture: LlamaForCausalLM}
            parameters: {weight: 1, density: 0.5, gamma: 0.1, normalize: false}
            comment: hello
        parameters: {weight: 3, epsilon: 0.1}
        tokenizer: {source: base, tokens: {x: {source: a}}, pad_to_multiple_of: 8}
        chat_template: auto
        name: mine
        """)
    assert made.recipe == Recipe("base", (Delta("a", "base"),), scheme=Ties(0.5))
    assert {
        "models[0].override_architecture",
        "models[0].parameters.gamma",
        "models[0].parameters.normalize",
        "models[0].comment",
        "parameters.epsilon",
        "tokenizer.tokens",
        "tokenizer.pad_to_multiple_of",
        "tokenizer.source",
        "chat_template",
        "name",
    } <= {key for key, _ in made.notes}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("merge_method: slerp\nbase_model: b\nmodels: [{model: a}]", "slerp cannot be expressed"),
        ("merge_method: linear\nslices: [{sources: []}]", "slices cannot"),
        ("merge_method: ties\nmodules: {text: {}}", "modules cannot"),
        ("merge_method: ties\nmodels: [{model: a, parameters: {weight: 1}}]", "base_model"),
        ("merge_method: ties\nbase_model: b\nmodels: [{model: a}]", "weight is missing"),
        ("merge_method: ties\nbase_model: b\nmodels: [{model: b}]", "no model but the base"),
        (
            "merge_method: ties\nbase_model: b\nmodels: [{model: a+l, parameters: {weight: 1}}]",
            "LoRA on another",
        ),
        (
            "merge_method: ties\nbase_model: b\nmodels: [model: a]\nparameters: {lambda: []}",
            "lambda by layers",
        ),
        ("hello", "not a mergekit"),
        ("[", "read as YAML"),
    ],
)
def test_what_cannot_be_said_is_refused(imported, text, what):
    """With what it is and where, instead of another result."""
    with pytest.raises(UsageError, match=what):
        imported(text)


def test_a_lora_on_the_base_is_a_delta(imported):
    """`base+lora` minus the base is what the adapter is."""
    made = imported("""
        merge_method: task_arithmetic
        base_model: b
        models: [{model: b+adapter, parameters: {weight: 0.5}}]
        """)
    assert made.recipe == Recipe("b", (Delta("adapter", "b", 0.5),))


def test_a_filter_is_text_and_not_a_pattern(imported):
    """What globs mean something by stands for itself, and the first filter that fits counts."""
    made = imported("""
        merge_method: task_arithmetic
        base_model: b
        models: [{model: a}]
        parameters:
          weight: [{filter: "x[0]*", value: 1}, {filter: "*", value: 2}, {value: 3}]
        """)
    assert made.recipe.deltas[0].scale.rules == (Rule(("*x[[]0][*]*",), 1.0), Rule((), 2.0))


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "9" * 5000,  # more digits than int takes
        "a: 2020-99-99",
        "[" * 5000,
        "a: &a [*a]",
        "merge_method: ties\nbase_model: b\nmodels: [{model: {}, parameters: 3}]",
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: [1, 2]}}]",
    ],
)
def test_broken_configurations_are_usage_errors(imported, text):
    """Whatever stands there, no other error comes out."""
    with pytest.raises(UsageError):
        imported(text)


@pytest.mark.parametrize("layers", [0, -1, 10**12])
def test_impossible_numbers_of_layers(imported, layers):
    """Refused before anything is made for each layer."""
    text = "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: [0, 1]}}]"
    with pytest.raises(UsageError, match="cannot have"):
        imported(text, layers)


def test_notes_stay_comments(imported, tmp_path):
    """A key with line breaks cannot put keys of its own into the recipe."""
    text = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}},\n"
    text += '{model: b, parameters: {weight: 1}}]\n"x\\nhead: drop": 1'
    made = imported(text)
    path = tmp_path / "recipe.yaml"
    path.write_text(made.to_yaml())
    assert read_recipe(path) == made.recipe
    assert "# x head: drop:" in made.to_yaml()
