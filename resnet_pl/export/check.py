"""Compares an exported network with its checkpoint on images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.decode import read_image
from resnet_pl.export.exported import Runner
from resnet_pl.export.inference import InferenceModel
from resnet_pl.reports.tables import numbers_table
from resnet_pl.utils import progress

# A prediction must be the same if its margin exceeds this probability.
MARGIN = 0.02
# The largest and the mean difference of a probability that are accepted.
LARGEST, MEAN = 0.02, 1e-3


@dataclass
class Comparison:
    """The probabilities of a checkpoint and of an exported network for the same images.

    Attributes:
        expected: of the checkpoint, `(N, K)`.
        actual: of the exported network, `(N, K)`.
        labels: class of each image, `(N,)`, -1 if it is not known.
        thresholds: threshold of each class, `(K,)`; None if an image has one class.
    """

    expected: Tensor
    actual: Tensor
    labels: Tensor
    thresholds: Tensor | None = None

    @property
    def clear(self) -> Tensor:
        """Whether the checkpoint's decision is clear, `(N,)`; with thresholds each class is a decision, `(N, K)`."""
        if self.thresholds is not None:
            return (self.expected - self.thresholds).abs() > MARGIN
        best = self.expected.topk(min(2, self.expected.shape[1]))[0]
        return best[:, 0] - best[:, -1] > MARGIN

    @property
    def same(self) -> Tensor:
        """Whether the exported network decides like the checkpoint, in the shape of `clear`."""
        if self.thresholds is not None:
            return (self.expected >= self.thresholds) == (self.actual >= self.thresholds)
        return self.expected.argmax(1) == self.actual.argmax(1)

    def rows(self) -> list[tuple[str, str, str, bool]]:
        """Returns the measures: name, value, limit, and whether the value is within the limit."""
        difference, same = (self.expected - self.actual).abs(), self.same[self.clear]
        largest, mean = float(difference.max()), float(difference.mean())
        what = "predictions" if self.thresholds is None else "decisions per class"
        rows = [
            (f"equal {what}, margin > {MARGIN}", f"{int(same.sum()):,} of {len(same):,}", "all", bool(same.all())),
            ("largest difference of a probability", f"{largest:.2g}", f"{LARGEST}", largest <= LARGEST),
            ("mean difference of a probability", f"{mean:.2g}", f"{MEAN}", mean <= MEAN),
        ]
        if self.thresholds is None and bool((self.labels >= 0).any()):
            text = ", ".join(f"{each:.2%}" for each in self.accuracies())
            rows.append(("top-1 accuracy: checkpoint, file", text, "", True))
        return rows

    def accuracies(self) -> tuple[float, float]:
        """Returns the top-1 accuracy of the checkpoint and of the file, on the images whose class is known."""
        known = self.labels >= 0
        both = (each.argmax(1) == self.labels for each in (self.expected, self.actual))
        before, after = (float(right[known].double().mean()) for right in both)
        return before, after

    def table(self) -> Table:
        """Returns the measures as a table."""
        table = numbers_table(f"{len(self.expected):,} images", numbers=["value", "limit"])
        for name, value, limit, _ in self.rows():
            table.add_row(name, value, limit)
        return table

    def problem(self) -> str | None:
        """Returns the measures that exceed their limits; None if there are none."""
        return (
            "; ".join(f"{name}: {value}, limit {limit}" for name, value, limit, good in self.rows() if not good) or None
        )


@torch.no_grad()
def compare(
    network: InferenceModel, run: Runner, images: Any, prepare: Callable[[Tensor], Tensor], skip_bad: bool = False
) -> Comparison:
    """Classifies images with a checkpoint and with an exported network.

    Args:
        network: the network that was exported.
        run: runs the exported file.
        images: the images, a split of an `ImageDataModule`.
        prepare: preprocessing of the checkpoint: converts an image `(3, H, W)` uint8 to an input of the network.
        skip_bad: whether files that cannot be read are skipped.

    Raises:
        UserError: a file is not an image.
    """
    expected, actual, compared = [], [], []
    with progress("comparing", len(images)) as advance:
        for index, pixels in read_images(images, range(len(images)), skip_bad):
            compared.append(index)
            expected.append(network.model.to_probabilities(network.model(prepare(pixels)[None])))
            # A checkpoint is compared with the file as others run it, from the decoded pixels.
            actual.append(run(as_input(network, pixels, prepare)))
            advance(1)
    several = network.model.thresholds is not None
    labels = torch.full((len(compared),), -1) if several else torch.as_tensor(images.labels)[compared]
    return Comparison(torch.cat(expected), torch.cat(actual), labels, network.model.thresholds)


def as_input(network: InferenceModel, pixels: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns an image `(3, H, W)` uint8 as an exported network takes it, with a batch dimension."""
    given = prepare(pixels)[None].float() / 255 if network.crop is None else pixels.permute(1, 2, 0)[None]
    return given.contiguous()


def read_images(images: Any, indices: Iterable[int], skip_bad: bool) -> Iterator[tuple[int, Tensor]]:
    """Yields index and pixels of uncropped images, `(3, H, W)` uint8.

    Args:
        images: the images, a split of an `ImageDataModule`.
        indices: which of them.
        skip_bad: whether files that cannot be read are skipped.

    Raises:
        UserError: a file is not an image.
    """
    for index in indices:
        if not hasattr(images, "root"):
            yield index, images.load_full_image(index)
            continue
        try:
            # Unlike `load_full_image`, it raises if the file is unreadable.
            yield index, read_image(images.root / images.names[index], images.pixel_format)
        except BadImage:
            if not skip_bad:
                raise
