"""Data loaders with exact sharding and resuming: the order of images is a function of (seed, epoch)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from resnet_pl.data.bad_images import BadImage, check_bad_fraction, log_bad_image, printable_path
from resnet_pl.data.batch import Batch
from resnet_pl.data.samplers import RepeatedImages, ShardedEpochSampler
from resnet_pl.data.views import View, group_by_size
from resnet_pl.data.workers import BatchReader
from resnet_pl.utils import UserError, available_cores


class ResumableLoader:
    """Base class of loaders that can be resumed in the middle of an epoch.

    Args:
        images: the split.
        sampler: indices of this process, in order.
        batch_size: images per batch.
    """

    # Lightning reads this attribute of every loader with a `sampler`.
    batch_sampler = None

    def __init__(self, images: Any, sampler: ShardedEpochSampler, batch_size: int) -> None:
        self.images, self.sampler, self.batch_size = images, sampler, batch_size
        # Training drops a short last batch, unless it is the only one: BatchNorm fails on a single image.
        self.drop_last = sampler.shuffle and len(sampler) >= batch_size
        # Position in the last epoch from which a batch was requested.
        self._position = {"epoch": 0, "done": 0}
        self._resume_from: dict[str, int] = {}

    def __len__(self) -> int:
        full_batches, remainder = divmod(len(self.sampler), self.batch_size)
        return full_batches if self.drop_last else full_batches + (remainder > 0)

    @property
    def dataset(self) -> Any:
        """The split, under the name that Lightning's batch size finder reads its length from."""
        return self.images

    def __iter__(self) -> Iterator[Batch]:
        # As a generator, this runs when the first batch is requested, after Lightning has called set_epoch.
        epoch, state = self.sampler.epoch, self._resume_from
        start, self._resume_from = state["done"] if state.get("epoch") == epoch else 0, {}
        self._position = {"epoch": epoch, "done": start}
        plan = self.sampler.indices().split(self.batch_size)[: len(self)][start:]
        for batch_idx, (images, labels, indices) in enumerate(self.read(plan, epoch), start):
            self._position = {"epoch": epoch, "done": batch_idx + 1}
            if len(indices):
                yield Batch(images, labels, indices, epoch, batch_idx)

    def read(self, plan: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor | list[View], Tensor, Tensor]]:
        """Yields (images, labels, indices) for each batch of indices in `plan`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and the number of batches done in it."""
        return dict(self._position)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores the position: the saved epoch starts after the batches done, any other epoch at its beginning."""
        self._resume_from, self._position = dict(state_dict), dict(state_dict)


class ImageFileLoader(ResumableLoader):
    """Loads image files in worker processes.

    Args:
        images: the split.
        sampler: indices of this process, in order.
        batch_size: images per batch.
        num_workers: worker processes; 0 loads in this process.
        pin_memory: whether batches are copied to pinned memory, for faster transfer to a GPU.
        on_bad_image: `error` raises UserError for an unreadable file, `skip` skips and counts it.
        bad_images_dir: folder of bad_images.txt, which lists the skipped files; None for no list.

    Attributes:
        skipped: reason for each skipped file, by path.
        wait_seconds: total time that the consumer was blocked on loading.
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
        images = images if sampler.labels is None else RepeatedImages(images)
        super().__init__(images, sampler, batch_size)
        self.on_bad_image, self.bad_images_dir = on_bad_image, bad_images_dir
        self.skipped: dict[str, str] = {}
        self.wait_seconds = 0.0
        self._reader = BatchReader(images, num_workers, pin_memory, collate)

    @override
    def read(self, plan: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor | list[View], Tensor, Tensor]]:
        bad: dict[str, BadImage] = {}  # by path: with `sampler: balanced`, an image is repeated
        keys = [[(epoch, index) for index in batch.tolist()] for batch in plan]
        for images, labels, indices, bad_in_batch in self._timed(keys):
            bad |= {str(error.path): error for error in map(self._report, bad_in_batch)}
            check_bad_fraction([*bad.values()], len(self.sampler))
            # Training needs all its batches: Lightning counts them to validate, and all processes run the same number.
            yield (
                self._replacement_batch(epoch)
                if self.sampler.shuffle and not len(indices)
                else (images, labels, indices)
            )
        if len(self.skipped) == len(self.images):
            raise _none_left(len(self.images))

    def _timed(self, plan: list[list[tuple[int, int]]]) -> Iterator[Any]:
        """Yields the batches of `plan`; adds the time until each one to `wait_seconds`."""
        start = time.perf_counter()
        batches = self._reader.read(plan)
        while (batch := next(batches, None)) is not None:
            self.wait_seconds += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def _report(self, image: UserError) -> BadImage:
        """Reports a skipped file; raises UserError if it must not be skipped, or for an error of another kind."""
        if not isinstance(image, BadImage):
            raise image
        if self.on_bad_image == "error":
            raise UserError(
                f"cannot read image {printable_path(image.path)}: {image.reason}\n"
                "repair or remove it, or skip such files with --data.on_bad_image skip"
            )
        if str(image.path) not in self.skipped:
            self.skipped[str(image.path)] = image.reason
            # Not `rank_zero_print`: each process reads other files.
            print(f"skipped ({len(self.skipped)} so far): {printable_path(image.path)}: {image.reason}", flush=True)
            log_bad_image(self.bad_images_dir, image)
        return image

    def _replacement_batch(self, epoch: int) -> tuple[Tensor | list[View], Tensor, Tensor]:
        """Returns the first readable images of the epoch, to replace a batch without any."""
        samples = (self.images[epoch, index] for index in self.sampler.indices().tolist())
        good = list(islice((sample for sample in samples if not isinstance(sample, UserError)), self.batch_size))
        if not good:
            raise _none_left(len(self.images))
        return collate(good)[:3]


def _none_left(count: int) -> UserError:
    return UserError(f"none of the {count} images can be read\nrepair them, or use other data with --data.root")


def collate(samples: list[tuple[Any, Any, int] | UserError]) -> tuple[Any, Tensor, Tensor, list[UserError]]:
    """Stacks the images; returns errors as a list, because an exception in a worker process loses its type."""
    good = [sample for sample in samples if not isinstance(sample, UserError)]
    bad = [sample for sample in samples if isinstance(sample, UserError)]
    types = sorted({str(image.dtype)[6:] for image, *_ in good if isinstance(image, Tensor)})
    if len(types) > 1:  # torch.stack would convert uint8, where 255 is white, to float, where 1 is
        error = UserError(
            f"data.transforms: some images are {types[0]}, others {types[1]}\nconvert all of them, or none"
        )
        good, bad = [], [*bad, error]
    if good and isinstance(good[0][0], list):
        images: Any = group_by_size([views for views, _, _ in good])
    else:
        images = _stack([image for image, _, _ in good]) if good else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    if good and isinstance(good[0][1], Tensor):  # several labels per image
        labels = torch.stack([label for _, label, _ in good])
    else:
        labels = torch.tensor([label for _, label, _ in good], dtype=torch.int64)
    indices = torch.tensor([index for _, _, index in good], dtype=torch.int64)
    return images, labels, indices, bad


def as_batch(samples: tuple[Any, Tensor, Tensor, list[UserError]], epoch: int, batch_idx: int) -> Batch:
    """Returns what `collate` returns as a batch; raises its first error."""
    images, labels, indices, bad = samples
    if bad:
        raise bad[0]
    return Batch(images, labels, indices, epoch, batch_idx)


def _stack(images: list[Tensor]) -> Tensor:
    """Stacks to `(N, 3, H, W)` in the images' memory layout; torch.stack alone converts channels_last, 10× slower."""
    if images[0].permute(1, 2, 0).is_contiguous():
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return torch.stack(images)


def default_num_workers(processes: int) -> int:
    """Returns the number of workers for each of `processes` training processes on this machine."""
    return max(1, min(16, available_cores() // processes))
