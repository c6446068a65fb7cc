"""Writes the tree of modules into CONTRIBUTING.md, from the first line of each docstring."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
PACKAGE = ROOT / "src" / "paramdelta"
BEGIN, END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
# Data flows from left to right; a package imports only from those before it.
ORDER = (
    "arithmetic", "storage", "formats", "encodings", "schemes", "recipe", "planning", "engine",
    "output", "jobs", "checks", "demo", "cli",
)  # fmt: skip


def render() -> str:
    """CONTRIBUTING.md with the tree as the package is now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(_tree(PACKAGE, "")) + "\n" + END + after


def _tree(folder: Path, indent: str) -> list[str]:
    lines = [
        f"{indent}{path.name:<{28 - len(indent)}}{_first_line(path)}"
        for path in sorted(folder.glob("*.py"))
        if path.name != "__init__.py"
    ]
    packages = [path.parent for path in folder.glob("*/__init__.py")]
    packages.sort(key=lambda p: (ORDER.index(p.name) if p.name in ORDER else len(ORDER), p.name))
    for package in packages:
        name = f"{package.name}/"
        lines.append(f"{indent}{name:<{28 - len(indent)}}{_first_line(package / '__init__.py')}")
        lines += _tree(package, indent + "  ")
    return lines


def _first_line(path: Path) -> str:
    found = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return found.splitlines()[0].rstrip(".") if found else ""


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
