"""The base of all data modules: splits, loaders, augmentation, classes and normalization."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from resnet_pl.data.batch_transforms import BatchTransform
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.loader import Batch, ImageFileLoader, ResumableLoader, ShardedEpochSampler, default_num_workers
from resnet_pl.data.provenance import Provenance
from resnet_pl.data.rng import BatchRNG, seed_generators
from resnet_pl.data.splits import make_split
from resnet_pl.data.statistics import Mean, Statistics, Std, check_input, normalization
from resnet_pl.data.views import Views
from resnet_pl.types import NonNegativeInt, PositiveInt
from resnet_pl.utils import UserError, rank_zero_print


class ImageDataModule(LightningDataModule):
    """Images with one label each. Subclasses find the images; this class serves them.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: images per step and process in evaluation; `batch_size` if not given.
        image_size: side of the network's input, pixels.
        mean: what is subtracted from images in [0, 1]: one value per channel, or measured on the training split,
            `channel` by channel or `pixel` by pixel as in the paper.
        std: what images are divided by: one value per channel, measured (`channel`), or nothing (null).
        batch_transforms: augmentation of whole training batches on the device, in order.
        mix: what mixes the images of a batch after that, MixUp or CutMix.
        val_split: share (below 1) or number of images held out for validation where the data has no such part.
        test_split: share (below 1) or number of images held out for testing where the data has no such part.
        num_folds: number of folds; the images that are not for testing are then cut in so many parts.
        fold: the fold that is held out for validation, from 0.
        split_seed: seed of the cut, apart from the run's own so that runs with other seeds share their splits.
        num_workers: processes that read files; null chooses from the machine, 0 reads in the main process.
        on_bad_image: what to do at a file that cannot be read: `error` stops and names it, `skip` leaves it out, counts
            it and lists it in bad_images.txt of the run folder, up to a tenth of the images.
    """

    # The paper's batch size for such data, printed at the start beside the run's own.
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
        mix: BatchTransform | None = None,
        val_split: int | float = 0.1,
        test_split: int | float = 0.1,
        num_folds: PositiveInt | None = None,
        fold: NonNegativeInt = 0,
        split_seed: int = 0,
        num_workers: NonNegativeInt | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__()
        check_input(image_size, mean, std)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.image_size, self.mean, self.std = image_size, mean, std
        self.batch_transforms = [*(batch_transforms or []), *([mix] if mix else [])]
        self.val_split, self.test_split = val_split, test_split
        self.num_folds, self.fold, self.split_seed = num_folds, fold, split_seed
        self.num_workers, self.on_bad_image = num_workers, on_bad_image
        self.splits: dict[str, Any] = {}
        self.classes: list[str] = []
        self.split_sources: dict[str, str] = {}
        # Classes and splits of the checkpoint that is resumed or tested; empty without one.
        self.restored_provenance = Provenance()
        # Folder for bad_images.txt.
        self.bad_images_dir: Path | None = None
        # Test-time augmentation: several views of each image.
        self.views: Views | None = None
        # Files that `predict` was given; the data set itself is then not needed.
        self.predict_paths: list[Path] | None = None
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, int] = {}

    # ------------------------------------------------------------------------------------ what a subclass defines
    def find_splits(self) -> dict[str, Any]:
        """Sets `self.classes` and returns the splits that exist: `train`, `val`, `test`.

        A split is `ImageFileDataset(root, names, labels, image_size)`, for training with `crop` and `seed`, or
        `TensorImageDataset` in memory. If `self.restored_provenance` is true, a checkpoint is resumed or tested, and
        its splits must be used. `ImageFolder` and `TensorDataModule` do all this: subclass those unless the images are
        neither files nor tensors.
        """
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """A name for each class that a person understands; the classes themselves unless a subclass knows better."""
        return self.classes

    # ------------------------------------------------------------------------------------ splits
    def setup(self, stage: str) -> None:
        """Finds the splits, once; they need not exist where files are named to predict on."""
        if self.trainer is not None:
            # Only the first process knows its folder.
            self.bad_images_dir = self.trainer.strategy.broadcast(self.bad_images_dir)
        if not self.splits and self.predict_paths is None:
            self.splits = self.find_splits()
        if stage == "fit":
            for transform in self.batch_transforms:
                transform.fit(self)

    def split_indices(
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
            rank_zero_print(f"note: {warning}")
        return {"train": split.train, "val": split.val, "test": split.test}

    # Whether the names in each split go into the checkpoint: not where the folders on disk say it.
    store_split_names = True

    def provenance(self) -> dict[str, Any]:
        """Where the images came from, for the checkpoint: what `Provenance` lists, plain types."""
        return {
            "root": None if self.root is None else str(self.root.resolve()),
            "classes": list(self.classes),
            "class_names": list(self.class_names),
            "splits": {part: list(images.names) for part, images in self.splits.items()}
            if self.store_split_names
            else None,
        }

    def use_provenance(self, provenance: dict[str, Any]) -> None:
        """Makes `setup` use the splits and classes of a checkpoint."""
        # Keys that this version does not know are ignored.
        self.restored_provenance = Provenance(
            **{key: provenance[key] for key in vars(Provenance()) if key in provenance}
        )

    def split(self, name: str) -> Any:
        """Returns a split, or explains that there is none."""
        if name not in self.splits:
            way_out = f"hold some out with --data.{name}_split when training"
            if name == "train":
                way_out = "to train on other data start a new run, from these weights with --model.weights"
            raise UserError(f"{self.describe()} has no images for {name}\n{way_out}")
        return self.splits[name]

    def describe(self) -> str:
        """The data in a few words."""
        return type(self).__name__ + (f" at {self.root}" if self.root is not None else "")

    def describe_split(self, part: str) -> str:
        """Which images a split holds, in a few words."""
        return f"{self.split_sources.get(part, f'the {part} split')}, {self.describe()}"

    # ------------------------------------------------------------------------------------ normalisation
    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the training split, measured once."""
        return self.measure(self.split("train"))

    def measure(self, images: Any) -> Statistics:
        """Measures a split in evaluation's view."""
        plain = ImageFileDataset(images.root, images.names, images.labels, self.image_size)
        loader = self.loader(plain, ShardedEpochSampler(len(plain)), self.eval_batch_size)
        return Statistics.of(batch.images for batch in loader)

    def normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each `(C, 1, 1)` or `(C, H, W)`, of images in [0, 1]."""
        return normalization(self.mean, self.std, lambda: self.statistics)

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
    def resolved_num_workers(self) -> int:
        """Processes that read files for this process."""
        if self.num_workers is not None:
            return self.num_workers
        return default_num_workers(self.trainer.num_devices if self.trainer is not None else 1)

    def loader(self, images: Any, sampler: ShardedEpochSampler, batch_size: int) -> ResumableLoader:
        """A loader for one of the splits."""
        workers = min(self.resolved_num_workers, len(sampler))
        pin = self.device.type == "cuda"
        return ImageFileLoader(images, sampler, batch_size, workers, pin, self.on_bad_image, self.bad_images_dir)

    def _make_loader(self, images: Any, training: bool) -> ResumableLoader:
        """A loader of the images that this process sees."""
        rank, processes = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        if len(images) < processes:
            raise UserError(
                f"{self.describe()}: {len(images)} images cannot be shared by {processes} processes\n"
                "lower --trainer.devices or give more images"
            )
        if not training and self.views is not None and isinstance(images, ImageFileDataset):
            images = images.with_views(self.views)
        sampler = ShardedEpochSampler(len(images), self.seed, training, rank, processes)
        return self.loader(images, sampler, self.batch_size if training else self.eval_batch_size)

    def train_dataloader(self) -> ResumableLoader:
        """Training images, shuffled and cropped at random; the first epoch starts where a checkpoint left off."""
        self._train_loader = self._make_loader(self.split("train"), training=True)
        if self._position:
            self._train_loader.load_state_dict(self._position)
            self._position = {}
        return self._train_loader

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches that training has received, for resuming in the middle of an epoch.

        With another batch size or number of processes the epoch continues after as many batches, not images.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Takes a position; Lightning calls this before the loaders are made."""
        self._position = dict(state_dict)

    @property
    def batches_per_epoch(self) -> int:
        """Training batches of this process in an epoch; the Trainer itself knows them only once training begins."""
        batches, limit = len(self._make_loader(self.split("train"), training=True)), self.trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """Shape of a complete training batch, `(N, C, H, W)`."""
        return self.batch_size, 3, self.image_size, self.image_size

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Validation images; none where nothing is held out."""
        return self._make_loader(self.splits["val"], training=False) if "val" in self.splits else []

    def test_dataloader(self) -> ResumableLoader:
        """Test images."""
        return self._make_loader(self.split("test"), training=False)

    def predict_dataloader(self) -> ResumableLoader:
        """The images named on the command line, else the test images."""
        return self._make_loader(self.predict_images, training=False)

    @property
    def predict_images(self) -> Any:
        """What `predict` reads."""
        if self.predict_paths is None:
            return self.split("test")
        number = {name: index for index, name in enumerate(self.restored_provenance.classes or self.classes)}
        labels = [number.get(path.parent.name, -1) for path in self.predict_paths]
        return ImageFileDataset(Path(), [str(path) for path in self.predict_paths], labels, self.image_size)

    def set_predict_files(self, paths: Sequence[Path]) -> None:
        """Makes `predict` read these files; a parent folder with a class's name gives the true label."""
        self.predict_paths = list(paths)

    # ------------------------------------------------------------------------------------ augmentation
    # Worker processes decode and crop photos (dataset.py). The device augments batches: `batch_transforms`, then `mix`.
    # The model normalizes.
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augments training batches on the device.

        The generators are seeded for each batch, so that whatever a step draws, dropout for example, does not depend on
        where a run was resumed.
        """
        if not self.trainer.training:
            return batch
        seed_generators(self.seed, batch.epoch, batch.batch_idx, self.trainer.global_rank)
        return self.augment(batch)

    def augment(self, batch: Batch) -> Batch:
        """Applies `batch_transforms`: images `(N, C, H, W)` uint8 to float in [0, 1]."""
        images, labels = batch.images.to(torch.float32, copy=True).div_(255), batch.labels
        rng = BatchRNG(self.seed, batch.epoch, batch.batch_idx, batch.indices)
        for transform in self.batch_transforms:
            images, labels = transform(images, labels, rng)
        return batch._replace(images=images, labels=labels)
