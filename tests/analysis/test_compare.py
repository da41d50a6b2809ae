"""`compare` on the command line."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from resnet_pl.cli.main import main
from tests.reports.made import write_run

PROJECT = Path(__file__).parent.parent.parent


def test_a_table_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, top1 in enumerate((0.90, 0.94)):
        write_run(Path("runs/a") / f"version_{seed}", seed=seed, top1=top1)
    write_run(Path("runs/b/version_0"), "cifar_plain", 56, top1=0.75)
    write_run(Path("runs/c/version_0"), tested=False)
    assert main(["compare", "runs"]) == 0
    out = capsys.readouterr().out
    (title,) = [line for line in out.splitlines() if "CIFAR10" in line]
    assert "iterations 20" in title and "commit abc" in title
    (line,) = [line for line in out.splitlines() if "cifar_resnet 20 (A)" in line]
    assert line.split() == ["cifar_resnet", "20", "(A)", "2", "8.00", "±", "2.83", "6.00", "8.75", "22.00", "±", "0.00",
                            "3.0", "300", "20,000"]  # fmt: skip
    assert "left out: runs/c/version_0/results.json cannot be read" in out
    with Path("runs/comparison.csv").open(newline="", encoding="utf-8") as file:
        plain, residual = csv.DictReader(file)
    assert (plain["net"], plain["test_error_std"], residual["net"]) == ("cifar_plain 56", "", "cifar_resnet 20 (A)")
    # Unrounded.
    assert float(residual["test_error_std"]) == pytest.approx(8**0.5)
    assert Path("runs/comparison.md").read_text(encoding="utf-8").count("\n") == 4
    assert Image.open("runs/comparison.png").size == (1440, 660)


def test_another_folder_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs" / "a" / "version_0")
    assert main(["compare", str(run), "--output", str(tmp_path / "out")]) == 0
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".csv", ".md", ".png"]
    assert not (tmp_path / "runs" / "comparison.csv").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [(["nowhere"], "no runs in nowhere"), (["."], "no runs in ."), ([], "compare: ")],
)
def test_what_is_no_run_is_said_in_a_line_or_two(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.strip().splitlines()) <= 2


@pytest.mark.process
@pytest.mark.parametrize("name", ["compare", "curves", "sweep"])
def test_no_torch_is_imported(name: str) -> None:
    heavy = "{'torch', 'lightning', 'matplotlib'}"
    code = f"import sys, resnet_pl.analysis.{name}; sys.exit(bool({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env={**os.environ}, check=False)
    assert done.returncode == 0
