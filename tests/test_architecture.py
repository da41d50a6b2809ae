"""The structure of the package: imports run one way, names are unique, no private API of other libraries is used."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "resnet_pl"
FILES = sorted(PACKAGE.rglob("*.py"))
# From the top down; a module imports only what stands below it, or its own package. docs/architecture.md explains them.
LEVELS = [
    ["__main__"],
    ["cli"],
    ["analysis"],
    ["load"],
    ["classifier", "config"],
    ["callbacks"],
    ["reports"],
    ["evaluation"],
    ["models"],
    ["data"],
    ["optim", "command_line"],
    ["checkpoint"],
    ["run_dir", "_compat", "_renamed"],
    ["utils", "types"],
]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside a function, but not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def parts(path: Path) -> set[str]:
    """Modules and packages of ours that a file imports."""
    known = {part for level in LEVELS for part in level}
    return {name.split(".")[1] for name in imported(path) if name.startswith("resnet_pl.")} & known


def test_every_module_has_a_level() -> None:
    known = {part for level in LEVELS for part in level} | {"__init__"}
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_downwards(path: Path) -> None:
    height = {part: number for number, level in enumerate(LEVELS) for part in level}
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own != "__init__":
        wrong = {part for part in parts(path) - {own} if height[own] >= height[part]}
        assert not wrong, f"{path.name} imports {wrong}"


def test_a_file_name_occurs_once() -> None:
    names = [path.name for path in FILES if not path.name.startswith("__")]
    assert sorted(set(names)) == sorted(names)


def test_the_networks_need_torch_alone() -> None:
    modules = {name.split(".")[0] for name in imported(PACKAGE / "models/resnet.py")}
    assert modules - set(sys.stdlib_module_names) == {"torch"}


def test_reports_need_no_torch() -> None:
    for path in (PACKAGE / "reports").glob("*.py"):
        assert not {"torch", "lightning"} & {name.split(".")[0] for name in imported(path)}, path.name


def private_names(tree: ast.AST) -> set[str]:
    """Attributes and imported names with a leading underscore, dunder methods apart."""
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("resnet_pl"):
            found |= {alias.name for alias in node.names} | set(str(node.module).split("."))
    return {name for name in found if re.match("_[a-z]", name)}


def defined_names(tree: ast.AST) -> set[str]:
    """Functions, classes, variables and attributes that a file defines itself."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_no_private_api_of_other_libraries() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    documented = {"_replace", "_exit"}  # of namedtuple and os
    ours = {name for tree in trees.values() for name in defined_names(tree)} | documented
    for path, tree in trees.items():
        if path.name != "_compat.py":
            assert not private_names(tree) - ours, path.name


def test_nothing_is_patched() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "unittest.mock" not in text and "setattr(torch" not in text, path.name
