"""`cross-validate` predicts every image once, with the model not trained on it; it skips folds that are complete."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from resnet_pl.analysis.jobs import Jobs
from resnet_pl.cli.main import main
from tests.cli.commands import SMALL, failed, rows, run

FOLDER = Path("runs/folds")
FEW = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--data.test_split", "1000"]
LINE = ["cross-validate", *SMALL[:2], "--folds", "2", "--", *SMALL[2:], *FEW]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Runs the folds in this process; returns the command line of each one that is started."""
    commands: list[list[str]] = []

    def run_here(self: Any, source: Any) -> list[str]:
        failed = []
        while claimed := source.claim():
            task, log = claimed
            with log:
                for step in task.commands():
                    commands.append(step)
                    if main(step):
                        failed.append(task.name)
                        break
        return failed

    monkeypatch.setattr(Jobs, "run", run_here)
    return commands


def out_of_fold() -> list[dict[str, str]]:
    with (FOLDER / "out_of_fold.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_predicted_by_the_fold_that_holds_it_out(started: list[list[str]]) -> None:
    run(*LINE)
    assert [step[0] for step in started] == ["fit", "fit"]
    table, results = out_of_fold(), json.loads((FOLDER / "cross_validation.json").read_text())
    for fold in (0, 1):
        path = FOLDER / f"fold{fold}" / "version_0"
        held_out = json.loads((path / "splits.json").read_text())["splits"]["val"]
        own = [row for row in table if row["fold"] == str(fold)]
        assert sorted(row["file"] for row in own) == sorted(held_out)
        correct = [row["truth"] == row["prediction"] for row in own]
        top1 = sum(correct) / len(correct)
        logged = [row["val/top1"] for row in rows(path) if row["val/top1"]]
        assert results["folds"][fold]["top1"] == top1 == pytest.approx(float(logged[-1]))
    assert len(table) == len({row["file"] for row in table}) == 797
    row = {key: float(value) for key, value in table[5].items() if key.startswith("probability_")}
    assert len(row) == 10 and sum(row.values()) == pytest.approx(1, abs=1e-4)
    assert max(row, key=lambda key: row[key]) == f"probability_{table[5]['prediction']}"
    means = [fold["top1"] for fold in results["folds"]]
    assert results["summary"]["top1"]["mean"] == pytest.approx(sum(means) / 2)
    assert results["summary"]["top1"]["std"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)

    # Complete folds are skipped; one that was interrupted resumes.
    before = (FOLDER / "out_of_fold.csv").read_bytes()
    run(*LINE)
    assert len(started) == 2 and (FOLDER / "out_of_fold.csv").read_bytes() == before
    sessions = FOLDER / "fold1/version_0/sessions.json"
    sessions.write_text(sessions.read_text().replace('"ended"', '"other"'))
    (FOLDER / "out_of_fold.csv").unlink()
    run(*LINE)
    assert started[2:] == [["fit", "--ckpt_path", str(FOLDER / "fold1/version_0/checkpoints/last.ckpt")]]
    assert (FOLDER / "out_of_fold.csv").read_bytes() == before


@pytest.mark.slow
def test_a_failed_fold_and_a_wrong_option_are_named(
    started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "folds" in failed(capsys, 2, "cross-validate", "--folds", 1)
    assert main([*LINE, "--model.backbone.depth", "9"]) == 1
    assert "2 of 2 failed: fold0, fold1" in capsys.readouterr().out and not (FOLDER / "out_of_fold.csv").exists()
