"""Several processes see, learn and measure exactly what one does, and stop and go on together."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

PROJECT = Path(__file__).parent.parent


def run(folder: Path, *argv: str) -> str:
    """Runs a real command, for Lightning starts the other process from the same command line."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROJECT / "cli.py"), *argv]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.process
def test_two_processes(tmp_path: Path) -> None:
    config = str(PROJECT / "configs/digits.yaml")
    small = ["--model.backbone.depth", "8", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "5"]
    out = run(tmp_path, "fit", "--config", config, *small, "--trainer.devices", "2")
    assert out.count("128 (64 images × 2 processes)") == 1 and out.count("best validation top-1") == 1
    assert [path.name for path in (tmp_path / "runs/digits").iterdir()] == ["version_0"]


# ------------------------------------------------------------------------------------ forked from one that has torch
class Net(nn.Sequential):
    """Without normalization, or with what a resumed run could lose: running statistics and dropout.

    The head, for seven classes, is replaced by one for ten, which must start the same in every process.
    """

    def __init__(self, plain: bool = True) -> None:
        layers = [] if plain else [nn.BatchNorm2d(8), nn.Dropout(0.3)]
        super().__init__(nn.Conv2d(3, 8, 3, 2), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(392, 7))


class Watch(Callback):
    """Writes the images of each step, what the process draws in it, and the weights at the start.

    With TROUBLE set, such as `SIGTERM 01`, something happens in the step 6 to the processes that are named.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            torch.save(pl_module.state_dict(), "start.pt")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        what, ranks = os.environ.get("TROUBLE", "none 01").split()
        with Path(f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, self.indices, float(torch.rand(()))]) + "\n")
        if trainer.global_step == 6 and str(trainer.global_rank) in ranks:
            if what == "error":
                raise RuntimeError("fault in one process")
            if what.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[what])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.indices = batch.indices.tolist()
        if os.environ.get("TROUBLE") == f"nan {trainer.global_rank}" and trainer.global_step == 6:
            batch.images.fill_(torch.nan)


def together(count: int, folder: Path, *argv: str, trouble: str = "none 01") -> list[int]:
    """Runs a command line of ours in so many forked processes, which are one training; returns their exit codes."""
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
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TROUBLE": trouble}
            if count > 1:
                os.environ["LOCAL_RANK"] = str(rank)
                rank_zero_only.rank = rank
            code = main([*argv, "--trainer.devices", str(count)])
            # One that still holds a tensor while Python ends would abort the process.
            left = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
            if not code and any("gloo" in name for name in left):
                code = 99
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fit(net: dict[str, Any], batch_size: int, epochs: int = 2) -> list[str]:
    """A command line; the splits' sizes are divided by neither 2 nor 3."""
    config = {
        "model": {"backbone": {"class_path": "tests.test_distributed.Net", "init_args": net}},
        "data": {"init_args": {"batch_size": batch_size, "val_split": 103, "test_split": 101}},
        "trainer": {"callbacks": ["tests.test_distributed.Watch"], "max_epochs": epochs, "limit_train_batches": 4},
        "dashboard": {"images": 0, "graph": False},
    }
    config["trainer"] |= {"log_every_n_steps": 1}
    Path("small.yaml").write_text(json.dumps(config))
    # Not the batch in whose size the learning rate is counted: it is the same for one process and two.
    return ["fit", "--config", str(PROJECT / "configs/digits.yaml"), "--config", str(Path("small.yaml").resolve())]


def last(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def watched(folder: Path, rank: int) -> list[Any]:
    return [json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]


def metrics(folder: Path) -> list[dict[str, str]]:
    rows = csv.DictReader((folder / "runs/digits/version_0/metrics.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def learning() -> None:
    """One process and two with half the batch; then what they have learnt, measured by one, two and three."""
    one, two = Path("one").resolve(), Path("two").resolve()
    assert together(1, one, *fit({"plain": True}, 12)) == [0]
    assert together(2, two, *fit({"plain": True}, 6)) == [0, 0]
    alone, halves = watched(one, 0), [watched(two, rank) for rank in (0, 1)]
    assert [len(alone), len(halves[0])] == [8, 8]
    for (step, seen, _), (_, first, _), (_, second, _) in zip(alone, *halves, strict=True):
        assert len(seen) == 12 and sorted(seen) == sorted(first + second), f"other images in step {step}"
    start, single, double = torch.load(one / "start.pt"), last(one), last(two)
    for name, value in single.items():
        torch.testing.assert_close(double[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(start[name], torch.load(two / "start.pt")[name])
    moved = max(float((single[name] - start[name]).abs().max()) for name in single)
    assert moved > 0.01, "equal because nothing was learnt"

    nets = [str(folder / "runs/digits/version_0/checkpoints/last.ckpt") for folder in (one, two)]
    found = []
    for count in (1, 2, 3):
        common = ["--data.eval_batch_size", "20", "--output"]
        for subcommand in ("validate", "test", "predict"):
            assert together(count, one, subcommand, "--ckpt_path", nets[0], *common, f"by{count}") == [0] * count
        several = ["test", "--ensemble", *nets, "--tta", "flip", *common, f"by{count}/several"]
        assert together(count, one, *several) == [0] * count
        folder = one / f"by{count}"
        files = ("results-val.json", "results.json", "several/results.json")
        results = [json.loads((folder / name).read_text()) for name in files]
        predicted = list(csv.DictReader((folder / "predictions.csv").open(newline="")))
        counts = [(each["images"], each["top1"], each["top5"], each["per_class"]) for each in results]
        rows = [{key: value for key, value in row.items() if "prob" not in key} for row in predicted]
        names = [row[next(iter(row))] for row in rows]
        assert [each["images"] for each in results] == [103, 101, 101] and len(set(names)) == 101
        assert names == sorted(names)
        found.append((counts, rows, [each["loss"] for each in results]))
    for counts, rows, losses in found[1:]:
        assert counts == found[0][0] and rows == found[0][1]
        assert losses == pytest.approx(found[0][2], rel=1e-5)


def stopping() -> None:
    """Two processes of which one fails, or which receive a signal, resume as if nothing had happened."""
    argv, whole = fit({"plain": False}, 6, epochs=3), Path("whole").resolve()
    assert together(2, whole, *argv) == [0, 0]
    rng = [[drawn for *_, drawn in watched(whole, rank)] for rank in (0, 1)]
    assert len({*rng[0], *rng[1]}) == 24, "two processes, or two steps, draw alike"
    own, other = 1, 2
    # An error saves nothing. After a signal the processes agree in the next step, which is the last of the epoch.
    cases = {
        "error 0": ([own, other], 4),
        "error 1": ([other, own], 4),
        "SIGTERM 01": ([143, 143], 8),
        "SIGTERM 1": ([143, 143], 8),
        "SIGINT 01": ([130, 130], 8),
        "SIGKILL 1": ([other, -9], 4),
        "SIGKILL 01": ([-9, -9], 4),
        "nan 1": ([2, 2], 4),
    }
    for trouble, (codes, reached) in cases.items():
        folder = Path(trouble.replace(" ", "")).resolve()
        assert together(2, folder, *argv, trouble=trouble) == codes, trouble
        saved = torch.load(folder / "runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == reached, trouble
        if trouble == "nan 1":
            bad = csv.DictReader((folder / "runs/digits/version_0/bad_batches.csv").read_text().splitlines())
            assert [(row["step"], row["process"]) for row in bad] == [("6", "1")]
        assert together(2, folder, "fit", "--ckpt_path", "last") == [0, 0], trouble
        now, then = last(folder), last(whole)
        assert now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in then), trouble
        assert metrics(folder) == metrics(whole), trouble


@pytest.mark.process
@pytest.mark.parametrize("scenario", ["learning", "stopping"])
def test_processes(scenario: str, tmp_path: Path) -> None:
    # A process of its own, for one that is forked must have no threads.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "tests.test_distributed", scenario]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr


def main(argv: Sequence[str]) -> None:
    import sklearn.datasets  # noqa: F401 - once, here, and not in each process that is forked

    import resnet_pl.cli.evaluate
    import resnet_pl.cli.parser
    import resnet_pl.cli.predict
    import resnet_pl.cli.train  # noqa: F401

    torch.set_num_threads(1)
    {"learning": learning, "stopping": stopping}[argv[1]]()


if __name__ == "__main__":
    main(sys.argv)
