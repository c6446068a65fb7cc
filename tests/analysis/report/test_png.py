"""PNG files of the figures."""

import struct

import pytest

from paramdelta.analysis.report.png import write_png

pytest.importorskip("matplotlib")


def test_every_figure_is_a_file(lineage, tmp_path):
    """Figures of one Δ, with and without layers, and their sizes."""
    from paramdelta import analyze

    written = write_png(analyze(lineage.recipe(), spectra=True), tmp_path / "png")
    assert {path.stem for path in written} == {"norms", "cosines", "profile", "sizes", "spectra"}
    for path in written:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert struct.unpack(">II", data[16:24]) == (1200, 800)
