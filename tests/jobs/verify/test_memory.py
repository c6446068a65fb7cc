"""verify holds no more than it projects, whatever the size of a tensor."""

import pytest

from tests.footprint import sparse
from tests.memory import linux, printed

VERIFY = """
from dataclasses import replace
from paramdelta import Delta, Recipe, plan
from paramdelta.engine import threads
from paramdelta.formats.checkpoint import open_checkpoint
from paramdelta.jobs.verify.comparison import OutputTarget
from paramdelta.jobs.verify.job import VerifyJob
from paramdelta.jobs.verify.thresholds import ThresholdJob
from paramdelta.jobs.verify.verification import Options
from paramdelta.schemes.ties import Ties
from paramdelta.storage.digest import Digests
from paramdelta.storage.reader import Reader
from tests import opening
folder, memory, dtype, density = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
choices = {"scheme": Ties(density)} if density else {}
delta = Delta(folder + "/post", folder + "/base")
made = plan(Recipe(folder + "/new", (delta,), None if dtype == "auto" else dtype, **choices))
output = opening.checkpoint(folder + "/out", "output").tensors
targets = [OutputTarget(t, tuple(output[s.name] for s in t.streams)) for t in made.tensors]
job, look = VerifyJob(tuple(targets), 1.0, 0), ThresholdJob.of(made.tensors)
options = Options(1.0, memory, 4, 0, False, print)
budget = options.budget([job.need, look.need])
most = budget.buffer // 8
small = replace(job, most=1024)
with Reader() as reader:
    if not density:  # a threshold has to be known before numbers are compared
        work = small.worker(reader, [])
        work(small.tasks()[0])  # what numpy loads when it is first used
with Growth() as growth:
    for each in [replace(look, most=most)] if density else [replace(job, most=most)]:
        with Reader(once=True, ahead=True, digests=Digests()) as reader:
            threads.run(each, reader, workers=budget.workers)
print(growth.bytes, budget.projected)
"""


def written(folder, shape, dtype):
    """Post, base, new base and output of one large tensor of zeros, which take no disk."""
    entries = {"w.weight": (dtype, shape, 2)}
    if dtype == "F8_E4M3":
        grid = tuple(-(-size // 128) for size in shape)
        entries = {"w.weight": (dtype, shape, 1), "w.weight_scale_inv": ("F32", grid, 4)}
    for role in ("post", "base", "new"):
        sparse(folder / role / "model.safetensors", entries)
    sparse(folder / "out" / "model.safetensors", entries)
    if dtype == "F8_E4M3":  # the scale of a block of zeros is 1
        path = folder / "out" / "model.safetensors"
        with path.open("r+b") as file:
            file.seek(-4 * grid[0] * grid[1], 2)
            file.write(b"\x00\x00\x80\x3f" * (grid[0] * grid[1]))


@linux
@pytest.mark.slow
@pytest.mark.parametrize("memory", [90_000_000, 256_000_000])
@pytest.mark.parametrize(
    ("shape", "dtype", "density"),
    [
        ((8192, 8192), "BF16", 0),
        ((64_000_000,), "BF16", 0),
        ((4096, 18432), "F8_E4M3", 0),
        ((4096, 8192), "BF16", 0.2),
    ],
)
def test_measured_memory_stays_under_the_projected(tmp_path, shape, dtype, density, memory):
    """One tensor of many rows, of one row, of FP8 blocks; and the search for a threshold."""
    written(tmp_path, shape, dtype)
    form = "fp8-block" if dtype == "F8_E4M3" else "auto"
    grown, projected = printed(VERIFY, tmp_path, memory, form, density)
    print("GROWN", grown, projected)
    assert grown <= projected <= memory
