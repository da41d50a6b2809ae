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
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_pl import run_dir as runs

PROJECT = Path(__file__).parent.parent
PAGE, README = PROJECT / "docs" / "benchmarks.md", PROJECT / "README.md"
TARGETS = {
    "loop": ("`fit` of ResNet-20 on CIFAR-10, speed over a bare loop's with the same loader", "≥ 0.98"),
    "step": ("what the framework costs a step, bar, logs, checkpoints and metrics on", "≤ 600 µs"),
    "epoch": ("an epoch of CIFAR-10, speed over the classical script's", "≥ 1.2"),
    "compiled": ("the same with `--model.compile true`", "≥ 1.5"),
    "loader": ("photos a second and core, over torchvision's ImageFolder with PIL", "≥ 1.8"),
    "cached": ("the same with `--data.cache true`", "≥ 6"),
    "help": ("`--help`, processor time", "≤ 0.5 s"),
    "fit help": ("`fit --help`, processor time over the imports'", "≤ 0.5 s"),
    "resnet50": ("ResNet-50, bf16, compiled, on a GPU: `fit`, speed over the bare compiled loop's", "≥ 0.97"),
    "images": ("the same, images a second on an H200", "≥ 3,500"),
    "recipes/cifar10-94.yaml": ("CIFAR-10 to 94 % on a GPU", "≤ 15 s"),
    "recipes/cifar10-96.yaml": ("CIFAR-10 to 96 % on a GPU", "≤ 60 s"),
    "paper/cifar10.yaml": ("the paper's ResNet-20, 64,000 iterations on a GPU", "≤ 180 s"),
}
NOT_YET = "not measured"
START, END = "<!-- targets:start -->\n", "<!-- targets:end -->\n"
HEAD = f"""# Benchmarks

Each section is written by the script it names, with `--record`, and with it the figure here:

{START}{END}
What is not measured needs a GPU: `python benchmarks/gpu.py --record`, and for the last three
`python benchmarks/accuracy.py --config FILE --seeds 10 --tta flip --record` with the file of `configs/` that is meant
(`recipes/cifar10-94.yaml`, `recipes/cifar10-96.yaml`; `paper/cifar10.yaml` without `--tta`).
"""


def report(
    title: str, command: Sequence[str], table: str, record: bool, reached: Mapping[str, str | None] | None = None
) -> None:
    """Prints a table, and puts it into the page under its title, in place of an older one.

    Args:
        title: heading of the section.
        command: words of the command that makes it again.
        table: Markdown.
        record: whether the page is written.
        reached: figures by name in `TARGETS`, for the table of targets here and in README; None leaves one as it was.
    """
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {device}, Python {platform.python_version()}"
    words = f"{machine}, torch {torch.__version__}, commit {commit()}."
    section = (
        f"\n## {title}\n\n```bash\n{shlex.join(command[0].split() + list(command[1:]))}\n```\n\n{table}\n\n{words}\n"
    )
    print(section)
    if record:
        page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else HEAD
        older = re.compile(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", re.DOTALL)
        page = older.sub("", page).rstrip("\n") + "\n" + section
        figures = _figures(page) | {name: figure for name, figure in (reached or {}).items() if figure}
        PAGE.write_text(_with_targets(page, figures, everything=True), encoding="utf-8")
        README.write_text(_with_targets(README.read_text(encoding="utf-8"), figures), encoding="utf-8")


def commit() -> str | None:
    """As `runs.git_commit`, but that the pages written here do not make it dirty."""
    own = [f":!{path.relative_to(PROJECT)}" for path in (PAGE, README) if path.is_relative_to(PROJECT)]
    words = ["git", "-C", str(PROJECT), "status", "--porcelain", "--untracked-files=no", "--", ".", *own]
    name = runs.git_commit()
    # Without a name there may be no git either.
    if name is None or subprocess.run(words, capture_output=True, check=False).stdout:
        return name
    return name.removesuffix("-dirty")


def _figures(page: str) -> dict[str, str]:
    """What the page's table says that was reached, by name in `TARGETS`."""
    lines = [line.strip("| ").split(" | ") for line in page.split(START)[1].split(END)[0].splitlines()]
    found = {line[0]: line[2] for line in lines if len(line) == 3}
    return {name: found[what] for name, (what, _) in TARGETS.items() if found.get(what, NOT_YET) != NOT_YET}


def _with_targets(text: str, figures: Mapping[str, str], everything: bool = False) -> str:
    """A text with its table of targets made anew: of what has a figure, or of everything."""
    rows = [[*row, figures.get(name, NOT_YET)] for name, row in TARGETS.items() if everything or name in figures]
    before, rest = text.split(START)
    return f"{before}{START}{table(['what', 'target', 'reached'], rows)}\n{END}{rest.split(END)[1]}"


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
    """What `script --one ARGUMENT` prints last in a process of its own, as JSON both ways.

    A peak of memory never comes down again, and how memory lies there differs from process to process.
    """
    words = [sys.executable, script, "--one", json.dumps(argument)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])


class Kept:
    """Measurements in a JSON file, so that none is made twice.

    Args:
        path: the file; without one nothing is kept.
        setting: what they hold for; others are measured anew.
    """

    def __init__(self, path: Path | None, setting: str) -> None:
        self.path, self.setting = path, setting
        self.found: dict[str, Any] = json.loads(path.read_text()) if path and path.is_file() else {}

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """What is kept under the name, measured if there is nothing."""
        key = f"{self.setting}, {name}"
        if key not in self.found:
            start = time.perf_counter()
            self.found[key] = measure()
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text(json.dumps(self.found, indent=1))
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        return self.found[key]
