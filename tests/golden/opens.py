"""How many files planning opens, and how often it reads: `python -m tests.golden.opens`.

Prints what `paramdelta.plan` of the shipped lineage does, by file. `plan_opens.json` holds what
version 0189c78 did, before the storage layer was rebuilt; it is a measurement, and no test.
"""

import builtins
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import paramdelta.demo
from paramdelta import Delta, Recipe, plan

LINEAGE = Path(paramdelta.demo.__file__).parent / "lineage"


def counted() -> dict[str, Any]:
    """Opens, positional reads and directory listings of one plan, in a process of its own."""
    recipe = Recipe(
        str(LINEAGE / "new-base"), (Delta(str(LINEAGE / "post"), str(LINEAGE / "base")),)
    )
    opens: Counter[str] = Counter()
    listings: Counter[str] = Counter()
    reads: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    watching = False

    def name(path: Any) -> str | None:
        path = Path(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else None
        inside = path is not None and path.is_relative_to(LINEAGE)
        return path.relative_to(LINEAGE).as_posix() if inside and path else None

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching or event not in ("open", "os.listdir", "os.scandir"):
            return
        found = name(arguments[0])
        if found is not None:
            (opens if event == "open" else listings)[found] += 1

    def reading(function: Any) -> Any:
        def read(descriptor: int, *arguments: Any) -> Any:
            result = function(descriptor, *arguments)
            found = name(os.readlink(f"/proc/self/fd/{descriptor}")) if watching else None
            if found is not None:
                reads[found] += 1
                sizes[found] += result if isinstance(result, int) else len(result)
            return result

        return read

    # Path.read_bytes and open read inside C; their reads are their opens.
    for function in ("preadv", "pread", "readv", "read"):
        setattr(os, function, reading(getattr(os, function)))
    sys.addaudithook(hook)
    watching = True
    plan(recipe)
    watching = False
    return {
        "opens": opens.total(),
        "listings": listings.total(),
        "descriptor reads": reads.total(),
        "descriptor bytes": sizes.total(),
        "opens by file": dict(sorted(opens.items())),
        "descriptor reads by file": dict(sorted(reads.items())),
    }


if __name__ == "__main__":
    builtins.print(json.dumps(counted(), indent=1))
