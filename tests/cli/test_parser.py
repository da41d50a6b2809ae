"""Data, model and Trainer from the command line and configuration files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from resnet_pl import ImageClassifier
from resnet_pl.cli import train
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.command_line import CommandLine
from resnet_pl.given_arguments import keep_whole_numbers
from resnet_pl.run_dir import class_name
from tests.cli.commands import SMALL, printed, refused, run

DIGITS = ["--data", "Digits"]
SHORT = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--trainer.limit_val_batches", 1]


class Other(ImageClassifier):
    """Another model, with one more argument.

    Args:
        width: unused.
    """

    def __init__(self, width: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width


def resolved(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    """The resolved configuration of `fit`."""
    return yaml.safe_load(printed(capsys, "fit", *argv, "--print_config"))


def build(folder: Path, *options: str) -> ProjectCLI:
    """Data, model and Trainer of a small training, not run."""
    return ProjectCLI(CommandLine(["fit", *SMALL, "--trainer.default_root_dir", str(folder), *options]), train)


# ------------------------------------------------------------------------------------ values


def test_classes_and_networks_have_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved(capsys, *DIGITS, "--model.backbone", "resnet18", "--model.optimizer", "AdamW")
    assert config["model"]["class_path"] == "resnet_pl.ImageClassifier"
    model = config["model"]["init_args"]
    assert model["backbone"]["class_path"] == "resnet_pl.models.resnet18"
    assert model["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert class_name(config["data"]) == "Digits"


@pytest.mark.parametrize("flag", ["--model.backbone", "--model.backbone.class_path", "--model.init_args.backbone"])
@pytest.mark.parametrize("joined", [True, False])
def test_all_spellings_of_a_backbone(flag: str, joined: bool, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{flag}=cifar_resnet"] if joined else [flag, "cifar_resnet"]
    backbone = resolved(capsys, *DIGITS, *words, "--model.backbone.depth", 56)["model"]["init_args"]["backbone"]
    assert backbone["class_path"] == "resnet_pl.models.cifar_resnet" and backbone["init_args"]["depth"] == 56


@pytest.mark.parametrize(
    "text",
    [
        "model: {backbone: resnet34, label_smoothing: 0.25}",
        "model: {backbone: {class_path: resnet34}, label_smoothing: 0.25}",
        "model: {init_args: {backbone: resnet34, label_smoothing: 0.25}}",
        "model: {class_path: resnet_pl.ImageClassifier, init_args: {backbone: resnet34, label_smoothing: 0.25}}",
        "model: {class_path: ImageClassifier, init_args: {backbone: resnet34, label_smoothing: 0.25}}",
    ],
)
def test_the_class_of_the_model_is_optional_in_a_file(
    text: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(text)
    config = resolved(capsys, *DIGITS, "--config", "mine.yaml", "--model.num_classes", 7)
    assert config["model"]["class_path"].endswith(".ImageClassifier")
    model = config["model"]["init_args"]
    assert (model["label_smoothing"], model["num_classes"]) == (0.25, 7)
    assert model["backbone"]["class_path"] == "resnet_pl.models.resnet34"


def test_any_class_can_be_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{__name__}.Other"
    words = ["--model", name, "--model.width", 5, "--model.backbone", "resnet18", "--model.label_smoothing", 0.5]
    model = resolved(capsys, *DIGITS, *words)["model"]
    assert model["class_path"] == name
    assert (model["init_args"]["width"], model["init_args"]["label_smoothing"]) == (5, 0.5)


def test_another_model_is_trained_and_tested(place: Path) -> None:
    run("fit", *SMALL, *SHORT, "--model", f"{__name__}.Other", "--model.width", 5)
    config = yaml.safe_load(Path("runs/digits/version_0/config.yaml").read_text())
    assert config["model"]["class_path"] == f"{__name__}.Other" and config["model"]["init_args"]["width"] == 5
    run("test", "--ckpt_path", "best")


def test_the_command_line_overrides_files_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved(capsys, "--trainer.max_epochs", 1, "--name", "first", *SMALL[:4], "--model.schedule.warmup=2")
    assert (config["trainer"]["max_epochs"], config["name"]) == (1, "first")
    model = config["model"]["init_args"]
    # The other values of the file are unchanged.
    assert (model["schedule"]["shape"], model["schedule"]["warmup"], model["label_smoothing"]) == ("cosine", 2, 0.1)


def test_a_later_file_overrides_an_earlier_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text("data: {init_args: {batch_size: 7}}\nmodel: {optimizer: {lr: 0.5}}\n")
    Path("two.yaml").write_text("model: {optimizer: {class_path: AdamW}, backbone: {init_args: {depth: 14}}}\n")
    one = resolved(capsys, *SMALL[:2], "--config", "one.yaml")
    assert one["data"]["init_args"]["batch_size"] == 7
    assert class_name(one["data"]) == "Digits"
    optimizer = one["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert {key: optimizer["init_args"][key] for key in ("lr", "momentum", "weight_decay")} == {
        **{"lr": 0.5, "momentum": 0.9, "weight_decay": 0.0005}
    }
    two = resolved(capsys, *SMALL[:2], "--config", "one.yaml", "--config", "two.yaml")["model"]["init_args"]
    assert two["optimizer"]["class_path"] == "torch.optim.AdamW" and two["optimizer"]["init_args"]["lr"] == 0.5
    assert two["backbone"]["init_args"]["depth"] == 14


def test_callbacks_of_every_file_are_added(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text("trainer: {callbacks: [{class_path: Freeze, init_args: {last_frozen: layer1}}]}\n")
    Path("two.yaml").write_text("trainer: {callbacks+: [LearningRateMonitor, {class_path: EMAWeightAveraging}]}\n")
    words = ["--config", "one.yaml", "--config", "two.yaml", "--trainer.callbacks+=ErrorWarmup"]
    callbacks = resolved(capsys, *SMALL, *words, "--trainer.callbacks.error", "0.5")["trainer"]["callbacks"]
    names = [each["class_path"].rpartition(".")[2] for each in callbacks]
    assert names == ["Freeze", "LearningRateMonitor", "EMAWeightAveraging", "ErrorWarmup"]
    assert callbacks[0]["init_args"]["last_frozen"] == "layer1" and callbacks[3]["init_args"]["error"] == 0.5
    assert callbacks[3]["class_path"] == "resnet_pl.callbacks.ErrorWarmup"


def test_sections_can_be_separate_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("parts").mkdir()
    Path("backbone.yaml").write_text("class_path: cifar_resnet\ninit_args: {depth: 14}\n")
    Path("parts/backbone.yaml").write_text("class_path: cifar_resnet\ninit_args: {depth: 20}\n")
    Path("parts/model.yaml").write_text("backbone: {class_path: cifar_resnet}\nlabel_smoothing: 0.25\n")
    Path("parts/full.yaml").write_text(
        "class_path: resnet_pl.ImageClassifier\ninit_args: {backbone: backbone.yaml, label_smoothing: 0.5}\n"
    )
    Path("parts/data.yaml").write_text("class_path: Digits\ninit_args: {batch_size: 32}\n")
    Path("parts/trainer.yaml").write_text("max_epochs: 3\n")
    Path("parts/all.yaml").write_text("model: model.yaml\ndata: data.yaml\ntrainer: trainer.yaml\n")

    def values(*argv: object) -> tuple[object, ...]:
        config = resolved(capsys, *argv)
        model = config["model"]["init_args"]
        return (
            model["backbone"]["init_args"]["depth"],
            model["label_smoothing"],
            config["data"]["init_args"]["batch_size"],
            config["trainer"]["max_epochs"],
        )

    flags = ["--data", "parts/data.yaml", "--trainer", "parts/trainer.yaml"]
    assert values("--model", "parts/model.yaml", *flags, "--model.backbone.depth", 8) == (8, 0.25, 32, 3)
    assert values("--model", "parts/full.yaml", *flags, "--data.batch_size", 16) == (20, 0.5, 16, 3)
    assert values("--config", "parts/all.yaml", "--model.backbone.depth", 8) == (8, 0.25, 32, 3)
    assert values("--model.backbone", "backbone.yaml", *flags) == (14, 0.0, 32, 3)


def test_null_is_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved(capsys, *SMALL, "--data.std", "null", "--checkpoint.every_minutes", "null")
    assert config["data"]["init_args"]["std"] is None and config["checkpoint"]["every_minutes"] is None


# ------------------------------------------------------------------------------------ configurations as output


def test_a_printed_configuration_is_a_configuration(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    words = ["--trainer.callbacks+=Freeze", "--model.class_names", '["1e3", "no", "007"]', "--data.mix", "MixUp"]
    text = printed(capsys, "fit", *SMALL, *words, "--print_config")
    Path("printed.yaml").write_text(text)
    assert resolved(capsys, "--config", "printed.yaml") == yaml.safe_load(text)


def test_the_configuration_of_a_run_reproduces_it(copy: Path) -> None:
    run("fit", "--config", copy / "config.yaml", "--trainer.default_root_dir", "runs")
    again = Path("runs/digits/version_1")
    one, two = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (copy, again))
    assert one["trainer"].pop("default_root_dir") != two["trainer"].pop("default_root_dir") and one == two
    one, two = (torch.load(f / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for f in (copy, again))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_printing_writes_nothing(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    printed(capsys, "fit", *SMALL, "--print_config")
    printed(capsys, "fit", *SMALL, "--help")
    assert not list(place.iterdir())


def test_every_network_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    needed = {"ResNet": ["--model.backbone.block", "basic", "--model.backbone.layers", "[1,1,1,1]"]}
    needed |= {name: ["--model.backbone.depth", "8"] for name in ("cifar_resnet", "cifar_plain")}
    for name in ("ResNet", "resnet18", "cifar_resnet", "cifar_plain"):
        options = needed.get(name, [])
        config = resolved(capsys, *DIGITS, "--model.backbone", name, *options)
        assert config["model"]["init_args"]["backbone"]["class_path"] == f"resnet_pl.models.{name}"


# ------------------------------------------------------------------------------------ building


@pytest.fixture
def switches() -> Iterator[None]:
    """Restores the global settings of torch."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1:]
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("allowed", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_sets_matmul_and_cudnn(
    allowed: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switches: None
) -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = not allowed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    build(tmp_path, "--tf32", str(allowed), "--trainer.accelerator", "cpu")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (precision, allowed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_matmul_precision_is_unchanged_on_cpu(tmp_path: Path, switches: None) -> None:
    torch.set_float32_matmul_precision("highest")
    build(tmp_path)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ([], True),
        (["--trainer.deterministic", "true"], False),
        (["--trainer.benchmark", "false"], False),
        (["--trainer.benchmark", "true"], True),
    ],
)
def test_cudnn_benchmark_is_on_unless_runs_must_be_deterministic(
    options: list[str], chosen: bool, tmp_path: Path, switches: None
) -> None:
    torch.backends.cudnn.benchmark = not chosen
    build(tmp_path, *options)
    assert torch.backends.cudnn.benchmark is chosen


@pytest.mark.parametrize(("options", "names"), [
    ([], ["TensorBoardCurves", "MetricsCSV"]),
    (["--trainer.logger", "true"], ["TensorBoardCurves", "MetricsCSV"]),
    (["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs"], ["CSVLogger", "MetricsCSV"]),
    (["--trainer.logger", "false"], []),
])  # fmt: skip
def test_loggers_of_the_configuration_replace_tensorboard(options: list[str], names: list[str], place: Path) -> None:
    loggers = build(place, *options).trainer.loggers
    assert [type(logger).__name__ for logger in loggers] == names


def test_checkpoints_and_progress_can_be_disabled(place: Path) -> None:
    names = {type(each).__name__ for each in build(place).callbacks}
    assert names >= {"BestCheckpoint", "LastCheckpoint", "GracefulStop", "Dashboard", "RunSummary", "EpochSummary"}
    words = ["--trainer.enable_checkpointing", "false", "--trainer.enable_progress_bar", "false"]
    fewer = {type(each).__name__ for each in build(place, *words).callbacks}
    assert names - fewer == {"BestCheckpoint", "LastCheckpoint", "GracefulStop", "EpochSummary"}


def test_a_run_that_never_started_leaves_no_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *SMALL, *SHORT)
    refused(capsys, "fit", *SMALL, "--model.num_classes", 7)
    refused(capsys, "fit", *SMALL, "--trainer.accelerator", "nope")
    assert [path.name for path in Path("runs/digits").iterdir()] == ["version_0"]


def test_an_error_of_a_thread_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    run("fit", *SMALL, *SHORT)
    capsys.readouterr()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError" in line


def test_a_whole_number_of_batches_that_was_read_as_a_fraction_is_restored() -> None:
    config = Namespace(limit_train_batches=1.0, limit_val_batches=1.0, limit_test_batches=0.5, val_check_interval=2.0)
    written = {"limit_train_batches": "1", "limit_val_batches": "1.0", "limit_test_batches": 0.5}
    keep_whole_numbers(config, {**written, "val_check_interval": 2}.get)
    assert [type(value) for value in vars(config).values()] == [int, float, float, int]
