"""Outputs of the compatibility matrix: nothing is found; and each loads in its library."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from paramdelta import mix
from paramdelta.check import architecture, check, child
from tests.integration.families import FAMILIES, save_family

pytestmark = pytest.mark.hf

# Where the matrix' own checkpoints say two things: an R1 template that ends no turn, T5's default
# end of sequence beside the tokenizer's, layers that are promised and not there.
R1_CHAT = (
    "{% for m in messages %}{{ '<｜User｜>' if m.role == 'user' else '<｜Assistant｜>' }}"
    "{{ m.content }}{{ '<｜end▁of▁sentence｜>' if m.role == 'assistant' }}{% endfor %}"
)
MENDED = {
    "DeepSeek-R1-Distill-Llama": {"chat": R1_CHAT, "roles": {}},
    "DeepSeek-R1-Distill-Qwen": {"chat": R1_CHAT},
    "T5": {"sizes": {"eos_token_id": 2}},
    "T5 1.1": {"sizes": {"eos_token_id": 2}},
    "DeepSeek-V3": {"sizes": {"num_nextn_predict_layers": 0}},
}


def _family(name):
    family, changes = FAMILIES[name], dict(MENDED.get(name, {}))
    changes["sizes"] = {**family.sizes, **changes.get("sizes", {})}
    return replace(family, **changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_found(tmp_path, monkeypatch, name):
    """Names and shapes, tokens, templates, statements, numbers."""

    def run(task, request, seconds):
        return child._answer(child._TASKS[task], json.loads(json.dumps(request)))

    monkeypatch.setattr(architecture, "run_child", run)
    out = mix(save_family(_family(name), tmp_path), tmp_path / "out").folder
    report = check(out)
    assert report.findings == ()
    assert report.skipped == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen2.5", "T5", "ViT"])
def test_loads(tmp_path, name):
    """In a child: no key too few or too many, no warning, and a few tokens where it generates."""
    out = mix(save_family(_family(name), tmp_path), tmp_path / "out").folder
    report = check(out, load=True)
    assert report.findings == ()
    assert report.checked[-1] == "loading"
