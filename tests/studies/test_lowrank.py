"""The page on adapters says what was measured."""

import json
from pathlib import Path

from studies.lowrank import page

ROOT = Path(__file__).parents[2]


def test_the_page_says_what_was_found():
    """Its tables are made from the committed results, and the text's figures are among them."""
    result = json.loads((ROOT / "studies" / "lowrank" / "results.json").read_text())
    text = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")
    assert page.filled(text, result) == text
    assert f"`post` itself has {result['shipped']['post']:.0f} %" in text
    assert f"`direct` {result['shipped']['direct']:.0f} %" in text
    lost = [one["kept_of_modules_f32"] - one["kept_of_modules"] for one in result["ranks"]]
    assert 0 < max(lost) < 1e-5
