"""metrics.csv: complete rows without duplicates, in new, crashed and resumed runs."""

import csv
from pathlib import Path
from typing import Any

import pytest

from resnet_pl import utils
from resnet_pl.callbacks import MetricsCSV
from resnet_pl.optim import Schedule
from tests.tiny import Tiny, classifier, trainer


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_per_call(tmp_path):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"epoch": 0.0, "loss": 0.5}, 9)
    log.log_metrics({"epoch": 1.0, "loss": 0.25}, 19)
    assert (tmp_path / "metrics.csv").read_bytes() == b"epoch,step,loss\r\n0,9,0.5\r\n1,19,0.25\r\n"


def test_new_columns(tmp_path):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"epoch": 0, "loss": 0.5}, 9)
    log.log_metrics({"epoch": 0, "val/top1": 0.75}, 9)
    log.log_metrics({"loss": 0.25}, 19)
    rows = [("0", "9", "0.5", ""), ("0", "9", "", "0.75"), ("", "19", "0.25", "")]
    assert read(tmp_path) == [dict(zip(("epoch", "step", "loss", "val/top1"), row, strict=True)) for row in rows]


def test_a_resumed_run_removes_the_rows_that_it_repeats(tmp_path):
    first = MetricsCSV(tmp_path)
    for step in (9, 19, 29):
        first.log_metrics({"loss": step / 10, "lr": 0.1}, step)
    second = MetricsCSV(tmp_path, start_step=20)
    assert len(read(tmp_path)) == 3  # nothing is removed before the first row is logged
    second.log_metrics({"loss": 7.0, "val/top1": 0.5}, 24)
    assert [(row["step"], row["loss"], row["lr"], row["val/top1"]) for row in read(tmp_path)] == [
        ("9", "0.9", "0.1", ""), ("19", "1.9", "0.1", ""), ("24", "7.0", "", "0.5"),
    ]  # fmt: skip


def test_a_new_run_starts_a_new_file(tmp_path):
    MetricsCSV(tmp_path).log_metrics({"old": 1.0}, 3)
    MetricsCSV(tmp_path).log_metrics({"new": 2.0}, 0)
    assert read(tmp_path) == [{"epoch": "", "step": "0", "new": "2.0"}]


def test_an_incomplete_last_line_is_removed(tmp_path):
    MetricsCSV(tmp_path).log_metrics({"loss": 1.0}, 3)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(",4,0.")
    MetricsCSV(tmp_path, start_step=10).log_metrics({"loss": 2.0}, 10)
    assert [row["step"] for row in read(tmp_path)] == ["3", "10"]


def test_a_crash_while_columns_are_added_does_not_change_the_file(tmp_path, monkeypatch):
    log = MetricsCSV(tmp_path)
    log.log_metrics({"loss": 1.0}, 3)
    before = (tmp_path / "metrics.csv").read_bytes()

    def crash(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(utils.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        log.log_metrics({"loss": 1.0, "new": 2.0}, 4)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_name_and_version_are_those_of_the_folders(tmp_path):
    log = MetricsCSV(tmp_path / "digits" / "version_3")
    assert (log.name, log.version, log.log_dir) == ("digits", "version_3", str(tmp_path / "digits" / "version_3"))


def test_an_interrupted_and_resumed_run_has_the_rows_of_an_uninterrupted_one(tmp_path):
    def fit(folder: str, epochs: int, start: int = 0, ckpt_path: Any = None) -> Any:
        log = MetricsCSV(tmp_path / folder, start)
        run = trainer(max_epochs=epochs, log_every_n_steps=3, logger=log)
        module = classifier(schedule=Schedule("constant"))
        run.fit(module, datamodule=Tiny(), ckpt_path=ckpt_path)
        return run

    fit("complete", 3)
    fit("resumed", 2).save_checkpoint(tmp_path / "a.ckpt")
    fit("resumed", 3)  # its third epoch is lost
    fit("resumed", 3, 8, tmp_path / "a.ckpt")
    complete = read(tmp_path / "complete")
    # At logging steps, and at the end of an epoch: the remaining steps, the validation, the generalization gap.
    assert [row["step"] for row in complete] == ["2", *["3"] * 3, "5", *["7"] * 3, "8", *["11"] * 3]
    assert sorted(map(str, read(tmp_path / "resumed"))) == sorted(map(str, complete))
