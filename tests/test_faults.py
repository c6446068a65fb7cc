"""A few of the faults of `tests.faults`; `make faults` tries each call."""

import json
from pathlib import Path

import pytest

from tests.crash import forks
from tests.faults import RESULT, Bench, all_scenarios, possible

traced = pytest.mark.skipif(possible() is not None, reason=str(possible()))
TRIED = {
    "mix": ("fsync", "pwrite64", "renameat2"),
    "mix --overwrite": ("fsync", "renameat2", "unlink"),
    "mix into the current folder": ("rename",),
    "extract": ("openat", "flock", "clone3"),
}


@forks
@traced
@pytest.mark.parametrize("name", TRIED)
def test_faults(tmp_path, name):
    """A command fails with a message or succeeds; nothing is lost, and a second try is right."""
    (scenario,) = (each for each in all_scenarios(tmp_path / "sources") if each.name == name)
    with Bench(scenario, tmp_path / "bench") as bench:
        chosen = [fault for fault in bench.faults(2) if fault.kind in TRIED[name]]
        for fault in chosen[:: max(1, len(chosen) // 6)]:
            bench.check(fault)
    assert sum(bench.tried.values()) >= 4


def test_the_page_says_what_was_measured():
    """SECURITY.md's figures are those of the committed measurement."""
    told = json.loads(RESULT.read_text(encoding="utf-8"))["scenarios"].values()
    faults, failures = (sum(each[key] for each in told) for key in ("faults", "failures"))
    page = (Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    assert f"{faults:,} faults" in " ".join(page.split())
    assert f"of {len(told)} commands" in " ".join(page.split())
    assert failures == 0
