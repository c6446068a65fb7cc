"""Chat templates: which one counts, rendering in a child, and where a turn ends."""

import time

import pytest

from paramdelta.checks import check, child
from paramdelta.checks.process import run_child
from paramdelta.checks.template import CONVERSATION
from paramdelta.planning.findings import Severity
from tests.checks.folders import TEMPLATE, edit, put, right

REFUSED = Severity.REFUSED
# Turns end by the marker of the next one, as in GLM-4.
GLM = (
    "{% for m in messages %}<|{{ 'user' if m.role == 'user' else 'bot' }}|>{{ m.content }}"
    "{% endfor %}"
)
PLACES = ["chat_template.jinja", "tokenizer_config.json", "list", "chat_template.json"]


def codes(folder):
    """Code -> severity."""
    return {f.code: f.severity for f in check(folder).findings}


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_read(tmp_path, place):
    """A template that never stops is found wherever it stands."""
    (right(tmp_path) / "chat_template.jinja").unlink()
    assert codes(tmp_path) == {}
    bad = TEMPLATE.replace("</s>", "")
    if place == "chat_template.jinja":
        put(tmp_path, place, bad)
    elif place == "chat_template.json":
        put(tmp_path, place, {"chat_template": bad})
    else:
        several = [{"name": "rag", "template": "x"}, {"name": "default", "template": bad}]
        edit(tmp_path, "tokenizer_config.json", chat_template=several if place == "list" else bad)
    assert codes(tmp_path) == {"template-never-stops": REFUSED}


def test_same_template_twice(tmp_path):
    """One text in two places is right; a line end more is the same."""
    edit(right(tmp_path), "tokenizer_config.json", chat_template=TEMPLATE + "\n")
    assert codes(tmp_path) == {}


def test_turn_that_the_next_one_ends(tmp_path):
    """GLM ends a turn by the next role's marker, which is an end of sequence there."""
    put(right(tmp_path), "chat_template.jinja", GLM)
    assert codes(tmp_path) == {"template-never-stops": REFUSED}
    edit(tmp_path, "generation_config.json", eos_token_id=[2, 4])
    assert codes(tmp_path) == {}


def test_base_model_that_does_not_generate(tmp_path):
    """An encoder's template need not end anywhere."""
    put(right(tmp_path), "chat_template.jinja", TEMPLATE.replace("</s>", ""))
    edit(tmp_path, "config.json", architectures=["LlamaModel"])
    assert "template-never-stops" not in codes(tmp_path)


def test_parts_instead_of_text(tmp_path):
    """Templates of models that see want a list of parts as content."""
    parts = TEMPLATE.replace(
        "{{ m.content }}", "{% for c in m.content %}{{ c['text'] }}{% endfor %}"
    )
    put(right(tmp_path), "chat_template.jinja", parts)
    assert codes(tmp_path) == {}


def test_tokens_of_another_vocabulary(tmp_path):
    """They are noted: some good templates write such words as text."""
    put(right(tmp_path), "chat_template.jinja", TEMPLATE.replace("<|bot|>", "<|im_start|>"))
    assert codes(tmp_path) == {"template-token-unknown": Severity.NOTE}


def test_what_templates_may_use():
    """The tags, filters and functions that transformers gives them."""
    source = (
        "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ strftime_now('%Y') }}"
        "{{ bos_token }}"
    )
    answer = child._answer(
        child._render,
        {"template": source, "roles": {"bos_token": "<s>"}, "conversation": CONVERSATION},
    )
    assert answer["outcome"] == "done", answer
    assert answer["text"].endswith("<s>")


@pytest.mark.hf
def test_renders_as_transformers(tmp_path):
    """The shipped lineage's template, and the library's own rendering."""
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(right(tmp_path))
    messages = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": text}
        for n, text in enumerate(CONVERSATION)
    ]
    wanted = loaded.apply_chat_template(messages, tokenize=False)
    request = {"template": TEMPLATE, "roles": {}, "conversation": CONVERSATION}
    answer = run_child("render", request, 20)
    assert answer == {"outcome": "done", "text": wanted}


HOSTILE = {
    "never ends": "{% for a in range(90000) %}{% for b in range(90000) %}" + "{% endfor %}" * 2,
    "takes all memory": "{% set x = 'a' * 999999999 %}{{ x * 99 }}",
    "writes without end": "{% for a in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
    "reaches for python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "reads a file": "{% include '/etc/passwd' %}",
    "raises": "{{ raise_exception('roles must alternate') }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(tmp_path, children, name):
    """They end in a finding, soon."""
    put(right(tmp_path), "chat_template.jinja", HOSTILE[name])
    start = time.process_time()
    assert codes(tmp_path) == {"template-invalid": REFUSED}
    assert time.process_time() - start < 5  # of this process
