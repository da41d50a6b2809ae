"""Structure of the package: layered imports, unique file names, no private API of other libraries.

A module that you add to use its classes in YAML or on the command line needs no entry in `LEVELS` and is not checked. A
module that the package's own modules import needs one.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import resnet_pl

PACKAGE = Path(__file__).parent.parent / "resnet_pl"
# From top to bottom: a module imports only modules of lower levels and of its own package. See docs/architecture.md.
LEVELS = [
    ["__main__"],
    ["api"],
    ["cli"],
    ["analysis"],
    ["server"],
    ["load", "export"],
    ["classifier", "config", "given_arguments"],
    ["yaml_forms"],
    ["callbacks"],
    ["reports"],
    ["evaluation"],
    ["models", "losses"],
    ["data", "lr_schedulers"],
    ["optim", "command_line"],
    ["checkpoint", "config_files"],
    ["import_paths", "plain_types"],
    ["run_dir", "code_version", "_compat", "_renamed"],
    ["utils", "types"],
]
KNOWN = {part for level in LEVELS for part in level} | {"__init__"}
FILES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0].removesuffix(".py") in KNOWN
]


def imported(path: Path) -> set[str]:
    """Returns the modules that a file imports, at the top or inside functions, except for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def parts(path: Path) -> set[str]:
    """Returns the modules and packages directly in `resnet_pl` that a file imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("resnet_pl.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()}


def test_every_module_has_a_level() -> None:
    existing = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert existing >= KNOWN
    for path in FILES:
        assert parts(path) <= KNOWN, f"{path.name} imports a module without a level"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_modules_import_only_lower_levels(path: Path) -> None:
    levels = {part: number for number, level in enumerate(LEVELS) for part in level}
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module != "__init__":
        wrong = {part for part in parts(path) - {module} if levels[module] >= levels[part]}
        assert not wrong, f"{path.name} imports {wrong}"


def test_file_names_are_unique() -> None:
    names = [path.name for path in FILES if not path.name.startswith("__")]
    assert sorted(set(names)) == sorted(names)


def test_the_networks_depend_on_torch_only() -> None:
    modules = {name.split(".")[0] for name in imported(PACKAGE / "models/resnet.py")}
    assert modules - set(sys.stdlib_module_names) == {"torch"}


def test_reports_do_not_import_torch() -> None:
    for path in (PACKAGE / "reports").glob("*.py"):
        assert not {"torch", "lightning"} & {name.split(".")[0] for name in imported(path)}, path.name


def private_names(tree: ast.AST) -> set[str]:
    """Attributes and imported names with a leading underscore, except dunder methods."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("resnet_pl"):
            names |= {alias.name for alias in node.names} | set(str(node.module).split("."))
    return {name for name in names if re.match("_[a-z]", name)}


def defined_names(tree: ast.AST) -> set[str]:
    """Returns functions, classes, variables and attributes that a file defines."""
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
    allowed = {name for tree in trees.values() for name in defined_names(tree)} | documented
    for path, tree in trees.items():
        if path.name != "_compat.py":
            assert not private_names(tree) - allowed, path.name


def test_nothing_is_patched() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "unittest.mock" not in text and "setattr(torch" not in text, path.name


def test_public_names_are_imported_on_use_and_declared_for_type_checkers() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    declared = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("resnet_pl.")
        for alias in node.names
    }
    assert declared == set(resnet_pl.__all__) - {"__version__"}
    assert all(getattr(resnet_pl, name).__name__ == name for name in declared)
    with pytest.raises(AttributeError, match="resnet19"):
        _ = resnet_pl.resnet19
