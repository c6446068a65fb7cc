"""Writes docs/demo.svg, a picture of what `paramdelta demo` prints on a terminal: `make docs`."""

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).with_name("demo.svg")
CODE = "import sys; sys.argv[0] = 'paramdelta'; from paramdelta.cli.app import main; main()"
WIDTH = 108  # columns: no line of the demo is longer
FONTS = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)  # a picture loads nothing from elsewhere
NOT_COLOR = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")


def record() -> str:
    """What the demo prints on a terminal, with its colors."""
    terminal, its_end = pty.openpty()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", CODE, "demo"]
        environment = os.environ | {"COLUMNS": str(WIDTH), "TERM": "dumb"}  # dumb: no moving bar
        child = subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=its_end, cwd=folder, env=environment
        )
        os.close(its_end)
        printed = b""
        while chunk := _read(terminal):
            printed += chunk
        if child.wait():
            raise SystemExit(f"the demo failed: exit code {child.returncode}")
    os.close(terminal)
    return NOT_COLOR.sub("", printed.decode().replace("\r", ""))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def render(printed: str) -> str:
    """The terminal's contents as SVG."""
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    console.print(Text("$ paramdelta demo", style="bold"))
    console.print(Text.from_ansi(printed))
    return console.export_svg(title="paramdelta", code_format=FONTS.sub("", CONSOLE_SVG_FORMAT))


if __name__ == "__main__":
    TARGET.write_text(render(record()), encoding="utf-8")
