"""Plain text: how it is cut and read, and what models of the shipped lineage make of it."""

import gzip
import json
import math

import pytest

from paramdelta.demo.tour import LINEAGE, recipe
from paramdelta.errors import UsageError
from paramdelta.evaluation.text import LENGTH, compare_texts, cut, read_text, texts_report


def test_pieces_lie_evenly_and_do_not_overlap():
    """From the first character to the last."""
    text = "".join(chr(33 + n % 90) for n in range(10 * LENGTH))
    pieces = cut(text, 3)
    assert pieces == [text[:LENGTH], text[1800 : 1800 + LENGTH], text[-LENGTH:]]
    assert "".join(cut(text, 99)) == text


def test_text_of_files_and_folders(tmp_path):
    """Plain, compressed, and strings of objects; other files of a folder are not text."""
    (tmp_path / "a.txt").write_text("a" * LENGTH)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"b"))
    (tmp_path / "c.jsonl").write_text(json.dumps({"x": "c", "n": 1}) + "\n")
    (tmp_path / "d.bin").write_bytes(b"\xff")
    assert read_text(tmp_path) == "a" * LENGTH + "\nb\nc"
    for name, data in (("short.txt", b"x"), ("e.txt", b"\xff" * 999), ("f.txt.gz", b"x" * 999)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError) as caught:
            read_text(tmp_path / name)
        assert caught.value.code == "no-text"


@pytest.mark.hf
def test_distances_of_the_shipped_lineage(tmp_path):
    """A mix at scale 0 is new base; at 1, it is nearer to direct than new base is."""
    pytest.importorskip("transformers")
    tasks = json.loads((LINEAGE / "tasks.json").read_text("utf-8"))
    text = " ".join(f"{t['question']} {t['answer']}" for row in tasks.values() for t in row)
    (tmp_path / "text.txt").write_text(text)
    models = ("new-base", "paramdelta", f"direct={LINEAGE / 'direct'}")
    found = compare_texts(
        recipe("plain", 1.0), tmp_path / "text.txt", models=models, scales=(0.0, 1.0), pieces=4
    )
    same, far, *_ = (d for d in found.distances if d.first == "paramdelta@0")
    assert (same.second, same.divergence.value, same.agreement.value) == ("new-base", 0, 1)
    near = next(d for d in found.distances if (d.first, d.second) == ("paramdelta@1", "direct"))
    assert 0 < near.divergence.value < far.divergence.value
    one, zero = found.predictions["new-base"], found.predictions["paramdelta@0"]
    assert one == zero
    assert one.perplexity == pytest.approx(math.exp(one.loss.value))
    report = texts_report(found)
    assert r"| paramdelta\@0 to new-base | 0.000 ± 0.000 | 100.0 % |" in report
