"""Distributed training and evaluation give the results of a single process; all processes stop and resume together."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

PROJECT = Path(__file__).parent.parent


def run(folder: Path, *argv: str) -> str:
    """Runs a command line in a new process: Lightning starts the other process from the same command line."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROJECT / "cli.py"), *argv]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------ forked processes
class SmallCNN(nn.Sequential):
    """A network with or without BatchNorm and dropout, whose states a resumed run must restore.

    Its head has seven outputs; it is replaced by one with ten, which must be initialized equally in every process.
    """

    def __init__(self, plain: bool = True) -> None:
        layers = [] if plain else [nn.BatchNorm2d(8), nn.Dropout(0.3)]
        super().__init__(nn.Conv2d(3, 8, 3, 2), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(392, 7))


class Watch(Callback):
    """Records the images of each step, a random number drawn in it, and the initial weights.

    The environment variable FAULT, such as `SIGTERM 01`, injects a fault into these processes in step 6.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            torch.save(pl_module.state_dict(), "start.pt")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        fault, ranks = os.environ.get("FAULT", "none 01").split()
        with Path(f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, self.indices, float(torch.rand(()))]) + "\n")
        if trainer.global_step == 6 and str(trainer.global_rank) in ranks:
            if fault == "error":
                raise RuntimeError("fault in one process")
            if fault.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[fault])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.indices = batch.indices.tolist()
        if os.environ.get("FAULT") == f"nan {trainer.global_rank}" and trainer.global_step == 6:
            batch.images.fill_(torch.nan)


def run_forked(count: int, folder: Path, *argv: str, fault: str = "none 01", torchrun: bool = False) -> list[int]:
    """Runs a command line in `count` forked processes that form one training; returns their exit codes.

    With `torchrun` they have its variables, and the command line does not say how many there are.
    """
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from resnet_pl.cli.main import main

    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            os.chdir(folder)
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "FAULT": fault}
            if count > 1:
                os.environ["LOCAL_RANK"] = str(rank)
                rank_zero_only.rank = rank
            if torchrun:
                sizes = dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], str(count))
                os.environ |= {"TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "GROUP_RANK": "0", **sizes}
            code = main([*argv, *([] if torchrun else ["--trainer.devices", str(count)])])
            # A gloo thread that holds a tensor while Python exits would abort the process.
            threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
            if not code and any("gloo" in name for name in threads):
                code = 99
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fit_command(model: dict[str, Any], batch_size: int, epochs: int = 2) -> list[str]:
    """Returns a command line of `fit`; the sizes of the splits are divisible neither by 2 nor by 3."""
    config = {
        "model": {"backbone": {"class_path": "tests.test_distributed.SmallCNN", "init_args": model}},
        "data": {"init_args": {"batch_size": batch_size, "val_split": 103, "test_split": 101}},
        "trainer": {"callbacks": ["tests.test_distributed.Watch"], "max_epochs": epochs, "limit_train_batches": 4},
        "dashboard": {"images": 0, "graph": False},
    }
    config["trainer"] |= {"log_every_n_steps": 1}
    Path("small.yaml").write_text(json.dumps(config))
    # The learning rate is scaled with the effective batch size, which is the same for one and for two processes.
    return ["fit", "--config", str(PROJECT / "configs/digits.yaml"), "--config", str(Path("small.yaml").resolve())]


def last_weights(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def recorded(folder: Path, rank: int) -> list[Any]:
    return [json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]


def metrics(folder: Path) -> list[dict[str, str]]:
    rows = csv.DictReader((folder / "runs/digits/version_0/metrics.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def training(counts: tuple[int, ...] = (1, 3)) -> None:
    """Trains with one process and with two with half the batch size; evaluates with several numbers of processes."""
    one, two = Path("one").resolve(), Path("two").resolve()
    assert run_forked(1, one, *fit_command({"plain": True}, 12)) == [0]
    assert run_forked(2, two, *fit_command({"plain": True}, 6), torchrun=True) == [0, 0]
    alone, halves = recorded(one, 0), [recorded(two, rank) for rank in (0, 1)]
    assert [len(alone), len(halves[0])] == [8, 8]
    for (step, seen, _), (_, first, _), (_, second, _) in zip(alone, *halves, strict=True):
        assert len(seen) == 12 and sorted(seen) == sorted(first + second), f"different images in step {step}"
    start, single, double = torch.load(one / "start.pt"), last_weights(one), last_weights(two)
    for name, value in single.items():
        torch.testing.assert_close(double[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(start[name], torch.load(two / "start.pt")[name])
    moved = max(float((single[name] - start[name]).abs().max()) for name in single)
    assert moved > 0.01, "equal because nothing was trained"

    checkpoints = [str(folder / "runs/digits/version_0/checkpoints/last.ckpt") for folder in (one, two)]
    evaluated, calibrations = [], []
    for count in counts:
        common = ["--data.eval_batch_size", "20", "--output"]
        for subcommand in ("validate", "test", "predict"):
            argv = [subcommand, "--ckpt_path", checkpoints[0], *common, f"by{count}"]
            assert run_forked(count, one, *argv, torchrun=count > 1) == [0] * count
        ensemble = ["test", "--ensemble", *checkpoints, "--tta", "flip", *common, f"by{count}/ensemble"]
        assert run_forked(count, one, *ensemble, torchrun=count > 1) == [0] * count
        folder = one / f"by{count}"
        own = shutil.copy(checkpoints[0], folder / "own.ckpt")
        calibrate = ["calibrate", "--ckpt_path", str(own), "--target_precision", "0.2", *common[:2]]
        assert run_forked(count, one, *calibrate, torchrun=count > 1) == [0] * count
        calibrations.append(torch.load(own, weights_only=True)["resnet_pl"]["calibration"])
        files = ("results-val.json", "results.json", "ensemble/results.json")
        results = [json.loads((folder / name).read_text()) for name in files]
        predicted = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
        exact: list[Any] = [(folder / "misclassified.csv").read_text()]
        exact += [(each["images"], each["top1"], each["top5"], each["per_class"]) for each in results]
        rows = [{key: value for key, value in row.items() if "prob" not in key} for row in predicted]
        names = [row[next(iter(row))] for row in rows]
        assert [each["images"] for each in results] == [103, 101, 101] and len(set(names)) == 101
        assert names == sorted(names)
        evaluated.append((exact, rows, [each["loss"] for each in results]))
    for exact, rows, losses in evaluated[1:]:
        assert exact == evaluated[0][0] and rows == evaluated[0][1]
        assert losses == pytest.approx(evaluated[0][2], rel=1e-5)
    for calibration in calibrations:
        assert calibration["test"]["accepted"] == calibrations[0]["test"]["accepted"]
        assert calibration["temperature"] == pytest.approx(calibrations[0]["temperature"], rel=1e-3)


RARE = ("error 0", "error 1", "SIGTERM 01", "SIGINT 01", "SIGKILL 01", "SIGKILL 1")


def stopping(rare: bool = False) -> None:
    """Two processes of which one fails, or which receive a signal, resume exactly.

    Args:
        rare: tests the faults of which another one covers the same code.
    """
    argv, expected = fit_command({"plain": False}, 6, epochs=3), Path("expected").resolve()
    assert run_forked(2, expected, *argv) == [0, 0]
    rng = [[drawn for *_, drawn in recorded(expected, rank)] for rank in (0, 1)]
    assert len({*rng[0], *rng[1]}) == 24, "two processes or two steps draw the same number"
    failed, other = 1, 2
    # An error saves nothing. After a signal the processes stop together in the next step, the last of the epoch.
    cases = {
        "error 0": ([failed, other], 4),
        "error 1": ([other, failed], 4),
        "SIGTERM 01": ([143, 143], 8),
        "SIGTERM 1": ([143, 143], 8),
        "SIGINT 01": ([130, 130], 8),
        "SIGKILL 1": ([other, -9], 4),
        "SIGKILL 01": ([-9, -9], 4),
        "nan 1": ([2, 2], 4),
    }
    for fault, (codes, step) in cases.items():
        if rare != (fault in RARE):
            continue
        folder = Path(fault.replace(" ", "")).resolve()
        assert run_forked(2, folder, *argv, fault=fault) == codes, fault
        saved = torch.load(folder / "runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == step, fault
        if fault == "nan 1":
            bad = csv.DictReader((folder / "runs/digits/version_0/bad_batches.csv").read_text().splitlines())
            assert [(row["step"], row["process"]) for row in bad] == [("6", "1")]
        assert run_forked(2, folder, "fit", "--ckpt_path", "last") == [0, 0], fault
        weights, reference = last_weights(folder), last_weights(expected)
        assert weights.keys() == reference.keys(), fault
        assert all(torch.equal(weights[name], value) for name, value in reference.items()), fault
        assert metrics(folder) == metrics(expected), fault


@pytest.mark.process
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", ["training", "stopping", pytest.param("rare", marks=pytest.mark.slow)])
def test_processes(scenario: str, tmp_path: Path) -> None:
    # In a new process: one that forks must not have threads.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "tests.test_distributed", scenario]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr


def main(argv: Sequence[str]) -> None:
    import sklearn.datasets  # noqa: F401 - imported here once, not in each forked process

    import resnet_pl.cli.evaluate
    import resnet_pl.cli.parser
    import resnet_pl.cli.predict
    import resnet_pl.cli.train  # noqa: F401

    torch.set_num_threads(1)
    {"training": training, "stopping": stopping, "rare": partial(stopping, rare=True)}[argv[1]]()


if __name__ == "__main__":
    main(sys.argv)
