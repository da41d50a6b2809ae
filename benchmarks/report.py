"""What every benchmark ends with: its table, the machine, and its section of docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

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
