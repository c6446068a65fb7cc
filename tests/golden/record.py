"""Write digests.json anew: `python -m tests.golden.record [part of a name ...]`.

Do this only when outputs are meant to change, and say in the commit which and why. With arguments,
only the cases whose names contain one of them are recorded; the others stay.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.golden.cases import CASES, SETTINGS, carry_out
from tests.golden.codecs import codecs

FILE = Path(__file__).with_name("digests.json")


def main(parts: list[str]) -> int:
    """Record the cases with all settings; 1 if any failed or depends on the settings."""
    held = (
        json.loads(FILE.read_text(encoding="utf-8")) if parts and FILE.exists() else {"cases": {}}
    )
    found = held["cases"]
    failed = 0
    for name, case in CASES.items():
        if parts and not any(part in name for part in parts):
            continue
        began = time.perf_counter()
        try:
            found[name] = _once(case)
        except Exception as error:  # noqa: BLE001 - reported, and the others still run
            print(f"FAILED {name}: {type(error).__name__}: {error}", file=sys.stderr)
            failed = 1
        print(f"{time.perf_counter() - began:6.2f} s  {name}")
    kept = {name: found[name] for name in CASES if name in found}
    text = json.dumps({"codecs": codecs(), "cases": kept}, indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
    return failed


def _once(case) -> dict[str, object]:
    results = []
    for settings in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            results.append(asdict(carry_out(case, Path(folder), settings)))
    if any(result != results[0] for result in results):
        raise AssertionError("the output depends on workers or memory")
    if not results[0]["files"]:
        raise AssertionError("nothing was written")
    return results[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
