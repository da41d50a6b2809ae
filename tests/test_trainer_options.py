"""All arguments of Lightning's Trainer, given on the command line: each one works, or is refused before training."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from resnet_pl import fit
from resnet_pl.cli import train
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.command_line import CommandLine
from resnet_pl.utils import UserError
from tests.cli.commands import PROJECT, SMALL, refused, rows, run

RUN = Path("runs/digits/version_0")
TINY = [
    *[*SMALL, "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"],
    *["--trainer.log_every_n_steps", "1", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"],
]

# Options of runs that succeed. Options that do not affect each other share a run.
WORKS: dict[str, str] = {
    "the process": "--trainer.accelerator cpu --trainer.devices 1 --trainer.num_nodes 1"
    " --trainer.strategy SingleDeviceStrategy --trainer.strategy.device cpu"
    " --trainer.sync_batchnorm true --trainer.use_distributed_sampler true --trainer.default_root_dir elsewhere"
    " --trainer.reload_dataloaders_every_n_epochs 1 --trainer.enable_autolog_hparams true",
    "the numbers": "--trainer.precision bf16-mixed --trainer.gradient_clip_val 1 --trainer.gradient_clip_algorithm"
    " value --trainer.accumulate_grad_batches 2 --trainer.detect_anomaly true --trainer.inference_mode false"
    " --trainer.benchmark true --trainer.deterministic warn --trainer.min_epochs 1 --trainer.min_steps 1",
    "nothing but training": "--trainer.logger false --trainer.enable_checkpointing false"
    " --trainer.enable_progress_bar false --trainer.max_steps 1",
}
# Options that another test tries: `test_NAME`, with the arguments in any order.
TESTED = {
    "enable_model_summary", "profiler", "num_sanity_val_steps", "val_check_interval", "check_val_every_n_epoch",
    "overfit_batches", "fast_dev_run", "max_time",
}  # fmt: skip
# In all runs of this file, or for other subcommands only.
ALWAYS = {"max_epochs", "limit_train_batches", "limit_val_batches", "log_every_n_steps", "logger"}
OTHER_COMMANDS = {"limit_test_batches", "limit_predict_batches", "callbacks"}
REFUSED: dict[str, list[str]] = {
    "--trainer.barebones true": ["trainer.barebones: ", "--trainer.logger false"],
    "--trainer.model_registry mine": ["trainer.model_registry: "],
    "--trainer.plugins AsyncCheckpointIO": ["trainer.plugins: ", "AsyncCheckpointIO"],
    "--trainer.log_every_n_steps -1": ["trainer.log_every_n_steps: ", "-1"],
    "--trainer.strategy fsdp2": ["trainer.strategy: ", "fsdp2", "fsdp"],
    "--trainer.strategy FSDPStrategy --trainer.accelerator cpu": ["FSDP", "accelerator"],
    "--trainer.strategy ddp_fork --trainer.devices 2 --trainer.accelerator cpu": [
        "trainer.strategy: ",
        "forked",
        "ddp",
    ],
    "--trainer.strategy ddp_spawn --trainer.accelerator cpu": ["trainer.strategy: ", "spawned", "--trainer.devices 1"],
    "--trainer.num_nodes 2 --trainer.accelerator cpu": ["trainer.num_nodes: ", "torchrun --nnodes 2"],
    "--trainer.sync_batchnorm true --trainer.accelerator cpu --trainer.devices 2": ["trainer.sync_batchnorm: "],
    "--trainer.logger WandLogger": ["trainer.logger: ", "did you mean WandbLogger?"],
    "--trainer.precision transformer-engine": ["pip install", "transformer_engine"],
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restores what these options change in this process."""
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)


class Images(Callback):
    """Writes the indices of each training batch, and of each validation."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with Path("images").open("a") as file:
            print(*batch.indices.tolist(), file=file)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        with Path("validations").open("a") as file:
            print(trainer.global_step, file=file)


IMAGES = f"--trainer.callbacks+={__name__}.Images"


def validations(*options: str) -> list[int]:
    """The steps at which a run validates."""
    Path("validations").unlink(missing_ok=True)
    run("fit", *TINY, IMAGES, *options)
    return [int(line) for line in Path("validations").read_text().split()]


def test_the_tables_list_all_arguments_of_the_trainer() -> None:
    words = " ".join([*WORKS.values(), *REFUSED]).split()
    listed = {word.split(".")[1] for word in words if word.startswith("--trainer.")}
    assert listed | TESTED | ALWAYS | OTHER_COMMANDS == inspect.signature(Trainer).parameters.keys()


@pytest.mark.parametrize("options", WORKS.values(), ids=WORKS)
def test_options_work(options: str) -> None:
    run("fit", *TINY, *options.split(), "--trainer.max_epochs", 1)
    files = {path.name for path in Path().rglob("*") if path.is_file()}
    assert ("last.ckpt" in files) == ("checkpointing false" not in options)
    assert ("metrics.csv" in files) == ("logger false" not in options)
    assert Path("elsewhere").exists() == ("elsewhere" in options)


@pytest.mark.parametrize("options", REFUSED)
def test_an_option_is_refused_before_training(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *SMALL, *options.split())
    assert all(word in message for word in REFUSED[options]), message
    assert not list(Path().rglob("version_*"))


def test_reports_are_shown_and_the_rest_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *TINY, "--trainer.enable_model_summary", "true", "--trainer.profiler", "simple")
    out, err = capsys.readouterr()
    assert "Trainable params" in out and "Profiler Report" in out and "run_training_epoch" in out
    assert not any(noise in out + err for noise in ("GPU available", "`Trainer.fit` stopped", "💡"))


@pytest.mark.slow
@pytest.mark.parametrize(("profiler", "words"), [("advanced", "cumtime"), ("pytorch", "Self CPU")])
def test_other_profilers(profiler: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *TINY, "--trainer.profiler", profiler)
    assert words in capsys.readouterr().out


def test_the_time_of_validations() -> None:
    options = ["--trainer.check_val_every_n_epoch", "2", "--trainer.num_sanity_val_steps", "1"]
    assert validations(*options, "--trainer.val_check_interval", "2") == [0, 6, 8]  # an epoch has four steps


@pytest.mark.slow
def test_validations_by_time_or_over_epochs() -> None:
    assert validations("--trainer.val_check_interval", "00:00:00:00") == list(range(1, 9))
    over = ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "3"]
    assert validations(*over) == [3, 6]


def test_overfit_batches_keeps_the_images_of_training() -> None:
    run("fit", *TINY, IMAGES, "--trainer.overfit_batches", 2)
    first, second, *again = Path("images").read_text().splitlines()
    assert first != second and again == [first, second]
    assert first.split() != sorted(
        first.split(), key=int
    )  # not the first images of the split: they may be of one class


def test_fast_dev_run_leaves_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *TINY, "--trainer.fast_dev_run", "2", "--trainer.logger", "true")
    assert "step 2/2" in capsys.readouterr().out and not list(Path().rglob("version_*"))


@pytest.mark.slow
def test_fast_dev_run_does_not_change_the_run_of_its_checkpoint() -> None:
    run("fit", *TINY, "--trainer.max_epochs", 1)
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.is_file()}
    run("fit", "--trainer.fast_dev_run", "true", "--ckpt_path", "last")
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*") if path.is_file()} == before


def test_log_every_n_steps_0_logs_nothing_within_an_epoch() -> None:
    run("fit", *TINY, "--trainer.log_every_n_steps", 0, "--trainer.max_epochs", 1, "--trainer.max_time", "1:00:00:00")
    logged = [row for row in rows(RUN) if row["train/loss"]]
    assert len(logged) == 1 and logged[0]["step"] == "3"


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    **{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"},
    **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
}


def launched(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    ranks = {} if variables is SRUN else {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
    for name, value in {**ranks, **variables}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "devices", "message"),
    [
        (TORCHRUN | {"WORLD_SIZE": "2"}, "1", "start 1, or use --trainer.devices 2"),
        (TORCHRUN, "3", "start 6, or use --trainer.devices 2 --trainer.num_nodes 2"),
        (SRUN, "2", "start 4, or use --trainer.devices 1 --trainer.num_nodes 2"),
        (TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, "2", "start 2, or use --trainer.devices 1"),
        ({"WORLD_SIZE": "2"}, "auto", "start the command with torchrun"),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, "auto", "srun --job-name train"),
    ],
)
def test_a_trainer_that_ignores_the_other_processes_is_refused(
    variables: dict[str, str],
    devices: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched(monkeypatch, variables)
    options = ["--trainer.accelerator", "cpu", "--trainer.devices", devices]
    assert refused(capsys, "fit", *TINY, *options).endswith(message)
    with pytest.raises(UserError, match=r"(was|were) started|WORLD_SIZE is 2|srun has started"):
        fit([*TINY, *options])


@pytest.mark.parametrize(("variables", "expected"), [(TORCHRUN, (2, 2)), (SRUN, (1, 2))])
def test_the_devices_are_the_processes_that_were_started(
    variables: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, variables)
    cli = ProjectCLI(CommandLine(["fit", *TINY, "--trainer.accelerator", "cpu"]), train)
    assert (cli.trainer.num_devices, cli.trainer.num_nodes) == expected
    assert cli.plain_config["trainer"]["devices"] == "auto"  # the checkpoint can be tested in one process


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
def test_a_command_of_one_process_is_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(monkeypatch, variables)
    assert "sweep is one process" in refused(capsys, "sweep", "--config", PROJECT / "configs/digits.yaml")


@pytest.mark.slow
@pytest.mark.process
def test_a_whole_number_of_batches_is_not_a_fraction(tmp_path: Path) -> None:
    # With these imports before, jsonargparse reads 1 as 1.0.
    first = "import matplotlib.pyplot, sklearn.metrics, sys; sys.path.insert(0, sys.argv[1])"
    code = f"{first}\nfrom resnet_pl.cli.main import main; sys.exit(main(sys.argv[2:]))"
    words = ["--model.backbone.depth", "8", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"]
    config = ["--config", str(PROJECT / "configs/digits.yaml"), "--dashboard", "false"]
    command = [sys.executable, "-c", code, str(PROJECT), "fit", *config, *words]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300).stdout
    assert "1 epoch, 1 iteration" in out
    assert "limit_train_batches: 1\n" in (tmp_path / "runs/digits/version_0/config.yaml").read_text()
