"""What benchmarks share: sides that take turns, the table, the machine, and a section of docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_pl import runs

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEAD = "# Benchmarks\n\nEach section is written by the script it names, with `--record`.\n"


def report(title: str, command: Sequence[str], table: str, record: bool) -> None:
    """Prints a table, and puts it into the page under its title, in place of an older one.

    Args:
        title: heading of the section.
        command: words of the command that makes it again.
        table: Markdown.
        record: whether the page is written.
    """
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {device}, Python {platform.python_version()}"
    words = f"{machine}, torch {torch.__version__}, commit {runs.commit()}."
    section = (
        f"\n## {title}\n\n```bash\n{shlex.join(command[0].split() + list(command[1:]))}\n```\n\n{table}\n\n{words}\n"
    )
    print(section)
    if record:
        page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else HEAD
        older = re.compile(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", re.DOTALL)
        PAGE.write_text(older.sub("", page).rstrip("\n") + "\n" + section, encoding="utf-8")


def arguments(doc: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """The options that every script has; rounds those alone in which sides take turns."""
    parser = argparse.ArgumentParser(description=doc)
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="times that every side is measured")
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    return parser


def command(script: str, argv: Sequence[str]) -> list[str]:
    """The words that make a table again."""
    return [f"python benchmarks/{Path(script).name}", *(word for word in argv if word != "--record")]


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Measures every side once a round, every other round backwards: what else the machine does meets all alike."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            results[name].append(sides[name]())
    return results


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def alone(script: str, argument: Any) -> Any:
    """What `script --one ARGUMENT` prints in a process of its own, as JSON both ways: a peak never comes down again."""
    words = [sys.executable, script, "--one", json.dumps(argument)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
