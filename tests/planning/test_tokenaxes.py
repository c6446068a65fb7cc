"""Which tensors have rows of tokens: by sizes and sections, and by names where those cannot."""

import contextlib
import itertools

import pytest

from paramdelta.planning.tokenaxes import rows_of_tokens, size_places, token_axes

WIDTH = 64


def model(prefix="model.", rows=1000, width=WIDTH, layers=2, inner=256):
    """Shapes of a small decoder."""
    shapes = {f"{prefix}embed_tokens.weight": (rows, width), f"{prefix}norm.weight": (width,)}
    for number in range(layers):
        layer = f"{prefix}layers.{number}."
        shapes |= {
            f"{layer}mlp.up_proj.weight": (inner, width),
            f"{layer}mlp.down_proj.weight": (width, inner),
            f"{layer}self_attn.o_proj.weight": (width, width),
            f"{layer}self_attn.q_proj.bias": (width,),
            f"{layer}input_layernorm.weight": (width,),
        }
    return shapes


def config(rows=1000, **more):
    """Its config.json."""
    return {
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": WIDTH,
        "intermediate_size": 256,
        "bos_token_id": rows,
        **more,
    }


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("lm_head.weight", (1000, WIDTH), 0),
        ("lm_head.bias", (1000,), 0),
        ("final_logits_bias", (1, 1000), 1),
        ("unheard.of.thing", (1000, WIDTH), 0),
        ("unheard.of.thing", (WIDTH, 1000), 1),
        ("ctc_head.weight", (1000, WIDTH, 1), 0),
        ("model.layers.61.embed_tokens.weight", (1000, WIDTH), 0),
        ("medusa_head.3.1.weight", (1000, WIDTH), 0),
        ("model.embed_tokens_per_layer.weight", (999, 48), 0),
        ("model.embed_positions.weight", (1000, WIDTH), None),
        ("model.token_type_embeddings.weight", (2, WIDTH), None),
        ("vqmodel.quantize.embedding.weight", (1000, WIDTH), None),
        ("codec.embed_tokens.weight", (1000, WIDTH), None),
        ("entity_embeddings.weight", (1000, WIDTH), None),
        ("model.embed_norm.weight", (1000,), None),
        ("some.counts", (3, 1000, 1000), None),
        ("step", (), None),
    ],
)
def test_a_tensor_as_long_as_the_vocabulary(name, shape, axis):
    """By its shape, whatever its name, unless the name says that it is another table."""
    found = token_axes(model() | {name: shape}, config(), 990)
    assert found.pop("model.embed_tokens.weight") == 0
    assert found == ({} if axis is None else {name: axis})


@pytest.mark.parametrize("size", ["hidden_size", "intermediate_size", "max_position_embeddings"])
def test_names_decide_between_equal_sizes(size):
    """Where the vocabulary is as large as something else, nothing else is caught."""
    shapes = model("gpt.", 256, 256 if size == "hidden_size" else WIDTH) | {
        "gpt.wpe.weight": (256, WIDTH),
        "gpt.layers.0.output.dense.weight": (256, WIDTH),
        "gpt.predictions.bias": (256,),
        "lm_head.weight": (256, WIDTH),
    }
    found = token_axes(shapes, config(256, **{size: 256}), 250)
    assert found == dict.fromkeys(
        ["gpt.embed_tokens.weight", "gpt.predictions.bias", "lm_head.weight"], 0
    )


OMNI = {
    "model_type": "qwen2_5_omni",
    "thinker_config": {
        "model_type": "thinker",
        "text_config": config(),
        "audio_config": {"model_type": "audio", "d_model": 1000},
    },
    "talker_config": {"model_type": "talker", "vocab_size": 1000, "hidden_size": WIDTH},
    "token2wav_config": {"model_type": "wav"},
}


def test_a_talker_has_a_vocabulary_of_its_own():
    """Even one of the same size: the sections of config.json say what a tensor belongs to."""
    shapes = {
        **model("thinker.model."),
        "thinker.lm_head.weight": (1000, WIDTH),
        "thinker.audio_tower.embed.weight": (1000, WIDTH),
        "talker.model.embed_tokens.weight": (1000, WIDTH),
        "talker.codec_head.weight": (1000, WIDTH),
    }
    expected = {"thinker.model.embed_tokens.weight": 0, "thinker.lm_head.weight": 0}
    assert token_axes(shapes, OMNI, 990) == expected
    assert token_axes(shapes, OMNI, None) == expected
    assert size_places(OMNI, 990) == {("thinker_config", "text_config", "vocab_size"): 1000}


def test_the_section_that_holds_the_tokenizer():
    """Musicgen: the text encoder's words and not the decoder's codes; BERT2BERT: both halves."""
    inner = {"model_type": "t5", "vocab_size": 1000, "d_model": WIDTH}
    codes = {"model_type": "decoder", "vocab_size": 32, "hidden_size": WIDTH}
    shapes = {
        "text_encoder.shared.weight": (1000, WIDTH),
        "decoder.model.decoder.embed_tokens.0.weight": (33, WIDTH),
        "decoder.lm_heads.0.weight": (32, WIDTH),
    }
    found = token_axes(shapes, {"text_encoder": inner, "decoder": codes}, 990)
    assert found == {"text_encoder.shared.weight": 0}
    shapes = {
        f"{half}.embeddings.word_embeddings.weight": (1000, 8) for half in ("encoder", "decoder")
    }
    halves = {"encoder": inner, "decoder": inner}
    assert token_axes(shapes, halves, 990) == dict.fromkeys(shapes, 0)
    assert len(size_places(halves, 990)) == 2


def test_an_image_codebook_is_no_vocabulary():
    """Chameleon: as many codes as words, in a table called embedding."""
    shapes = model() | {"model.vqmodel.quant_conv.embedding.weight": (1000, 32)}
    vq = {"vq_config": {"model_type": "vq", "num_embeddings": 1000}}
    assert token_axes(shapes, config(**vq), 990) == {"model.embed_tokens.weight": 0}


def test_sections_with_names_of_their_own():
    """A model of somebody else: the section with a vocabulary that holds the tokens."""
    said = {"model_type": "new", "llama_stuff": config(), "speech_stuff": config(64)}
    assert token_axes(model("llm."), said, 990) == {"llm.embed_tokens.weight": 0}


@pytest.mark.parametrize("said", [{}, {"model_type": "new"}, config(5000)])
def test_without_a_true_size_names_decide(said):
    """No config.json, one without a size, or a wrong one: the largest table that is called so."""
    shapes = model() | {"lm_head.weight": (1000, WIDTH), "lm_head.bias": (1000,)}
    expected = {"model.embed_tokens.weight": 0, "lm_head.weight": 0, "lm_head.bias": 0}
    assert token_axes(shapes, said, 990) == expected
    assert token_axes(shapes, {}, None) == expected
    assert token_axes(model(rows=300), {}, 990) == {}  # too few rows for this tokenizer
    talker = {"model_type": "new", "talker_config": {"model_type": "talker"}}
    both = model() | {"talker.embed_tokens.weight": (2000, WIDTH)}
    assert token_axes(both, talker, None) == {"model.embed_tokens.weight": 0}


def test_a_little_more_than_is_stated():
    """Moshi: one more row than the head has; a tokenizer may have a few tokens without rows."""
    shapes = model(rows=1001) | {"lm_head.weight": (1000, WIDTH)}
    assert rows_of_tokens(shapes, config(), 1004) == 1001
    assert rows_of_tokens({"conv.weight": (8, 3, 3)}, {"model_type": "resnet"}, 1000) is None


def test_where_sizes_are_stated():
    """At the top, in the text section, or in both; not in others."""
    both = {"vocab_size": 1000, "text_config": config(), "vision_config": config()}
    assert set(size_places(both, 990)) == {("vocab_size",), ("text_config", "vocab_size")}
    assert size_places({"vocab_size": True}, 990) == {}


LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "layer_types")
CLASSES = """
AlbertForMaskedLM BartForConditionalGeneration BertForMaskedLM BloomForCausalLM ChatGLMModel
DebertaV2ForMaskedLM DistilBertForMaskedLM ElectraForPreTraining FalconForCausalLM
FunnelForMaskedLM GPT2LMHeadModel GPTNeoXForCausalLM Gemma3ForConditionalGeneration
LlamaForCausalLM LlavaForConditionalGeneration LukeForMaskedLM MBartForConditionalGeneration
MambaForCausalLM ModernBertForMaskedLM OPTForCausalLM
PegasusForConditionalGeneration PhiForCausalLM
Qwen3VLForConditionalGeneration RemBertForMaskedLM RobertaForMaskedLM RoFormerForMaskedLM
T5ForConditionalGeneration Wav2Vec2ForCTC WhisperForConditionalGeneration XLMWithLMHeadModel
XLNetLMHeadModel CLIPModel Blip2ForConditionalGeneration
"""


@pytest.mark.hf
@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES.split())
def test_real_models(name):
    """The tensors whose shape changes if only the vocabulary grows, in the sizes of real models."""
    torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind = getattr(hf, name, None)
    if kind is None:
        pytest.skip("not in this transformers")

    def shapes(more):
        said = kind.config_class()
        text = getattr(getattr(said, "thinker_config", said), "text_config", None) or said
        for part, key in itertools.product((said, text), LAYERS):
            value = getattr(part, key, None)
            with contextlib.suppress(AttributeError, NotImplementedError):
                if isinstance(value, (int, list)):
                    setattr(part, key, value[:2] if isinstance(value, list) else min(2, value))
        for part in {id(part): part for part in (said, text)}.values():
            if isinstance(getattr(part, "vocab_size", None), int):
                part.vocab_size += more
        with torch.device("meta"):
            state = kind(said).state_dict()
        return said.to_dict(), text.vocab_size, {n: tuple(t.shape) for n, t in state.items()}

    said, size, now = shapes(0)
    _, _, then = shapes(13)
    grown = {n: [a != b for a, b in zip(now[n], then[n], strict=True)] for n in now}
    expected = {n: axes.index(True) for n, axes in grown.items() if any(axes)}
    assert expected
    assert token_axes(now, said, size - 7) == expected
