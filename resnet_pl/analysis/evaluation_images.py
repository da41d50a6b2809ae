"""The images that a study evaluates a checkpoint on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from resnet_pl.analysis.layers import LoadedRun
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.samplers import ShardedEpochSampler
from resnet_pl.types import PositiveInt
from resnet_pl.utils import progress, rank_zero_print


def add_image_arguments(parser: ArgumentParser) -> None:
    """Adds the options that select the images of an evaluation."""
    split = "split to measure on; default: val if there is one, else test"
    parser.add_argument("--split", choices=["train", "val", "test"], help=split)
    number = "number of images, evenly spread over the split; default: all"
    parser.add_argument("--images", type=PositiveInt | None, default=None, help=number)


@dataclass(frozen=True)
class EvaluationImages:
    """Images with the transforms of the evaluation.

    Attributes:
        described: how many there are, and of which split.
        batches: yields batches of images `(N, C, H, W)` and labels `(N,)` on the model's device; the argument is the
            text of the progress bar.
    """

    described: str
    batches: Callable[[str], Iterator[tuple[Tensor, Tensor]]]


def evaluation_images(loaded: LoadedRun, settings: Namespace) -> EvaluationImages:
    """Returns the images that the options of `add_image_arguments` select, and prints which ones."""
    data, name = loaded.data, loaded.run.model
    split = settings.split or ("val" if "val" in data.splits else "test")
    images: Any = data.split(split)
    count = min(settings.images or len(images), len(images))
    subset = "" if count == len(images) else f"{count:,} of "
    described = f"{subset}{len(images):,} images, {data.describe_split(split)}"
    rank_zero_print(f"{name}: {described}; {loaded.run.path}")
    if isinstance(images, ImageFileDataset):
        images = images.for_evaluation(data.eval_crop, data.image_size)
    # Evenly spread: files may be sorted by class.
    chosen = torch.arange(count) * len(images) // count

    def batches(text: str) -> Iterator[tuple[Tensor, Tensor]]:
        loader = data.loader(images, ShardedEpochSampler(len(images)), data.eval_batch_size)
        with progress(text, count) as advance:
            for batch, labels, indices in loader.read(chosen.split(data.eval_batch_size), epoch=0):
                if len(indices):
                    assert isinstance(batch, Tensor)  # lists of views occur only with test-time augmentation
                    yield batch.to(loaded.model.device), labels.to(loaded.model.device)
                    advance(len(batch))

    return EvaluationImages(described, batches)
