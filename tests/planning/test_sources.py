"""Sources are values: a step returns others and leaves its own as they are."""

import pytest

from paramdelta import Delta, Recipe, UsageError
from paramdelta.planning.alignment import align_names, join_repeats
from paramdelta.planning.findings import Findings
from paramdelta.planning.heads import settle_head
from paramdelta.planning.sources import Opener, open_sources
from paramdelta.storage.reader import Reader
from tests.checkpoints import llama, moved, save

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TIED = {"tie_word_embeddings": True}


def opened(tmp_path, post, base, new, **choices):
    """The sources of a recipe for these tensors."""
    sets = {"post": post, "base": base, "new": new}
    paths = {k: str(save(tmp_path / k, v, config_json=TIED)) for k, v in sets.items()}
    recipe = Recipe(paths["new"], (Delta(paths["post"], paths["base"]),), **choices)
    return open_sources(recipe, Opener(Reader()), Findings())


def names(sources):
    """The names of all tensors, source by source."""
    return [list(source.views) for source in sources.all]


def test_steps_do_not_change_what_they_are_given(tmp_path):
    """Names, repeats and heads are settled in new values."""
    base = {name: value for name, value in llama().items() if name != HEAD}
    post = {name.removeprefix("model."): value for name, value in moved(base, 1).items()}
    sources = opened(tmp_path, post, base, moved(llama(), 2))
    before = names(sources)
    aligned = align_names(sources, (), Findings())
    joined = join_repeats(aligned, Findings())
    settled, tied = settle_head(joined, "untie", Findings())
    assert names(sources) == before
    assert names(aligned)[1] != before[1]
    assert tied is False
    assert [HEAD in found for found in names(aligned)] == [True, False, False]
    assert [HEAD in found for found in names(settled)] == [True, True, True]


def test_replaced_keeps_each_in_its_place(tmp_path):
    """The sources come back in the order of `all`; a wrong number is an error."""
    sources = opened(tmp_path, moved(llama(), 1), llama(), moved(llama(), 2))
    again = sources.replaced(sources.all)
    assert [again.new, *again.others] == sources.all
    with pytest.raises(ValueError, match="zip"):
        sources.replaced([sources.new])


def test_a_new_base_without_embedding_and_head(tmp_path):
    """The head of others is not put on it: the findings about missing names say what is wrong."""
    base = llama()
    bare = {name: value for name, value in base.items() if name not in (HEAD, EMBEDDING)}
    sources = opened(tmp_path, moved(base, 1), base, bare)
    findings = Findings()
    settled, tied = settle_head(sources, "untie", findings)
    assert (names(settled), tied) == (names(sources), None)


def test_posts_rows_cannot_be_taken_from_a_stored_delta(tmp_path):
    """Refused before the Δ is opened."""
    new = str(save(tmp_path / "new", llama()))
    (tmp_path / "delta").mkdir()
    recipe = Recipe(new, (Delta(delta=str(tmp_path / "delta")),), take=("x",))
    with pytest.raises(UsageError, match="does not hold post's rows"):
        open_sources(recipe, Opener(Reader()), Findings())
