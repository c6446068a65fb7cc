"""The report: whole in one file, safe whatever names say, and usable in a browser."""

import base64
import html.parser
import json
import re
import shutil

import pytest

from paramdelta import Delta, Recipe, analyze
from paramdelta.analysis.report.page import page
from tests.checkpoints import llama, moved, save
from tests.conftest import CONFIG

EVIL = "model.layers.0.</script><script>alert(1)</script><img src=x onerror=alert(2)>.weight"
BIDI = "model.layers.1.\u202e\x1b[31m'\"&.weight"
TOKEN = "</td></table><script>alert(3)</script>"


class Elements(html.parser.HTMLParser):
    """What a browser would make of a page: elements, attributes, and text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.stack, self.scripts, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """See `HTMLParser`."""
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]
        if tag not in ("meta", "input", "br"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        """See `HTMLParser`."""
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]

    def handle_endtag(self, tag):
        """See `HTMLParser`."""
        assert self.stack.pop() == tag

    def handle_data(self, data):
        """See `HTMLParser`."""
        if self.stack[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.stack[-1:] != ["style"]:
            self.text += data


def vocabulary(tokens):
    """tokenizer.json of tokens in this order."""
    vocab = {token: number for number, token in enumerate(tokens)}
    return {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []}


def lineage_of(folder, tensors, posts=1, **files):
    """A recipe for checkpoints of these tensors."""
    new = str(save(folder / "new", moved(tensors, 50), config_json=CONFIG, **files))
    base = str(save(folder / "base", tensors, config_json=CONFIG, **files))
    return Recipe(
        new,
        [
            Delta(
                str(save(folder / f"post{n}", moved(tensors, n + 1), config_json=CONFIG, **files)),
                base,
            )
            for n in range(posts)
        ],
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The analysis of checkpoints whose names and tokens attack the page."""
    tensors = {**llama(), **dict.fromkeys((EVIL, BIDI), llama()["lm_head.weight"])}
    tokens = [TOKEN, *(f"t{n}" for n in range(31))]
    config = {**CONFIG, "vocab_size": 32}
    folder = tmp_path_factory.mktemp("hostile")
    recipe = lineage_of(
        folder, tensors, 2, tokenizer_json=vocabulary(tokens), generation__config_json=config
    )
    return analyze(recipe, spectra=True)


def test_no_name_becomes_markup(hostile):
    """Scripts are the page's own; no element and no handler comes from a name or a token."""
    found = Elements(page([hostile, hostile], [EVIL, "b"]))
    assert found.stack == []
    assert len(found.scripts) == 1
    assert "img" not in found.tags
    assert not [a for a in found.attributes if a[1].startswith("on") or a[1] == "style"]
    assert "<script>alert(1)</script>" in found.text
    assert "\x1b" not in found.text
    assert "\u202e" not in found.text


def test_the_policy_allows_this_script_and_no_other(hostile):
    """The page states the digest of its own script and style."""
    import hashlib

    text = page([hostile])
    (script,) = Elements(text).scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_nothing_comes_from_elsewhere(hostile):
    """The only addresses are those of places in the page and of the numbers that it holds."""
    found = Elements(page([hostile], predict=True))
    links = [value for _, name, value in found.attributes if name in ("src", "href")]
    assert all(link.startswith(("#", "data:application/json;base64,")) for link in links)
    (data,) = (link for link in links if link.startswith("data:"))
    numbers = json.loads(base64.b64decode(data.split(",")[1]))
    assert numbers == json.loads(json.dumps(hostile.public().to_dict()))
    targets = {value for _, name, value in found.attributes if name == "id"}
    assert {link[1:] for link in links if link.startswith("#")} <= targets


def test_every_figure_has_a_reading_and_a_table(hostile):
    """Also a name for those who cannot see it."""
    text = page([hostile])
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) == 1 + 2 * 5  # without heads
    for figure in figures:
        assert 'role="img"' in figure
        assert re.search(r"<desc>[^<]{20,}</desc>", figure)
        assert re.search(r"<figcaption>[^<]{20,}</figcaption>", figure)
        assert figure.count("<tr>") > 2


def test_paths_of_this_machine_are_not_shown(hostile, tmp_path_factory):
    """A page is passed on: of a local address it shows the last part."""
    from dataclasses import replace

    from paramdelta.planning.findings import Finding, Severity

    where = f"post ({hostile.deltas[0].post})"
    told = Finding(Severity.WARNING, "x", f"see {hostile.new_base}", where, (), hostile.new_base)
    text = page([replace(hostile, findings=(told,))])
    (data,) = re.findall(r"base64,([^\"]*)", text)
    for each in (text, base64.b64decode(data).decode()):
        assert str(tmp_path_factory.getbasetemp()) not in each
        assert "post (post0)" in each


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, if playwright and the browser are here."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(hostile, browser, tmp_path, theme):
    """No errors and no sideways scrolling at three widths; tables sort, and search filters."""
    file = tmp_path / "report.html"
    file.write_text(page([hostile, hostile], ["one", EVIL], predict=True), encoding="utf-8")
    for width in (360, 768, 1280):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=theme, offline=True
        )
        tab = context.new_page()
        told = []
        tab.on("console", lambda message, told=told: told.append(message.text))
        tab.on("pageerror", lambda error, told=told: told.append(str(error)))
        tab.on("dialog", lambda dialog, told=told: told.append(dialog.message))
        tab.goto(file.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        table = tab.locator("#r0-table")
        rows = table.locator("tbody tr")
        assert rows.count() == 2 * 23
        column = "#r0-table tbody tr td:nth-child(5)"
        table.get_by_role("button", name="‖Δ‖ / ‖Θ_base‖").click()
        values = [float(v) for v in tab.locator(column).all_text_contents()]
        assert values == sorted(values, reverse=True)
        table.get_by_role("button", name="‖Δ‖ / ‖Θ_base‖").click()
        assert [float(v) for v in tab.locator(column).all_text_contents()] == values[::-1]
        tab.locator("input").first.fill("Q_PROJ layers.1")
        assert tab.locator("#r0-count").text_content() == "2 of 46"
        assert table.locator("tbody tr:visible").count() == 2
        tab.locator("details summary").first.click()
        assert tab.locator("details table").first.is_visible()
        assert told == []
        context.close()
