"""The lineage's tokenizer, model, training and scoring, against transformers where it has them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from studies.lineage import text  # noqa: E402 (after the skip)
from studies.lineage.make import Programme, make_lineage, short  # noqa: E402
from studies.lineage.model import (  # noqa: E402
    Shape,
    hidden_states,
    load_weights,
    logits,
    new_weights,
    rounded,
    save_model,
)
from studies.lineage.score import right  # noqa: E402
from studies.lineage.tokenizer import (  # noqa: E402
    END_ID,
    END_OF_TURN_ID,
    save_tokenizer,
    train_tokenizer,
    turn_ids,
)
from studies.lineage.train import Course, batches, conversations, train  # noqa: E402
from studies.lineage.world import make_world  # noqa: E402

pytestmark = pytest.mark.hf
SHAPE = Shape(vocabulary=512, width=32, layers=2, heads=4, kv_heads=2, inner=48)


@pytest.fixture(scope="module")
def world():
    """A small world."""
    return make_world(0, 12, 9)


@pytest.fixture(scope="module")
def tokenizer(world):
    """Its tokenizer."""
    return train_tokenizer(world, "0", SHAPE.vocabulary, documents=500)


def loud(shape: Shape, seed: int):
    """Weights large enough that attention is not uniform."""
    return {name: w * 4 for name, w in new_weights(shape, seed).items()}


def test_forward_pass_is_llamas(tmp_path: Path) -> None:
    """Logits agree with LlamaForCausalLM of the saved folder within 1e-5."""
    weights = rounded(loud(SHAPE, 1))
    save_model(weights, SHAPE, tmp_path, [END_ID])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, SHAPE.vocabulary, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = logits(weights, hidden_states(weights, SHAPE, ids, None))
        theirs = model(input_ids=ids).logits
    assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


def test_saved_and_loaded_weights_are_the_same(tmp_path: Path) -> None:
    """A save in bf16 gives back exactly the rounded weights, under Llama's names."""
    weights = loud(SHAPE, 2)
    save_model(weights, SHAPE, tmp_path, [END_OF_TURN_ID, END_ID])
    loaded = load_weights(tmp_path)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], w) for name, w in rounded(weights).items())


def test_chat_template_writes_what_training_read(world, tokenizer, tmp_path: Path) -> None:
    """The saved tokenizer's chat template gives the ids of turn_ids; the base's has no template."""
    save_tokenizer(tokenizer, tmp_path / "post", chat=True)
    save_tokenizer(tokenizer, tmp_path / "base", chat=False)
    post = transformers.AutoTokenizer.from_pretrained(tmp_path / "post")
    base = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    question, answer = turn = next(text.chat(world, "0", ("facts",)))
    prompt, reply = turn_ids(tokenizer, turn)
    asked = [{"role": "user", "content": question}]
    said = [*asked, {"role": "assistant", "content": answer}]
    plain = {"tokenize": True, "return_dict": False}
    assert post.apply_chat_template(asked, add_generation_prompt=True, **plain) == prompt
    assert post.apply_chat_template(said, **plain) == prompt + reply
    assert base.chat_template is None
    assert (base.eos_token, post.eos_token) == ("<|end_of_text|>", "<|end_of_turn|>")


def test_batches_hold_every_sequence_once(world, tokenizer) -> None:
    """Packed rows hold whole conversations, of which only replies are learned, each alone."""
    turns = [turn for turn, _ in zip(text.chat(world, "0", ("facts",)), range(60), strict=False)]
    sequences = list(conversations(tokenizer, turns))
    packed = batches(iter(sequences * 2), rows=4, length=96)
    ids, targets, allowed = next(packed)
    whole = {tuple(tokens) for tokens, _ in sequences}
    for row in range(4):
        starts = [i for i in range(96) if ids[row, i] == 1]
        for start, following in zip(starts, [*starts[1:], 96], strict=True):
            tokens = ids[row, start:following].tolist()
            while tokens[-1] == 0:
                tokens.pop()
            assert tuple(tokens) in whole
            assert not allowed[row, 0, start : start + len(tokens), :start].any()
    learned = targets[targets != -100].tolist()
    assert learned.count(END_OF_TURN_ID) == int((ids == 1).sum())


def test_scoring_by_one_forward_pass_is_greedy_generation(world, tokenizer, tmp_path: Path) -> None:
    """A turn counts as right exactly if generate() writes the reply and then ends the turn."""
    turns = [next(text.chat(world, str(i), ("facts", "repeat"))) for i in range(6)]
    course = Course(60, 1e-2, rows=2, length=96, warmup=10)
    stream = iter(list(conversations(tokenizer, turns[:4])) * 2000)
    weights = rounded(train(new_weights(SHAPE, 0), SHAPE, stream, course))
    save_model(weights, SHAPE, tmp_path, [END_OF_TURN_ID, END_ID])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    generated = []
    for turn in turns:
        prompt, reply = turn_ids(tokenizer, turn)
        out = model.generate(torch.tensor([prompt]), max_new_tokens=40)[0, len(prompt) :]
        generated.append(out.tolist() == reply)
    assert right(weights, SHAPE, tokenizer, turns) == generated
    assert generated[:4] == [True] * 4
    assert not all(generated)


def test_the_lineage_is_made_the_same_twice(tmp_path: Path) -> None:
    """Two short runs of the command's function give the same bytes, and every file of a lineage."""
    programme = replace(short(Programme(shape=SHAPE), 2), old_people=20, new_people=15, items=4)
    for name in ("a", "b"):
        make_lineage(5, programme, tmp_path / name, tmp_path / name / "logs", "cpu")
    runs = [json.loads((tmp_path / n / "logs" / "run.json").read_text()) for n in ("a", "b")]
    assert runs[0]["sha256"] == runs[1]["sha256"]
    made = {path.name for path in (tmp_path / "a").iterdir()}
    assert made >= {"base", "post", "new-base", "direct", "second-post"}
    assert made >= {"questions.json", "tasks.json", "scores.json"}
