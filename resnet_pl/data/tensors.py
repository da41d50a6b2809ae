"""Data sets in memory: a batch is one indexing operation on the device; worker processes only apply `transforms`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.batch_transforms import apply_transforms
from resnet_pl.data.cache import short_hash
from resnet_pl.data.crops import CenterCrop
from resnet_pl.data.loader import ResumableLoader
from resnet_pl.data.rng import seeded_rng
from resnet_pl.data.samplers import ShardedEpochSampler
from resnet_pl.data.statistics import Statistics
from resnet_pl.data.views import View, Views
from resnet_pl.utils import UserError


@dataclass
class TensorImageDataset:
    """Images of one split, as one tensor.

    Attributes:
        images: `(N, 3, H, W)` uint8.
        labels: `(N,)` int64.
        names: unique name of each image.
    """

    images: Tensor
    labels: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> TensorImageDataset:
        """Returns the data set of the images at these indices."""
        return TensorImageDataset(self.images[indices], self.labels[indices], [self.names[i] for i in indices])

    def digest(self) -> str:
        """Returns a hash of names, labels and pixels."""
        pixels = blake2b(self.images.contiguous().numpy().data).hexdigest()
        return short_hash(self.names, self.labels.tolist(), pixels)

    def load_full_image(self, index: int) -> Tensor:
        """Returns an image, `(3, H, W)` uint8."""
        return self.images[index]

    def with_transforms(self, transforms: Sequence[nn.Module], seed: int) -> TransformedImages:
        """Returns the data set with transforms of single images, whose random numbers depend on the training seed."""
        return TransformedImages(self, transforms, seed)


@dataclass
class TransformedImages(torch.utils.data.Dataset[Any]):
    """Images in memory with transforms of single images, which worker processes apply.

    Attributes:
        images: the images.
        transforms: modules that take and return `(3, H, W)` uint8, applied in order.
        seed: the training seed.
    """

    images: TensorImageDataset
    transforms: Sequence[nn.Module]
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int] | UserError:
        """Returns what `ImageFileDataset` does: a transformed image, its label and its index, or an error.

        Args:
            key: (epoch, index). Random transforms are a function of the seed, the epoch and the index.
        """
        epoch, index = key
        # A copy: a transform may write to its input.
        image = self.images.images[index].clone()
        with seeded_rng(self.seed, epoch, index):
            try:
                image = apply_transforms(image, self.transforms)
            except UserError as error:
                return error
        return image, int(self.images.labels[index]), index


class TensorLoader(ResumableLoader):
    """Loads batches of images in memory.

    Args:
        images: the split.
        sampler: indices of this process, in order.
        batch_size: images per batch.
        device: device that images and labels are moved to.
        views: test-time augmentation; None for the images themselves.
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

    @override
    def read(self, plan: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor | list[View], Tensor, Tensor]]:
        # One transfer for the entire epoch, because each transfer waits for the device.
        order = torch.cat([torch.empty(0, dtype=torch.int64), *plan]).to(self._images.device)
        for indices in order.split([len(batch) for batch in plan]):
            images = indices % len(self._images)  # with a balanced sampler, larger indices are repeats
            yield self._make_views(self._images[images]), self._labels[images], indices

    def _make_views(self, images: Tensor) -> Tensor | list[View]:
        if self.views is None:
            return images
        owners = torch.arange(len(images), device=images.device)
        return [View(view, owners) for view in self.views(images, images.shape[-1])]


class TensorDataModule(ImageDataModule):
    """Base class of data sets in memory. Subclasses implement `read`."""

    eval_crop = CenterCrop()  # images of the network's size are not resized

    def read(self) -> dict[str, TensorImageDataset]:
        """Sets `self.classes` and returns the official splits: `train`, and `test` if there is one."""
        raise NotImplementedError

    def find_splits(self) -> dict[str, TensorImageDataset]:
        """Adds the splits that the data set does not have, or uses those of the restored checkpoint."""
        official = self.read()
        images = official.pop("train")
        restored = self.restored_provenance
        if not restored:
            return self._split_training_images(images, has_test="test" in official) | official
        index = {name: i for i, name in enumerate(images.names)}
        other_names = {name for split in official.values() for name in split.names}
        if restored.splits and restored.splits_are_in(index.keys() | other_names, self.root):
            stored = {split: names for split, names in restored.splits.items() if split not in official}
            self.split_sources = {split: f"the {split} split stored in the checkpoint" for split in stored}
            return {split: images[[index[name] for name in names]] for split, names in stored.items()} | official
        if not official:
            self.split_sources = dict.fromkeys(("val", "test"), "all images of other data than the training data")
        test = official.get("test", images)
        return {"val": test, "test": test}

    def _split_training_images(self, images: TensorImageDataset, has_test: bool) -> dict[str, TensorImageDataset]:
        digests = [blake2b(image.tobytes(), digest_size=16).hexdigest() for image in images.images.numpy()]
        test = 0 if has_test else self.test_split
        splits = self.split_indices(digests, images.labels.tolist(), images.names, test=test)
        return {split: images[indices] for split, indices in splits.items() if indices}

    @override
    def loader(self, images: Any, sampler: ShardedEpochSampler, batch_size: int) -> ResumableLoader:
        if isinstance(images, TensorImageDataset):
            views = None if sampler.shuffle else self.views
            return TensorLoader(images, sampler, batch_size, self.device, views)
        return super().loader(images, sampler, batch_size)

    @override
    def measure(self, images: TensorImageDataset) -> Statistics:
        return Statistics.of(iter(images.images.split(1024)))
