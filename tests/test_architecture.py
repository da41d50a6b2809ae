"""The rooms of docs/architecture.md: imports run one way, and one file can be lifted out."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "resnet_pl"
# From the top floor down; a room imports only rooms below it, or its own.
FLOORS = [
    ["__main__"],
    ["main"],
    ["cli", "commands"],
    ["configuration"],
    ["patches", "explain", "foreseen", "request", "ensemble", "protocol"],
    ["classifier"],
    ["classes"],
    ["callbacks"],
    ["evaluation", "reports", "models"],
    ["data"],
    ["optim", "checkpoint", "runs", "resume"],
    ["download", "archives"],
    ["console", "files", "memory", "errors"],
]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def rooms(path: Path) -> set[str]:
    """Rooms of ours that a file imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("resnet_pl.")}
    return {name for name in names if any(name in floor for floor in FLOORS)}


def test_every_file_has_a_floor() -> None:
    known = {room for floor in FLOORS for room in floor} | {"__init__"}
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == known


def test_imports_run_downwards() -> None:
    level = {room: number for number, floor in enumerate(FLOORS) for room in floor}
    # main imports the cli when torch is needed; the parser's explanations and the entry know the rooms below them.
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for room in rooms(path) - {own}:
            assert level[own] < level[room] or {own, room} <= set(FLOORS[level[own]]), f"{path.name} imports {room}"


def test_resnet_can_be_lifted_out() -> None:
    tops = {name.split(".")[0] for name in imported(PACKAGE / "models" / "resnet.py")}
    assert tops - set(sys.stdlib_module_names) == {"torch"}


def test_the_page_names_every_room() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in {room for floor in FLOORS[1:] for room in floor}:
        assert f"`{room}.py`" in page or f"`{room}/`" in page, room
