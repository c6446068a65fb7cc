"""Data flows one way: a package imports only from packages to its left."""

import ast
from pathlib import Path

import paramdelta

PACKAGE = Path(paramdelta.__file__).parent
LAYERS = (
    ("version",), ("text",), ("errors",), ("units", "dtypes", "documents"), ("arithmetic",),
    ("storage",), ("formats",), ("encodings", "schemes"), ("schedule",), ("recipe",),
    ("mergekit",), ("planning",), ("engine",), ("progress",), ("output",), ("jobs",),
    ("analysis",), ("checks",), ("api",), ("live",), ("evaluation",), ("demo",), ("cli",),
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path):
    """Names of the package's parts that a module imports when it runs, not for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.dump(test.test)
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in for_types:
            parts = node.module.split(".")
            if parts[0] == "paramdelta":
                yield from [parts[1]] if len(parts) > 1 else [a.name for a in node.names]


def test_every_import_goes_to_the_left():
    """No module imports from a layer to its right, or from its neighbors."""
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        wrong += [
            f"{path.relative_to(PACKAGE)} imports {name}"
            for name in imports(path)
            if name in LEVEL and name != own and LEVEL[name] >= LEVEL[own] > 0
        ]
    assert wrong == []


def test_every_part_of_the_package_has_a_layer():
    """A new package or module at the top has to say where it stands."""
    tops = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert tops - {"__init__", "__pycache__", "__main__", "py"} <= LEVEL.keys()
