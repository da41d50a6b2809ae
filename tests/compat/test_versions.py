"""fit, resume and test work with other versions of Lightning and jsonargparse.

Each version is installed into a folder of its own with pip, which needs a package index, and laid over the environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent
SMALL = ["--model.backbone.depth", "8", "--trainer.limit_train_batches", "6", "--trainer.log_every_n_steps", "2"]
VERSIONS = [
    *[("lightning", version) for version in ("2.6.0", "2.6.1", "2.6.4", "2.6.6")],
    *[("jsonargparse", version) for version in ("4.41.0", "4.50.0", "4.53.0")],
]


def run(folder: Path, packages: Path, *argv: str, code: int = 0) -> str:
    """Runs a command line with other packages in front; returns what it prints."""
    env = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROJECT / "cli.py"), *argv]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("package", "version"), VERSIONS)
def test_fit_resume_and_test(package: str, version: str, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
    if subprocess.run([*pip, f"{package}=={version}"], capture_output=True).returncode:
        pytest.skip("no package index can be reached")
    found = f"import {package}; print({package}.__version__)"
    env = {**os.environ, "PYTHONPATH": str(packages)}
    assert subprocess.check_output([sys.executable, "-c", found], env=env, text=True).strip() == version

    config = ["--config", str(PROJECT / "configs/digits.yaml"), "--config", str(PROJECT / "configs/recipes/ema.yaml")]
    short = ["--model.backbone", "cifar_resnet", *SMALL]
    run(tmp_path, packages, "fit", *config, *short, "--trainer.max_epochs", "2", "--name", "whole")
    run(tmp_path, packages, "fit", *config, *short, "--trainer.max_epochs", "1", "--name", "parts")
    # The schedule is that of the longer run in both.
    run(tmp_path, packages, "fit", "--ckpt_path", "last", "--name", "parts", "--trainer.max_epochs", "2")
    run(tmp_path, packages, "test", "--ckpt_path", "last", "--name", "parts")
    assert json.loads((tmp_path / "runs/parts/version_0/results.json").read_text())["images"] == 360
    files = [tmp_path / f"runs/{name}/version_0/metrics.csv" for name in ("whole", "parts")]
    steps = [[line.split(",")[:2] for line in file.read_text().splitlines()] for file in files]
    assert steps[0] == steps[1]
    # A mistake is named, whatever the version.
    said = run(tmp_path, packages, "fit", *config, "--model.backbone.depht", "8", code=2)
    assert "model.backbone" in said and "depht" in said and "depth" in said and "Traceback" not in said
    said = run(tmp_path, packages, "fit", *config, "--data.batch_size", "0", code=2)
    assert "data.batch_size" in said and len(said.strip().splitlines()) <= 3
