"""Errors as text: every field on its own line, and nothing that a terminal would act on."""

from hypothesis import given
from hypothesis import strategies as st

from paramdelta.errors import CheckpointError

ANY = st.text(st.characters(codec=None), max_size=20)


def test_the_parts_are_lines():
    """What, where, expected, got and the remedy; empty ones are left out."""
    error = CheckpointError("no", where="here", expected="this", remedy="that")
    assert str(error) == "no\n  where: here\n  expected: this\n  what to do: that"


@given(ANY, ANY, ANY)
def test_names_from_files_cannot_break_a_message(what, where, got):
    """Control characters are escapes, and a line feed begins no line that looks like ours."""
    text = str(CheckpointError(f"a{what}", where=f"b{where}", got=f"c{got}"))
    lines = text.split("\n")
    assert all(line.isprintable() for line in lines)
    ours = [line for line in lines if not line.startswith("      ")]
    assert [line[:3] for line in ours[1:]] == ["  w", "  g"]
    text.encode()
