"""The git commits of the code that a run uses: this project, and the repository of the working folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# Files of Python itself and of packages, also of those that a user or another environment has installed.
STANDARD_LIBRARY = "|".join(re.escape(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib"))
LIBRARIES = re.compile(rf"<|{STANDARD_LIBRARY}|.*[/\\](?:site|dist)-packages[/\\]")


def git_commit(folder: Path = PROJECT) -> str | None:
    """Returns the commit of a checkout, with `-dirty` if tracked files were changed; None outside a checkout."""
    if not (folder / ".git").exists():
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def code_version(files: Iterable[Path] = ()) -> str | None:
    """Returns the commits of the code that is in use.

    The first is that of this project. If the working folder is in another repository, NAME@COMMIT of that follows. A
    commit ends in `-dirty` if tracked files were changed, or if an imported module or a configuration file is not in
    it. If the working folder is in no repository, neither are its modules.

    Args:
        files: configuration files.

    Returns:
        One or two commits; None without a repository.
    """
    top = _git(Path.cwd(), "rev-parse", "--show-toplevel")
    others = [Path(top)] if top and Path(top) != PROJECT else []
    roots = [root for root in [PROJECT, *others] if git_commit(root)]
    # A repository may be inside the other one.
    modules = {path: _root_of(path, roots) for path in _imported()}
    used = modules | {path: root for file in files if (root := _root_of(path := file.resolve(), roots))}
    missing = any(root is None and path.is_relative_to(Path.cwd()) for path, root in modules.items())
    versions = []
    for root in roots:
        own = {Path(os.path.relpath(path, root)).as_posix() for path, place in used.items() if place == root}
        committed = (_git(root, "ls-files", "-z", "--", *sorted(own)) or "").split("\0") if own else []
        state = str(git_commit(root))
        commit = state.removesuffix("-dirty")
        changed = commit != state or not own <= {*committed} or (missing and root == roots[0])
        name = "" if root == PROJECT else f"{root.name}@"
        versions.append(f"{name}{commit}{'-dirty' if changed else ''}")
    return " ".join(versions) or None


def _imported() -> list[Path]:
    """The files of the imported modules that are not part of Python or of an installed package."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    own = [file for file in files if isinstance(file, str) and not LIBRARIES.match(file)]
    # torch has modules without a file that name one, `_ops.py`.
    return [path.resolve() for path in map(Path, own) if path.is_absolute() and path.is_file()]


def _root_of(path: Path, roots: Iterable[Path]) -> Path | None:
    return max((root for root in roots if path.is_relative_to(root)), key=lambda root: len(root.parts), default=None)


def _git(folder: Path, *words: str) -> str | None:
    command = ["git", "--literal-pathspecs", "-C", str(folder), *words]
    try:
        # File names need not be UTF-8.
        done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
