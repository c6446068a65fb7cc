"""Every job runs in two processes and gives the bytes that threads give."""

import pytest

import paramdelta
from paramdelta import Delta, Recipe, api
from paramdelta.engine import threads
from paramdelta.jobs import outputs
from paramdelta.schemes.ties import Ties
from tests.checkpoints import fp8, llama, moved, save
from tests.engine import processes

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def folders(tmp_path):
    """A lineage with a second post and an FP8 matrix."""
    base = llama()
    for number, name in enumerate(("base", "one", "two", "new")):
        tensors = {**moved(base, number), **fp8(number, extra=(130, 140))}
        save(tmp_path / name, tensors, config_json=CONFIG)
    return tmp_path


def contents(folder):
    """Every file of an output but card and lock."""
    skipped = ("README.md", "paramdelta.lock.json")
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in skipped}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "dtype"), [(None, None), (None, "fp8-block"), (Ties(0.4), None)], ids=str
)
def test_a_mix(folders, monkeypatch, scheme, dtype):
    """The measuring pass and the mix, through pickles."""
    deltas = [Delta(folders / name, folders / "base", 0.7) for name in ("one", "two")]
    choices = {} if scheme is None else {"scheme": scheme}
    recipe = Recipe(folders / "new", tuple(deltas), dtype, **choices)
    expected = contents(paramdelta.mix(recipe, folders / "threads").folder)
    written = outputs.write_outputs

    def in_processes(*arguments, **options):
        return written(*arguments, **options, engine=processes.run)

    monkeypatch.setattr(api, "write_outputs", in_processes)
    out = paramdelta.mix(recipe, folders / "processes").folder
    assert contents(out) == expected
    lock = (out / "paramdelta.lock.json").read_text()
    assert lock == (folders / "threads" / "paramdelta.lock.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["extract", "extract_adapter"])
def test_an_extraction(folders, monkeypatch, form):
    """A stored Δ and an adapter."""
    options = {"rank": 2} if form == "extract_adapter" else {}
    extract = getattr(paramdelta, form)
    pair = str(folders / "one"), str(folders / "base")
    expected = contents(extract(pair, folders / "threads", **options).folder)
    monkeypatch.setattr(threads, "run", processes.run)
    assert contents(extract(pair, folders / "processes", **options).folder) == expected
