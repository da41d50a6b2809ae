"""A run that is stopped says how to go on, ends with the conventional code, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_pl import main

PROJECT = Path(__file__).parent.parent


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_runs_go_on(number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        out, err = run.communicate(timeout=120)
    assert run.returncode == code
    assert "go on with: python cli.py fit --ckpt_path runs/digits/version_0/checkpoints/last.ckpt" in out
    assert "Traceback" not in err
    monkeypatch.chdir(tmp_path)
    done = main.main(["fit", "--ckpt_path", "last", "--trainer.max_steps", "1", "--trainer.max_epochs", "1"])
    assert done == 0
