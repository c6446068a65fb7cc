"""A few of the faults of `tests.faults`; `make faults` tries each call."""

import pytest

from tests.crash import forks
from tests.faults import Bench, all_scenarios, possible

pytestmark = [forks, pytest.mark.skipif(possible() is not None, reason=str(possible()))]
TRIED = {
    "mix": ("fsync", "pwrite64", "renameat2"),
    "mix --overwrite": ("fsync", "renameat2", "unlink"),
    "mix into the current folder": ("rename",),
    "extract": ("openat", "flock", "clone3"),
}


@pytest.mark.parametrize("name", TRIED)
def test_faults(tmp_path, name):
    """A command fails with a message or succeeds; nothing is lost, and a second try is right."""
    (scenario,) = (each for each in all_scenarios(tmp_path / "sources") if each.name == name)
    with Bench(scenario, tmp_path / "bench") as bench:
        chosen = [fault for fault in bench.faults(2) if fault.kind in TRIED[name]]
        for fault in chosen[:: max(1, len(chosen) // 6)]:
            bench.check(fault)
    assert sum(bench.tried.values()) >= 4
