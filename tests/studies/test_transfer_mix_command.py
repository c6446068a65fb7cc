"""The study's mixing in memory and paramdelta's on files are the same, to the last bit."""

from __future__ import annotations

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


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_the_command_writes_what_the_study_mixes(scale: float, tmp_path: Path) -> None:
    """`paramdelta mix` on the shipped lineage equals the study's mix of the same checkpoints."""
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
    expected = mix(load_weights(new), [(load_weights(post), load_weights(base), scale)])
    assert written.keys() == expected.keys()
    for name, tensor in written.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
