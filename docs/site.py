"""Puts together the pages of the site, with the reference from the docstrings: `make docs-site`.

The pages of docs/ link to files of the repository. Here these files come along, and links lead to
them.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ROOT / ".cache" / "pages"
TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def assemble(target: Path) -> None:
    """Write all pages into a folder, which is made anew."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    docs = ROOT / "docs"
    for path in sorted(docs.rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            place = target / path.relative_to(docs)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".md":
                place.write_text(_linked(path, target), encoding="utf-8")
            else:
                shutil.copyfile(path, place)
    for name in TOP:
        (target / _page(ROOT / name)).write_text(_linked(ROOT / name, target), encoding="utf-8")
    (target / "reference.md").write_text(reference(), encoding="utf-8")


def reference() -> str:
    """A page that takes every public name from its docstring."""
    sys.path.insert(0, str(ROOT / "src"))
    import paramdelta

    parts = ["# Reference\n\nEvery name can be imported from `paramdelta`.\n"]
    for name, home in paramdelta._HOMES.items():
        module = sys.modules.get(f"paramdelta.{home}") or __import__(
            f"paramdelta.{home}", fromlist=[name]
        )
        found = getattr(module, name)
        where = getattr(found, "__module__", module.__name__)
        if not where.startswith("paramdelta"):
            where = module.__name__
        parts.append(f"::: {where}.{name}\n")
    return "\n".join(parts)


def _page(path: Path) -> str:
    return "index.md" if path.name == "README.md" else path.name.lower()


def _linked(page: Path, target: Path) -> str:
    """The text of a page whose links lead to pages and files of the site."""

    def led(match: "re.Match[str]") -> str:
        words, address, mark = match[1], match[2], match[3] or ""
        if "://" in address or address.startswith("mailto:"):
            return match[0]
        file = (page.parent / address).resolve()
        if file.parent == ROOT and file.name in TOP:
            return f"[{words}]({_page(file)}{mark})"
        if file.is_relative_to(ROOT / "docs"):
            return f"[{words}]({file.relative_to(ROOT / 'docs').as_posix()}{mark})"
        if file.is_file():
            place = target / "files" / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
            return f"[{words}](files/{file.relative_to(ROOT).as_posix()}{mark})"
        if file.is_dir():  # a site has no list of its files
            return f"{words} (`{file.relative_to(ROOT).as_posix()}` of the repository)"
        return match[0]

    return _LINK.sub(led, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    assemble(PAGES)
