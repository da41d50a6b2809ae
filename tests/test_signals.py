"""An interrupted run prints how to resume it, ends with the conventional exit code, and can be resumed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import main

PROJECT = Path(__file__).parent.parent


@pytest.mark.parametrize(("command", "number"), [("test", signal.SIGINT), ("predict", signal.SIGTERM)])
def test_an_interrupted_evaluation_fails(
    command: str, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", str(PROJECT / "configs/digits.yaml"), "--trainer.max_steps", "1"]
    assert main.main([*fit, "--model.backbone.depth", "8", "--trainer.logger", "false"]) == 0
    step, before = getattr(ImageClassifier, f"{command}_step"), signal.getsignal(number)

    def interrupted(*args: Any) -> Any:
        signal.raise_signal(number)
        return step(*args)

    monkeypatch.setattr(ImageClassifier, f"{command}_step", interrupted)
    assert main.main([command, "--ckpt_path", "last"]) == 128 + number
    assert signal.getsignal(number) == before
    assert not [*tmp_path.rglob("results.json"), *tmp_path.rglob("predictions.csv")]


@pytest.mark.process
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_interrupted_runs_resume(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ["--config", str(PROJECT / "configs/digits.yaml"), "--model.backbone.depth", "8"]
    command = [sys.executable, str(PROJECT / "cli.py"), "fit", *config, "--trainer.max_epochs", "10000"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    last = tmp_path / "runs/digits/version_0/checkpoints/last.ckpt"
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        while not last.exists():
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        run.send_signal(number)
        out, err = run.communicate(timeout=900)
    assert run.returncode == code
    assert "fit --ckpt_path runs/digits/version_0/checkpoints/last.ckpt" in out
    assert "Traceback" not in err
    monkeypatch.chdir(tmp_path)
    done = main.main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "1", "--trainer.max_epochs", "1"])
    assert done == 0


def test_a_slurm_job_is_requeued_and_resumes_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job of one task with `#SBATCH --signal=SIGUSR1@90`, which receives the signal in the first epoch."""
    called = tmp_path / "called"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $* >> {called}\n")
    (tmp_path / "scontrol").chmod(0o755)
    job = {"JOB_ID": "77", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for key, value in {**job, "NNODES": "1", "NODELIST": "here"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    command = ["fit", "--config", str(PROJECT / "configs/digits.yaml"), "--model.backbone.depth", "8"]
    command += ["--trainer.log_every_n_steps", "1", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "5"]
    command += ["--trainer.callbacks+", "tests.cli.test_train.Signal"]  # in the second step
    run, handler = tmp_path / "runs/digits/version_0", signal.getsignal(signal.SIGUSR1)
    for restarts, (signals, code, step) in enumerate([("SIGUSR1", 143, 2), ("", 0, 10)]):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("SIGNALS", signals)
        assert main.main(command) == code
        assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step
        assert ("resuming from step 2" in capsys.readouterr().out) == (restarts == 1)
    assert called.read_text().splitlines() == ["requeue 77"] and signal.getsignal(signal.SIGUSR1) == handler
    assert steps(run) == list(range(10))
    assert [path.name for path in run.parent.iterdir()] == ["version_0"] and not [*tmp_path.rglob("hpc*")]


def steps(run: Path) -> list[int]:
    """The steps in metrics.csv that have a training loss."""
    with (run / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss")]
