"""The plugin in the real vLLM, offline and as a server: `make test-vllm`."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
if importlib.util.find_spec("vllm") is None:
    pytest.skip("vllm is not installed", allow_module_level=True)

from paramdelta import Delta, Recipe, extract_adapter, load_tokenizer, mix, plan
from paramdelta.demo import tour
from paramdelta.live.folder import write_companions, write_recipe
from tests.integration.families import FAMILIES, save_family
from tests.live.generation import SETTINGS

pytestmark = [pytest.mark.hf, pytest.mark.slow]

SCALES = (0.0, 0.5, 1.0)
COMMAND = [sys.executable, "-c", "from paramdelta.cli.app import main; main()"]
PROMPTS = [[1, 5, 17, 44, 80, 3], [9, 8, 7]]


def made(kind, folder):
    """A recipe: the shipped lineage (tied), or random checkpoints of a family."""
    if kind == "lineage":
        return tour.recipe("plain", 1.0)
    name, _, tied = kind.partition(", ")
    family = FAMILIES[name]
    sizes = {**family.sizes, "tie_word_embeddings": bool(tied), "head_dim": 32}
    return save_family(replace(family, sizes=sizes), folder)


def prepared(recipe, folder):
    """What `paramdelta serve` gives vLLM."""
    folder.mkdir()
    planned = plan(recipe)
    write_companions(planned, folder)
    write_recipe(planned, folder)
    return folder


def run(folder, scales=None, adapter=None, **options):
    """A run of `tests.live.generation`."""
    given = {"folder": str(folder), "scales": scales, "options": options}
    return given | {"adapter": adapter and str(adapter)}


def generated(place, *runs, alone=True, prompts=PROMPTS):
    """Tokens of the prompts, for each run. ``alone``: vLLM needs only one process."""
    request, answer = place / "request.json", place / "answer.json"
    request.write_text(json.dumps({"prompts": prompts, "runs": runs, "answer": str(answer)}))
    command = [sys.executable, "-m", "tests.live.generation", str(request)]
    several = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0" if alone else "1"}
    subprocess.run(command, check=True, timeout=900, env=os.environ | several)
    return json.loads(answer.read_text())


@pytest.mark.parametrize("kind", ["lineage", "Llama 3", "Qwen3-MoE", "Qwen3-MoE, tied"])
def test_tokens_are_those_of_written_mixes(kind, tmp_path):
    """Tied and untied, dense and MoE: the same tokens as the written checkpoint, at the start and
    at each scale that is set later.
    """
    recipe = made(kind, tmp_path)
    outs = [mix(recipe.times(scale), tmp_path / f"out-{scale}").folder for scale in SCALES]
    found, *expected = generated(
        tmp_path, run(prepared(recipe, tmp_path / "live"), SCALES), *map(run, outs)
    )
    for scale, each in zip(SCALES, expected, strict=True):
        assert found[str(scale)] == each["first"], scale
    assert found["first"] == found["1.0"]
    assert found["0.0"] != found["1.0"]


def test_two_ranks(tmp_path):
    """Tensor parallelism: every rank mixes, and all change the scale."""
    folder = prepared(tour.recipe("plain", 1.0), tmp_path / "live")
    alone = generated(tmp_path, run(folder, SCALES))
    both = generated(tmp_path, run(folder, SCALES, tensor_parallel_size=2), alone=False)
    assert both == alone


def test_an_extracted_adapter(tmp_path):
    """What `extract --as lora` writes is served with --enable-lora: the answers of base with the
    adapter merged, which are not those of base. Merged weights are rounded, so only what the models
    are sure of is compared: their answers in a conversation.
    """
    recipe = tour.recipe("plain", 1.0)
    (delta,) = recipe.deltas
    tokenizer = load_tokenizer(recipe)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": each.question}], add_generation_prompt=True
        )["input_ids"]
        for each in tour.questions("plain")
    ]

    def answers(tokens):
        return [tokenizer.decode(each).partition(tokenizer.eos_token)[0] for each in tokens]

    adapter = extract_adapter((delta.post, delta.base), tmp_path / "adapter", rank=64).folder
    merged = mix(Recipe(delta.base, [Delta(adapter)]), tmp_path / "merged").folder
    found, expected, base = generated(
        tmp_path,
        run(delta.base, adapter=adapter, enable_lora=True, max_lora_rank=64),
        run(merged),
        run(delta.base),
        prompts=prompts,
    )
    assert answers(found["first"]) == answers(expected["first"])
    assert answers(found["first"]) != answers(base["first"])


@pytest.fixture
def server(tmp_path):
    """`paramdelta serve` of the shipped lineage; its address."""
    (tmp_path / "tiny.yaml").write_text(tour.recipe("plain", 1.0).to_yaml())
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["--enforce-eager", "--max-model-len", "128", "--port", str(port), "--api-key", "key"]
    command = [*COMMAND, "serve", str(tmp_path / "tiny.yaml"), *options]
    with subprocess.Popen(command, env=os.environ | SETTINGS) as process:
        try:
            for _ in range(240):
                time.sleep(1)
                assert process.poll() is None, "the server ended"
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5).close()
                    break
                except OSError:
                    continue
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def asked(url, path, content=None, key="key"):
    """The JSON that the server answers."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    data = json.dumps(content).encode() if content is not None else None
    request = urllib.request.Request(url + path, data, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def test_conversation_with_a_server(server, tmp_path):
    """Over the OpenAI endpoint, with post's chat template: what the written mix answers in
    transformers, before and after a change of the scale. The route wants the API key.
    """
    transformers = pytest.importorskip("transformers")
    recipe = tour.recipe("plain", 1.0)
    tokenizer = load_tokenizer(recipe)
    questions = [question.question for question in tour.questions("plain")]
    for scale in (1.0, 0.5, 1.0):
        if asked(server, "/v1/paramdelta/scale")["scale"] != scale:
            command = ["scale", server, str(scale), "--api-key", "key"]
            subprocess.run([*COMMAND, *command], check=True)
        out = mix(recipe.times(scale), tmp_path / "out", overwrite=True).folder
        model = transformers.AutoModelForCausalLM.from_pretrained(out)
        for question in questions:
            messages = [{"role": "user", "content": question}]
            given = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            tokens = model.generate(**given, max_new_tokens=24)[0, given["input_ids"].shape[1] :]
            body = {"model": "tiny", "messages": messages, "max_tokens": 24, "temperature": 0}
            answer = asked(server, "/v1/chat/completions", body)["choices"][0]["message"]
            assert answer["content"] == tokenizer.decode(tokens, skip_special_tokens=True)
    for path, content, key in (
        ("/v1/paramdelta/scale", {"scale": 1}, "wrong"),
        ("/v1/paramdelta/scale", {"scale": "NaN"}, "key"),
        ("/v1/paramdelta/scale", {}, "key"),
        ("/collective_rpc", {"method": "reload_weights"}, "key"),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            asked(server, path, content, key)
        assert caught.value.code == {"wrong": 401}.get(key, 404 if "rpc" in path else 400)
