"""Parts: which shards of an output each of several machines makes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from paramdelta.errors import UsageError
from paramdelta.output.layout import Layout

AUTO = "auto"
_PART = re.compile(r"([0-9]{1,7})/([0-9]{1,7})")
# Where schedulers say which worker this is, and of how many. A list of pairs of variables:
# number, how many, the lowest number. What comes first is more specific.
_SCHEDULERS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", None),
    ("SLURM_PROCID", "SLURM_NTASKS", None),
)


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``count``, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def shards(self, layout: Layout) -> frozenset[int]:
        """The shards that it makes: neighbors, and about the same bytes in each part.

        Every shard belongs to one part. The bytes of a shard do not depend on the part.
        """
        ends = list(accumulate(shard.size for shard in layout.shards))
        total = ends[-1] if ends else 0
        middles = (end - shard.size / 2 for end, shard in zip(ends, layout.shards, strict=True))
        return frozenset(
            number
            for number, middle in enumerate(middles)
            if int(middle * self.count / max(total, 1)) == self.number - 1
        )


def parse_part(text: str, environment: Mapping[str, str]) -> Part:
    """The part of "2/4"; of "auto", what the scheduler that started this process says.

    Raises:
        UsageError: neither of them, or no scheduler says it.
    """
    if text == AUTO:
        return _of_scheduler(environment)
    match = _PART.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"part {text!r} is not valid",
            code="invalid-part",
            expected="such as 1/4, the first of four; or auto",
        )
    return Part(int(match[1]), int(match[2]))


def _of_scheduler(environment: Mapping[str, str]) -> Part:
    for index, size, least in _SCHEDULERS:
        number, count = environment.get(index), environment.get(size)
        lowest = environment.get(least, "0") if least else "0"
        if number is None:
            continue
        if count is None:
            raise UsageError(
                f"{index} is set, but not {size}",
                code="invalid-part",
                expected=f"{size}, the number of parts",
                remedy=f"set {size} in the job, or pass `part='1/4'`",
            )
        values = (number, count, lowest)
        if not all(value.isdecimal() for value in values):
            raise UsageError(
                f"{index} and {size} are not numbers",
                code="invalid-part",
                got=f"{index}={number}, {size}={count}",
            )
        place = int(number) - int(lowest)
        if not 0 <= place < int(count):
            raise UsageError(
                f"{index} is not one of {size} neighboring numbers",
                code="invalid-part",
                got=", ".join(f"{n}={v}" for n, v in ((index, number), (size, count))),
                expected="an array such as 0-3, without gaps and steps",
            )
        return Part(place + 1, int(count))
    raise UsageError(
        "no scheduler says which part this is",
        code="invalid-part",
        expected="SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX with JOB_COMPLETIONS, or SLURM_PROCID",
        remedy="pass `part='1/4'`",
    )
