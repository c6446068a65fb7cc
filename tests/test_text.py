"""Foreign text: nothing that a terminal or a Markdown renderer would act on comes through."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paramdelta.text import code, markdown, printable, shown

ANY = st.text(st.characters(codec=None))  # lone surrogates as well


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.layers.0.weight", "model.layers.0.weight"),
        ("▁Grüße 你好 😀", "▁Grüße 你好 😀"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\r\tc\x7f", "a\\nb\\r\\tc\\x7f"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\u2028\u200b\ufeff", "\\u2028\\u200b\\ufeff"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\x9b2J", "\\x9b2J"),
        ("", ""),
    ],
)
def test_shown(text, expected):
    """Printable characters stay; every other one becomes an escape."""
    assert shown(text) == expected


@given(ANY, st.integers(1, 40))
@example("ab", 2)
@example("abc", 2)
@example("a\ud800", 7)
def test_shown_is_one_short_safe_line(text, most):
    """Whatever the text: printable, encodable, within the length, and whole if it fits."""
    result = shown(text, most)
    assert result.isprintable()
    assert len(result.encode().decode()) <= most
    whole = shown(text, 10 * len(text) + 1)
    assert result == whole if len(whole) <= most else result.endswith("…")


@given(ANY)
def test_printable_keeps_lines(text):
    """Only line feeds remain of what is not printable."""
    result = printable(text)
    assert result.replace("\n", "").isprintable()
    assert result.count("\n") == text.count("\n")


def test_a_long_text_costs_little():
    """Only the start of a text is looked at."""
    assert len(shown("\x00" * 50_000_000)) <= 120


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Apache-2.0", "Apache-2.0"),
        ("see LICENSE (MIT)", "see LICENSE (MIT)"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("[a](javascript:b)", r"\[a\](javascript:b)"),
        ("a | b\nc", r"a \| b\nc".replace(r"\n", r"\\n")),
        ("# title", r"\# title"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("https://x.org @user **b** $x$", r"https:\/\/x.org \@user \*\*b\*\* \$x\$"),
        ("www.x.org", r"www\.x.org"),
        ("```", r"\`\`\`"),
    ],
)
def test_markdown(text, expected):
    """What has a meaning in Markdown or HTML is escaped, other text is left readable."""
    assert markdown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b_c", "`a.b_c`"),
        ("a|b", r"`a\|b`"),
        ("a`b", "``a`b``"),
        ("`", "`` ` ``"),
        ("<b>\n", "`<b>\\n`"),
        ("  ", ""),
    ],
)
def test_code(text, expected):
    """The fence is longer than any run of backticks inside, and pipes do not end a cell."""
    assert code(text) == expected


MARKUP = st.text(st.sampled_from("ab `|<>&[]()*_#!\\\n-+=1.$~@:/w"), max_size=30)


@given(MARKUP)
def test_rendered_markdown_is_the_text(text):
    """A CommonMark renderer shows the text itself: no element but one paragraph."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(f"| a |\n|---|\n| {markdown(text)} |\n\nend")
    inline = [t for t in tokens if t.type == "inline"]
    assert [t.content for t in inline][-1] == "end"
    cell = inline[1]
    kinds = {child.type for child in cell.children}
    assert kinds <= {"text", "text_special"}
    said = "".join(child.content for child in cell.children)
    assert said == shown(text.strip(), 1200).strip() or not said


@given(MARKUP)
def test_rendered_code_is_the_text(text):
    """A code span in a table cell shows the text itself."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(f"| a |\n|---|\n| {code(text)} |\n\nend")
    cell = [t for t in tokens if t.type == "inline"][1]
    kinds = [child.type for child in cell.children or []]
    assert kinds == (["code_inline"] if shown(text).strip() else [])
    if kinds:
        assert cell.children[0].content == shown(text)


def test_no_character_class_is_forgotten():
    """Every character of the categories that a terminal may act on is escaped."""
    for number in range(0x110000):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert shown(character) != character, hex(number)
