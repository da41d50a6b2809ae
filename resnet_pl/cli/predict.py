"""The subcommand `predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

from resnet_pl.callbacks import GracefulStop, PredictionWriter
from resnet_pl.cli.evaluate import OUTPUT, prepare_split
from resnet_pl.data import ImageDataModule
from resnet_pl.data.decode import find_images
from resnet_pl.reports.tables import predictions_table, print_report
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

IMAGES = "Image files, folders or glob patterns; the test set by default."


def add_arguments(parser: LightningArgumentParser, name: str) -> None:
    """Adds the options of `predict`."""
    parser.add_argument("--output", type=str | None, default=None, help=OUTPUT)
    parser.add_argument("--images", type=str, nargs="+", help=IMAGES)
    parser.add_argument("--top_k", type=PositiveInt, default=5, help="Number of classes reported per image.")


def loggers(cli: ProjectCLI, given: Any) -> list[Logger]:
    """Returns a stand-in: modules may use `self.logger` in all stages."""
    return [DummyLogger()]


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns the callback that writes the predictions, and the one that handles signals."""
    return [GracefulStop(cli.output), PredictionWriter(cli.output, cli.config["top_k"])]


def run(cli: ProjectCLI) -> None:
    """Classifies images, prints and writes the predictions."""
    if images := cli.config["images"]:
        if not isinstance(cli.datamodule, ImageDataModule):
            raise UserError(
                f"--images: {type(cli.datamodule).__name__} cannot read image files\nderive it from ImageFolder, "
                "or remove the option to predict on its own `predict_dataloader`"
            )
        cli.datamodule.set_predict_files(find_images(images))
    else:
        prepare_split(cli, "test")
    cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False, weights_only=True)
    run_on_rank_zero(_report, cli)


def _report(cli: ProjectCLI) -> None:
    writer = cli.callback(PredictionWriter)
    assert writer is not None  # added by `callbacks`
    if writer.outputs:
        print(f"Saved to {cli.output / 'predictions.pt'}: what predict_step returned, one item per batch")
        return
    # Three classes fit on a line of the terminal. The file has all `top_k`.
    print_report(predictions_table(writer.rows, min(3, cli.config["top_k"])))
    if not isinstance(cli.datamodule, ImageDataModule):
        print(f"Saved to {cli.output / 'predictions.csv'}")
        return
    drawn = f" (the first {writer.sheet} of {len(writer.rows):,})" if len(writer.rows) > writer.sheet else ""
    print(f"Saved to {cli.output / 'predictions.csv'} and {cli.output / 'contact_sheet.png'}{drawn}")
