"""JSON and YAML: the same values as their parsers give, and no bombs."""

import ast
import contextlib
import json
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import paramdelta
from paramdelta.documents import DocumentError, parse_json, to_json
from paramdelta.documents.yaml import compose_yaml, construct_yaml, parse_yaml, to_yaml

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(JSON, st.booleans())
def test_json_is_read_as_ever(value, ascii_only):
    """Whatever json writes comes back."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text.encode("utf-8", "surrogatepass")) == value


def test_usual_documents_are_within_the_limits():
    """The densest that exist: a tokenizer's merges as pairs, a vocabulary, an index."""
    merges = {"merges": [["ab", "cd"]] * 300_000, "vocab": {f"t{i}": i for i in range(150_000)}}
    assert len(parse_json(json.dumps(merges, separators=(",", ":")).encode())["merges"]) == 300_000
    index = {"weight_map": {f"layers.{i}.w": "model-1.safetensors" for i in range(100_000)}}
    assert parse_json(json.dumps(index).encode()) == index


@pytest.mark.parametrize(
    "text",
    [
        b"[%b]" % b",".join([piece] * (6_000_000 // len(piece)))
        for piece in (b"[]", b'{"":1}', b"1", b'"ab"', b"1.5", b"[[]]", b'"\xf0\x9f\x98\x80"')
    ]
    + [b"{%b}" % b",".join(b'"%x":[]' % number for number in range(400_000))],
    ids=["lists", "dicts", "ints", "texts", "floats", "deep", "wide", "keys"],
)
def test_json_takes_no_more_memory_than_promised(text):
    """Six megabytes of anything: refused, or within 72 MB and 8 bytes for each of its own."""
    tracemalloc.start()
    try:
        parse_json(text)
    except ValueError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 72_000_000 + 9 * len(text)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"9" * 5000, b"", b"{", b"\xff", b'{"a":1}x'])
def test_json_that_is_refused(text):
    """Every fault is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Co"]), max_size=20),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", max_size=3), inner),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_yaml_is_read_as_ever(value):
    """Whatever PyYAML writes of plain values comes back, but for dates, which stay text."""
    dumper = yaml.SafeDumper
    dumper.ignore_aliases = lambda *_: True
    assert parse_yaml(yaml.dump(value, Dumper=dumper, allow_unicode=True)) == value


def test_dates_are_text():
    """Those that exist and those that do not."""
    assert parse_yaml("a: 2024-02-30\nb: 2024-01-01") == {"a": "2024-02-30", "b": "2024-01-01"}


BOMB = "a0: &a0 [x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases"),
        ("a: &a [*a]", "aliases"),
        ("[" * 10_000, "deeply"),
        ("- " * 10_000, "deeply"),
        ("- a\n" * 40_000, "more than 20000 values"),
        ("a: " + "9" * 5000, "digits"),
        ("a: 1" + ":59" * 5000, "digits"),
        ("a: 0x" + "f" * 5000, "digits"),
        ("!!python/object/apply:os.system [x]", "tags"),
        ("!!binary x", "tags"),
        ("x" * 200_001, "characters"),
        ("a: \x01", "character"),
        ("a: \ud800", "character"),
        ("[a]: b", "unhashable"),
        ("a: b: c", "line 1"),
        ("a\n---\nb", "single document"),
    ],
)
def test_yaml_that_is_refused(text, message):
    """Each in no time, and with a reason of one line."""
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text)
    assert time.process_time() - start < 2
    assert "\n" not in str(error.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    """Nothing but a ValueError comes out."""
    with contextlib.suppress(ValueError):
        parse_yaml(text)
    with contextlib.suppress(ValueError):
        parse_json(text.encode("utf-8", "replace"))


PACKAGE = Path(paramdelta.__file__).parent
PARSERS = {"loads", "load", "JSONDecoder", "safe_load", "full_load", "compose", "SafeLoader"}
OWN = {
    "documents/json.py": "the parser of JSON",
    "documents/yaml.py": "the parser of YAML",
    "output/journal.py": "its short lines, of which there may be many; long ones go through here",
    "formats/safetensors.py": "headers, which have a parser of their own",
}


def test_no_other_module_parses():
    """JSON and YAML are parsed here, in every module of the package."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (
            isinstance(node, ast.Attribute)
            and node.attr in PARSERS
            and ast.unparse(node.value) in ("json", "yaml")
        )
        or (
            isinstance(node, ast.ImportFrom)
            and node.module in ("json", "yaml", "pickle", "marshal", "shelve")
        )
    }
    assert found == OWN.keys()


@pytest.mark.parametrize("deep", [b'{"a":' * 101 + b"1" + b"}" * 101, b"[" * 101 + b"]" * 101])
def test_depth_of_json(deep):
    """More than 100 levels are refused, whatever the recursion limit of the caller."""
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(deep)
    assert parse_json(deep[1:-1] if deep[:1] == b"[" else deep[5:-1])


@pytest.mark.parametrize(
    "value",
    ["[" * 500, '"' * 3, '\\"[' * 200, ['["', '"[', "\\"] * 150, {"[{": ["]}"] * 200}, "\\" * 301],
)
def test_brackets_in_strings_are_not_nested(value):
    """Tokens are brackets, quotes and backslashes too."""
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ('{"a": 1, "a": 2}', False),
        ('{"x": {"a": 1, "b": 0, "a": true}}', False),
        ('{"a": [1], "a": [1]}', True),
        ('{"a": NaN, "a": NaN}', True),
    ],
)
def test_a_key_with_two_values_is_refused(text, taken):
    """Loaders differ in which one they take; the same value twice does no harm."""
    if taken:
        assert list(parse_json(text.encode())) == ["a"]
    else:
        with pytest.raises(ValueError, match="'a' stands twice"):
            parse_json(text.encode())


def test_json_is_utf8():
    """As loaders read it; UTF-16, which Python's parser recognizes as well, is refused."""
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]
    with pytest.raises(ValueError, match=r"."):
        parse_json('{"a": 1}'.encode("utf-16"))


@given(JSON)
def test_written_json_comes_back(value):
    """In UTF-8, with lone surrogates as escapes."""
    assert parse_json(to_json(value).encode()) == value


@given(st.text(st.characters(codec=None)))
@example("\u202e\x1b[2J\x7f\u2028")
def test_written_yaml_is_printable_and_comes_back(value):
    """Control characters are escapes, and mean the same."""
    text = to_yaml({"a": [value]})
    assert text.replace("\n", "").isprintable()
    assert parse_yaml(text) == {"a": [value]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 20000 values, line"),
        ("a: &a [*a]", "inside of its own value, line 1"),
        ("a: 1\nb: !!binary x", "tags are not read, line 2"),
        ("- " * 60, "deeply, line 1"),
        ("a: 1\nb: c: d", "line 2"),
    ],
)
def test_nodes_that_are_refused(text, message):
    """With the line; aliases are followed as far as values are read."""
    with pytest.raises(DocumentError, match=message):
        compose_yaml(text)


def test_nodes_become_values():
    """Aliases and merges of a person's file mean what YAML says."""
    node = compose_yaml("a: &a {x: 1, y: 2024-02-30}\nb: {<<: *a, x: 2}\nc: [*a]")
    plain = {"x": 1, "y": "2024-02-30"}
    assert construct_yaml(node) == {"a": plain, "b": plain | {"x": 2}, "c": [plain]}
    assert compose_yaml("# nothing") is None
