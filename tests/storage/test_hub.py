"""Hub ids through huggingface_hub's real client, against a small server on this machine."""

import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import hf_hub_download

import paramdelta
from paramdelta import Delta, Recipe
from paramdelta.errors import MisfitError, ParamDeltaError, StorageError
from paramdelta.output.layout import make_layout
from paramdelta.output.lock import run_identity
from paramdelta.storage import hub as storage
from paramdelta.storage.files import Files
from paramdelta.storage.hub import HubStore
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader
from tests.assembled import modules
from tests.attacks.hostile import torch_file
from tests.checkpoints import encode, llama, moved, save
from tests.hubserver import SIGNATURE, TOKEN, HubServer, Repo, repo

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
BASE = llama()
REPOS = {
    ("org/base", "main"): BASE,
    ("org/post", "main"): moved(BASE, 1),
    ("org/new", "main"): moved(BASE, 2),
    ("org/new", "v2"): moved(BASE, 3),
}
OLD = {"model.norm.weight": np.arange(8, dtype=np.float32)}
TRAINING = {"optimizer.pt": b"states", "training_args.bin": b"a pickle of code"}
PICKLED = {  # repositories without safetensors
    "org/old": {"pytorch_model.bin": torch_file(OLD), "onnx/model.onnx": b"", **TRAINING},
    "old": {"pytorch_model.bin": torch_file(OLD)},  # a name of one part, as gpt2
    "org/lone": {"model.pt": torch_file(OLD), "2_Dense/pytorch_model.bin": b"", **TRAINING},
}
DENSE = {"linear.weight": np.ones((4, 16), np.float32)}
PARTS = {  # an embedder: what belongs to it, and what does not
    "modules.json": json.dumps(modules(**{"main": "Transformer", "2_Dense": "Dense"})).encode(),
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": encode(BASE),
    "2_Dense/config.json": b'{"in_features": 16, "out_features": 4}',
    "2_Dense/model.safetensors": encode(DENSE),
    "bpe.codes": b"a b",
}
UNWANTED = {
    "consolidated.safetensors": b"again",
    "pytorch_model.bin": b"again",
    "2_Dense/pytorch_model.bin": b"again",
    "checkpoint-500/model.safetensors": b"earlier",
    "onnx/model.onnx": b"elsewhere",
    "hf_token.txt": b"hf_x",
    **TRAINING,
}
PICKLED["org/parts"] = PARTS | UNWANTED


def _repos():
    config = json.dumps({"model_type": "llama"}).encode()
    beside = {"config.json": config, "pytorch_model.bin": b"a pickle that nobody wants"}
    found = {}
    for (name, branch), tensors in REPOS.items():
        made = found.setdefault(name, Repo({}, {}))
        made.refs[branch] = COMMITS[branch]
        made.revisions[COMMITS[branch]] = {"model.safetensors": encode(tensors), **beside}
    return found | {name: repo(files) for name, files in PICKLED.items()}


@pytest.fixture
def hub(tmp_path):
    """A running server, and the environment of a client that uses it."""
    with HubServer(_repos()) as server:
        yield server, server.environment(tmp_path / "hf")


def downloaded(server):
    """The names of the files that were asked for."""
    return {
        path.partition("/resolve/")[2].partition("/")[2]
        for kind, path in server.requests
        if kind == "resolve"
    }


def run(environment, *arguments):
    """Run the command line against the server."""
    code = "from paramdelta.cli.app import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def options(new="org/new"):
    """Options that name models on the Hub."""
    return ["--post", "org/post", "--base", "org/base", "--new-base", new]


def test_mix_from_the_hub_pins_revisions(hub, tmp_path):
    """The lock and the card hold the commits and the Hub's own digests; no pickle is read and no
    token is shown. What --keep-downloads left in the cache serves verify offline.
    """
    server, environment = hub
    arguments = ["mix", *options("org/new@v2"), "--keep-downloads", "--out", str(tmp_path / "out")]
    result = run(environment, *arguments)
    assert result.returncode == 0, result.stderr
    lock = json.loads((tmp_path / "out" / "paramdelta.lock.json").read_text())
    assert lock["recipe"]["new_base"] == f"org/new@{'b' * 40}"
    assert lock["recipe"]["deltas"][0]["post"] == f"org/post@{'a' * 40}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- org/new\n- org/post\n- org/base\n" in card
    assert (
        lock["sources"][0]["files"][0]["sha256"]
        == hashlib.sha256(encode(REPOS["org/new", "v2"])).hexdigest()
    )
    assert "pytorch_model.bin" not in downloaded(server)
    result = run(environment | {"HF_HUB_OFFLINE": "1"}, "verify", str(tmp_path / "out"), "--full")
    assert result.returncode == 0, result.stderr
    for text in (result.stdout, result.stderr, card, json.dumps(lock)):
        assert TOKEN not in text


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("org/old", "pytorch_model.bin"),
        ("org/lone", "model.pt"),
        ("old", "pytorch_model.bin"),
    ],
)
def test_pickles_are_read_where_there_is_nothing_else(connect, name, weights):
    """Only the weights: neither another file nor what training left."""
    with HubServer(_repos()) as server:
        connect(server)
        made = paramdelta.plan(Recipe(name, (Delta(name, name),)))
        assert downloaded(server) == {weights}
        assert [file.name for file in made.files] == [weights]


def test_folders_of_several_models_are_read_whole(connect, tmp_path):
    """The modules that modules.json names, and nothing that the output does not need."""
    with HubServer(_repos()) as server:
        connect(server)
        recipe = Recipe("org/parts", (Delta("org/parts", "org/parts"),), vocabulary="id")
        out = paramdelta.mix(recipe, tmp_path / "out").folder
        assert downloaded(server) == PARTS.keys()
    assert (out / "2_Dense" / "model.safetensors").exists()
    assert (out / "bpe.codes").exists()


@pytest.mark.parametrize(
    ("new", "code"),
    [
        ("org/absent", "no-such-checkpoint"),
        ("org/new@v9", "no-such-revision"),
        ("hf://org/new/elsewhere", "no-such-checkpoint"),
        ("hf://org/new/../base", "no-such-checkpoint"),
    ],
)
def test_what_the_hub_lacks_is_a_clear_error(connect, new, code):
    """An absent model, revision and folder, and a path that leads out."""
    with HubServer(_repos()) as server:
        connect(server)
        with pytest.raises(ParamDeltaError) as error:
            locate(new)
        assert error.value.code == code
        assert TOKEN not in str(error.value)


def test_no_network_is_a_clear_error(hub):
    """Offline and nothing in the cache: what to look at."""
    result = run(hub[1] | {"HF_HUB_OFFLINE": "1"}, "plan", *options())
    assert result.returncode == 4
    assert "cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr


# -- reading in ranges ---------------------------------------------------------------------------

LAYOUT = make_layout([], 0, 10**9)
RECIPE = Recipe("org/new", (Delta("org/post", "org/base"),))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The weights of the mix from folders."""
    folder = tmp_path_factory.mktemp("local")
    for name in ("base", "post", "new"):
        config = {"model_type": "llama"}
        save(folder / name, REPOS[f"org/{name}", "main"], config_json=config)
    delta = Delta(str(folder / "post"), str(folder / "base"))
    out = paramdelta.mix(Recipe(str(folder / "new"), (delta,)), folder / "out").folder
    return (out / "model.safetensors").read_bytes()


def test_a_mix_streams(connect, tmp_path, expected):
    """The bytes of a mix from folders; one API call and one question about each weight file; the
    token goes to the Hub and never to the CDN; nothing is left in the cache.
    """
    with HubServer(_repos()) as server:
        connect(server)
        made = paramdelta.plan(RECIPE)
        assert made.transfers.keys() == {"new base", "post", "base"}
        assert 0 < made.fetched == sum(server.bytes.values())
        out = paramdelta.mix(made, tmp_path / "out").folder
        assert (out / "model.safetensors").read_bytes() == expected
        assert server.count("api") == 3
        asked = [path for kind, path in server.requests if kind == "resolve"]
        weights = [path for path in asked if "safetensors" in path]
        assert len(weights) == len(set(weights)) == 3
        assert set(server.authorized) == {"api", "resolve"}
        assert not (tmp_path / "hf").exists()


def test_each_byte_of_the_weights_is_read_once(connect, tmp_path, monkeypatch):
    """Counted at the server, for a new base in another order than post and base, with a small
    grain.
    """
    monkeypatch.setattr(HubStore, "grain", 4096)
    base = llama(hidden=64, layers=3, vocab=512)
    names = [*base][::-1]
    made = {"base": base, "post": moved(base, 1), "new": {n: moved(base, 2)[n] for n in names}}
    repos = {
        f"org/{k}": repo({"model.safetensors": encode(t), "config.json": b"{}"})
        for k, t in made.items()
    }
    with HubServer(repos) as server:
        connect(server)
        plan = paramdelta.plan(RECIPE)
        server.reset_counts()
        paramdelta.mix(plan, tmp_path / "out", workers=3)
        for name, data in repos.items():
            size = len(data.revisions["a" * 40]["model.safetensors"])
            assert server.bytes[f"{name}/model.safetensors"] <= 1.02 * size


def test_what_is_in_the_cache_is_read_there(connect, tmp_path, expected):
    """A model that is there in whole is a folder; of one that is there in part, that part is read
    here. The output's identity does not depend on it, so the run of one resumes the other.
    """
    with HubServer(_repos()) as server:
        connect(server)
        far = run_identity(paramdelta.plan(RECIPE), LAYOUT)
        locate("org/post", keep=True)
        hf_hub_download("org/base", "model.safetensors")
        connect.forget()
        made = paramdelta.plan(RECIPE)
        assert made.transfers.keys() == {"new base"}
        assert run_identity(made, LAYOUT) == far
        server.reset_counts()
        out = paramdelta.mix(made, tmp_path / "out").folder
        assert (out / "model.safetensors").read_bytes() == expected
        assert {name for name in server.bytes if "safetensors" in name} == {
            "org/new/model.safetensors"
        }


@pytest.mark.parametrize("seed", range(4))
def test_faults_do_not_change_the_output(connect, tmp_path, expected, seed):
    """Resets and cuts in mid-body, 503, 429, expired addresses, short and wrong ranges."""
    with HubServer(_repos(), faults=0.4, seed=seed) as server:
        connect(server)
        out = paramdelta.mix(RECIPE, tmp_path / "out").folder
        assert (out / "model.safetensors").read_bytes() == expected
        assert server.injected


def test_an_expired_address_is_renewed_once(connect, tmp_path, expected):
    """An address that serves three ranges: the Hub is asked again, and no range is lost."""
    with HubServer(_repos()) as server:
        server.lifetime = 3
        connect(server)
        out = paramdelta.mix(RECIPE, tmp_path / "out").folder
        assert (out / "model.safetensors").read_bytes() == expected


def test_a_file_that_changes_is_refused(connect, tmp_path):
    """Another ETag in the middle of a file: never a hybrid."""
    with HubServer(_repos()) as server:
        connect(server)
        made = paramdelta.plan(RECIPE)
        server.etag = "-other"
        with pytest.raises(StorageError) as error:
            paramdelta.mix(made, tmp_path / "out")
        assert error.value.code == "source-changed"
        assert not (tmp_path / "out").exists()


def test_the_hub_gives_another_file_than_it_listed(connect):
    """The SHA-256 at the place of a file is not the listed one."""
    repos = _repos()
    with HubServer(repos) as server:
        connect(server)
        files = Files(locate("org/post"), Reader())
        repos["org/post"].revisions["a" * 40]["model.safetensors"] = encode(moved(BASE, 9))
        with pytest.raises(StorageError, match="another file"):
            files.reader.get(files["model.safetensors"], 0, 8)


def test_access_that_is_denied_is_explained(connect):
    """A gated model says what to do; a renamed one is found under its new name."""
    repos = _repos()
    repos["org/post"].gated = True
    repos["org/was"] = Repo({}, {}, renamed="org/base")
    with HubServer(repos) as server:
        connect(server)
        with pytest.raises(StorageError, match="asked for") as error:
            paramdelta.plan(RECIPE)
        assert error.value.code == "hub-access-denied"
        assert "restricted" in str(error.value)
        assert TOKEN not in str(error.value)
        assert locate("org/was").repo == "org/base"


def test_secrets_stay_here(connect, tmp_path):
    """Neither token nor signature is in an error, a plan, a pickle or the lock."""
    with HubServer(_repos()) as server:
        connect(server)
        made = paramdelta.plan(RECIPE)
        out = paramdelta.mix(made, tmp_path / "out").folder
        server.lifetime = 0
        connect.forget()
        with pytest.raises(StorageError) as error, Reader() as reader:
            reader.get(made.files[0].blob, 0, 8)
        texts = [str(error.value), pickle.dumps(made).decode("latin1"), repr(storage._FILES)]
        texts += [path.read_text("latin1") for path in out.iterdir()]
        for text in texts:
            assert TOKEN not in text
            assert SIGNATURE not in text


def test_names_that_lead_out_of_a_folder_are_left_out(connect):
    """A repository may list any names."""
    hostile = [
        "../evil.json",
        "/etc/x.json",
        "a/../../x.json",
        ".hidden.json",
        "c:\\x.json",
        "a\n.json",
    ]
    files = {
        "model.safetensors": encode(BASE),
        "config.json": b"{}",
        **dict.fromkeys(hostile, b"{}"),
    }
    with HubServer({"org/x": repo(files)}) as server:
        connect(server)
        assert set(Files(locate("org/x"), Reader())) == {"model.safetensors", "config.json"}


def test_subfolders_and_single_files(connect):
    """hf:// leads to a folder or a file inside a repository; the pinned address does, too."""
    files = {"a/model.safetensors": encode(BASE), "a/config.json": b"{}", "b.gguf": b"GGUF"}
    with HubServer({"org/x": repo(files)}) as server:
        connect(server)
        found = locate("hf://org/x@main/a")
        assert set(Files(found, Reader())) == {"model.safetensors", "config.json"}
        assert found.pinned == f"hf://org/x@{'a' * 40}/a"
        assert locate(found.pinned).url == found.url
        single = Files(locate("hf://org/x/b.gguf"), Reader()).single
        assert single is not None
        assert single.name == "b.gguf"


def test_verify_asks_before_it_reads_from_the_hub(connect, tmp_path):
    """Sources that are not here are read only with `download`."""
    with HubServer(_repos()) as server:
        connect(server)
        out = paramdelta.mix(RECIPE, tmp_path / "out").folder
        server.reset_counts()
        with pytest.raises(MisfitError, match="not on this machine"):
            paramdelta.verify(out)
        assert not server.requests
        assert paramdelta.verify(out, share=1, download=True).elements


def test_a_delta_and_an_adapter_from_the_hub(connect, tmp_path):
    """`extract` streams; what it wrote is a source on the Hub as well."""
    repos = _repos()
    with HubServer(repos) as server:
        connect(server)
        delta = paramdelta.extract(("org/post", "org/base"), tmp_path / "delta").folder
        lora = paramdelta.extract_adapter(
            ("org/post", "org/base"), tmp_path / "lora", rank=2
        ).folder
        for name, folder in (("org/delta", delta), ("org/lora", lora)):
            repos[name] = repo({path.name: path.read_bytes() for path in folder.iterdir()})
        for far, near in (
            (Delta(delta="org/delta"), Delta(delta=str(delta))),
            (Delta("org/lora"), Delta(str(lora))),
        ):
            one = paramdelta.mix(Recipe("org/new", (far,)), tmp_path / "far", overwrite=True)
            two = paramdelta.mix(Recipe("org/new", (near,)), tmp_path / "near", overwrite=True)
            assert (one.folder / "model.safetensors").read_bytes() == (
                two.folder / "model.safetensors"
            ).read_bytes()
