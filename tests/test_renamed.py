"""Names and keys of earlier versions: class paths work, keys that are gone are refused with their replacement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resnet_pl._renamed import REMOVED, upgrade_config, upgrade_path
from resnet_pl.cli.main import main
from resnet_pl.reports.results import read_results
from resnet_pl.run_dir import class_name

PROJECT = Path(__file__).parent.parent
DIGITS = str(PROJECT / "configs/digits.yaml")
OLD = Path(__file__).parent / "old_checkpoint/middle.ckpt"
# A value that each removed key could have, another than its default.
VALUES = {
    "keep_memory": False,
    "model.on_bad_loss": "skip",
    "data.decode": "auto",
    "model.schedule.warmup_error": 0.8,
    "model.schedule.warmup_share": 0.2,
    "model.schedule.warmup_limit": 5000,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """What the configuration of a training would be."""
    capsys.readouterr()
    assert main(["fit", *argv, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What is said of a command line that must be refused, in two lines at most."""
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) <= 2
    return err


def nested(key: str, value: Any, init_args: bool = False) -> dict[str, Any]:
    """A configuration in which one dotted key is set."""
    first, *rest = key.split(".")
    if not rest:
        return {first: value}
    below = nested(".".join(rest), value)
    return {first: {"init_args": below} if init_args else below}


# ------------------------------------------------------------------------------------ class paths


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("resnet_pl.data.digits.Digits", "Digits"),
        ("resnet_pl.data.transforms.RandomFlip", "RandomFlip"),
        ("resnet_pl.data.cutout.Cutout", "Cutout"),
        ("resnet_pl.data.transforms.ScaleCrop", "ScaleCrop"),
        ("resnet_pl.callbacks.whiten.WhitenStem", "WhiteningInit"),
        ("resnet_pl.models.cifar.cifar_resnet", "cifar_resnet"),
        ("resnet_pl.models.resnet.ResNet", "ResNet"),
        ("resnet_pl.classifier.ImageClassifier", "ImageClassifier"),
        ("resnet_pl.data.Digits", "Digits"),
        ("resnet_pl.models.resnet50", "resnet50"),
    ],
)
def test_a_path_of_an_earlier_version_leads_to_the_class(old: str, name: str) -> None:
    new = upgrade_path(old)
    module, _, last = new.rpartition(".")
    assert last == name and callable(getattr(__import__(module, fromlist=[name]), name))
    assert upgrade_path(new) == new


@pytest.mark.parametrize(
    "path", ["torch.optim.SGD", "resnet_pl.ImageClassifier", "resnet_pl.utils.UserError", "mine.data.digits.Digits"]
)
def test_other_paths_are_left_alone(path: str) -> None:
    assert upgrade_path(path) == path


BACKBONE = ["--model.backbone.depth", "8"]
OLD_NAMES = [
    ["--data", "resnet_pl.data.gone.Digits", "--model.backbone", "resnet_pl.models.cifar.cifar_resnet", *BACKBONE],
    ["--data=resnet_pl.data.gone.Digits", "--model.backbone=resnet_pl.models.cifar.cifar_resnet", *BACKBONE],
    [
        *["--data.class_path", "resnet_pl.data.gone.Digits", *BACKBONE],
        *["--model.backbone.class_path=resnet_pl.models.cifar.cifar_resnet"],
    ],
    [
        *["--model", "resnet_pl.classifier.ImageClassifier", "--data", "Digits", *BACKBONE],
        *["--model.backbone", "resnet_pl.models.cifar.cifar_resnet"],
    ],
]


@pytest.mark.parametrize("argv", OLD_NAMES)
def test_old_class_paths_on_the_command_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # Options of a class come after its name.
    argv = [word for word in argv if word not in BACKBONE] + BACKBONE
    more = ["--trainer.callbacks+=resnet_pl.callbacks.gone.Freeze", "--data.mix", "resnet_pl.data.gone.MixUp"]
    more += ["--data.batch_transforms+", "resnet_pl.data.cutout.Cutout"]
    config = resolved(capsys, *argv, *more)
    data = config["data"]["init_args"]
    assert class_name(config["data"]) == "Digits" and class_name(config["model"]) == "ImageClassifier"
    assert config["model"]["init_args"]["backbone"]["class_path"] == "resnet_pl.models.cifar_resnet"
    assert [class_name(each) for each in config["trainer"]["callbacks"]] == ["Freeze"]
    assert class_name(data["mix"]) == "MixUp" and [class_name(each) for each in data["batch_transforms"]] == ["Cutout"]


def test_old_class_paths_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.yaml").write_text("""
model:
  class_path: resnet_pl.classifier.ImageClassifier
  init_args:
    backbone: {class_path: resnet_pl.models.cifar.cifar_resnet, init_args: {depth: 8}}
data:
  class_path: resnet_pl.data.gone.Digits
  init_args: {mix: resnet_pl.data.gone.MixUp, batch_transforms: [resnet_pl.data.cutout.Cutout]}
trainer: {callbacks: [resnet_pl.callbacks.gone.Freeze]}
""")
    config = resolved(capsys, "--config", "old.yaml")
    data = config["data"]["init_args"]
    assert class_name(config["data"]) == "Digits" and class_name(config["model"]) == "ImageClassifier"
    assert config["model"]["init_args"]["backbone"]["init_args"]["depth"] == 8
    assert class_name(data["mix"]) == "MixUp" and [class_name(each) for each in data["batch_transforms"]] == ["Cutout"]
    assert [class_name(each) for each in config["trainer"]["callbacks"]] == ["Freeze"]


# ------------------------------------------------------------------------------------ keys that are gone


def test_every_removed_key_is_tried_here() -> None:
    assert VALUES.keys() == REMOVED.keys()
    assert all(VALUES[key] != default for key, (default, _) in REMOVED.items())


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_on_the_command_line_is_refused(
    key: str, joined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _, rest = key.partition(".")
    for name in {key, f"{first}.init_args.{rest}" if rest else key}:
        words = [f"--{name}={VALUES[key]}"] if joined else [f"--{name}", str(VALUES[key])]
        said = told(capsys, "fit", "--config", DIGITS, *words)
        assert key in said and REMOVED[key][1] in said


@pytest.mark.parametrize("init_args", [True, False])
@pytest.mark.parametrize("key", [key for key in REMOVED if key != "model.schedule.warmup_error"])
def test_a_removed_key_in_a_file_is_refused(key: str, init_args: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.yaml").write_text(yaml.safe_dump(nested(key, VALUES[key], init_args)))
    said = told(capsys, "fit", "--config", DIGITS, "--config", "old.yaml")
    assert "old.yaml" in said and key in said and REMOVED[key][1] in said
    assert not Path("runs").exists()


@pytest.mark.parametrize("init_args", [True, False])
@pytest.mark.parametrize("key", REMOVED)
def test_its_default_in_a_file_is_dropped_without_a_word(
    key: str, init_args: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("old.yaml").write_text(yaml.safe_dump(nested(key, REMOVED[key][0], init_args)))
    assert resolved(capsys, "--config", DIGITS, "--config", "old.yaml") == resolved(capsys, "--config", DIGITS)


def test_the_replacements_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.callbacks+=ErrorWarmup", "--trainer.callbacks.error", "0.5"]
    words += ["--trainer.callbacks.factor", "0.2", "--trainer.callbacks.max_iterations", "7"]
    (callback,) = resolved(capsys, "--config", DIGITS, *words)["trainer"]["callbacks"]
    assert callback["init_args"] == {"error": 0.5, "factor": 0.2, "max_iterations": 7}
    photos = ["--data", "ImageFolder", "--model.backbone", "resnet18", "--data.cache", "true"]
    assert resolved(capsys, *photos)["data"]["init_args"]["cache"] is True


# ------------------------------------------------------------------------------------ the warm-up by training error

WARMUP = "{warmup_error: 0.5, warmup_share: 0.2, warmup_limit: 70}"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"model: {{schedule: {WARMUP}}}", ["ErrorWarmup"]),
        (f"model: {{init_args: {{schedule: {WARMUP}}}}}", ["ErrorWarmup"]),
        (f"model: {{schedule: {WARMUP}}}\ntrainer: {{callbacks: null}}", ["ErrorWarmup"]),
        (f"model: {{schedule: {WARMUP}}}\ntrainer: {{callbacks: [Freeze]}}", ["Freeze", "ErrorWarmup"]),
        (f"model: {{schedule: {WARMUP}}}\ntrainer: {{callbacks: {{class_path: Freeze}}}}", ["Freeze", "ErrorWarmup"]),
        (f"model: {{schedule: {WARMUP}}}\ntrainer: {{callbacks+: [Freeze]}}", ["Freeze", "ErrorWarmup"]),
    ],
)
def test_the_warm_up_of_a_file_becomes_a_callback(
    text: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("old.yaml").write_text(text)
    config = resolved(capsys, "--config", DIGITS, "--config", "old.yaml")
    assert [class_name(each) for each in config["trainer"]["callbacks"]] == names
    assert config["trainer"]["callbacks"][-1]["init_args"] == {"error": 0.5, "factor": 0.2, "max_iterations": 70}
    schedule = config["model"]["init_args"]["schedule"]
    assert schedule["warmup"] == 3 and not [key for key in schedule if key.startswith("warmup_")]


def test_the_warm_up_of_an_overlay_keeps_the_callbacks_below(capsys: pytest.CaptureFixture[str]) -> None:
    Path("below.yaml").write_text("trainer: {callbacks: [Freeze]}")
    Path("over.yaml").write_text("model: {schedule: {warmup_error: 0.5}}")
    config = resolved(capsys, "--config", DIGITS, "--config", "below.yaml", "--config", "over.yaml")
    assert [class_name(each) for each in config["trainer"]["callbacks"]] == ["Freeze", "ErrorWarmup"]


def test_a_configuration_is_not_changed_in_place() -> None:
    config = {"model": {"schedule": {"warmup_error": 0.5}}, "keep_memory": True}
    assert upgrade_config(config, "a.yaml") != config
    assert config == {"model": {"schedule": {"warmup_error": 0.5}}, "keep_memory": True}


# ------------------------------------------------------------------------------------ checkpoints


def spoil(checkpoint: dict[str, Any]) -> None:
    """Values of options that are gone."""
    config = checkpoint["resnet_pl"]["config"]
    config["keep_memory"] = False
    config["data"]["init_args"]["decode"] = "auto"
    config["data"]["class_path"] = "resnet_pl.data.gone.Digits"
    for model in (config["model"], checkpoint["hyper_parameters"]):
        model["on_bad_loss"] = "skip"
        model["backbone"]["class_path"] = "resnet_pl.models.gone.ResNet"


def strip(checkpoint: dict[str, Any]) -> None:
    """Without what the first of the earlier versions did not have yet; with something that is not known here."""
    story = checkpoint["resnet_pl"]
    added = [(checkpoint, "exact_resume"), (story, "versions"), (story["data"], "class_names")]
    added += [(story["config"], key) for key in ("tf32", "keep_memory", "checkpoint")]
    added += [(story["config"]["data"]["init_args"], "mix")]
    for model in (story["config"]["model"], checkpoint["hyper_parameters"]):
        added += [(model, "compile"), (model, "on_bad_loss")]
        added += [(model["schedule"], f"warmup_{key}") for key in ("error", "share", "limit")]
    for holder, key in added:
        holder.pop(key, None)
    story["data"]["weather"] = "fine"


@pytest.mark.parametrize("change", [spoil, strip])
@pytest.mark.parametrize("subcommand", ["test", "predict", "fit"])
def test_a_checkpoint_of_an_earlier_version_is_used(
    subcommand: str, change: Callable[[dict[str, Any]], None], place: Path
) -> None:
    checkpoint = torch.load(OLD, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, "old.ckpt")
    assert main([subcommand, "--ckpt_path", "old.ckpt"]) == 0
    if subcommand == "test":
        assert read_results(Path("results.json"))["images"] == 360
    if subcommand == "fit":
        last = torch.load("runs/old/version_0/checkpoints/last.ckpt", weights_only=True)
        assert (last["resnet_pl"]["format"], last["global_step"]) == (3, 60)


def test_the_warm_up_of_a_checkpoint_goes_on(place: Path) -> None:
    checkpoint = torch.load(OLD, weights_only=True)
    errors = [0.9] * 30
    for model in (checkpoint["resnet_pl"]["config"]["model"], checkpoint["hyper_parameters"]):
        model["schedule"] |= {"warmup_error": 0.05, "warmup_share": 0.5, "warmup_limit": 4000, "warmup": 0.0}
    checkpoint["lr_schedulers"][0]["errors"] = errors
    torch.save(checkpoint, "old.ckpt")
    assert main(["fit", "--ckpt_path", "old.ckpt"]) == 0
    last = torch.load("runs/old/version_0/checkpoints/last.ckpt", weights_only=True)
    found = last["callbacks"]["ErrorWarmup"]["errors"]
    assert last["global_step"] == len(found) == 60 and found[:30] == errors
    config = yaml.safe_load(Path("runs/old/version_0/config.yaml").read_text())
    (callback,) = config["trainer"]["callbacks"]
    assert callback["init_args"] == {"error": 0.05, "factor": 0.5, "max_iterations": 4000}
