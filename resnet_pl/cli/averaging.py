"""The options `--tta`, `--scales` and `--ensemble`: average over views of an image, and over several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from resnet_pl import run_dir
from resnet_pl.analysis.ensemble import Ensemble, EnsembleData, check_members
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.data.crops import CenterCrop, ResizeCenterCrop
from resnet_pl.data.views import MultiScale, WithHorizontalFlip, five_crops, single
from resnet_pl.load import load_run, restore
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, rank_zero_print

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

# Name, model and data of a member of an ensemble.
Member = tuple[str, ImageClassifier, ImageDataModule]


def add_averaging_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options."""
    tta = "Test-time augmentation: average over the image and its horizontal flip, ten crops, or several image sizes."
    parser.add_argument("--tta", type=Literal["none", "flip", "10-crop", "multi-scale"], default="none", help=tta)
    scales = "Shorter sides for multi-scale, pixels; 224 256 384 480 640 in proportion to the image size by default."
    parser.add_argument("--scales", type=PositiveInt, nargs="+", help=scales)
    ensemble = "Checkpoints whose class probabilities are averaged."
    parser.add_argument("--ensemble", type=str, nargs="+", help=ensemble)


def check_kinds(settings: Namespace, model: LightningModule, data: LightningDataModule, *keys: str) -> None:
    """Raises UserError if `--tta`, `--ensemble` or one of `keys` is given for a module or data of another kind."""
    used = [f"--{key}" for key in ("ensemble", "tta", *keys) if settings[key] not in (None, "none", False)]
    if used and not (isinstance(model, ImageClassifier) and isinstance(data, ImageDataModule)):
        raise UserError(
            f"{used[0]} needs an ImageClassifier and an ImageDataModule\n"
            "remove the option; with an exported file, use its checkpoint"
        )


def set_views(settings: Namespace, data: LightningDataModule) -> None:
    """Applies `--tta` and `--scales` to the data; raises UserError if they contradict each other or the image size."""
    if settings["scales"] and settings["tta"] != "multi-scale":
        raise UserError("--scales needs --tta multi-scale\nadd it, or remove --scales")
    if not isinstance(data, ImageDataModule):
        return
    size, tta = data.image_size, settings["tta"]
    if tta not in ("none", "flip") and not isinstance(data.eval_crop, (ResizeCenterCrop, CenterCrop)):
        name = type(data.eval_crop).__name__
        raise UserError(f"--tta {tta}: the network was trained on {name} images, not on parts of them\nuse --tta flip")
    if tta == "multi-scale":
        if not isinstance(size, int):
            raise UserError(f"--tta multi-scale needs a square image size, this is {size}\nuse --tta 10-crop or flip")
        data.views = MultiScale(settings["scales"])
        if (least := min(data.views.scales_for(size))) < size:
            raise UserError(f"--scales: {least} is smaller than the image size {size}\ngive {size} or more")
    elif tta == "flip":
        data.views = WithHorizontalFlip(partial(single, crop=data.eval_crop))
    else:
        data.views = WithHorizontalFlip(five_crops) if tta == "10-crop" else None


def other_members(cli: ProjectCLI, files: Sequence[Path] | None = None) -> list[Member]:
    """Returns the members of the ensemble after the first, with the data options of the command line.

    Args:
        cli: the command, which has built the first member.
        files: images to predict on, in place of the splits of the data.
    """
    words, options = [*cli.command_line.options, "--"], []
    for word, following in pairwise(words):
        if word.startswith("--data"):
            options += [word] if "=" in word or following.startswith("--") else [word, following]
    members = []
    for path in cli.config["ensemble"] or []:
        file = run_dir.find_checkpoint(path)
        if (first := cli.command_line.checkpoint) is None or file.resolve() != first.resolve():
            model, data = load_run(file, options=options, files=files)
            data.trainer = cli.trainer
            members.append((path, model, data))
    return members


def build_ensemble(cli: ProjectCLI, others: Sequence[Member], split: str | None) -> tuple[Ensemble, EnsembleData]:
    """Returns the model and the data of an ensemble: those of the command, with its weights, and the other members.

    Args:
        cli: the command.
        others: the other members.
        split: the split to evaluate on; None for files.
    """
    first: Any = cli.model
    assert cli.checkpoint is not None  # the first member's
    members = [(str(cli.command_line.checkpoint), first, cli.datamodule), *others]
    check_members(members, split)
    restore(first, cli.checkpoint)
    cli.datamodule.trainer = cli.trainer
    cli.trainer.ckpt_path = None
    networks = [network for _, network, _ in members]
    if any(network.temperature != 1 or network.confidence_threshold is not None for network in networks):
        temperatures = ", ".join(f"{network.temperature:.4g}" for network in networks)
        rank_zero_print(
            f"note: the probabilities of each model are calibrated (temperatures {temperatures}), not their mean; "
            "no confidence threshold is used"
        )
    return Ensemble(networks), EnsembleData([data for *_, data in members])
