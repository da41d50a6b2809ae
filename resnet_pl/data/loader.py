"""Loaders that shard exactly and resume exactly: the order of images is a pure function of (seed, epoch)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resnet_pl.data.decode import BadImage, check_bad_fraction, log_bad_image, printable_path
from resnet_pl.data.rng import hash_seed
from resnet_pl.data.views import View, group_by_size
from resnet_pl.data.workers import BatchReader
from resnet_pl.utils import UserError


class Batch(NamedTuple):
    """What the net is given.

    Attributes:
        images: `(N, C, H, W)`, uint8, or float in [0, 1] once augmented; a list of `View` where a test looks at several
            views of each image.
        labels: `(N,)` int64, -1 where the truth is not known; `(N, K)` probabilities once mixed.
        indices: `(N,)` int64, position of each image in its data set.
        epoch: epoch the batch belongs to, from 0.
        number: position of the batch in its epoch, from 0.
    """

    images: Tensor | list[View]
    labels: Tensor
    indices: Tensor
    epoch: int
    batch_idx: int

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Batch:
        """Returns the batch with its tensors on a device; Lightning calls it for every batch.

        Args:
            device: where images, labels and indices go.
            non_blocking: whether the host continues during the copy; by default if the device is a GPU.
        """
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        if isinstance(self.images, Tensor):
            images: Tensor | list[View] = moved(self.images)
        else:
            images = [View(moved(view.images), moved(view.owners)) for view in self.images]
        return Batch(images, moved(self.labels), moved(self.indices), self.epoch, self.batch_idx)


class ShardedEpochSampler:
    """The images that one process sees in an epoch.

    Shuffled for training, when every process gets equally many (the remainder of an epoch's shuffle is left out); in
    order for evaluation, when every image is seen exactly once by exactly one process.

    Args:
        length: number of images.
        seed: the run's seed.
        shuffle: whether this is for training.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, length: int, seed: int = 0, shuffle: bool = False, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.shuffle, self.rank, self.world_size = length, seed, shuffle, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        share, rest = divmod(self.length, self.world_size)
        return share if self.shuffle else share + (self.rank < rest)

    def indices(self) -> Tensor:
        """`(len(self),)` int64."""
        if not self.shuffle:
            return torch.arange(self.length)[self.rank :: self.world_size]
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        return order[: len(self) * self.world_size][self.rank :: self.world_size]


class ResumableLoader:
    """Batches of a split in a sampler's order; Lightning saves and restores it in the middle of an epoch.

    Args:
        images: the split.
        sampler: order and share of this process.
        batch_size: images a batch.
    """

    # Lightning asks for it wherever there is a `sampler`.
    batch_sampler = None

    def __init__(self, images: Any, sampler: ShardedEpochSampler, batch_size: int) -> None:
        self.images, self.sampler, self.batch_size = images, sampler, batch_size
        # A short last batch is left out of training, unless it is all there is: BatchNorm fails on a single image.
        self.drop_last = sampler.shuffle and len(sampler) >= batch_size
        # How far the last epoch has come of which a batch was asked for.
        self._reached = {"epoch": 0, "done": 0}
        self._resume_from: dict[str, int] = {}

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole if self.drop_last else whole + (rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: its body runs at the first batch, which is after Lightning has called set_epoch.
        epoch, state = self.sampler.epoch, self._resume_from
        start, self._resume_from = state["done"] if state.get("epoch") == epoch else 0, {}
        self._reached = {"epoch": epoch, "done": start}
        plan = self.sampler.indices().split(self.batch_size)[: len(self)][start:]
        for batch_idx, (images, labels, indices) in enumerate(self.read(plan, epoch), start):
            self._reached = {"epoch": epoch, "done": batch_idx + 1}
            if len(indices):
                yield Batch(images, labels, indices, epoch, batch_idx)

    def read(self, plan: tuple[Tensor, ...], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields (images, labels, indices) for each batch of indices in the plan."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """How far the epoch has come."""
        return dict(self._reached)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the epoch of that state start after the batches that were done; another epoch starts anew."""
        self._resume_from, self._reached = dict(state), dict(state)


class ImageFileLoader(ResumableLoader):
    """Reads photos in worker processes; see `ResumableLoader`.

    Args:
        num_workers: processes that read; 0 reads in this one.
        pin_memory: whether batches are put where a GPU fetches them faster.
        on_bad_image: `error` stops at a file that cannot be read and names it, `skip` leaves it out and counts it.
        notes: folder where bad_images.txt lists what is left out.

    Attributes:
        waited: seconds that whoever asked for batches has waited for photos.
    """

    def __init__(
        self,
        images: Any,
        sampler: ShardedEpochSampler,
        batch_size: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        on_bad_image: str = "error",
        bad_images_dir: Path | None = None,
    ) -> None:
        super().__init__(images, sampler, batch_size)
        self.on_bad_image, self.bad_images_dir = on_bad_image, bad_images_dir
        self.skipped: dict[str, str] = {}
        self.wait_seconds = 0.0
        self._reader = BatchReader(images, num_workers, pin_memory, _collate)

    def read(self, plan: tuple[Tensor, ...], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """See `ResumableLoader.read`."""
        bad: list[BadImage] = []
        keys = [[(epoch, index) for index in batch.tolist()] for batch in plan]
        for images, labels, indices, found in self._timed(keys):
            for image in found:
                self._report(image)
            bad += found
            check_bad_fraction(bad, len(self.sampler))
            # In training every batch is counted on: by Lightning for the validation after it, by other processes.
            yield (
                self._replacement_batch(epoch)
                if self.sampler.shuffle and not len(indices)
                else (images, labels, indices)
            )
        if len(self.skipped) == len(self.images):
            raise _none_left(len(self.images))

    def _timed(self, plan: list[list[tuple[int, int]]]) -> Iterator[Any]:
        """Reads the planned batches, and adds to `waited` the time until each has come."""
        start = time.perf_counter()
        batches = self._reader.read(plan)
        while (read := next(batches, None)) is not None:
            self.wait_seconds += time.perf_counter() - start
            yield read
            start = time.perf_counter()

    def _report(self, image: BadImage) -> None:
        if self.on_bad_image == "error":
            raise UserError(
                f"cannot read the image {printable_path(image.path)}: {image.reason}\n"
                "repair or remove it, or leave such files out with --data.on_bad_image skip"
            )
        if str(image.path) not in self.skipped:
            self.skipped[str(image.path)] = image.reason
            # Not by `tell`: each process meets other files.
            print(f"left out, {len(self.skipped)} so far: {printable_path(image.path)}: {image.reason}", flush=True)
            log_bad_image(self.bad_images_dir, image)

    def _replacement_batch(self, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """A batch for one in which no image can be read: the epoch's first that can be."""
        samples = (self.images[epoch, index] for index in self.sampler.indices().tolist())
        good = list(islice((sample for sample in samples if not isinstance(sample, BadImage)), self.batch_size))
        if not good:
            raise _none_left(len(self.images))
        return _collate(good)[:3]


def _none_left(count: int) -> UserError:
    return UserError(f"none of the {count} images can be read\nrepair them or give others with --data.root")


def _collate(samples: list[tuple[Any, int, int] | BadImage]) -> tuple[Any, Tensor, Tensor, list[BadImage]]:
    """Stacks what could be read. Bad images travel as values: an exception raised in a worker loses its type."""
    good = [sample for sample in samples if not isinstance(sample, BadImage)]
    bad = [sample for sample in samples if isinstance(sample, BadImage)]
    if good and isinstance(good[0][0], list):
        images: Any = group_by_size([views for views, _, _ in good])
    else:
        images = _stacked([image for image, _, _ in good]) if good else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    labels = torch.tensor([label for _, label, _ in good], dtype=torch.int64)
    indices = torch.tensor([index for _, _, index in good], dtype=torch.int64)
    return images, labels, indices, bad


def _stacked(images: list[Tensor]) -> Tensor:
    """`(N, 3, H, W)` in the images' own layout: torch.stack alone rearranges channels_last, ten times slower."""
    if images[0].permute(1, 2, 0).is_contiguous():
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return torch.stack(images)


def default_num_workers(processes: int) -> int:
    """Workers for each of so many training processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // processes))
