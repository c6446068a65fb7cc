"""Writes docs/errors.md from the source: every code of an error or finding. `make docs`."""

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from paramdelta import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "paramdelta"
TARGET = Path(__file__).with_name("errors.md")
CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.Explained)
}
MOST = 4  # messages of a code that are shown

HEAD = """\
# Errors and findings

Generated from the source by `make docs`; do not edit.

## Errors

Every error has a stable code: `error.code` in Python, `"code"` in the events of `--json`. The class
decides the exit code: 2 usage, 3 the inputs do not fit together, 4 I/O, 130 interrupted.

| code | class | exit | message |
|---|---|---|---|
"""
FINDINGS = """
## Findings

What a plan or a result says about checkpoints that do not fit perfectly. `refused` prevents the
mix. Where the table says what happens instead, the code can be allowed: `--allow CODE`, `allow:` in
a recipe.

| code | severity | message | if it is allowed |
|---|---|---|---|
"""


@dataclass
class Row:
    """What the source says about one code: classes or severities, and messages."""

    kinds: dict[str, None] = field(default_factory=dict)
    messages: dict[str, None] = field(default_factory=dict)
    allowed: dict[str, None] = field(default_factory=dict)


class Module:
    """One module of the package, parsed."""

    def __init__(self, path: Path) -> None:
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions = {
            node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)
        }
        self.classes = {
            node.name: base.id
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ClassDef)
            for base in node.bases
            if isinstance(base, ast.Name)
        }
        self._imports = self._read_imports()
        self._calls = self._read_calls()

    def imports(self) -> list[Path]:
        """The modules of the package that it imports from."""
        return self._imports

    def _read_imports(self) -> list[Path]:
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paramdelta."):
                path = ROOT / "src" / Path(*node.module.split("."))
                found.append(path.with_suffix(".py") if path.with_suffix(".py").is_file() else path)
        return found

    def calls(self) -> list[tuple[ast.Call, dict[str, ast.expr]]]:
        """All calls in order, with the values that names were given last before them."""
        return self._calls

    def _read_calls(self) -> list[tuple[ast.Call, dict[str, ast.expr]]]:
        found: list[tuple[ast.Call, dict[str, ast.expr]]] = []
        names: dict[str, ast.expr] = {}
        for node in sorted(ast.walk(self.tree), key=_position):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names = {**names, node.targets[0].id: node.value}
            elif isinstance(node, ast.Call):
                found.append((node, names))
        return found


def render() -> str:
    """The page's text."""
    found, findings = error_codes(), finding_codes()
    lines = []
    for code, row in sorted(found.items()):
        exits = dict.fromkeys(str(CLASSES[kind].exit_code) for kind in row.kinds)
        cells = [f"`{code}`", ", ".join(row.kinds), ", ".join(exits), _joined(row.messages)]
        lines.append("| " + " | ".join(cells) + " |\n")
    more = []
    for code, row in sorted(findings.items()):
        cells = [f"`{code}`", ", ".join(row.kinds), _joined(row.messages), _joined(row.allowed)]
        more.append("| " + " | ".join(cells) + " |\n")
    return HEAD + "".join(lines) + FINDINGS + "".join(more)


@cache
def error_codes() -> dict[str, Row]:
    """Every code of an error, with its classes and messages."""
    found: dict[str, Row] = {}
    for path, module in MODULES.items():
        for call, names in module.calls():
            kind = raised(call, path)
            if kind is None:
                continue
            for code in codes(call, path):
                row = found.setdefault(code, Row())
                row.kinds[kind] = None
                said = texts(call.args[0], names) if call.args else []
                for keyword in call.keywords if not said else ():
                    if keyword.arg == "expected":
                        said = [f"expected: {text}" for text in texts(keyword.value, names)]
                row.messages |= dict.fromkeys(said)
    return found


@cache
def finding_codes() -> dict[str, Row]:
    """Every code of a finding, with its severities and messages."""
    found: dict[str, Row] = {}
    for module in MODULES.values():
        for call, names in module.calls():
            if len(call.args) < 3 or not ast.unparse(call.args[0]).startswith("Severity."):
                continue
            for code in texts(call.args[1], names):
                row = found.setdefault(code, Row())
                row.kinds[ast.unparse(call.args[0]).partition(".")[2].lower()] = None
                row.messages |= dict.fromkeys(texts(call.args[2], names))
                for keyword in call.keywords:
                    if keyword.arg == "allowed":
                        row.allowed |= dict.fromkeys(texts(keyword.value, names))
    return found


def raised(call: ast.Call, path: Path) -> str | None:
    """The error class that a call makes, itself or by a function that takes the code."""
    name = _name(call)
    if name in CLASSES:
        return name
    if name == "__init__" and isinstance(call.func, ast.Attribute):  # of a subclass elsewhere
        bases = (b for b in MODULES[path].classes.values() if b in CLASSES)
        return next(bases, None) if any(k.arg == "code" for k in call.keywords) else None
    maker = _maker(name, path)
    if maker is None or maker.returns is None:
        return None
    returned = ast.unparse(maker.returns)
    return returned if returned in CLASSES else None


def codes(call: ast.Call, path: Path) -> list[str]:
    """The codes of a call that makes an error; those that are handed on are not its own."""
    for keyword in call.keywords:
        if keyword.arg == "code":
            return [node.value for node in ast.walk(keyword.value) if _is_text(node)]
    maker = _maker(_name(call), path)
    defaults = maker.args.kw_defaults if maker is not None else []
    return [each.value for each in defaults if each is not None and _is_text(each)]


def texts(node: ast.expr, names: dict[str, ast.expr]) -> list[str]:
    """The texts that an expression can give, with … for what is put in."""
    match node:
        case ast.Constant(str(value)):
            return [value]
        case ast.JoinedStr(values):
            parts = [v.value if isinstance(v, ast.Constant) else "…" for v in values]
            return ["".join(parts)]
        case ast.IfExp(_, body, orelse):
            return [*texts(body, names), *texts(orelse, names)]
        case ast.BinOp(left, ast.Add(), right):
            ends = texts(right, names) or ["…"]
            return [one + other for one in texts(left, names) or ["…"] for other in ends]
        case ast.Name(name) if name in names:
            return texts(names[name], {k: v for k, v in names.items() if k != name})
    return []


def _maker(name: str, path: Path) -> ast.FunctionDef | None:
    """The function of this name that takes a code, in a module or in those that it imports from."""
    for place in (path, *MODULES[path].imports()):
        function = MODULES[place].functions.get(name) if place in MODULES else None
        if function is not None and any(a.arg == "code" for a in function.args.kwonlyargs):
            return function
    return None


def _position(node: ast.AST) -> tuple[int, int]:
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)


MODULES = {path: Module(path) for path in sorted(PACKAGE.rglob("*.py"))}


def _name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(name) | ast.Attribute(_, name):
            return name
    return ""


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _joined(messages: dict[str, None]) -> str:
    shown = [text.replace("|", "\\|").replace("\n", " ") for text in messages]
    rest = "; …" if len(shown) > MOST else ""
    return "; ".join(shown[:MOST]) + rest


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
