"""`compare` on the command line."""

import csv
import os
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from PIL import Image

from resnet_pl.cli.main import main
from tests.cli.commands import SMALL, run
from tests.reports.made import write_run, write_test

PROJECT = Path(__file__).parent.parent.parent


def table(out: str) -> list[list[str]]:
    """The cells of the rows of the printed table."""
    lines = iter(out.splitlines())
    next(line for line in lines if "──" in line)
    return [line.split() for line in takewhile(str.strip, lines)]


def test_two_ordinary_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "slow" / "version_0", lr=0.01, data="Digits", val_top1=0.5)
    second = write_run(tmp_path / "fast" / "version_3", lr=0.1, data="Digits", val_top1=0.8, tested=False)
    assert main(["compare", str(first), str(second)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].strip() == "cifar_resnet 20 (A) · Digits"
    assert table(out) == [["fast/version_3", "0.1", "80.00", "–"], ["slow/version_0", "0.01", "50.00", "90.00"]]
    with (tmp_path / "comparison.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["model.optimizer.lr"], row["val_top1"]) for row in rows] == [
        ("fast/version_3", "0.1", "0.8"),
        ("slow/version_0", "0.01", "0.5"),
    ]


def test_seeds_are_aggregated_and_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, top1 in enumerate((0.90, 0.94)):
        write_run(Path("runs/a") / f"version_{seed}", seed=seed, top1=top1)
    write_run(Path("runs/b/version_0"), "cifar_plain", 56, top1=0.75)
    (write_run(Path("runs/c/version_0")) / "metrics.csv").unlink()
    assert main(["compare", "runs"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "cifar_resnet 20 (A)" in line]
    assert line.split() == ["a/version_0,1", "cifar_resnet", "20", "(A)", "2",
                            "70.00", "±", "0.00", "92.00", "±", "2.83", "91.25"]  # fmt: skip
    assert "Skipped: runs/c/version_0/metrics.csv" in out
    with Path("runs/comparison.csv").open(newline="", encoding="utf-8") as file:
        plain, residual = csv.DictReader(file)
    assert (plain["model"], plain["test_top1_std"], residual["model"]) == ("cifar_plain 56", "", "cifar_resnet 20 (A)")
    # Not rounded.
    assert float(residual["test_top1_std"]) == pytest.approx(0.01 * 8**0.5)
    lines = Path("runs/comparison.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6 and lines[5].startswith("Skipped: runs/c/version_0/metrics.csv")
    assert Image.open("runs/comparison.png").size[0] > 500


def test_a_seed_that_was_resumed_stays_in_its_group(
    working_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["fit", *SMALL[:4], *SMALL[6:], "--data.mix", "MixUp", "--name", "a", "--trainer.limit_train_batches", "1"]
    line += ["--trainer.limit_val_batches", "1", "--dashboard", "false"]
    run(*line, "--seed_everything", 0, "--trainer.max_epochs", 2)
    for seed in (1, 2):
        run(*line, "--seed_everything", seed, "--trainer.max_epochs", 1)
    # With a larger limit; and by the same command line, with another limit.
    run("fit", "--ckpt_path", "runs/a/version_1/checkpoints/last.ckpt", "--trainer.max_epochs", 2)
    last = "runs/a/version_2/checkpoints/last.ckpt"
    run(*line, "--seed_everything", 2, "--trainer.max_epochs", 2, "--ckpt_path", last)
    run("compare", "runs/a")
    with Path("runs/a/comparison.csv").open(newline="", encoding="utf-8") as file:
        assert [(row["n"], row["seeds"]) for row in csv.DictReader(file)] == [("3", "0 1 2")]


def test_incomplete_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "done" / "version_0")
    untested = write_run(tmp_path / "untested" / "version_0", lr=0.2, tested=False)
    no_test_set = write_run(tmp_path / "photos" / "version_0", lr=0.3, tested=False)
    write_test(no_test_set, 0.97, split="val (no test set)")
    (no_test_set / "results.json").rename(no_test_set / "results-val-no-test.json")
    interrupted = write_run(tmp_path / "interrupted" / "version_0", seed=1)
    (interrupted / "sessions.json").write_text('[{"commit": "abc", "launch": null}]')
    renamed = write_run(tmp_path / "my best run", lr=0.4)
    (renamed / "results.json").write_text("{")
    (write_run(tmp_path / "old" / "version_0_backup") / "config.yaml").unlink()
    assert main(["compare", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"Not tested: {untested}\n" in out
    assert f"Tested without a test set: {no_test_set}\n" in out and "97.00" not in out
    assert f"Interrupted or still training: {interrupted}\n" in out
    assert f"Skipped: {renamed / 'results.json'} is not valid JSON" in out
    assert f"Skipped: {tmp_path / 'old/version_0_backup/config.yaml'} cannot be read" in out
    notes = [line for line in out.splitlines() if line.startswith(("Not", "Tested", "Interrupted", "Skipped"))]
    assert all(line in (tmp_path / "comparison.md").read_text(encoding="utf-8").splitlines() for line in notes)


def test_a_run_that_is_given_twice_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs" / "a" / "version_0")
    assert main(["compare", "runs", str(run)]) == 0
    assert [cells[0] for cells in table(capsys.readouterr().out)] == ["a/version_0"]


def test_the_output_folder_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "runs" / "a" / "version_0")
    assert main(["compare", str(run), "--output", str(tmp_path / "out")]) == 0
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".csv", ".md", ".png"]
    assert not (tmp_path / "runs" / "comparison.csv").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [(["nowhere"], "no runs in nowhere"), (["."], "no runs in ."), ([], "compare: ")],
)
def test_a_path_without_runs_is_an_error_of_at_most_two_lines(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *args]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.strip().splitlines()) <= 2


@pytest.mark.process
@pytest.mark.parametrize("name", ["compare", "curves", "sweep"])
def test_torch_is_not_imported(name: str) -> None:
    heavy = "{'torch', 'lightning', 'matplotlib'}"
    code = f"import sys, resnet_pl.analysis.{name}; sys.exit(bool({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env={**os.environ}, check=False)
    assert done.returncode == 0
