"""Lists in the configuration: real defaults, `+`, and commands that are repeated to resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from resnet_pl.cli import train
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.command_line import CommandLine
from resnet_pl.data import BatchTransform, Digits, RandomFlip
from resnet_pl.data.rng import BatchRNG
from resnet_pl.run_dir import class_name, get_init_args
from tests.cli.commands import SMALL, printed, refused, run

ME = __name__


class Darker(BatchTransform):
    """Scales the brightness of each image.

    Args:
        least: smallest factor.
    """

    def __init__(self, least: float = 0.5) -> None:
        self.least = least

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        return images * (self.least + (1 - self.least) * rng.uniform())[:, None, None, None], labels


class Shuffle(nn.Module):
    """Permutes the rows of an image."""

    def forward(self, image: Tensor) -> Tensor:
        return image[:, torch.randperm(image.shape[1])]


class MyDigits(Digits):
    """Names its own default list."""

    defaults = {"batch_transforms": [RandomFlip]}


def config(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    return yaml.safe_load(printed(capsys, "fit", *argv, "--print_config"))


def entries(config: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of each entry of a list of the data module or of the Trainer."""
    section, name = key.split(".")
    return [(class_name(entry), get_init_args(entry)) for entry in get_init_args(config[section])[name] or []]


def names(config: dict[str, Any], key: str = "data.batch_transforms") -> list[str]:
    return [name for name, _ in entries(config, key)]


def test_the_configuration_has_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    crop = ("PadCrop", {"padding": 2, "mode": "constant"})
    assert entries(config(capsys, *SMALL), "data.batch_transforms") == [crop]
    folder = config(capsys, "--data", "ImageFolder", "--model.backbone", "resnet18", "--data.crop.min_side", 300)
    assert names(folder) == ["RandomFlip", "PCAColor"]
    assert folder["data"]["init_args"]["crop"]["init_args"] == {"min_side": 300, "max_side": 480}


def test_a_list_replaces_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    # Its entries have their own defaults, not the arguments of the default list.
    for option in ("--data.batch_transforms", "--data.init_args.batch_transforms"):
        given = config(capsys, *SMALL, option, "[PadCrop]")
        assert entries(given, "data.batch_transforms") == [("PadCrop", {"padding": 4, "mode": "constant"})]
    assert names(config(capsys, *SMALL, "--data.batch_transforms", "[]")) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--data.batch_transforms+", f"{ME}.Darker", "--data.batch_transforms.least", 0.25],
        [f"--data.init_args.batch_transforms+={{class_path: {ME}.Darker, init_args: {{least: 0.25}}}}"],
        ["--config", "flat.yaml"],
        ["--config", "nested.yaml"],
        ["--data", "data.yaml"],
        ["--config", "named.yaml"],
    ],
    ids=lambda words: words[-1],
)
def test_plus_appends_to_the_defaults(words: list[object], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    darker = f"{{class_path: {ME}.Darker, init_args: {{least: 0.25}}}}"
    Path("flat.yaml").write_text(f"data: {{batch_transforms+: [{darker}]}}")
    Path("nested.yaml").write_text(f"data: {{init_args: {{batch_transforms+: {darker}}}}}")
    Path("data.yaml").write_text(f"class_path: Digits\ninit_args: {{batch_transforms+: [{darker}]}}")
    Path("named.yaml").write_text("data: data.yaml")
    found = entries(config(capsys, *SMALL, *words), "data.batch_transforms")
    assert found == [("PadCrop", {"padding": 2, "mode": "constant"}), ("Darker", {"least": 0.25})]


def test_plus_appends_to_the_defaults_of_a_class_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", f"{ME}.MyDigits", f"--data.batch_transforms+={ME}.Darker", "--data.batch_transforms+=Cutout"]
    assert names(config(capsys, *SMALL, *words)) == ["RandomFlip", "Darker", "Cutout"]


def test_plus_keeps_tensorboard(capsys: pytest.CaptureFixture[str]) -> None:
    logger = ["--trainer.logger+=CSVLogger", "--trainer.logger.save_dir", "logs"]
    assert names(config(capsys, *SMALL, *logger), "trainer.logger") == ["TensorBoardCurves", "CSVLogger"]
    replaced = config(capsys, *SMALL, "--trainer.logger", "CSVLogger", *logger[1:])["trainer"]["logger"]
    assert class_name(replaced) == "CSVLogger"


def test_a_repeated_command_resumes_with_the_same_lists(place: Path) -> None:
    Path("mine.yaml").write_text(f"""
data: {{batch_transforms+: [{ME}.Darker, {ME}.Darker]}}
trainer:
  callbacks+: [LearningRateMonitor]
  logger+: [{{class_path: CSVLogger, init_args: {{save_dir: logs}}}}]
""")
    command = [*SMALL, "--config", "mine.yaml", "--data.num_workers", 0, "--model.schedule.shape", "constant"]
    command += ["--trainer.callbacks+=Freeze", "--trainer.callbacks.last_frozen", "layer1"]
    command += ["--trainer.limit_val_batches", 1, "--data.transforms+", f"{ME}.Shuffle"]
    run("fit", *command)
    run("fit", *command, "--trainer.max_epochs", 1)
    stopped = yaml.safe_load(Path("runs/digits/version_1/config.yaml").read_text())
    run("fit", *command, "--ckpt_path", "last")
    resumed = yaml.safe_load(Path("runs/digits/version_1/config.yaml").read_text())
    assert names(resumed) == ["PadCrop", "Darker", "Darker"] and names(resumed, "data.transforms") == ["Shuffle"]
    assert names(resumed, "trainer.callbacks") == ["LearningRateMonitor", "Freeze"]
    assert names(resumed, "trainer.logger") == ["TensorBoardCurves", "CSVLogger"]
    stopped["trainer"]["max_epochs"] = 2
    assert (stopped["data"], stopped["trainer"]) == (resumed["data"], resumed["trainer"])
    one, two = (torch.load(f"runs/digits/version_{n}/checkpoints/last.ckpt", weights_only=True) for n in (0, 1))
    assert all(torch.equal(one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"])
    # An entry that the first command did not append is added, also if only an argument differs.
    words = ["--ckpt_path", "last", "--data.batch_transforms+", f"{ME}.Darker", "--data.batch_transforms.least", 0.75]
    words += ["--trainer.callbacks+=ModelSummary"]
    changed = ProjectCLI(CommandLine(["fit", *map(str, [*command, *words])]), train).plain_config
    assert entries(changed, "data.batch_transforms")[2:] == [("Darker", {"least": 0.5}), ("Darker", {"least": 0.75})]
    assert names(changed, "trainer.callbacks") == ["LearningRateMonitor", "Freeze", "ModelSummary"]


@pytest.mark.parametrize(
    ("words", "other"),
    [
        (["--data.batch_transforms+=torchvision.transforms.v2.RandAugment"], "data.transforms"),
        (["--data.transforms+=RandomFlip"], "data.batch_transforms"),
        (["--data.transforms", "[resnet_pl.data.RandomFlip]"], "data.batch_transforms"),
    ],
)
def test_transforms_of_the_other_kind_are_refused(
    words: list[str], other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, fix = refused(capsys, "fit", *SMALL, *words).splitlines()
    assert words[0].removeprefix("--").partition("+")[0] in first and other in fix


@pytest.mark.parametrize("as_option", [False, True])
def test_a_list_of_the_same_length_is_replaced(
    as_option: bool, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 7}}
    second = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/top1", "mode": "max"}}
    for name, entry, least in (("a", first, {"least": 0.1}), ("b", second, {})):
        transforms = [{"class_path": f"{ME}.Darker", "init_args": least}]
        Path(f"{name}.yaml").write_text(
            yaml.safe_dump({"trainer": {"callbacks": [entry]}, "data": {"batch_transforms": transforms}})
        )
    later = ["--config", "b.yaml"]
    if as_option:
        later = ["--trainer.callbacks", yaml.safe_dump([second], default_flow_style=True).strip()]
        later += ["--data.batch_transforms", f"[{ME}.Darker]"]
    found = config(capsys, *SMALL, "--config", "a.yaml", *later)
    assert entries(found, "data.batch_transforms") == [("Darker", {"least": 0.5})]
    ((name, arguments),) = entries(found, "trainer.callbacks")
    assert (name, arguments["monitor"], arguments["patience"]) == ("EarlyStopping", "val/top1", 3)


def test_a_list_within_an_argument_is_replaced(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, arguments in (("a", {"least": 0.1}), ("b", {})):
        transforms = [{"class_path": f"{ME}.Darker", "init_args": arguments}]
        mix = {"class_path": "RandomChoice", "init_args": {"transforms": transforms}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"data": {"mix": mix}}))
    found = config(capsys, *SMALL, "--config", "a.yaml", "--config", "b.yaml")
    assert get_init_args(get_init_args(found["data"])["mix"])["transforms"] == [
        {"class_path": f"{ME}.Darker", "init_args": {"least": 0.5}}
    ]


def test_a_logger_is_added_to_the_default_of_a_complete_config(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("complete.yaml").write_text("trainer: {logger: null}")
    Path("empty.yaml").write_text("# nothing yet")
    files = ["--config", "complete.yaml", "--config", "empty.yaml"]
    found = config(capsys, *SMALL, *files, "--trainer.logger+=CSVLogger", "--trainer.logger.save_dir", "logs")
    assert [class_name(entry) for entry in found["trainer"]["logger"]] == ["TensorBoardCurves", "CSVLogger"]
