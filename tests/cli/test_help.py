"""Help: the page of a subcommand, the page of a class, and the list of names that an option accepts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_pl import ImageClassifier
from resnet_pl.cli.arguments import plain_sentence
from tests.cli.commands import PROJECT, printed, refused


class Other(ImageClassifier):
    """Another model.

    Args:
        width: Unused.
    """

    def __init__(self, width: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@pytest.fixture(autouse=True)
def wide(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 110 columns, in an empty working folder."""
    monkeypatch.setenv("COLUMNS", "110")


def options(page: str) -> set[str]:
    """The long options that a page lists."""
    return set(re.findall(r"^  (?:-\w[ \w]*, )?--([\w.]+)", page, re.MULTILINE))


def leaves(config: dict[str, Any], prefix: str = "") -> set[str]:
    """The dotted keys of a configuration, with classes as values."""
    keys = set()
    for key, value in config.items():
        nested = isinstance(value, dict) and "class_path" not in value
        keys |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}"}
    return keys


@pytest.mark.parametrize(
    ("subcommand", "sentence", "own"),
    [
        ("fit", "Trains a model and validates it after every epoch.", "checkpoint.every_n_steps"),
        ("doctor", "Measures a training for about a minute", "seconds"),
        ("validate", "Evaluates a checkpoint on the validation set.", "tta"),
        ("test", "Evaluates a checkpoint on the test set.", "tta"),
        ("predict", "Classifies images with a checkpoint", "images"),
    ],
)
def test_the_page_of_a_subcommand(subcommand: str, sentence: str, own: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, subcommand, "--help")
    assert page.split("\n\n")[1].startswith(sentence)
    expected = {own, "config", "ckpt_path", "name", "seed_everything", "trainer.max_epochs", "model.backbone"}
    assert expected | {"model.schedule.shape", "data", "data.batch_size", "data.val_split"} <= options(page)
    assert "--data.help ImageFolder" in page and len(page) < 30_000
    # Classes of the implementation, markup, and Python's notation of types.
    assert not re.search(r"subclass|resnet_pl\._|tests\.|torch\.nn\.|:\w+:`|``|<class", page)


def test_every_option_of_a_page_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "resnet_pl.ImageDataModule", "--model.backbone", "resnet18"]
    config = yaml.safe_load(printed(capsys, "fit", *words, "--print_config"))
    config["model"], config["data"] = config["model"]["init_args"], config["data"]["init_args"]
    groups = {"model", "model.schedule", "data", "trainer", "dashboard", "checkpoint"}
    of_the_page = options(printed(capsys, "fit", "--help")) - groups - {"help", "config", "print_config", "debug"}
    assert of_the_page == leaves(config)


def test_help_texts_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "fit", "--help")
    entries = re.split(r"\n  -", page.split("\ntrainer (")[0])[1:]
    texts = [" ".join(re.split(r"\s{2,}", entry.split("\n\n")[0], maxsplit=1)[1].split()) for entry in entries]
    assert len(texts) > 40
    for text in texts:
        assert re.match(r"[A-Z`(]", text) and re.search(r"[.)]$", text), text


def test_the_page_of_a_named_model_or_data_module(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "fit", "--model", f"{__name__}.Other", "--data", "ImageFolder", "--help")
    assert {"model.width", "model.label_smoothing", "data.root", "data.crop", "data.batch_size"} <= options(page)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--data.help", "ImageFolder"], ["data.root", "data.crop", "data.batch_size"]),
        (["--data.help=Digits"], ["data.batch_size", "data.val_split"]),
        (["--data", "ImageFolder", "--data.crop.help", "RandomResizedCrop"], ["data.crop.min_area"]),
        (["--data.init_args.crop.help", "RandomResizedCrop"], ["data.crop.min_area"]),
        (["--model.help", f"{__name__}.Other"], ["model.width", "model.label_smoothing"]),
        (["--model.backbone.help", "resnet50"], ["model.backbone.num_classes", "model.backbone.stem"]),
        (["--model.backbone.help", "resnet_pl.models.ResNet"], ["model.backbone.block", "model.backbone.layers"]),
        (["--model.backbone.help", "torchvision.models.vgg11"], ["model.backbone.num_classes"]),
        (["--model.optimizer.help", "Adam"], ["model.optimizer.betas", "model.optimizer.weight_decay"]),
        (["--model.loss.help", "CrossEntropyLoss"], ["model.loss.label_smoothing"]),
        (["--model.loss.help", "AsymmetricLoss"], ["model.loss.gamma_negative"]),
        (["--model.lr_scheduler.help", "OneCycleLR"], ["model.lr_scheduler.max_lr"]),
        (["--trainer.callbacks.help", "Freeze"], ["trainer.callbacks.last_frozen"]),
        (["--trainer.callbacks.help", "EarlyStopping"], ["trainer.callbacks.monitor"]),
        (["--trainer.strategy.help", "DDPStrategy"], ["trainer.strategy.start_method"]),
    ],
)
def test_the_page_of_a_class(argv: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "fit", *argv)
    assert set(expected) <= options(page) and page.startswith(f"usage: --{expected[0].rpartition('.')[0]} ")
    # Each option is one of the class.
    assert all(option.startswith(expected[0].rpartition(".")[0] + ".") for option in options(page))


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("data", ["CIFAR10", "CIFAR100", "Digits", "Flowers", "ImageFolder", "ImageNet"]),
        ("data.crop", ["RandomResizedCrop", "ResizeCenterCrop", "ScaleCrop"]),
        ("data.batch_transforms", ["Cutout", "RandomFlip"]),
        ("data.mix", ["CutMix", "MixUp"]),
        ("data.transforms", ["torchvision.transforms.v2.NAME", "TrivialAugmentWide"]),
        ("model", ["ImageClassifier"]),
        ("model.backbone", ["resnet50", "cifar_resnet", "torchvision.models.NAME", "convnext_tiny"]),
        ("model.loss", ["CrossEntropyLoss", "FocalLoss"]),
        ("model.lr_scheduler", ["LRSequence", "OneCycleLR"]),
        ("model.optimizer", ["AdamW", "SGD"]),
        ("trainer.callbacks", ["Freeze", "EarlyStopping"]),
        ("trainer.logger", ["CSVLogger"]),
        ("trainer.profiler", ["SimpleProfiler"]),
        ("trainer.strategy", ["DDPStrategy"]),
        ("trainer.accelerator", ["CUDAAccelerator"]),
        ("trainer.plugins", ["MixedPrecision"]),
    ],
)
def test_the_names_that_an_option_accepts(key: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "ImageFolder"] if key.startswith("data.") else []
    page = printed(capsys, "fit", *words, f"--{key}.help")
    assert all(re.search(rf"\b{re.escape(name)}\b", page) for name in names) and f"--{key}.help NAME" in page
    assert "package.module.Class" in page and not re.search(r"\b(Tensor|Image)DataModule|NullProfiler", page)


def test_help_for_an_unknown_class_or_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ImageFolder?" in refused(capsys, "fit", "--data.help", "ImageFoldr")
    assert "--model.backbone.help" in refused(capsys, "fit", "--model.backbone.help", "no.such")
    assert "--nothing.help" in refused(capsys, "fit", "--nothing.help", "x")


def test_help_needs_no_data_and_no_checkpoint(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--data" in printed(capsys, "test", "--config", PROJECT / "configs/imagenet.yaml", "--help")
    assert "--data.root" in printed(capsys, "test", "--data.help", "ImageNet")
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a :class:`~torch.nn.Module` or :func:`f`", "A Module or f."),
        ("see `the docs <https://x.org>`_ and ``None``", "See the docs and None."),
        ("rate (default: 1e-3)", "Rate."),
        ("How often. Default: ``None``.", "How often."),
        ("`cosine` decays", "`cosine` decays."),
    ],
)
def test_a_help_text_becomes_a_sentence(text: str, plain: str) -> None:
    assert plain_sentence(text, repeats_default=True) == plain
