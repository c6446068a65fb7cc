"""Extended vocabularies with real tokenizers: every row against a reference that goes row by row
and knows the tokenizers only; the output in transformers.
"""

import json
import logging
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from paramdelta import Delta, Recipe, load_tokenizer, mix, plan, verify  # noqa: E402
from paramdelta.errors import MisfitError, parameter  # noqa: E402
from studies.transfer.mix import to_bf16  # noqa: E402
from studies.vocabulary import lineage, reference, text, tokens  # noqa: E402
from studies.vocabulary.tokens import CHAT, END, IM_END, IM_START  # noqa: E402
from tests.integration.families import live_problems  # noqa: E402

pytestmark = pytest.mark.hf

CASES = ("appended", "between", "words", "padded", "padding", "renamed")
EXTENDED = CASES[:4]
MODES = ("auto", "token", "id", "new-base")
DATA = Path(__file__).parents[3] / "shared" / "data"


def made_up(syllables, seed, count):
    """Sentences of made-up words: long enough to learn merges from, and the same every time."""
    chance = random.Random(seed)
    words = ["".join(chance.choices(syllables, k=chance.randint(2, 4))) for _ in range(150)]
    return [" ".join(chance.choices(words, k=12)).capitalize() + "." for _ in range(count)]


GENERAL = made_up(["ba", "de", "lo", "ni", "su", "re", "ta", "mi", "po", "ke"], 1, 400)
DOMAIN = made_up(["cyto", "hem", "itis", "osis", "myel", "derm", "neur"], 2, 400)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """``built(name, tied)``: a case and its checkpoints by role, each made once."""
    transformers.utils.logging.disable_progress_bar()
    cases = lineage.cases(GENERAL, DOMAIN, 360, 60)
    folder = tmp_path_factory.mktemp("lineages")
    done = {}

    def get(name, tied):
        if (name, tied) not in done:
            place = folder / f"{name}-{tied}"
            done[name, tied] = lineage.build(cases[name], place, tied=tied)
        return cases[name], done[name, tied]

    return get


def recipe(folders, **choices):
    """The recipe for these folders; tokens of post that are left out are accepted."""
    scale = choices.pop("scale", 1.0)
    delta = Delta(str(folders["post"]), str(folders["base"]), scale)
    return Recipe(str(folders["new-base"]), (delta,), allow=("post-only-tokens",), **choices)


def meant(case, mode):
    """What a mode comes to: a reserved token with another name is the same token."""
    return case.by if mode in ("auto", "token") else {"id": "number"}.get(mode, mode)


def assert_equal(out, expected):
    """Every tensor of the output is the expected one, to the bit."""
    found = reference.load(out)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype == torch.bfloat16
        assert found[name].shape == value.shape, name
        differs = found[name].view(torch.int16) != value.view(torch.int16)
        places = differs.nonzero()[:, 0].unique().tolist()
        assert not places, f"{name}: {len(places)} rows differ, the first {places[:5]}"


def loaded(out):
    """Model and tokenizer as transformers loads them, with no warning and no key left over."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                out, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert [record.getMessage() for record in records] == []
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model, tokenizer


def ends(model):
    """The ids that end generation, as transformers will use them."""
    value = model.generation_config.eos_token_id
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_every_row_is_that_of_the_reference(built, tmp_path, name, tied, mode):
    """In every case and mode each row is the reference's, and transformers loads the output with
    an embedding of the size that config.json says, and a row for every token.
    """
    case, folders = built(name, tied)
    out = mix(recipe(folders, vocabulary=mode), tmp_path / "out").folder
    assert_equal(out, reference.mixed(folders, meant(case, mode)))
    verify(out, share=1.0)
    model, tokenizer = loaded(out)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == case.rows[2]
    assert max(tokenizer.get_vocab().values()) < case.rows[2]
    assert model.config.tie_word_embeddings is tied


@pytest.mark.parametrize("mode", ["auto", "token", "id", "new-base"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", EXTENDED)
def test_grafted_tokens_have_the_rows_of_post(built, tmp_path, name, tied, mode):
    """Grafted chat tokens stand at the first free ids with post's rows; all others are as without
    grafts; the tokenizer knows them, the template uses them, and the end of a turn ends it.
    """
    case, folders = built(name, tied)
    out = mix(recipe(folders, vocabulary=mode, graft=CHAT), tmp_path / "out").folder
    assert_equal(out, reference.mixed(folders, meant(case, mode), CHAT))
    verify(out, share=1.0)
    model, tokenizer = loaded(out)
    if mode == "auto":
        chosen = recipe(folders, vocabulary=mode, graft=CHAT)
        assert live_problems(chosen, model) == []
        assert load_tokenizer(chosen).get_vocab() == tokenizer.get_vocab()
    rows = model.get_input_embeddings().weight
    count = case.tokenizers[2].get_vocab_size()
    assert model.config.vocab_size == len(rows) == max(case.rows[2], count + 2)

    known = tokenizer.get_vocab()
    assert [known[token] for token in CHAT] == [count, count + 1]
    assert {t: i for t, i in known.items() if t not in CHAT} == case.tokenizers[2].get_vocab()
    messages = [{"role": "user", "content": "Hemitis?"}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
    assert [i for i in ids if i in (count, count + 1)] == [count, count + 1, count]
    assert set(CHAT) <= {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    assert "<|im" not in tokenizer.decode(ids, skip_special_tokens=True)

    theirs = reference.load(folders["post"])
    old = reference.vocabulary(folders["post"])
    heads = {reference.EMBEDDING: rows, lineage.HEAD: model.get_output_embeddings().weight}
    for key, weight in heads.items():
        given = theirs[key if key in theirs else reference.EMBEDDING]
        for token in CHAT:
            assert torch.equal(weight[known[token]], given[old[token]]), (key, token)

    assert ends(model) == [known[IM_END], known[END]]
    assert model.config.eos_token_id == known[IM_END]
    assert tokenizer.eos_token == IM_END
    assert model.config.bos_token_id == known[tokens.BEGIN]
    assert model.config.pad_token_id == known[tokens.PAD]
    assert model.generation_config.pad_token_id == known[tokens.PAD]


@pytest.mark.parametrize("name", EXTENDED)
def test_grafting_keeps_how_text_is_cut(built, tmp_path, name):
    """Text of the domain is cut into tokens as by the new base's tokenizer."""
    case, folders = built(name, True)
    out = mix(recipe(folders, graft=CHAT), tmp_path / "out").folder
    _, tokenizer = loaded(out)
    for sentence in (*DOMAIN[:20], *GENERAL[:20]):
        assert tokenizer(sentence)["input_ids"] == case.tokenizers[2].encode(sentence).ids


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_taken_tokens_have_the_rows_of_post(built, tmp_path, name, tied):
    """A taken token that all have gets post's row outright, beside grafts and at another scale."""
    case, folders = built(name, tied)
    word = next(t for t in case.tokenizers[0].get_vocab() if t.startswith("Ġ") and len(t) > 4)
    choices = {"graft": case.graft, "take": (END, word), "scale": 0.75}
    out = mix(recipe(folders, **choices), tmp_path / "out").folder
    assert_equal(out, reference.mixed(folders, case.by, **choices))
    loaded(out)


@pytest.mark.parametrize("tied", [True, False])
def test_the_old_base_as_new_base_gives_back_post(built, tmp_path, tied):
    """With both chat tokens grafted onto the old base, the weights are post's, byte for byte."""
    _, folders = built("appended", tied)
    folders = folders | {"new-base": folders["base"]}
    out = mix(recipe(folders, graft=CHAT), tmp_path / "out").folder
    assert_equal(out, reference.load(folders["post"]))
    ours, theirs = (reference.vocabulary(folder) for folder in (out, folders["post"]))
    assert ours == theirs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_an_untouched_post_gives_back_the_new_base(built, tmp_path, name, tied):
    """With post = base nothing changes: the new base's weights, byte for byte."""
    _, folders = built(name, tied)
    folders = folders | {"post": folders["base"]}
    out = mix(recipe(folders), tmp_path / "out").folder
    assert_equal(out, reference.load(folders["new-base"]))


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_grafts_fill_padding_and_then_add_rows(built, tmp_path, padding):
    """With one row of padding the first graft takes it, and the second adds a row."""
    case, _ = built("appended", False)
    count = case.rows[2]
    case = replace(case, rows=(*case.rows[:2], count + padding))
    folders = lineage.build(case, tmp_path, tied=False)
    out = mix(recipe(folders, graft=CHAT), tmp_path / "out").folder
    assert_equal(out, reference.mixed(folders, "token", CHAT))
    model, tokenizer = loaded(out)
    assert model.config.vocab_size == count + max(2, padding)
    assert tokenizer.convert_tokens_to_ids(list(CHAT)) == [count, count + 1]


def test_grafts_beside_a_gap_in_the_ids(built, tmp_path):
    """Where an id of the new base has no token, the tokenizers library numbers added tokens by
    itself, unless the model knows them: it has to come to the ids whose rows are post's.
    """
    case, _ = built("appended", False)
    folders = lineage.build(case, tmp_path, tied=False)
    path = folders["new-base"] / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content["model"]
    joined = {part for merge in model["merges"] for part in merge}
    top = max(model["vocab"].values())
    gone = next(t for t in model["vocab"] if t not in joined and 360 <= model["vocab"][t] < top)
    del model["vocab"][gone]
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) != gone]
    path.write_text(json.dumps(content), encoding="utf-8")
    out = mix(recipe(folders, graft=CHAT), tmp_path / "out").folder
    network, tokenizer = loaded(out)
    known, old = tokenizer.get_vocab(), reference.vocabulary(folders["post"])
    assert len(set(known.values())) == len(known)
    assert ends(network)[0] == known[IM_END]
    rows, theirs = (reference.load(f)[reference.EMBEDDING] for f in (out, folders["post"]))
    for token in CHAT:
        assert torch.equal(rows[known[token]], theirs[old[token]])


def test_grafts_stand_in_the_order_in_which_they_were_asked_for(built, tmp_path):
    """The first graft gets the first free id; rows and tokenizer agree about it."""
    case, folders = built("between", False)
    graft = (IM_END, IM_START)
    out = mix(recipe(folders, graft=graft), tmp_path / "out").folder
    assert_equal(out, reference.mixed(folders, "token", graft))
    model, tokenizer = loaded(out)
    count = case.tokenizers[2].get_vocab_size()
    assert tokenizer.convert_tokens_to_ids(list(graft)) == [count, count + 1]
    assert ends(model)[0] == count


@pytest.mark.parametrize("mode", ["auto", "token", "new-base"])
@pytest.mark.parametrize("name", EXTENDED)
def test_chat_tokens_are_not_lost_silently(built, tmp_path, name, mode):
    """Without grafts the mix is refused, and the refusal says what to add; with it, it is not."""
    _, folders = built(name, False)
    delta = Delta(str(folders["post"]), str(folders["base"]))
    strict = Recipe(str(folders["new-base"]), (delta,), vocabulary=mode)
    with pytest.raises(MisfitError) as refusal:
        mix(strict, tmp_path / "out")
    assert parameter("graft", tuple(CHAT)) in str(refusal.value.remedy)
    assert not plan(replace(strict, graft=CHAT)).refused


@pytest.mark.parametrize("name", EXTENDED)
def test_rows_by_number_are_told(built, name):
    """--vocabulary id compares no tokenizers; a warning says so if there are not as many rows."""
    _, folders = built(name, False)
    delta = Delta(str(folders["post"]), str(folders["base"]))
    made = plan(Recipe(str(folders["new-base"]), (delta,), vocabulary="id"))
    assert {f.code for f in made.findings} >= {"rows-by-number"}


def test_a_bias_of_the_head_has_rows_of_tokens_too(built, tmp_path):
    """Phi's output head has a bias: its numbers go the way of the rows, grafts included."""
    case, llamas = built("between", False)
    folders = {role: tmp_path / role for role in lineage.ROLES}
    for seed, (role, rows) in enumerate(zip(lineage.ROLES, case.rows, strict=True)):
        torch.manual_seed(seed)
        config = transformers.PhiConfig(
            vocab_size=rows,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            eos_token_id=case.tokenizers[1].token_to_id(IM_END) if role == "post" else 0,
        )
        model = transformers.PhiForCausalLM(config)
        torch.nn.init.normal_(model.lm_head.bias)
        model.to(torch.bfloat16).save_pretrained(folders[role])
        for file in llamas[role].glob("*token*.json"):
            (folders[role] / file.name).write_bytes(file.read_bytes())
    out = mix(recipe(folders, graft=CHAT), tmp_path / "out").folder
    found = reference.load(out)
    weights = {role: reference.load(folder) for role, folder in folders.items()}
    counts = {role: reference.row_count(tensors) for role, tensors in weights.items()}
    where = reference.rows(folders, counts, "token", CHAT)
    for name in ("lm_head.bias", "lm_head.weight", reference.EMBEDDING):
        rows = [weights[role][name].double() for role in ("new-base", "post", "base")]
        expected = torch.stack([reference.numbers(place, *rows, 1.0) for place in where])
        assert torch.equal(found[name], to_bf16(expected)), name
    loaded(out)


@pytest.mark.parametrize("name", CASES)
def test_on_real_text(tmp_path, name):
    """Tokenizers of 2000 tokens from real novels, extended on real medical answers."""
    try:
        texts = text.read(DATA, 400_000)
    except text.DataMissingError as error:
        pytest.skip(str(error))
    case = lineage.cases(texts.general, texts.domain, 2000, 300)[name]
    folders = lineage.build(case, tmp_path, tied=False)
    out = mix(recipe(folders, graft=case.graft), tmp_path / "out").folder
    assert_equal(out, reference.mixed(folders, case.by, case.graft))
    _, tokenizer = loaded(out)
    for sentence in texts.held[:8]:
        assert tokenizer(sentence)["input_ids"] == case.tokenizers[2].encode(sentence).ids


def test_plan_tells_the_fate_of_every_row(built):
    """The counts by fate in the plan add up to the rows of the output."""
    case, folders = built("padded", False)
    made = plan(recipe(folders, graft=CHAT))
    counts = {fate.name: fate.count for fate in made.vocabulary}
    old = len(case.tokenizers[0].get_vocab())
    assert counts["same id"] == old
    assert counts["new base only"] == case.tokenizers[2].get_vocab_size() - old
    assert counts["grafted"] == 2
    assert sum(counts.values()) == case.rows[2]
    assert json.loads((folders["post"] / "config.json").read_text())["vocab_size"] == case.rows[1]
