"""The study's mixing in memory and paramdelta's on files are the same, to the last bit."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402 (after the skip)

from paramdelta.cli.app import main  # noqa: E402
from studies.lineage.model import load_weights  # noqa: E402
from studies.transfer.mix import mix  # noqa: E402

pytestmark = pytest.mark.hf
LINEAGE = Path(__file__).parents[2] / "src" / "paramdelta" / "demo" / "lineage"


@pytest.mark.parametrize("scale", [1.0, 0.75, 0.7, -1.0])
def test_the_command_writes_what_the_study_mixes(scale: float, tmp_path: Path) -> None:
    """`paramdelta mix` on the shipped lineage equals the study's mix of the same checkpoints.

    With a scale of few binary digits to the last bit. With another the study's float64 sum can
    fall on a tie that the exact sum is not: there the exact sum has to be on the command's side.
    """
    post, base, new = (LINEAGE / name for name in ("post", "base", "new-base"))
    arguments = ["mix", "--post", str(post), "--base", str(base), "--new-base", str(new)]
    arguments += ["--scale", str(scale), "--out", str(tmp_path / "mixed")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["paramdelta", *arguments])
        try:
            main()
        except SystemExit as end:
            assert not end.code  # noqa: PT017 (typer ends every command so)
    written = load_file(tmp_path / "mixed" / "model.safetensors")
    sources = [load_weights(folder) for folder in (new, post, base)]
    expected = mix(sources[0], [(sources[1], sources[2], scale)])
    assert written.keys() == expected.keys()
    near_ties = 0
    for name, tensor in written.items():
        assert tensor.dtype == torch.bfloat16
        other = expected[name]
        for place in (tensor.float() != other).nonzero():
            near_ties += 1
            start, added, taken = (Fraction(w[name][tuple(place)].item()) for w in sources)
            exact = start + Fraction(scale) * (added - taken)
            command, study = (Fraction(w[tuple(place)].item()) for w in (tensor, other))
            assert abs(command - exact) < abs(study - exact), (name, place)
    assert near_ties == 0 or scale == 0.7
