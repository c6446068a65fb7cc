"""The whole check: nothing is found in right folders, and each fault of a table where it is put."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paramdelta.checks import check, checker
from paramdelta.errors import StorageError
from paramdelta.planning.findings import Severity
from tests.checks.folders import CONFIG, TEMPLATE, edit, put, right, sharded, tensors, tokenizer

LINEAGE = Path(__file__).parents[2] / "src" / "paramdelta" / "demo" / "lineage"
REFUSED, WARNING, NOTE = Severity


def codes(folder: Path, **options) -> dict[str, Severity]:
    """What is found: code -> severity."""
    return {finding.code: finding.severity for finding in check(folder, **options).findings}


@pytest.mark.parametrize("make", [right, sharded])
def test_nothing_in_a_right_folder(tmp_path, make):
    """No finding, every tensor seen, and what was left out is said."""
    report = check(make(tmp_path))
    assert report.findings == ()
    assert report.passed
    assert report.kind == "transformers"
    assert report.tensors == len(tensors())
    assert "no library in this test" in report.skipped[0]


@pytest.mark.parametrize("name", ["base", "post", "new-base", "second-post", "direct"])
def test_nothing_in_the_shipped_lineage(name):
    """The models that come with the package."""
    assert check(LINEAGE / name).findings == ()


# -- faults, one place each ------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[Path], object], str, Severity]] = {}


def fault(code: str, severity: Severity = REFUSED):
    """Register a way to break the right folder, and what must be found."""

    def register(breaks: Callable[[Path], object]):
        FAULTS[breaks.__name__.strip("_")] = (breaks, code, severity)
        return breaks

    return register


@fault("token-without-row")
def _role_beyond_the_rows(folder):
    content = tokenizer()
    content["model"]["vocab"] |= {f"w{n}": n for n in range(len(content["model"]["vocab"]), 30)}
    content["added_tokens"].append({"id": 30, "content": "<|end|>", "special": True})
    put(folder, "tokenizer.json", content)
    edit(folder, "tokenizer_config.json", eos_token="<|end|>")
    (folder / "special_tokens_map.json").unlink()


@fault("token-without-row", WARNING)
def _token_beyond_the_rows(folder):
    content = tokenizer()
    content["model"]["vocab"] |= {f"w{n}": n for n in range(len(content["model"]["vocab"]), 30)}
    put(folder, "tokenizer.json", content)


@fault("token-without-row")
def _configured_id_beyond_the_rows(folder):
    edit(folder, "generation_config.json", eos_token_id=[2, 90])


@fault("token-disagrees")
def _added_tokens_of_another_model(folder):
    put(folder, "added_tokens.json", {"<|user|>": 20})


@fault("token-disagrees")
def _decoder_of_another_model(folder):
    edit(folder, "tokenizer_config.json", added_tokens_decoder={"9": {"content": "</s>"}})


@fault("token-disagrees")
def _gap_before_an_added_token(folder):
    content = tokenizer()
    content["added_tokens"].append({"id": 22, "content": "<|later|>", "special": True})
    put(folder, "tokenizer.json", content)


@fault("post-processor-wrong")
def _post_processor_of_another_model(folder):
    content = tokenizer()
    content["post_processor"]["special_tokens"]["<s>"]["ids"] = [7]
    put(folder, "tokenizer.json", content)


@fault("roles-disagree", WARNING)
def _roles_of_another_model(folder):
    edit(folder, "special_tokens_map.json", eos_token="<|user|>")


@fault("role-unknown", WARNING)
def _role_that_is_no_token(folder):
    edit(folder, "tokenizer_config.json", pad_token="[PAD]")


@fault("tokenizer-missing")
def _template_without_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()


@fault("tokenizer-missing")
def _tokenizer_config_without_vocabulary(folder):
    (folder / "tokenizer.json").unlink()


@fault("code-missing")
def _code_lost(folder):
    edit(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})


@fault("code-missing")
def _code_lost_that_code_imports(folder):
    edit(folder, "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    put(folder, "modeling_x.py", "from .layers_x import Layer\nraise SystemExit('was run')\n")


@fault("code-missing")
def _generation_code_lost(folder):
    put(folder, "custom_generate/requirements.txt", "")


@fault("eos-disagrees", WARNING)
def _ends_differ(folder):
    edit(folder, "config.json", eos_token_id=4)


@fault("eos-disagrees", NOTE)
def _ends_differ_in_an_encoder(folder):
    edit(folder, "config.json", eos_token_id=4, architectures=["LlamaModel"])


@fault("bos-disagrees", WARNING)
def _beginnings_differ(folder):
    edit(folder, "generation_config.json", bos_token_id=5)


@fault("pad-disagrees", WARNING)
def _paddings_differ(folder):
    edit(folder, "tokenizer_config.json", pad_token="a")


@fault("template-never-stops")
def _end_of_the_base(folder):
    edit(folder, "generation_config.json", eos_token_id=3)
    edit(folder, "config.json", eos_token_id=3)
    edit(folder, "tokenizer_config.json", eos_token="<unk>")
    edit(folder, "special_tokens_map.json", eos_token="<unk>")


@fault("template-never-stops")
def _end_only_in_the_tokenizer(folder):
    edit(folder, "generation_config.json", eos_token_id=3)


@fault("template-disagrees", WARNING)
def _two_templates(folder):
    edit(folder, "tokenizer_config.json", chat_template=TEMPLATE + "!")


@fault("template-disagrees", WARNING)
def _template_hidden_by_others(folder):
    (folder / "chat_template.jinja").rename(folder / "t")
    edit(folder, "tokenizer_config.json", chat_template=(folder / "t").read_text())
    put(folder, "additional_chat_templates/rag.jinja", "x")


@fault("template-invalid")
def _template_with_an_error(folder):
    put(folder, "chat_template.jinja", "{% for m in messages %}")


@fault("template-drops-content", WARNING)
def _template_without_the_assistant(folder):
    put(folder, "chat_template.jinja", "{{ messages[0].content }}</s>")


@fault("dtype-disagrees", WARNING)
def _two_dtypes(folder):
    edit(folder, "config.json", torch_dtype="float32")


@fault("dtype-untrue", WARNING)
def _dtype_untrue(folder):
    edit(folder, "config.json", dtype="float16")


@fault("vocab-size-disagrees", WARNING)
def _nested_vocabulary(folder):
    edit(folder, "config.json", text_config={"vocab_size": ROWS_ELSEWHERE})


ROWS_ELSEWHERE = CONFIG["vocab_size"] - 2


@fault("tie-disagrees", WARNING)
def _nested_tie(folder):
    edit(folder, "config.json", text_config={"tie_word_embeddings": True})


@fault("labels-disagree", WARNING)
def _labels_of_another_model(folder):
    edit(folder, "config.json", id2label={"0": "no", "1": "yes"}, label2id={"bad": 0, "good": 1})


@fault("quantization-untrue")
def _stale_quantization_file(folder):
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    put(folder, "hf_quant_config.json", stated)


@fault("quantization-untrue")
def _stale_nested_quantization(folder):
    edit(folder, "config.json", text_config={"quantization_config": {"quant_method": "fp8"}})


@fault("quantization-untrue")
def _stale_compression(folder):
    edit(folder, "config.json", compression_config={"quant_method": "compressed-tensors"})


@fault("not-finite", WARNING)
def _one_nan(folder):
    state = tensors()
    state["model.norm.weight"][3] = 0x7FC0
    put(folder, "model.safetensors", state)


@fault("head-disagrees")
def _tied_with_a_head_of_its_own(folder):
    edit(folder, "config.json", tie_word_embeddings=True)


@fault("adapter-beside-weights")
def _adapter_beside(folder):
    put(folder, "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "a/b"})


@fault("stray-weights", WARNING)
def _consolidated_weights_left(folder):
    put(folder, "consolidated.safetensors", tensors())


@fault("stray-weights", WARNING)
def _pickles_left(folder):
    put(folder, "pytorch_model.bin", b"PK")


@fault("weights-damaged")
def _truncated(folder):
    os.truncate(folder / "model.safetensors", 900)


@fault("lfs-pointer")
def _pointer(folder):
    put(folder, "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@fault("no-weights")
def _without_weights(folder):
    (folder / "model.safetensors").unlink()


@fault("index-missing")
def _other_file_name(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


@fault("file-invalid")
def _config_that_is_no_object(folder):
    put(folder, "generation_config.json", "[1]")


@fault("layer-count", WARNING)
def _layers_of_another_model(folder):
    edit(folder, "config.json", num_hidden_layers=LAYERS_ELSEWHERE)


LAYERS_ELSEWHERE = CONFIG["num_hidden_layers"] + 1


@fault("processor-missing", WARNING)
def _processor_lost(folder):
    edit(folder, "config.json", vision_config={"hidden_size": 8})


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(tmp_path, name):
    """One thing is broken, and that is found with its severity, place and remedy."""
    breaks, code, severity = FAULTS[name]
    breaks(right(tmp_path))
    findings = check(tmp_path).findings
    assert (code, severity) in [(f.code, f.severity) for f in findings], findings
    assert all(f.where and (f.remedy or f.severity is NOTE) for f in findings)


def test_strict_refuses_nan(tmp_path):
    """A NaN is a warning, and a refusal if asked; without values it is not seen."""
    _one_nan(right(tmp_path))
    assert check(tmp_path).passed
    assert codes(tmp_path, strict=True) == {"not-finite": REFUSED}
    assert codes(tmp_path, strict=True, values=False) == {}


# -- folders of strangers --------------------------------------------------------------------------


def test_no_such_folder(tmp_path):
    """A name that is none, and a file instead of a folder."""
    for name in ("absent", "file"):
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match=r"no such folder|not a folder"):
            check(tmp_path / name)


def test_empty_folder_and_parents_of_models(tmp_path):
    """Says what to give instead."""
    right(tmp_path / "checkpoint-500")
    report = check(tmp_path)
    assert [f.code for f in report.findings] == ["no-model"]
    assert report.findings[0].remedy.endswith("checkpoint-500")


def test_names_are_printable(tmp_path):
    """Names with control characters, bidi overrides and lone surrogates come out escaped."""
    right(tmp_path)
    edit(tmp_path, "tokenizer_config.json", pad_token="\x1b[31m\u202epad\ud800")
    put(tmp_path, "model.safetensors", tensors() | {"a\x07b": np.ones(2, np.float32)})
    report = check(tmp_path)
    text = json.dumps(report.facts, ensure_ascii=False)
    assert "\\\\x1b[31m\\\\u202epad\\\\ud800" in text
    text.encode()
    assert not {"\x1b", "\u202e", "\x07"} & set(text)


SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats()
TEXTS = st.sampled_from(["</s>", "..", "/etc/passwd", "a.B", "fp8", "bfloat16"]) | st.text(
    max_size=8
)
JSON = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
KEYS = """architectures auto_map eos_token_id bos_token_id pad_token_id vocab_size text_config dtype
torch_dtype tie_word_embeddings quantization_config compression_config quantization id2label
label2id num_labels num_hidden_layers num_nextn_predict_layers vision_config model_type
transformers_weights chat_template added_tokens_decoder eos_token added_tokens model vocab
post_processor weight_map hidden_size in_features out_features quant_method config_groups path type
_class_name tokenizer_class r peft_type base_model_name_or_path rank_pattern"""
KEY = st.sampled_from(KEYS.split())
DOCUMENT = st.dictionaries(KEY, JSON | st.dictionaries(KEY, JSON, max_size=4), max_size=5) | JSON
FILES = """config.json generation_config.json tokenizer.json tokenizer_config.json added_tokens.json
special_tokens_map.json modules.json model_index.json adapter_config.json vocab.json
hf_quant_config.json quantize_config.json chat_template.json processor_config.json
model.safetensors.index.json 1_Pooling/config.json unet/config.json"""
FILE = st.sampled_from(FILES.split())


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(FILE, DOCUMENT, min_size=1, max_size=3))
def test_no_content_breaks_the_check(tmp_path_factory, documents):
    """Whatever the small files hold, there is a report, and it can be printed."""
    folder = right(tmp_path_factory.mktemp("fuzz"))
    for name, content in documents.items():
        put(folder, name, json.dumps(content))
    json.dumps(check(folder).facts, ensure_ascii=False).encode()
    shutil.rmtree(folder)


# -- loading ---------------------------------------------------------------------------------------


def test_load_reports_what_the_library_says(tmp_path, monkeypatch):
    """Keys and warnings become findings; a missing library is said to be left out."""
    answers = iter(
        [
            {"outcome": "done", "info": {"missing_keys": ["a.b"]}, "said": ["beware"]},
            {"outcome": "failed", "why": "ValueError: no"},
            {"outcome": "missing", "why": "torch is not installed"},
        ]
    )
    monkeypatch.setattr(checker, "run_child", lambda *_: next(answers))
    right(tmp_path)
    assert codes(tmp_path, load=True) == {"load-incomplete": REFUSED, "load-warning": WARNING}
    assert codes(tmp_path, load=True) == {"load-failed": REFUSED}
    assert "loading: torch is not installed" in check(tmp_path, load=True).skipped


def _only_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _link(folder):
    (folder / "elsewhere").symlink_to("/")


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (_only_pickles, "loading: the weights are pickles"),
        (_link, "loading: not with link-outside"),
        (_adapter_beside, "loading: not with adapter-beside-weights"),
    ],
)
def test_what_is_not_loaded(tmp_path, monkeypatch, breaks, words):
    """Pickles, and folders in which a loader would go elsewhere."""
    monkeypatch.setattr(checker, "run_child", lambda *_: pytest.fail("a child was started"))
    breaks(right(tmp_path))
    assert words in check(tmp_path, load=True).skipped
