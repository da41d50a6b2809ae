"""The order of the images in an epoch: a function of (seed, epoch), shared by all processes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler

from resnet_pl.data.rng import hash_seed
from resnet_pl.utils import UserError


class ShardedEpochSampler:
    """The indices of one process in an epoch.

    For training they are shuffled, and all processes get the same number; the remainder of the division is dropped. For
    evaluation they are in order, and each image belongs to exactly one process.

    Args:
        length: number of images in the split.
        seed: the training seed.
        shuffle: whether the indices are for training.
        rank: rank of this process.
        world_size: number of processes.
        labels: class index of each image, `(N,)` int64, if every class has to be in an epoch equally often; see
            `balanced_order`.
    """

    reshuffles: ClassVar[bool] = True  # whether each epoch has an order of its own

    def __init__(
        self,
        length: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        labels: Tensor | None = None,
    ) -> None:
        self.length, self.seed, self.shuffle, self.rank, self.world_size = length, seed, shuffle, rank, world_size
        self.labels = labels
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; Lightning calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        count, remainder = divmod(self.length, self.world_size)
        return count if self.shuffle else count + (self.rank < remainder)

    def indices(self) -> Tensor:
        """Returns the indices, `(len(self),)` int64."""
        if not self.shuffle:
            return torch.arange(self.length)[self.rank :: self.world_size]
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch if self.reshuffles else 0))
        if self.labels is None:
            order = torch.randperm(self.length, generator=generator)
        else:
            order = balanced_order(self.labels, generator)
        return order[: len(self) * self.world_size][self.rank :: self.world_size]


class FixedOrderSampler(ShardedEpochSampler, SequentialSampler):
    """The indices of the first epoch in every epoch, for `overfit_batches`.

    Lightning replaces any other sampler than a SequentialSampler, by the first images, which may be of one class.
    """

    reshuffles = False


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Returns as many indices as there are images, in random order, with the same number per class, to within one.

    An image of a rare class is repeated after all others of its class, and some images of a frequent class are not
    used in this epoch. The r-th repeat of image i is the index i + r × N, so that it gets its own random numbers.

    Args:
        labels: class index of each image, `(N,)` int64.
        generator: generator of the order.
    """
    counts = labels.bincount()
    members = labels.argsort(stable=True).split(counts[counts > 0].tolist())
    share, rest = divmod(len(labels), len(members))
    has_one_more = torch.randperm(len(members), generator=generator) < rest
    chosen = []
    for own, more in zip(members, has_one_more.tolist(), strict=True):
        count = share + more
        rounds = -(-count // len(own))
        orders = [own[torch.randperm(len(own), generator=generator)] + r * len(labels) for r in range(rounds)]
        chosen.append(torch.cat(orders)[:count])
    return torch.cat(chosen)[torch.randperm(len(labels), generator=generator)]


class RepeatedImages(Dataset[Any]):
    """A split whose indices may be those of `balanced_order`.

    The r-th repeat of an image in an epoch gets the random crop and transforms of a later epoch, epoch + r × 2³².

    Args:
        images: the split, indexed by (epoch, index).
    """

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        """Returns the sample (image, label, index) with the index of the key, or the error that the split returns."""
        epoch, number = key
        repeat, index = divmod(number, len(self.images))
        sample = self.images[epoch + (repeat << 32), index]
        return sample if isinstance(sample, UserError) else (*sample[:2], number)


def class_labels(images: Any, what: str) -> Tensor:
    """Returns the class index of each image of a split, `(N,)` int64.

    Args:
        images: the split.
        what: the option that needs the labels, for the message.

    Raises:
        UserError: the split has no labels, or several per image.
    """
    labels = getattr(images, "labels", None)
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.empty(0)
    if tensor.ndim != 1 or tensor.is_floating_point() or len(tensor) != len(images):
        raise UserError(
            f"{what} needs one class index per image; the images have several labels, or no attribute `labels`\n"
            "remove the option; for several labels per image, use --model.class_weights balanced"
        )
    return tensor.long().cpu()


def class_counts(images: Any, num_classes: int) -> Tensor | None:
    """Returns the number of images of each class, `(K,)` int64, also of several classes per image; None if not known.

    Args:
        images: a split; its `labels` are class indices, tuples of them, or `(N, K)` with 1 for each class of an image.
        num_classes: number of classes.
    """
    labels = getattr(images, "labels", None)
    if isinstance(labels, Tensor) and labels.ndim == 2:
        return labels.round().long().sum(0).cpu()
    if labels is None or len(labels) == 0:
        return None
    flat = [index for label in labels for index in (label if isinstance(label, tuple) else (int(label),))]
    return torch.tensor(flat, dtype=torch.int64).bincount(minlength=num_classes)
