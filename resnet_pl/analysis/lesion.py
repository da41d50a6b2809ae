"""Delete residual blocks of a trained network and measure the error (arXiv:1605.06431, Figures 3 to 5).

A deleted block of a residual network is its shortcut alone, with the ReLU after it. In a plain network the block of the
same place is deleted: its convolutions, BatchNorm and ReLU. This is not possible where it changes the dimensions; such
blocks stay, and are named. The error is that of a single view. The results are saved as lesion.csv and lesion.png.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn
from torchvision.models import resnet as torchvision_resnet

from resnet_pl.analysis.evaluation_images import EvaluationImages, add_image_arguments, evaluation_images
from resnet_pl.analysis.layers import (
    LoadedRun,
    add_checkpoint_arguments,
    load_all,
    model_labels,
)
from resnet_pl.classifier import ImageClassifier
from resnet_pl.models.resnet import BasicBlock, Bottleneck
from resnet_pl.reports.plots import MUTED, add_legend, new_figure, render, save_png, style_axes
from resnet_pl.reports.run_reader import Run
from resnet_pl.reports.tables import write_csv
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TORCHVISION_BLOCKS = (torchvision_resnet.BasicBlock, torchvision_resnet.Bottleneck)


@dataclass(frozen=True)
class Lesions:
    """Errors of one network without some of its blocks.

    Attributes:
        run: the run; its `path` is the checkpoint.
        step: optimizer steps of the checkpoint.
        measured_on: description of the images.
        blocks: names of all blocks, in order of execution.
        errors: top-1 error (%) by the names of the deleted blocks; `()` for the complete network.
    """

    run: Run
    step: int
    measured_on: str
    blocks: list[str]
    errors: dict[tuple[str, ...], float]

    def by_count(self) -> dict[int, list[float]]:
        """Returns the errors by the number of deleted blocks."""
        groups: dict[int, list[float]] = {}
        for names, error in self.errors.items():
            groups.setdefault(len(names), []).append(error)
        return groups


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `paper lesion`."""
    add_checkpoint_arguments(parser)
    add_image_arguments(parser)
    counts = "numbers of blocks that are deleted together; each block is always also deleted alone"
    parser.add_argument("--counts", type=PositiveInt, nargs="*", default=[2, 3, 5, 8], help=counts)
    draws = "random choices of the blocks for each of these numbers"
    parser.add_argument("--draws", type=PositiveInt, default=10, help=draws)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choices")


def run(settings: Namespace) -> None:
    """Runs the command."""
    measured = [_measure(loaded, settings) for loaded in load_all(settings)]
    table, plot = (Path(settings.output) / f"lesion.{kind}" for kind in ("csv", "png"))
    _write(measured, table)
    save_png(plot_lesions(measured), plot)
    print(f"Saved to {table} and {plot}")


def _measure(loaded: LoadedRun, settings: Namespace) -> Lesions:
    model, name = loaded.model, loaded.run.model
    if model.hparams["multi_label"]:
        raise UserError(f"{loaded.run.path}: images with several classes have no top-1 error\ngive another checkpoint")
    rests, kept = removable_blocks(model.backbone)
    if not rests:
        raise UserError(
            f"{loaded.run.path}: {name} has no block that can be deleted\n"
            "give the checkpoint of a ResNet or of a plain network of this project, or of a ResNet of torchvision"
        )
    images = evaluation_images(loaded, settings)
    if kept:
        print(f"{name}: not deleted, because they change the dimensions: {', '.join(kept)}")
    errors = {}
    for names in choose(list(rests), settings.counts, settings.draws, settings.seed):
        with without(model.backbone, {each: rests[each] for each in names}):
            errors[names] = top1_error(model, images, f"{name}, {len(names)} deleted")
    blocks = [each for each, _ in _blocks(model.backbone)]
    single = [error for names, error in errors.items() if len(names) == 1]
    print(
        f"{name}: error {errors[()]:.2f}%; with one block deleted {np.median(single):.2f}% in the median, "
        f"{min(single):.2f}% to {max(single):.2f}%"
    )
    return Lesions(loaded.run, loaded.step, images.described, blocks, errors)


def _blocks(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in backbone.named_modules():
        if isinstance(module, (BasicBlock, Bottleneck, *TORCHVISION_BLOCKS)):
            yield name, module


def removable_blocks(backbone: nn.Module) -> tuple[dict[str, nn.Module], list[str]]:
    """Returns what remains of each block when it is deleted, by its name, and the names of blocks that must stay."""
    rests: dict[str, nn.Module] = {}
    kept = []
    for name, block in _blocks(backbone):
        shortcut: Any = block.downsample
        if isinstance(block, TORCHVISION_BLOCKS):  # None is the identity there
            shortcut = shortcut or nn.Identity()
        if shortcut is not None:
            # Not in place: the shortcut can return its input.
            rests[name] = nn.Sequential(shortcut, nn.ReLU())
        elif _keeps_dimensions(block):
            rests[name] = nn.Identity()
        else:
            kept.append(name)
    return rests, kept


def _keeps_dimensions(block: nn.Module) -> bool:
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    strides = {stride for convolution in convolutions for stride in convolution.stride}
    return strides == {1} and convolutions[0].in_channels == convolutions[-1].out_channels


def choose(blocks: Sequence[str], counts: Sequence[int], draws: int, seed: int) -> list[tuple[str, ...]]:
    """Returns the sets of blocks to delete: none, each one alone, and random sets of other sizes.

    The sets of a size depend on the seed and on the number of blocks only. No set occurs twice; if there are at most
    `draws` sets of a size, all are returned.
    """
    chosen = [(), *((name,) for name in blocks)]
    for count in sorted({*counts} - {1}):
        if comb(len(blocks), count) <= draws:
            chosen += combinations(blocks, count)
            continue
        rng, drawn = np.random.default_rng([seed, count]), dict[tuple[int, ...], None]()
        while len(drawn) < draws:
            drawn[tuple(sorted(rng.choice(len(blocks), count, replace=False).tolist()))] = None
        chosen += [tuple(blocks[index] for index in indices) for indices in drawn]
    return chosen


@contextmanager
def without(backbone: nn.Module, rests: dict[str, nn.Module]) -> Iterator[None]:
    """Replaces blocks by what remains of them inside the context."""
    blocks = {name: backbone.get_submodule(name) for name in rests}
    try:
        for name, rest in rests.items():
            backbone.set_submodule(name, rest)
        yield
    finally:
        for name, block in blocks.items():
            backbone.set_submodule(name, block)


@torch.no_grad()
def top1_error(model: ImageClassifier, images: EvaluationImages, text: str) -> float:
    """Returns the top-1 error (%) of a model in evaluation mode."""
    model.eval()
    wrong = count = 0
    for batch, labels in images.batches(text):
        wrong += int((model(batch).argmax(1) != labels).sum())
        count += len(labels)
    return 100 * wrong / count


def _write(measured: Sequence[Lesions], path: Path) -> None:
    rows = [
        [each.run.model, each.run.path, each.step, each.measured_on, len(names), " ".join(names), f"{error:.6g}"]
        for each in measured
        for names, error in each.errors.items()
    ]
    write_csv(path, ["model", "checkpoint", "step", "measured_on", "deleted", "blocks", "error"], rows)


def plot_lesions(measured: Sequence[Lesions]) -> np.ndarray:
    """Plots the error without each block, and over the number of deleted blocks; plain networks are dashed.

    Returns:
        The plot `(H, W, 3)` uint8.
    """
    figure = new_figure(7.2, 6.8)
    above, below = figure.subplots(2, sharey=True)
    for index, (each, label) in enumerate(zip(measured, model_labels([one.run for one in measured]), strict=True)):
        _draw(above, below, each, label, f"C{index}")
    names = max((each.blocks for each in measured), key=len)
    above.set_xticks(range(1, len(names) + 1, 1 + len(names) // 20))
    style_axes(above, "deleted block", "top-1 error (%)")
    style_axes(below, "number of deleted blocks", "top-1 error (%)")
    below.xaxis.get_major_locator().set_params(integer=True)
    above.set_ylim(0, 100)
    above.set_title("without one block; dotted: the complete network", loc="left", fontsize=10, color=MUTED)
    below.set_title("mean, and range over the choices of blocks", loc="left", fontsize=10, color=MUTED)
    add_legend(below, fontsize=9)
    return render(figure)


def _draw(above: Axes, below: Axes, each: Lesions, label: str, color: str) -> None:
    style = {"color": color, "linewidth": 1.6, "marker": "o", "markersize": 4}
    style |= {"linestyle": (0, (4, 1.5))} if each.run.plain else {}
    # A gap where a block cannot be deleted.
    single = [each.errors.get((name,), np.nan) for name in each.blocks]
    above.plot(range(1, len(single) + 1), single, **style)
    above.axhline(each.errors[()], color=color, linewidth=1, linestyle=":")
    groups = each.by_count()
    below.plot(list(groups), [np.mean(group) for group in groups.values()], label=label, **style)
    lowest, highest = ([limit(group) for group in groups.values()] for limit in (min, max))
    below.fill_between(list(groups), lowest, highest, color=color, alpha=0.15, linewidth=0)
