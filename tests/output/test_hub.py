"""Outputs on the Hub: a work branch as the journal, one commit at the end."""

import hashlib
import json

import pytest

import paramdelta
from paramdelta import MisfitError, StorageError, UsageError
from paramdelta.output.hub import HubDestination
from paramdelta.storage.hubrepo import Repository
from tests.buckets import contents
from tests.cli.test_app import run
from tests.hubserver import HubServer, repo
from tests.storage.conftest import connect  # noqa: F401 - a fixture

URL = "hf://me/mixed"
LOCK = "paramdelta.lock.json"


@pytest.fixture
def hub(connect):  # noqa: F811
    """A Hub without repositories."""
    with HubServer({}) as server:
        connect(server)
        server.forget = connect.forget
        yield server


def files(server, branch="main", name="me/mixed"):
    """What a branch holds, but for Git's own."""
    made = server.repos[name]
    found = made.revisions[made.refs[branch]]
    return {n: d if isinstance(d, bytes) else d[:] for n, d in found.items() if n[0] != "."}


def mix(wide, url=URL, **choices):
    """Three shards."""
    return paramdelta.mix(wide.recipe(), url, shard_size="1MB", **choices)


def broken_after(monkeypatch, method, count):
    """A method of `HubDestination` fails after so many calls, behind what it did."""
    call, left = getattr(HubDestination, method), iter(range(count))

    def failing(self, *args):
        result = call(self, *args)
        if next(left, None) is None:
            raise StorageError("the line is dead", code="io-failed")
        return result

    monkeypatch.setattr(HubDestination, method, failing)


def test_the_output_is_that_of_a_folder(wide, hub, tmp_path):
    """The same files; in one commit on the target branch; the work branch is gone."""
    here = paramdelta.mix(wide.recipe(), tmp_path / "mixed", shard_size="1MB")
    mix(wide, private=True)
    assert files(hub) == contents(here.folder)
    made = hub.repos["me/mixed"]
    assert made.private
    assert made.refs.keys() == {"main"}
    assert paramdelta.verify(URL, share=1, download=True).elements


@pytest.mark.parametrize(("method", "count"), [("ship", 0), ("ship", 1), ("begin", 0)])
def test_a_push_that_was_killed_is_continued(wide, hub, tmp_path, monkeypatch, method, count):
    """From another machine, which has nothing of the first one: what was committed stays."""
    with monkeypatch.context() as patch:
        broken_after(patch, method, count)
        with pytest.raises(StorageError, match="the line is dead"):
            mix(wide)
    assert files(hub).keys() == set()
    hub.forget()
    uploads = len(hub.objects)
    result = mix(wide)
    assert (result.resumed > 0) == (method == "ship")
    assert len(hub.objects) == 3
    assert uploads == (count + 1 if method == "ship" else 0)
    paramdelta.mix(wide.recipe(), tmp_path / "mixed", shard_size="1MB")
    assert files(hub) == contents(tmp_path / "mixed")
    assert hub.repos["me/mixed"].refs.keys() == {"main"}


def test_a_kill_behind_the_last_commit_leaves_a_whole_output(wide, hub, monkeypatch):
    """The next run says that the output exists, and removes the work branch."""
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "delete_branch", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            mix(wide)
    assert len(hub.repos["me/mixed"].refs) == 2
    hub.forget()
    with pytest.raises(UsageError) as error:
        mix(wide)
    assert error.value.code == "output-exists"
    assert hub.repos["me/mixed"].refs.keys() == {"main"}


def test_an_old_output_is_replaced_in_one_commit(wide, hub):
    """Only if that is asked for; files that only the old one has go."""
    mix(wide)
    old = hub.repos["me/mixed"].refs["main"]
    with pytest.raises(UsageError) as error:
        mix(wide)
    assert error.value.code == "output-exists"
    paramdelta.mix(wide.recipe(scale=0.5), URL, shard_size="10MB", overwrite=True)
    found = files(hub)
    assert {n for n in found if "safetensors" in n} == {"model.safetensors"}
    assert json.loads(found[LOCK])["recipe"]["deltas"][0]["scale"] == 0.5
    assert old in hub.repos["me/mixed"].revisions


def test_a_branch_of_its_own(wide, hub):
    """Another branch gets the output and nothing else; main stays as it was."""
    hub.repos["me/mixed"] = repo({"model.safetensors": b"mine", "notes.txt": b"mine"})
    with pytest.raises(UsageError, match="did not write"):
        mix(wide)
    mix(wide, f"{URL}@half")
    assert files(hub)["notes.txt"] == b"mine"
    assert "notes.txt" not in files(hub, "half")
    assert len([n for n in files(hub, "half") if n.endswith("safetensors")]) == 3


def test_another_recipe_and_a_public_repository_are_refused(wide, hub, monkeypatch):
    """Nothing of an unfinished run is mixed with another; --private keeps its promise."""
    with monkeypatch.context() as patch:
        broken_after(patch, "ship", 0)
        with pytest.raises(StorageError):
            mix(wide)
    with pytest.raises(MisfitError) as error:
        paramdelta.mix(wide.recipe(), URL, shard_size="2MB")
    assert error.value.code == "other-run-unfinished"
    with pytest.raises(MisfitError) as error:
        mix(wide, private=True)
    assert error.value.code == "repository-public"
    mix(wide, fresh=True)


def test_a_push_meanwhile_is_not_overwritten(wide, hub, monkeypatch):
    """The last commit names its parent."""
    commit = Repository.commit

    def late(self, branch, message, *args, **more):
        if branch == "main":
            made = hub.repos["me/mixed"]
            made.revisions["c" * 40] = {"theirs.txt": b"x"}
            made.refs["main"] = "c" * 40
        return commit(self, branch, message, *args, **more)

    monkeypatch.setattr(Repository, "commit", late)
    with pytest.raises(MisfitError) as error:
        mix(wide)
    assert error.value.code == "branch-moved"
    assert files(hub).keys() == {"theirs.txt"}


def test_a_shard_that_changed_is_not_published(wide, hub, monkeypatch):
    """Someone wrote to the work branch."""
    publish = HubDestination.publish

    def tampered(self, files):
        made = hub.repos["me/mixed"]
        work = next(name for name in made.refs if name != "main")
        shard = "model-00001-of-00003.safetensors"
        made.revisions[made.refs[work]] |= {shard: b"x" * 10}
        hub.forget()
        publish(self, files)

    monkeypatch.setattr(HubDestination, "publish", tampered)
    with pytest.raises(MisfitError) as error:
        mix(wide)
    assert error.value.code == "partial-output-changed"


def test_a_token_that_may_not_write_is_explained(wide, hub, monkeypatch):
    """Before the first shard is made."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(StorageError) as error:
        mix(wide)
    assert error.value.code == "hub-access-denied"
    assert "hf_other" not in str(error.value)
    assert "may write" in str(error.value)


@pytest.mark.parametrize("url", ["hf://me/mixed/folder", "hf://mixed", "hf://"])
def test_addresses_that_are_no_repositories(wide, hub, url):
    """An output is a whole repository."""
    with pytest.raises(UsageError) as error:
        mix(wide, url)
    assert error.value.code == "invalid-hub-address"


def test_the_command_line_pushes(wide, hub):
    """--push, --branch and --private; --out and --push exclude each other."""
    given = ["mix", *wide.options, "--push", "me/mixed", "--branch", "b", "--private"]
    assert run(*given).returncode == 0
    assert LOCK in files(hub, "b")
    assert hub.repos["me/mixed"].private
    wrongs = (
        ["--push", "me/x", "--out", "y"],
        ["--out", "y", "--branch", "b"],
        ["--push", "me/x", "--part", "1/2", "--keep-downloads"],
    )
    for wrong in wrongs:
        assert run("mix", *wide.options, *wrong).returncode == 2


def test_parts_meet_on_the_work_branch(wide, hub, tmp_path):
    """Two parts and the end: the bytes of one run."""
    recipe = wide.recipe()
    for part in ("1/2", "2/2"):
        paramdelta.mix_part(recipe, URL, part, shard_size="1MB", private=True)
        assert hub.repos["me/mixed"].private
        assert files(hub).keys() == set()
        hub.forget()
    paramdelta.finish_mix(recipe, URL, shard_size="1MB")
    paramdelta.mix(recipe, tmp_path / "mixed", shard_size="1MB")
    assert files(hub) == contents(tmp_path / "mixed")


def test_the_real_xet_takes_the_shards(wide, connect, tmp_path):  # noqa: F811
    """huggingface_hub's own upload by hf_xet into a store in a folder: the digests that it commits
    are those of the shards.
    """
    pytest.importorskip("hf_xet")
    (tmp_path / "cas").mkdir()
    with HubServer({}) as server:
        server.cas = tmp_path / "cas"
        connect(server, HF_HUB_DISABLE_XET=False)
        mix(wide)
        assert not any("lfs/objects" in path for _, path in server.requests)
        folder = paramdelta.mix(wide.recipe(), tmp_path / "mixed", shard_size="1MB").folder
        digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")}
        assert server.objects.keys() == digests
