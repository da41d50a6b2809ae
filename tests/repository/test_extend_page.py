"""All code and all commands of docs/extend.md run, section by section, in few steps; some in `make test-slow` only."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from resnet_pl.cli.main import main
from tests.repository.readme_commands import PROJECT, write_images

PAGE = (PROJECT / "docs/extend.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
BLOCK = re.compile(r"^```(python|yaml|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FEW_STEPS = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
FEW_STEPS += ["--dashboard.graph", "false"]


def prepare() -> None:
    """Writes images, and a CSV file of their names and labels."""
    write_images(Path("my/photos"))
    Path("my/named").mkdir()
    for path in Path("my/photos").glob("*/*"):
        shutil.copy(path, f"my/named/{path.parent.name}_{path.name}")
    paths = sorted(Path("my").rglob("*.jpg"))
    with Path("my/labels.csv").open("w", newline="") as file:
        rows = [(path.relative_to("my").as_posix(), path.parent.name) for path in paths]
        csv.writer(file).writerows([("path", "label"), *rows])
    Path("configs").symlink_to(PROJECT / "configs")


def run_command(line: str) -> None:
    words = shlex.split(line.partition(" #")[0])
    assert words[:2] == ["python", "cli.py"], line
    if words[2] == "sweep":
        words.insert(3, "--print")  # each run would be a process
    small = FEW_STEPS if words[2] == "fit" else []
    if "configs/folder.yaml" in words:
        small = [*small, "--model.weights", "null", "--data.num_workers", "0"]  # nothing is downloaded
        if "--model.backbone" not in words:
            small += ["--model.backbone.width", "8"]  # of its ResNet
    if "configs/digits.yaml" in words and "--model.backbone.depth" not in words:
        small = [*small, "--model.backbone.depth", "8"]
    assert main([*words[2:], *small]) == 0, line


TITLES = [title for title, text in SECTIONS.items() if BLOCK.search(text)]
# Other tests cover the same features.
SLOW = {"Metrics", "Schedule", "Optimizer", "Loss", "Backbone", "Logger", "Callback"}


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=[pytest.mark.slow] if title in SLOW else []) for title in TITLES]
)
def test_a_section(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    monkeypatch.syspath_prepend(str(Path.cwd()))
    names = {"__name__": "__main__"}
    for language, code in BLOCK.findall(SECTIONS[title]):
        if file := re.match(r"# (\w+\.(?:py|yaml))\n", code):
            Path(file[1]).write_text(code)
            monkeypatch.delitem(sys.modules, Path(file[1]).stem, raising=False)
        elif language == "python":
            exec(compile(code, f"docs/extend.md, {title}", "exec"), names)
        elif language == "bash":
            for line in code.splitlines():
                run_command(line)
