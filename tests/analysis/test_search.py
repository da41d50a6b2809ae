"""`sweep --search`, with the real Optuna: settings, seeds, pruning, repeated trials, storage and plots."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnet_pl.cli.main import main
from tests.analysis.processes import Options, Processes, processes
from tests.analysis.test_sweep import comparison
from tests.cli.commands import PROJECT, SMALL, refused, run

__all__ = ["processes"]  # a fixture

optuna = pytest.importorskip("optuna")
LR = ["sweep", "--name", "s", "--search", "model.optimizer.lr=log:0.001:0.3"]
DATA = ["--", "--data", "Digits"]


def lr(options: Options) -> float:
    return float(options["--model.optimizer.lr"])


def near_a_tenth(options: Options) -> list[float]:
    """The validation top-1 of each epoch: the best learning rate is 0.1."""
    return [1 - abs(lr(options) - 0.1)]


def test_settings_are_drawn_trained_with_each_seed_and_ranked(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.val_top1 = near_a_tenth
    search = [*LR, "--search", "data.batch_size=16:64", "--grid", "seed_everything=0,1", "--trials"]
    assert main([*search, "4", *DATA]) == 0
    assert len(processes.fits) == 8 and [each["--seed_everything"] for each in processes.fits] == ["0", "1"] * 4
    rates = [lr(options) for options in processes.fits[::2]]
    assert rates == [lr(options) for options in processes.fits[1::2]] and len({*rates}) == 4
    assert all(0.001 <= rate <= 0.3 for rate in rates)
    assert all(16 <= int(options["--data.batch_size"]) <= 64 for options in processes.fits)
    assert all(re.fullmatch(r"[\d.]{1,8}", options["--model.optimizer.lr"]) for options in processes.fits)
    rows = comparison()
    assert [float(row["model.optimizer.lr"]) for row in rows] == sorted(rates, key=lambda rate: abs(rate - 0.1))
    assert [row["chosen"] for row in rows] == ["yes", "no", "no", "no"] and {row["n"] for row in rows} == {"2"}
    assert sum(args[0] == "test" for args in processes.started) == 2
    for name in ("history", "importance"):
        assert Image.open(f"runs/s/{name}.png").size[0] > 500
    capsys.readouterr()

    # The same command trains nothing; more trials continue the search.
    processes.started.clear()
    assert main([*search, "4", *DATA]) == 0 and processes.started == []
    assert "4 trials, 4 already completed" in capsys.readouterr().out
    assert main([*search, "5", *DATA]) == 0 and len(processes.fits) == 2 and len(comparison()) == 5


def test_the_settings_do_not_depend_on_the_number_of_processes(processes: Processes) -> None:
    search = [*LR, "--sampler", "random", "--trials", "6"]
    assert main([*search, *DATA]) == 0
    first = [lr(options) for options in processes.fits]
    processes.started.clear()
    search[2] = "other"
    assert main([*search, "--jobs", "3", *DATA]) == 0
    assert sorted(lr(options) for options in processes.fits) == sorted(first)


def test_a_loss_is_minimized_and_values_are_tried_as_given(processes: Processes) -> None:
    processes.val_top1 = near_a_tenth  # its column is monitored as if it were a loss
    search = ["sweep", "--name", "s", "--search", "model.optimizer.lr=0.01,0.1,0.3", "--trials", "9"]
    assert main([*search, *DATA, "--checkpoint.monitor", "val/top1", "--checkpoint.mode", "min"]) == 0
    # Of nine trials, those with a setting that was trained before have its result.
    assert sorted({lr(options) for options in processes.fits}) == [0.01, 0.1, 0.3] and len(processes.fits) == 3
    (study,) = studies()
    assert len(study.trials) == 9 and study.direction.name == "MINIMIZE"
    assert study.best_trial.params == {"model.optimizer.lr": "0.3"}


def studies(folder: str = "runs/s") -> list[optuna.Study]:
    """The studies in the journal of a sweep."""
    journal = optuna.storages.journal
    storage = optuna.storages.JournalStorage(journal.JournalFileBackend(f"{folder}/study.journal"))
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def test_pruned_runs_stop_early_never_rank_and_are_not_trained_again(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0

    def val_top1(options: Options) -> list[float]:
        nonlocal count
        count += 1
        # The best epoch of the last run would be the best of all, but its start is bad.
        return [0.1, 0.1, 0.99] if count == 6 else [0.5 + count / 100, 0.6, 0.7 + count / 100]

    processes.val_top1 = val_top1
    search = [*LR, "--pruner", "median", "--trials", "6"]
    assert main([*search, *DATA]) == 0
    out = capsys.readouterr().out
    name = f"lr{processes.fits[-1]['--model.optimizer.lr']}"
    assert f"{name} pruned; 0 left" in out and "Pruned or diverged: 1 setting" in out
    assert len((Path("runs/s") / name / "version_0/metrics.csv").read_text().splitlines()) < 5
    rows = comparison()
    assert len(rows) == 5 and name not in {row["run"].split("/")[0] for row in rows}
    assert [trial.state.name for trial in studies()[0].trials] == ["COMPLETE"] * 5 + ["PRUNED"]
    # Every validation of a complete run was reported, also the last one.
    assert list(studies()[0].trials[0].intermediate_values.values()) == [0.51, 0.6, 0.71]
    processes.started.clear()
    assert main([*search, "--keep", "best", *DATA]) == 0 and processes.started == []
    assert not list((Path("runs/s") / name).rglob("*.ckpt")) and len(list(Path("runs/s").rglob("*.ckpt"))) == 2
    capsys.readouterr()
    assert main(["compare", "runs/s"]) == 0
    assert "Pruned by a search: 1 run\n" in capsys.readouterr().out and len(comparison()) == 5


def test_a_run_that_diverges_is_not_repeated(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    processes.diverges = lambda options: lr(options) < 0.012
    search = [*LR, "--trials", "4", "--sampler", "random", *DATA]
    assert main(search) == 0
    out = capsys.readouterr().out
    assert "pruned, failed: the training loss is nan; see runs/s/logs/lr0.01079.log" in out
    assert "Pruned or diverged: 1 setting" in out and len(comparison()) == 3
    assert [trial.state.name for trial in studies()[0].trials].count("PRUNED") == 1
    processes.started.clear()
    assert main(search) == 0 and processes.started == []


def test_an_interrupted_trial_resumes(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    processes.interrupt = interrupt
    assert main([*LR, "--trials", "2", *DATA]) == 130
    out, err = capsys.readouterr()
    assert out.endswith("Interrupted. Rerun the same command to resume.\n") and err == ""
    (first,) = processes.fits
    processes.interrupt = lambda: None
    processes.started.clear()
    assert main([*LR, "--trials", "2", *DATA]) == 0
    folder = Path("runs/s") / f"lr{first['--model.optimizer.lr']}" / "version_0"
    assert processes.started[0] == ["fit", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    assert len(processes.fits) == 1 and len(comparison()) == 2


def test_failed_trials_are_repeated_and_a_wrong_option_ends_the_search(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.fails = {"lr"}
    assert main([*LR, "--trials", "9", *DATA]) == 1
    first = [lr(options) for options in processes.fits]
    out = capsys.readouterr().out
    assert (
        len(first) == 3 and "The search ends, because its first 3 trials have failed." in out and "3 of 3 failed" in out
    )
    processes.fails, processes.started = set(), []
    assert main([*LR, "--trials", "4", *DATA]) == 0
    assert [lr(options) for options in processes.fits[:3]] == first and len(processes.fits) == 4


def test_a_search_needs_a_validation(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    processes.val_top1 = lambda options: []
    assert "has no val/top1, which the search optimizes" in refused(capsys, *LR, *DATA)


def test_a_database_can_store_the_trials_of_one_folder(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = [*LR, "--trials", "2", "--storage", f"sqlite:///{tmp_path / 'study.db'}", *DATA]
    assert main(search) == 0 and len(processes.fits) == 2 and not Path("runs/s/study.journal").exists()
    processes.started.clear()
    assert main(search) == 0 and processes.started == []
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    assert "does not have the run lr" in refused(capsys, *search)
    message = refused(capsys, *LR, "--storage", "nonsense://user:secret@host/x", *DATA)
    assert "cannot be opened" in message
    assert "secret" not in Path("runs/s/logs/sweep.log").read_text()


def test_each_job_of_a_scheduler_starts_the_same_command(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*LR, "--print", *DATA]) == 0
    assert capsys.readouterr().out == f"python cli.py {shlex.join([*LR, *DATA])}\n" and not Path("runs").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--search", "model.optimizer.lr"], "is not of the form"),
        (["--search", "model.optimizer.lr="], "is not of the form"),
        (["--search", "=0:1"], "is not of the form"),
        (["--search", ""], "is not of the form"),
        (["--search", "model.optimizer.lr=log:0:1"], "cannot start at 0"),
        (["--search", "model.optimizer.lr=0.3:0.1"], "is not a range"),
        (["--search", "model.optimizer.lr=1:1"], "is not a range"),
        (["--search", "model.optimizer.lr=0:1e999"], "is not a range"),
        (["--search", "model.optimizer.lr=nan:1"], "neither a range nor several values"),
        (["--search", "model.optimizer.lr=a"], "neither a range nor several values"),
        (["--search", "model.optimizer=SGD,SGD"], "two values have the run name optimizerSGD"),
        (["--search", "data.root=a/b,a_b"], "two values have the run name roota_b"),
        (["--search", "lr=log:0.001:0.3"], "unknown option --lr"),
        (["--search", "seed_everything=0:9"], "--grid is for the seeds"),
        (["--search", "model.optimizer.lr=0:1", "--grid", "model.backbone=resnet18,resnet34"], "is for the seeds"),
        (["--search", "data.val_split=0:1", "--search", "data.val_split=0:2"], "two --search of data.val_split"),
        (["--search", "model.optimizer.lr=0:1", "--trials", "0"], "sweep: "),
        (["--search", "model.optimizer.lr=0:1", "--sampler", "best"], "sweep: "),
    ],
)
def test_a_wrong_search_is_an_error_before_anything_starts(
    args: list[str], message: str, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "sweep", *args, *DATA)
    assert processes.started == [] and not Path("runs").exists()


def test_without_optuna_a_search_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    message = refused(capsys, *LR, *DATA)
    assert "sweep --search needs the package optuna" in message and "pip install" in message


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="uses PR_SET_PDEATHSIG")
@pytest.mark.parametrize("which", ["sweep", "run"])
def test_a_killed_search_resumes_bit_for_bit(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*SMALL[2:6], "--trainer.max_epochs", "4", "--checkpoint.every_n_steps", "2", *SMALL[8:]]
    line = ["sweep", *SMALL[:2], "--search", "model.optimizer.lr=0.0:0.2", "--trials", "1", "--", *options]
    start = f"import sys; from resnet_pl.cli.main import main; sys.exit(main({line!r}))"
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([sys.executable, "-c", start], env=env, start_new_session=True) as search:
        deadline = time.monotonic() + 300
        while not (found := list(Path("runs/sweep").glob("lr*/version_0/checkpoints/last.ckpt"))):
            assert search.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        if which == "sweep":
            search.kill()
        else:
            children = Path(f"/proc/{search.pid}/task")
            for child in {pid for task in children.iterdir() for pid in (task / "children").read_text().split()}:
                os.kill(int(child), signal.SIGKILL)
    assert search.returncode == (-signal.SIGKILL if which == "sweep" else 1)
    while "best val" not in capfd.readouterr().out:
        assert main(line) == 0 and time.monotonic() < deadline
    (folder,) = Path("runs/sweep").glob("lr*/version_0")
    assert len(json.loads((folder / "sessions.json").read_text())) == 2
    rate = folder.parent.name.removeprefix("lr")
    run("fit", *SMALL[:2], *options, "--model.optimizer.lr", rate, "--name", "straight")
    states = [
        torch.load(path, weights_only=True) for path in (found[0], "runs/straight/version_0/checkpoints/last.ckpt")
    ]
    assert states[0]["global_step"] == states[1]["global_step"]
    for name, weights in states[0]["state_dict"].items():
        assert torch.equal(weights, states[1]["state_dict"][name])


def test_a_damaged_journal_is_repaired_or_named(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Path("runs/s/study.journal")
    assert main([*LR, "--trials", "1", *DATA]) == 0
    # An incomplete last line, after a full disk or a power failure.
    journal.write_bytes(journal.read_bytes() + b'{"op_code":')
    assert main([*LR, "--trials", "2", *DATA]) == 0 and len(processes.fits) == 2
    assert [trial.state.name for trial in studies()[0].trials] == ["COMPLETE", "COMPLETE"]
    complete = journal.read_bytes()
    for damage in (b'{"op_code":\n{}\n', b"\x00\xff\n{}\n", b"{}\n"):
        journal.write_bytes(complete + damage)
        assert "runs/s/study.journal cannot be opened" in refused(capsys, *LR, "--trials", "3", *DATA)
    assert len(processes.fits) == 2
