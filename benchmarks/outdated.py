"""Which records of docs/benchmarks.md are of an earlier version of their script: python benchmarks/outdated.py

Each record names its commit. It counts while the script, and what the script imports from benchmarks/, do the same as
at that commit; comments and docstrings may change.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def records(page: str) -> list[tuple[str, list[str], str]]:
    """Returns title, names of the scripts and commit of each record of a page."""
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        scripts = re.findall(r"^python benchmarks/(\w+)\.py", section, re.MULTILINE)
        if scripts and (commits := re.findall(r"commit ([0-9a-f]{7,})", section)):
            found.append((section.partition("\n")[0], scripts, commits[-1]))
    return found


def code(source: str) -> str:
    """Returns what a script does, without its comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def is_current(project: Path, script: str, commit: str) -> bool:
    """Whether a script and its modules in benchmarks/ are those of a commit; raises OSError without the commit."""
    path = f"benchmarks/{script}.py"
    if subprocess.run(["git", "-C", str(project), "cat-file", "-e", commit], capture_output=True).returncode:
        raise OSError(f"{project} has no commit {commit}: clone with the entire history")
    before = subprocess.run(["git", "-C", str(project), "show", f"{commit}:{path}"], capture_output=True, text=True)
    now = (project / path).read_text(encoding="utf-8") if (project / path).is_file() else ""
    if before.returncode or code(before.stdout) != code(now):
        return False
    modules = set(re.findall(r"^from benchmarks\.(\w+) import", now, re.MULTILINE)) - {"report"}
    return all(is_current(project, module, commit) for module in modules)


def outdated(project: Path, page: str) -> list[str]:
    """Returns the titles of the records to measure again."""
    return [
        title
        for title, scripts, commit in records(page)
        if not all(is_current(project, script, commit) for script in scripts)
    ]


def main() -> None:
    """Prints the outdated records."""
    page = (PROJECT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    found = outdated(PROJECT, page)
    print(f"{len(found)} of {len(records(page))} records are of an earlier version of their script")
    for title in found:
        print(f"  {title}")


if __name__ == "__main__":
    main()
