"""The subcommand `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from resnet_pl.callbacks import GracefulStop, PredictionWriter
from resnet_pl.callbacks.features_npz import FeatureWriter
from resnet_pl.callbacks.heatmap_files import HeatmapWriter
from resnet_pl.cli.averaging import add_averaging_arguments, build_ensemble, check_kinds, other_members, set_views
from resnet_pl.cli.evaluate import OUTPUT, check_output, prepare_split
from resnet_pl.data import ImageDataModule
from resnet_pl.data.bad_images import printable_path
from resnet_pl.data.image_files import find_images
from resnet_pl.reports.tables import image_id, predictions_table, print_report, write_submission
from resnet_pl.run_dir import UNKNOWN
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, counted, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

IMAGES = (
    "Image files, folders, glob patterns, or .txt files with one of these a line, relative to the working folder; the"
    " test set by default."
)
SUBMISSION = (
    "CSV file with the columns id and label, as for Kaggle: file name without folder and extension, predicted class."
)
LAST = "last"  # the value of --heatmaps without one
HEATMAPS = (
    "Write a heat map for each image into heatmaps/, and show them on the contact sheet: the evidence for the predicted"
    " class (Grad-CAM) in the last feature map, or in that of LAYER, such as layer3."
)
FEATURES = "Write features.npz: the features of each image before the classifier head, file names and labels."


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of `predict`."""
    parser.add_argument("--output", type=str | None, default=None, help=OUTPUT)
    parser.add_argument("--images", type=str, nargs="+", help=IMAGES)
    parser.add_argument("--top_k", type=PositiveInt, default=5, help="Number of classes reported per image.")
    add_averaging_arguments(parser)
    parser.add_argument("--submission", type=str | None, default=None, help=SUBMISSION)
    parser.add_argument("--heatmaps", type=str | None, nargs="?", const=LAST, metavar="LAYER", help=HEATMAPS)
    parser.add_argument("--features", action="store_true", help=FEATURES)


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns the callbacks that write the results, and the one that handles signals."""
    layer, heatmaps = cli.config["heatmaps"], None
    if layer is not None:
        heatmaps = HeatmapWriter(cli.output / "heatmaps", None if layer == LAST else layer)
    features = [FeatureWriter(cli.output / "features.npz")] if cli.config["features"] else []
    return [GracefulStop(cli.output), *features, PredictionWriter(cli.output, cli.config["top_k"], heatmaps=heatmaps)]


def run(cli: ProjectCLI) -> None:
    """Classifies images, prints and writes the predictions."""
    settings, data, files = cli.config, cli.datamodule, None
    check_kinds(settings, cli.model, data, "heatmaps", "features")
    _check_one_view(settings)
    check_output(cli.output)
    if settings["images"]:
        if not isinstance(data, ImageDataModule):
            raise UserError(
                f"--images: {type(data).__name__} cannot read image files\nderive it from ImageFolder, "
                "or remove the option to predict on its own `predict_dataloader`"
            )
        files = find_images(settings["images"])
        data.set_predict_files(files)
    else:
        prepare_split(cli, "test")
    if settings["submission"]:
        _check_ids(data)
    others = other_members(cli, files)
    for own in (data, *(member for *_, member in others)):
        set_views(settings, own)
    model, data = build_ensemble(cli, others, None if files else "test") if others else (cli.model, data)
    cli.trainer.predict(model, datamodule=data, return_predictions=False, weights_only=True)
    run_on_rank_zero(_report, cli)


def _check_one_view(settings: Namespace) -> None:
    """Raises UserError if heat maps or features are requested of several views or networks."""
    for key in ("heatmaps", "features"):
        for other in ("tta", "ensemble"):
            if settings[key] and settings[other] not in (None, "none"):
                raise UserError(f"--{key} is for one view and one checkpoint\nremove --{other}")


def _check_ids(data: LightningDataModule) -> None:
    """Raises UserError if the images have no names, or if two images have the same id in a submission."""
    if not isinstance(data, ImageDataModule):
        raise UserError(f"--submission: the images of {type(data).__name__} have no names\nuse predictions.csv")
    first: dict[str, str] = {}
    for name in data.predict_images.names:
        if (other := first.setdefault(image_id(name), name)) is not name:
            raise UserError(
                f"--submission: {printable_path(other)} and {printable_path(name)} have the same id "
                f"{image_id(name)!r}\nname the images to submit with --images FOLDER"
            )


def _report(cli: ProjectCLI) -> None:
    writer, submission = cli.callback(PredictionWriter), cli.config["submission"]
    assert writer is not None  # added by `callbacks`
    if submission and not writer.outputs:
        write_submission(writer.rows, Path(submission))
    if writer.outputs:
        print(f"Saved to {cli.output / 'predictions.pt'}: what predict_step returned, one item per batch")
        if submission:
            raise UserError(
                "--submission: predict_step returns no `probabilities`\nreturn a dictionary with them, (N, K)"
            )
        return
    # Three classes fit on a line of the terminal. The file has all `top_k`.
    print_report(predictions_table(writer.rows, min(3, cli.config["top_k"])))
    images = getattr(cli.datamodule, "predict_images", None)
    if images is not None and (missing := len(images) - len(writer.rows)):
        print(f"note: {missing:,} of {len(images):,} images are not among the predictions")
    if unknown := sum(row.get("is_unknown", False) for row in writer.rows):
        below = f"{UNKNOWN}: the probability is below {cli.model.confidence_threshold:.4f}"
        print(
            f"note: {unknown:,} of {counted(len(writer.rows), 'prediction')} {'is' if unknown == 1 else 'are'} {below}"
        )
    files = [str(cli.output / "predictions.csv"), *([submission] if submission else [])]
    files += [str(cli.output / "features.npz")] if cli.config["features"] else []
    files += [f"{cli.output / 'heatmaps'}/"] if cli.config["heatmaps"] and writer.rows else []
    if writer.explained:
        print(f"note: heat maps of {writer.explained}")
    if writer.heatmaps is not None and (older := writer.heatmaps.older):
        print(f"note: {cli.output / 'heatmaps'}/ also has {counted(older, 'heat map')} of earlier predictions")
    sheet = f" and {cli.output / 'contact_sheet.png'} ({writer.order})" if writer.order else ""
    print(f"Saved to {', '.join(files)}{sheet}")
