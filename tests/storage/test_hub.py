"""Hub ids through huggingface_hub's real client, against a small server on this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.assembled import modules
from tests.attacks.hostile import torch_file
from tests.checkpoints import encode, llama, moved

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


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's protocol that a download uses: revisions, file lists, files."""

    def do_HEAD(self):
        """What a file is."""
        self._answer(body=False)

    def do_GET(self):
        """A revision's description, or a file."""
        self._answer(body=True)

    def log_message(self, *arguments):
        """Be quiet."""

    def _files(self, repo, revision):
        name = next((r for r, c in COMMITS.items() if revision in (r, c)), None)
        if repo in PICKLED and name == "main":
            return COMMITS[name], PICKLED[repo]
        tensors = REPOS.get((repo, name))
        if tensors is None:
            return None, None
        config = json.dumps({"model_type": "llama"}).encode()
        files = {"model.safetensors": encode(tensors), "config.json": config}
        return COMMITS[name], files | {"pytorch_model.bin": b"a pickle that nobody wants"}

    def _answer(self, body):
        path = self.path.split("?")[0]
        listing = re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)/(revision|tree)/([^/]+).*", path)
        file = re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path)
        repo, revision = (
            (listing[1], listing[3]) if listing else (file[1], file[2]) if file else (0, 0)
        )
        commit, files = self._files(repo, revision)
        if files is None:
            known = any(repo == r for r, _ in REPOS)
            code = "RevisionNotFound" if known else "RepoNotFound"
            return self._send(404, b"{}", {"X-Error-Code": code}, body)
        if listing and listing[2] == "tree":
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            return self._send(200, json.dumps(tree).encode(), {}, body)
        if listing:
            siblings = [{"rfilename": n, "size": len(d)} for n, d in files.items()]
            info = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
            return self._send(200, json.dumps(info).encode(), {}, body)
        data = files.get(file[3])
        if data is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
        self.server.downloaded.append(file[3])
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
        return self._send(200, data, headers, body)

    def _send(self, status, data, headers, body):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path):
    """A running server, and the environment of a client that uses it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.downloaded = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_secret_token",
        "NO_PROXY": "*",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    yield server, environment
    server.shutdown()
    server.server_close()


def run(environment, *arguments):
    """Run the command line against the server."""
    code = "from paramdelta.cli.app import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def options(new="org/new"):
    """Options that name models on the Hub."""
    return ["--post", "org/post", "--base", "org/base", "--new-base", new]


def test_mix_from_the_hub_pins_revisions(hub, tmp_path):
    """Hub ids are downloaded by huggingface_hub; the lock and the card hold the commits; verify
    finds the same files in the cache; no pickle is downloaded and no token is shown.
    """
    server, environment = hub
    result = run(environment, "mix", *options("org/new@v2"), "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    lock = json.loads((tmp_path / "out" / "paramdelta.lock.json").read_text())
    assert lock["recipe"]["new_base"] == f"org/new@{'b' * 40}"
    assert lock["recipe"]["deltas"][0]["post"] == f"org/post@{'a' * 40}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- org/new\n- org/post\n- org/base\n" in card
    assert "pytorch_model.bin" not in server.downloaded
    result = run(environment | {"HF_HUB_OFFLINE": "1"}, "verify", str(tmp_path / "out"), "--full")
    assert result.returncode == 0, result.stderr
    for text in (result.stdout, result.stderr, card, json.dumps(lock)):
        assert "hf_secret_token" not in text


@pytest.mark.parametrize(
    ("repo", "weights"),
    [
        ("org/old", "pytorch_model.bin"),
        ("org/lone", "model.pt"),
        ("old", "pytorch_model.bin"),
    ],
)
def test_pickles_are_downloaded_where_there_is_nothing_else(hub, repo, weights):
    """Only the weights: neither another file nor what training left; offline, the cache serves."""
    server, environment = hub
    same = ["--post", repo, "--base", repo, "--new-base", repo]
    result = run(environment, "plan", *same)
    assert result.returncode == 0, result.stderr
    assert set(server.downloaded) == {weights}
    result = run(environment | {"HF_HUB_OFFLINE": "1"}, "plan", *same)
    assert result.returncode == 0, result.stderr


def test_folders_of_several_models_are_downloaded_whole(hub, tmp_path):
    """The modules that modules.json names, and nothing that the output does not need."""
    server, environment = hub
    same = ["--post", "org/parts", "--base", "org/parts", "--new-base", "org/parts"]
    result = run(environment, "mix", *same, "--vocabulary", "id", "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    assert set(server.downloaded) == PARTS.keys()
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").exists()
    assert (tmp_path / "out" / "bpe.codes").exists()


@pytest.mark.parametrize(
    ("new", "text"),
    [("org/absent", "neither a folder here nor"), ("org/new@v9", "no such revision")],
)
def test_what_the_hub_lacks_is_a_clear_error(hub, new, text):
    """An absent model and an absent revision: exit code 4, words, no traceback."""
    result = run(hub[1], "plan", *options(new))
    assert result.returncode == 4, result.stderr
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_no_network_is_a_clear_error(hub):
    """Offline and nothing in the cache: what to look at."""
    result = run(hub[1] | {"HF_HUB_OFFLINE": "1"}, "plan", *options())
    assert result.returncode == 4
    assert "cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr
