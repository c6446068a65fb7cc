"""Plain HTTP(S) addresses as checkpoints."""

import json

import pytest

import paramdelta
from paramdelta import Delta, Recipe
from paramdelta.errors import UsageError
from paramdelta.storage.files import Files
from paramdelta.storage.location import locate
from paramdelta.storage.reader import Reader
from tests.checkpoints import llama, moved, save
from tests.hubserver import HubServer, repo


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server with a lineage, the new base in two files, and its folders here."""
    monkeypatch.setenv("NO_PROXY", "*")
    base = llama()
    made = {"base": base, "post": moved(base, 1), "new": moved(base, 2)}
    repos = {}
    for name, tensors in made.items():
        shards = 2 if name == "new" else 1
        save(tmp_path / name, tensors, shards=shards, config_json={"model_type": "llama"})
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        repos[f"www/{name}"] = repo(files)
    with HubServer(repos) as server:
        server.plain = True
        yield server


def test_a_mix_of_web_folders(web, tmp_path):
    """The index names the shards; the same bytes as from folders here."""
    at = f"{web.url}/www"
    delta = Delta(f"{at}/post/model.safetensors", f"{at}/base")
    far = paramdelta.mix(Recipe(f"{at}/new", (delta,)), tmp_path / "far").folder
    delta = Delta(str(tmp_path / "post" / "model.safetensors"), str(tmp_path / "base"))
    here = paramdelta.mix(Recipe(str(tmp_path / "new"), (delta,)), tmp_path / "here").folder
    for path in here.glob("*.safetensors"):
        assert path.read_bytes() == (far / path.name).read_bytes()
    lock = json.loads((far / "paramdelta.lock.json").read_text())
    assert lock["recipe"]["new_base"] == f"{at}/new"


def test_an_index_names_only_files_beside_it(web):
    """Names that lead elsewhere are not asked for."""
    hostile = {"a": "../../x.safetensors", "b": "http://x/y.safetensors", "c": 3, "d": "/e"}
    files = {"model.safetensors.index.json": json.dumps({"weight_map": hostile}).encode()}
    web.repos["www/evil"] = repo(files)
    assert set(Files(locate(f"{web.url}/www/evil"), Reader())) == {*files}
    assert not any("x.safetensors" in path for _, path in web.requests)


@pytest.mark.parametrize("tail", ["?signature=secret", "#x"])
def test_an_address_with_a_secret_is_refused(web, tail):
    """It would be written into the lock."""
    with pytest.raises(UsageError) as error:
        Files(locate(f"{web.url}/www/new{tail}"), Reader())
    assert "signature" not in str(error.value)
