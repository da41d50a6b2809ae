"""Replaces the processes of `sweep` and `cross-validate` in tests."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_pl.analysis import jobs
from resnet_pl.run_dir import write_session
from tests.reports.made import NAMES, write_run, write_test

POPEN = subprocess.Popen
Options = dict[str, str]


class Processes:
    """Replaces subprocess.Popen: writes the files of `fit` and `test` without running them.

    Attributes:
        started: arguments of each process, in order.
        fails: names of runs whose commands fail.
        environments: environment of each process.
        max_parallel: maximum number of processes at the same time.
        barrier: if set, each process waits here for others.
        val_top1: validation top-1 of each epoch of a run, by its options.
        top1: test top-1 of a run, by its folder.
        interrupt: called before a process ends.
        diverges: whether a run diverges, by its options.
    """

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.fails: set[str] = set()
        self.environments: list[dict[str, str]] = []
        self.max_parallel = self.running = 0
        self.barrier: threading.Barrier | None = None
        self.val_top1: Callable[[Options], list[float]] = lambda options: [0.7]
        self.top1: Callable[[Path], float] = lambda folder: 0.9
        self.diverges: Callable[[Options], bool] = lambda options: False
        self.interrupt: Callable[[], None] = lambda: None

    def __call__(self, command: list[str], stdout: Any, env: dict[str, str], **options: Any) -> Any:
        if command[:3] != [sys.executable, "-m", "resnet_pl"]:  # torch starts some
            return POPEN(command, stdout=stdout, env=env, **options)
        self.started.append(command[3:])
        self.environments.append(env)
        return Process(self, command[3:], stdout)

    @property
    def fits(self) -> list[Options]:
        """The options of each new run that was started."""
        return [options_of(args) for args in self.started if args[0] == "fit" and "--ckpt_path" not in args]


def options_of(args: list[str]) -> Options:
    """The options of a command line by name."""
    return dict(zip(args[1::2], args[2::2], strict=True))


class Process:
    """A process that has written one more epoch at each timeout of `wait`."""

    def __init__(self, processes: Processes, args: list[str], log: Any) -> None:
        self.processes, self.args, self.log = processes, args, log
        self.code: int | None = None
        self.epochs = self._epochs()

    def terminate(self) -> None:
        self.code = 143

    kill = terminate

    def wait(self, timeout: float | None = None) -> int:
        if self.code is None and next(self.epochs, None) is not None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.code = 0 if self.code is None else self.code
        return self.code

    def _epochs(self) -> Iterator[int]:
        all_processes = self.processes
        all_processes.running += 1
        all_processes.max_parallel = max(all_processes.max_parallel, all_processes.running)
        if all_processes.barrier:
            all_processes.barrier.wait(timeout=30)
        all_processes.running -= 1
        if any(name in arg for name in all_processes.fails for arg in self.args):
            self.log.write(b"warning: nothing\nerror: the data is gone\ntry again\n")
            self.log.flush()
            self.code = 2
        elif self.args[0] == "test":
            write_test(Path(self.args[2]), all_processes.top1(Path(self.args[2])), step=10**6)
        else:
            yield from self._fit()
        all_processes.interrupt()

    def _fit(self) -> Iterator[int]:
        if "--ckpt_path" in self.args:
            folder = Path(self.args[2]).parent.parent
            options = options_of(shlex.split(json.loads((folder / "sessions.json").read_text())[0]["command"])[2:])
            sessions = json.loads((folder / "sessions.json").read_text())
            (folder / "sessions.json").write_text(json.dumps([*sessions, sessions[0]]))
        else:
            options, folder = write_started(self.args)
        lines = [NAMES, "0,9,0.5,,90,100"]
        for epoch, top1 in enumerate([None, *self.processes.val_top1(options)]):
            lines += [] if top1 is None else [f"{epoch - 1},{10 * epoch - 1},,{top1},,"]
            (folder / "metrics.csv").write_text("".join(f"{line}\n" for line in lines))
            yield epoch
        if self.processes.diverges(options):
            write_session(folder, {"diverged": "now"}, new=False)
            self.log.write(b"error: the training loss is nan\nlower the learning rate\n")
            self.log.flush()
            self.code = 2


def write_started(args: list[str]) -> tuple[Options, Path]:
    """Writes the folder that `fit` with these arguments creates; returns its options and the folder."""
    options = options_of(args)
    runs = Path(options["--trainer.default_root_dir"]) / options["--name"]
    folder = write_run(
        runs / f"version_{len(list(runs.glob('version_*')))}",
        options.get("--model.backbone", "cifar_resnet"),
        int(options.get("--model.backbone.depth", 20)),
        int(options.get("--seed_everything", 0)),
        lr=float(options.get("--model.optimizer.lr", 0.1)),
        options={"data.init_args.batch_size": int(options.get("--data.batch_size", 128))},
        tested=False,
        command=shlex.join(["python", "cli.py", *args]),
    )
    (folder / "checkpoints" / "best.ckpt").write_bytes(bytes(500_000))
    return options, folder


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Replaces real processes; the test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    made = Processes()
    monkeypatch.setattr(jobs.subprocess, "Popen", made)
    return made
