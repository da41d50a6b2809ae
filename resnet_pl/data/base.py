"""One data module: splits, loaders, classes and normalisation. The others say only what differs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import LightningDataModule
from torch import Tensor

from resnet_pl.console import tell
from resnet_pl.data.loaders import Batch, EpochSampler, Loader, PhotoLoader
from resnet_pl.data.photos import Photos
from resnet_pl.data.splits import make_split
from resnet_pl.data.transforms import BatchTransform, Draws
from resnet_pl.errors import UserError

Mean = list[float] | Literal["pixel", "channel"]
Std = list[float] | Literal["channel"] | None


@dataclass
class Statistics:
    """What the training split looks like, images in [0, 1].

    Attributes:
        mean_image: `(C, H, W)` mean of every pixel.
        covariance: `(C, C)` covariance of the channels over all pixels.
    """

    mean_image: Tensor
    covariance: Tensor

    @property
    def mean(self) -> Tensor:
        """`(C, 1, 1)` mean of every channel."""
        return self.mean_image.mean((1, 2), keepdim=True)

    @property
    def std(self) -> Tensor:
        """`(C, 1, 1)` standard deviation of every channel over all pixels."""
        return self.covariance.diag().sqrt()[:, None, None]

    @classmethod
    def of(cls, batches: Iterator[Tensor]) -> Statistics:
        """Measures batches of `(N, C, H, W)` uint8 images of one size, in float64."""
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            pixels = batch.double() / 255
            count += len(batch)
            total = total + pixels.sum(0)
            products = products + torch.einsum("nchw,ndhw->cd", pixels, pixels)
        mean_image = total / count
        mean = mean_image.mean((1, 2))
        covariance = products / (count * mean_image[0].numel()) - torch.outer(mean, mean)
        return cls(mean_image.float(), covariance.float())


class ImageDataModule(LightningDataModule):
    """Images with one label each. Subclasses find the images; this class serves them.

    Args:
        batch_size: training images a step and process.
        eval_batch_size: images a step and process in evaluation; `batch_size` if not given.
        image_size: side of the net's input, pixels.
        mean: what is subtracted from images in [0, 1]: a value a channel, or measured on the training split,
            `channel` by channel or `pixel` by pixel as in the paper.
        std: what images are divided by: a value a channel, measured (`channel`), or nothing (null).
        batch_transforms: augmentation of whole training batches on the device, in order.
        val_split: share (below 1) or number of images held out for validation where the data has no such part.
        test_split: share (below 1) or number of images held out for testing where the data has no such part.
        num_folds: number of folds; the images that are not for testing are then cut in so many parts.
        fold: the fold that is held out for validation, from 0.
        split_seed: seed of the cut, apart from the run's own so that runs with other seeds share their splits.
        num_workers: processes that read files; null chooses from the machine, 0 reads in the main process.
        on_bad_image: what to do at a file that cannot be read.
    """

    # The batch that the paper trains such data with, told at the start beside the run's own.
    paper_batch_size: ClassVar[int] = 256
    root: Path | None = None

    def __init__(
        self,
        batch_size: PositiveInt = 64,
        eval_batch_size: PositiveInt | None = None,
        image_size: PositiveInt = 224,
        mean: Mean = "channel",
        std: Std = "channel",
        batch_transforms: list[BatchTransform] | None = None,
        val_split: int | float = 0.1,
        test_split: int | float = 0.1,
        num_folds: PositiveInt | None = None,
        fold: NonNegativeInt = 0,
        split_seed: int = 0,
        num_workers: NonNegativeInt | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.image_size, self.mean, self.std = image_size, mean, std
        self.batch_transforms = batch_transforms or []
        self.val_split, self.test_split = val_split, test_split
        self.num_folds, self.fold, self.split_seed = num_folds, fold, split_seed
        self.num_workers, self.on_bad_image = num_workers, on_bad_image
        self.splits: dict[str, Any] = {}
        self.classes: list[str] = []
        self.origin = ""
        self._provenance: dict[str, Any] | None = None
        self._predict_paths: list[Path] | None = None

    # ------------------------------------------------------------------------------------ what a subclass says
    def find_splits(self) -> dict[str, Any]:
        """Sets `classes` and `origin` and returns the splits by name: `train`, `val`, `test`, those there are."""
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """A name for each class that a person understands; the classes themselves unless a subclass knows better."""
        return self.classes

    # ------------------------------------------------------------------------------------ splits
    def setup(self, stage: str) -> None:
        """Finds the splits, once."""
        if not self.splits:
            self.splits = self.find_splits()
        if stage == "fit":
            for transform in self.batch_transforms:
                transform.fit(self)

    def cut(
        self, digests: Sequence[str], labels: Sequence[int], names: Sequence[str], test: int | float
    ) -> dict[str, list[int]]:
        """Cuts images that have no split of their own: name of the split to sorted positions."""
        split = make_split(
            digests,
            labels,
            val=self.val_split,
            test=test,
            seed=self.split_seed,
            num_folds=self.num_folds,
            fold=self.fold,
            names=names,
            class_names=self.classes,
        )
        for warning in split.warnings:
            tell(f"note: {warning}")
        return {"train": split.train, "val": split.val, "test": split.test}

    def provenance(self) -> dict[str, Any]:
        """Where the images came from, for the checkpoint: root, classes and the names in each split, plain types."""
        names = {part: list(images.names) for part, images in self.splits.items()} if self.stores_names else None
        return {"root": None if self.root is None else str(self.root), "classes": list(self.classes), "splits": names}

    # Whether the names in each split go into the checkpoint: not where the folders on disk say it.
    stores_names = True

    def use_provenance(self, provenance: dict[str, Any]) -> None:
        """Makes `setup` use the splits and classes of a checkpoint."""
        self._provenance = provenance

    def stored_splits(self) -> dict[str, list[str]] | None:
        """Names in each split as the checkpoint has them, if there is one."""
        return (self._provenance or {}).get("splits")

    @property
    def stored_classes(self) -> list[str] | None:
        """Classes as the checkpoint has them, if there is one."""
        return (self._provenance or {}).get("classes")

    def split(self, name: str) -> Any:
        """Returns a split, or explains that there is none."""
        if name not in self.splits:
            raise UserError(
                f"{self.describe()} has no images for {name}\nset --data.{name}_split, or add a folder {name}/"
            )
        return self.splits[name]

    def describe(self) -> str:
        """The data in a few words."""
        return type(self).__name__ + (f" at {self.root}" if self.root is not None else "")

    def told(self, part: str) -> str:
        """Which images a split holds, in a few words."""
        if self.stored_splits() is not None and not self.origin:
            return f"the {part} split stored in the checkpoint, {self.describe()}"
        return f"{self.origin or f'the {part} split'}, {self.describe()}"

    # ------------------------------------------------------------------------------------ normalisation
    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the training split, measured once."""
        return self.measure(self.split("train"))

    def measure(self, images: Any) -> Statistics:
        """Measures a split in evaluation's view."""
        plain = Photos(images.root, images.names, images.labels, self.image_size)
        loader = self.loader(plain, EpochSampler(len(plain)), self.eval_batch_size)
        return Statistics.of(batch.images for batch in loader)

    def normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each `(C, 1, 1)` or `(C, H, W)`, of images in [0, 1]."""
        if self.mean == "pixel":
            mean = self.statistics.mean_image
        elif self.mean == "channel":
            mean = self.statistics.mean
        else:
            mean = torch.tensor(self.mean)[:, None, None]
        if self.std is None:
            std = torch.ones(1, 1, 1)
        elif self.std == "channel":
            std = self.statistics.std
        else:
            std = torch.tensor(self.std)[:, None, None]
        return mean, std

    # ------------------------------------------------------------------------------------ loaders
    @property
    def seed(self) -> int:
        """The run's seed, as `seed_everything` left it."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0))

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    @property
    def workers(self) -> int:
        """Processes that read files for this process."""
        if self.num_workers is not None:
            return self.num_workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = self.trainer.num_devices if self.trainer is not None else 1
        return max(1, min(16, cores // processes))

    def loader(self, images: Any, sampler: EpochSampler, batch_size: int) -> Loader:
        """A loader for one of the splits."""
        workers = min(self.workers, len(sampler))
        pin = self.device.type == "cuda"
        return PhotoLoader(images, sampler, batch_size, workers, pin_memory=pin, on_bad_image=self.on_bad_image)

    def _evaluation_loader(self, images: Any) -> Loader:
        sampler = EpochSampler(len(images), rank=self.trainer.global_rank, world_size=self.trainer.world_size)
        return self.loader(images, sampler, self.eval_batch_size)

    def train_dataloader(self) -> Loader:
        """Training images, shuffled and cropped at random."""
        images, trainer = self.split("train"), self.trainer
        sampler = EpochSampler(len(images), self.seed, True, trainer.global_rank, trainer.world_size)
        return self.loader(images, sampler, self.batch_size)

    def val_dataloader(self) -> Loader | list[Any]:
        """Validation images; none where nothing is held out."""
        return self._evaluation_loader(self.splits["val"]) if "val" in self.splits else []

    def test_dataloader(self) -> Loader:
        """Test images."""
        return self._evaluation_loader(self.split("test"))

    def predict_dataloader(self) -> Loader:
        """The images named on the command line, else the test images."""
        return self._evaluation_loader(self.predict_images)

    @property
    def predict_images(self) -> Any:
        """What `predict` reads."""
        if self._predict_paths is None:
            return self.split("test")
        number = {name: index for index, name in enumerate(self.stored_classes or self.classes)}
        labels = [number.get(path.parent.name, -1) for path in self._predict_paths]
        return Photos(Path(), [str(path) for path in self._predict_paths], labels, self.image_size)

    def predict_on(self, paths: Sequence[Path]) -> None:
        """Makes `predict` read these files; a parent folder with a class's name tells the truth."""
        self._predict_paths = list(paths)

    # ------------------------------------------------------------------------------------ batches
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augments training batches on the device."""
        return self.augment(batch) if self.trainer.training else batch

    def augment(self, batch: Batch) -> Batch:
        """`(N, C, H, W)` uint8 to float in [0, 1], augmented."""
        images, labels = batch.images.float() / 255, batch.labels
        draws = Draws(self.seed, batch.epoch, batch.number, batch.indices)
        for transform in self.batch_transforms:
            images, labels = transform(images, labels, draws)
        return batch._replace(images=images, labels=labels)
