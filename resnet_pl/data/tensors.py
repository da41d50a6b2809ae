"""Data sets that fit in memory: a batch is an index, and no worker process is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.cache import short_hash
from resnet_pl.data.loader import ResumableLoader, ShardedEpochSampler
from resnet_pl.data.statistics import Statistics
from resnet_pl.data.views import View, Views


@dataclass
class TensorImageDataset:
    """Images of one split.

    Attributes:
        images: `(N, 3, H, W)` uint8.
        labels: `(N,)` int64.
        names: a name for each image.
    """

    images: Tensor
    labels: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: Any) -> TensorImageDataset:
        """The images at the positions given, as a set of their own."""
        return TensorImageDataset(self.images[chosen], self.labels[chosen], [self.names[i] for i in chosen])

    def digest(self) -> str:
        """Tells these images from others: by names, labels and pixels."""
        pixels = blake2b(self.images.contiguous().numpy()).hexdigest()
        return short_hash(self.names, self.labels.tolist(), pixels)

    def load_full_image(self, index: int) -> Tensor:
        """`(C, H, W)` uint8, as a person looks at it."""
        return self.images[index]


class TensorLoader(ResumableLoader):
    """Takes batches from images that are in memory; see `ResumableLoader`.

    Args:
        device: where images and labels are kept.
        views: what a test looks at instead of the images as they are.
    """

    def __init__(
        self,
        images: TensorImageDataset,
        sampler: ShardedEpochSampler,
        batch_size: int,
        device: torch.device | str = "cpu",
        views: Views | None = None,
    ) -> None:
        super().__init__(images, sampler, batch_size)
        self.views = views
        self._images, self._labels = images.images.to(device), images.labels.to(device)

    def read(self, plan: tuple[Tensor, ...], epoch: int) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """See `ResumableLoader.read`."""
        # In one go, for each transfer waits until the device has done all it was given.
        order = torch.cat([torch.empty(0, dtype=torch.int64), *plan]).to(self._images.device)
        for indices in order.split([len(batch) for batch in plan]):
            yield self._seen(self._images[indices]), self._labels[indices], indices

    def _seen(self, images: Tensor) -> Tensor | list[View]:
        if self.views is None:
            return images
        owners = torch.arange(len(images), device=images.device)
        return [View(view, owners) for view in self.views(images, images.shape[-1])]


class TensorDataModule(ImageDataModule):
    """What data sets in memory share; a subclass says how to `read` its parts."""

    def read(self) -> dict[str, TensorImageDataset]:
        """Returns the official parts: `train`, and `test` where there is one."""
        raise NotImplementedError

    def find_splits(self) -> dict[str, TensorImageDataset]:
        """See `ImageDataModule.find_splits`."""
        parts = self.read()
        images = parts.pop("train")
        if not self.restored_provenance:
            return self._cut(images, parts) | parts
        where = {name: i for i, name in enumerate(images.names)}
        official = {name for part in parts.values() for name in part.names}
        if self.restored_provenance.splits_are_in(where.keys() | official, self.root):
            cut = {part: names for part, names in self.restored_provenance.splits.items() if part not in parts}
            self.split_sources = {part: f"the {part} split stored in the checkpoint" for part in cut}
            return {part: images[[where[name] for name in names]] for part, names in cut.items()} | parts
        if not parts:
            self.split_sources = dict.fromkeys(("val", "test"), "every image of other data than the training's")
        test = parts.get("test", images)
        return {"val": test, "test": test}

    def _cut(self, images: TensorImageDataset, parts: dict[str, TensorImageDataset]) -> dict[str, TensorImageDataset]:
        digests = [blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images.images.numpy()]
        test = 0 if "test" in parts else self.test_split
        cut = self.split_indices(digests, images.labels.tolist(), images.names, test=test)
        return {part: images[chosen] for part, chosen in cut.items() if chosen}

    def loader(self, images: Any, sampler: ShardedEpochSampler, batch_size: int) -> ResumableLoader:
        """See `ImageDataModule.loader`."""
        if isinstance(images, TensorImageDataset):
            views = None if sampler.shuffle else self.views
            return TensorLoader(images, sampler, batch_size, self.device, views)
        return super().loader(images, sampler, batch_size)

    def measure(self, images: TensorImageDataset) -> Statistics:
        """See `ImageDataModule.measure`."""
        return Statistics.of(iter(images.images.split(1024)))
