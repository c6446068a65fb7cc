"""The example from beginning to end: prepare, plan, mix, verify, load, score.

python -m examples.minilm demo [FOLDER]
"""

import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run every step and show its command."""
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else ".cache/minilm")
    out = Path("demo-out/minilm")
    roles = ("post", "base", "new-base")
    sources = [part for role in roles for part in (f"--{role}", str(folder / role))]
    module = [sys.executable, "-m"]
    tool = [str(Path(sys.executable).with_name("paramdelta"))]
    for command in (
        [*module, "examples.minilm.prepare", str(folder)],
        [*tool, "plan", *sources],
        [*tool, "mix", *sources, "--out", str(out), "--overwrite"],
        [*tool, "verify", str(out), "--full"],
        [*module, "examples.minilm.score", str(folder), str(out)],
    ):
        shown = [Path(part).name if part == command[0] else part for part in command]
        print(f"\n$ {' '.join(shown)}", flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
