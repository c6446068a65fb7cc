"""Writes docs/cli.md from the commands' own help: `make docs`. A test fails on drift."""

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    (),
    ("plan",),
    ("analyze",),
    ("mix",),
    ("sweep",),
    ("verify",),
    ("check",),
    ("card",),
    ("clean",),
    ("extract",),
    ("chat",),
    ("serve",),
    ("scale",),
    ("evaluate",),
    ("demo",),
    ("recipe", "show"),
    ("recipe", "import"),
)
TARGET = Path(__file__).with_name("cli.md")
CODE = "import sys; sys.argv[0] = 'paramdelta'; from paramdelta.cli.app import main; main()"


def render() -> str:
    """The page's text."""
    parts = ["# Command line\n\nGenerated from the commands by `make docs`; do not edit.\n"]
    environment = os.environ | {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    for command in COMMANDS:
        result = subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-c", CODE, *command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        text = re.sub(r"[ \t]+$", "", result.stdout, flags=re.MULTILINE).strip()
        parts.append(f"## {' '.join(('paramdelta', *command))}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
