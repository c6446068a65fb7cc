"""Parameters in messages of the library are options in those of the command line."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdelta.cli.flags import with_flags


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pass `overwrite=True`", "pass --overwrite"),
        ("leave `dtype` out", "leave --dtype out"),
        ("`graft=('<|a b|>', 'c')`", "--graft '<|a b|>' --graft c"),
        ("`maps=('auto',)` or `memory='1GB'`", "--map auto or --memory 1GB"),
        ("`new_base`", "--new-base"),
        ("`shard_size=5`", "--shard-size 5"),
        ("the `config` of `foo=3` stays", "the `config` of `foo=3` stays"),
        ("`take=TOKEN`", "--take TOKEN"),
        (None, None),
        ("nothing", "nothing"),
    ],
)
def test_each_form(text, shown):
    """Switches, values, several values, names, and what is not a parameter."""
    assert with_flags(text) == shown


@given(st.lists(st.text().filter(lambda text: "`" not in text), min_size=1))
def test_values_can_be_pasted_into_a_shell(values):
    """Whatever the values are, the shell gives the command these values."""
    shown = with_flags(f"`graft={tuple(values)!r}`")
    assert shlex.split(shown)[1::2] == values
