"""The base class of all data modules: splits, data loaders, batch augmentation and normalization."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from resnet_pl.data.batch import Batch
from resnet_pl.data.batch_transforms import BatchTransform, check_finite, check_range, check_transforms
from resnet_pl.data.crops import Crop, ResizeCenterCrop, describe_crop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.decode import RGB
from resnet_pl.data.defaults import build_default
from resnet_pl.data.loader import ImageFileLoader, ResumableLoader, default_num_workers
from resnet_pl.data.provenance import Provenance
from resnet_pl.data.resizing import height_width
from resnet_pl.data.rng import BatchRNG, seed_generators
from resnet_pl.data.samplers import FixedOrderSampler, ShardedEpochSampler, class_labels
from resnet_pl.data.splits import Label, make_split
from resnet_pl.data.statistics import Mean, Statistics, Std, check_input, normalization
from resnet_pl.data.views import Views
from resnet_pl.data.workers import ignore_signals
from resnet_pl.plain_types import to_plain_hparams
from resnet_pl.types import NonNegativeInt, PositiveInt
from resnet_pl.utils import UserError, rank_zero_print


class ImageDataModule(LightningDataModule):
    """Images with one label each. Subclasses implement `find_splits`.

    Args:
        batch_size: training batch size per process.
        eval_batch_size: evaluation batch size per process; `batch_size` by default.
        image_size: size of the network's input in pixels: one number for a square, or `[height, width]`.
        mean: mean that is subtracted from images in [0, 1]: one value per channel, or measured on the training split,
            per channel (`channel`) or per pixel (`pixel`) as in the paper.
        std: standard deviation that images are divided by: one value per channel, measured on the training split
            (`channel`), or null for no division.
        transforms: augmentation of single training images, applied in order in the worker processes: modules that take
            and return `(3, H, W)` uint8, such as torchvision.transforms.v2.TrivialAugmentWide. They may also return
            float in [0, 1], but keep the size.
        batch_transforms: augmentation of training batches on the device, applied in order; the default of the class if
            null, none if empty.
        mix: MixUp, CutMix, or a RandomChoice of them for each batch, applied after the batch transforms.
        sampler: `balanced` trains on the same number of images of each class in every epoch: images of rare classes are
            repeated, with other random crops and flips, and not all images of frequent classes are used. By default
            every image is used once per epoch.
        val_split: fraction (below 1) or number of images held out for validation if the data has no such split.
        test_split: fraction (below 1) or number of images held out for testing if the data has no test or val split.
        num_folds: number of folds for cross-validation; the images outside the test split are divided into them.
        fold: the fold used for validation, from 0.
        split_seed: seed of the split, independent of the training seed: runs with different seeds share their splits.
        num_workers: processes that load images; null chooses by the number of CPU cores, 0 loads in the main process.
        on_bad_image: what happens at an unreadable image file: `error` stops and names it; `skip` skips it, counts it
            and lists it in bad_images.txt in the run folder, up to 10 % of the images, or ten.
    """

    # Defaults of arguments that are None: a class, or `partial(CLASS, argument=value)`, or a list of these. The command
    # line writes them to config.yaml, and `+` appends to them.
    defaults: ClassVar[dict[str, Any]] = {}
    # The paper's batch size on this data set, printed at the start of a run; None if the paper does not use it.
    paper_batch_size: ClassVar[int | None] = None
    # Whether an image can have several labels, or none; its label is then `(K,)` float, 1 for each of its classes.
    multi_label = False
    # Whether a checkpoint is evaluated on other data than that of its training.
    is_other_data = False
    # Whether checkpoints store the image names of each split; not needed if the folders on disk define the splits.
    store_split_names = True
    eval_crop: Crop = ResizeCenterCrop()  # of image files, in the evaluation and in `predict`
    pixel_format = RGB  # number of channels and range of the pixels; `ImageFolder` has options for them
    root: Path | None = None  # folder of the images, if there is one

    def __init__(
        self,
        batch_size: PositiveInt = 64,
        eval_batch_size: PositiveInt | None = None,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224,
        mean: Mean = "channel",
        std: Std = "channel",
        transforms: list[nn.Module] | None = None,
        batch_transforms: list[BatchTransform] | None = None,
        mix: BatchTransform | None = None,
        sampler: Literal["balanced"] | None = None,
        val_split: int | float = 0.1,
        test_split: int | float = 0.1,
        num_folds: PositiveInt | None = None,
        fold: NonNegativeInt = 0,
        split_seed: int = 0,
        num_workers: NonNegativeInt | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # of the subclass too; a checkpoint holds them
        to_plain_hparams(self.hparams)
        # One number, or (height, width) if it is not a square.
        self.image_size: Any = check_input(image_size, mean, std, self.pixel_format.channels)
        self.train_image_size: Any = self.image_size
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.mean: Mean = mean
        self.std: Std = std
        if batch_transforms is None:
            batch_transforms = build_default(type(self), "batch_transforms")
        self.transforms = transforms or []
        self.batch_transforms = [*(batch_transforms or []), *([mix] if mix else [])]
        check_transforms(self.transforms, self.batch_transforms)
        self.sampler, self.val_split, self.test_split = sampler, val_split, test_split
        self.num_folds, self.fold, self.split_seed = num_folds, fold, split_seed
        self.num_workers, self.on_bad_image = num_workers, on_bad_image
        self.classes: list[str] = []
        self.splits: dict[str, Any] = {}
        self.split_sources: dict[str, str] = {}  # description of a split, if it is not "the NAME split"
        self.split_labels: dict[str, str] = {}  # name of a split in results, if it is not NAME
        self.split_note: str | None = None  # where the splits are from, for the start of a run
        self.restored_provenance: Provenance | None = None  # of the checkpoint that is resumed or evaluated
        self.bad_images_dir: Path | None = None  # folder of bad_images.txt
        self.views: Views | None = None  # test-time augmentation
        self.predict_paths: list[Path] | None = None  # see `set_predict_files`
        self._train_loader: Any = None  # a ResumableLoader, or the loader of a stream
        self._resume_position: dict[str, int] = {}

    # ------------------------------------------------------------------------------------ what a subclass defines
    def find_splits(self) -> dict[str, Any]:
        """Sets `self.classes` and returns the available splits among `train`, `val` and `test`.

        A split is an `ImageFileDataset(root, names, labels, image_size)`, for training with `crop` and `seed`, or a
        `TensorImageDataset` in memory. If `self.restored_provenance` is not None, a checkpoint is being resumed or
        evaluated, and its splits must be used. `ImageFolder` and `TensorDataModule` handle all of this; subclass one of
        them unless the images are neither files nor tensors.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement find_splits")

    @property
    def class_names(self) -> list[str]:
        """Readable class names; `self.classes` unless a subclass overrides this."""
        return self.classes

    def __str__(self) -> str:
        # Lightning's version would load a batch of each split.
        return self.describe()

    # ------------------------------------------------------------------------------------ setup and data loaders
    def setup(self, stage: str) -> None:
        """Finds the splits, unless there are files to predict on; for training, fits the batch transforms."""
        if self.trainer is not None:
            # Only rank 0 knows the run folder.
            self.bad_images_dir = self.trainer.strategy.broadcast(self.bad_images_dir)
        if not self.splits and self.predict_paths is None:
            self.splits = self.find_splits()
        if stage == "fit":
            for transform in self.batch_transforms:
                transform.fit(self)

    def train_dataloader(self) -> ResumableLoader:
        """Returns shuffled, randomly cropped training images; a resumed epoch starts at the checkpoint's position."""
        images = self.split("train")
        if self.transforms:
            if not hasattr(images, "with_transforms"):
                raise UserError(
                    f"data.transforms: {type(images).__name__} has no method with_transforms(transforms, seed)\n"
                    "add it, or apply the transforms in its __getitem__"
                )
            images = images.with_transforms(self.transforms, self.seed)
        self._train_loader = self._make_loader(images, training=True)
        if self._resume_position:
            self._train_loader.load_state_dict(self._resume_position)
            self._resume_position = {}
        return self._train_loader

    def val_dataloader(self) -> ResumableLoader | list[Any]:
        """Returns the validation images; an empty list without a validation split."""
        return self._make_loader(self.splits["val"], training=False) if "val" in self.splits else []

    def test_dataloader(self) -> ResumableLoader:
        """Returns the test images."""
        return self._make_loader(self.split("test"), training=False)

    def predict_dataloader(self) -> ResumableLoader:
        """Returns the images of `set_predict_files`; the test images by default."""
        return self._make_loader(self.predict_images, training=False)

    def loader(self, images: Any, sampler: ShardedEpochSampler, batch_size: int) -> ResumableLoader:
        """Returns a loader of one split."""
        workers = min(self.resolved_num_workers, len(sampler))
        skip = self.on_bad_image, self.bad_images_dir
        return ImageFileLoader(images, sampler, batch_size, workers, self.pin_memory, *skip)

    def _make_loader(self, images: Any, training: bool) -> Any:
        """Returns a loader of this process's images: a ResumableLoader, or that of a stream."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        if len(images) < world_size:
            raise UserError(
                f"{self.describe()}: {len(images)} images are fewer than the {world_size} processes\n"
                "lower --trainer.devices or add images"
            )
        if not training and self.views is not None and isinstance(images, ImageFileDataset):
            images = images.with_views(self.views)
        batch_size = self.batch_size if training else self.eval_batch_size
        overfit = getattr(self.trainer, "overfit_batches", 0)
        balanced = training and self.sampler == "balanced"
        if hasattr(images, "stream"):
            if balanced or overfit:
                option = "data.sampler" if balanced else "trainer.overfit_batches"
                raise UserError(f"{option}: {type(images).__name__} is read in an order of its own\nremove the option")
            # Plain integers: the loader's state is in checkpoints.
            options: dict[str, Any] = {"batch_size": int(batch_size), "num_workers": int(self.resolved_num_workers)}
            return images.stream(training, **options, pin_memory=self.pin_memory, worker_init_fn=ignore_signals)
        sampler_class = FixedOrderSampler if overfit else ShardedEpochSampler
        labels = class_labels(self.split("train"), "data.sampler: balanced") if balanced else None
        sampler = sampler_class(len(images), self.seed, training, rank, world_size, labels)
        return self.loader(images, sampler, batch_size)

    @property
    def _step_images(self) -> int:
        """Images of all processes per batch."""
        return int(self.batch_size) * (1 if self.trainer is None else self.trainer.world_size)

    def state_dict(self) -> dict[str, Any]:
        """Returns the epoch and the number of batches done, to resume in the middle of an epoch.

        With another batch size or number of processes, training resumes after the same number of batches, not images.
        """
        if self._train_loader is None:
            return {}
        return self._train_loader.state_dict() | {"step_images": self._step_images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position; Lightning calls `train_dataloader` later, or before with a strategy that shards."""
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # Lightning also restores the state for an evaluation, which does not continue an epoch
        self._resume_position = dict(state_dict)
        before = self._resume_position.pop("step_images", None)
        if self.trainer is not None and before not in (None, self._step_images):
            rank_zero_print(
                f"note: the run had {before} images per step, now it has {self._step_images}: an epoch in progress "
                "skips or repeats images\nto avoid it, change --data.batch_size with the number of processes"
            )
        if self._train_loader is not None:
            self._train_loader.load_state_dict(self._resume_position)

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """Shape of a full training batch, `(N, C, H, W)`."""
        return self.batch_size, self.pixel_format.channels, *height_width(self.train_image_size)

    @property
    def seed(self) -> int:
        """The training seed, as set by `seed_everything`."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0))

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    @property
    def pin_memory(self) -> bool:
        """Whether loaders copy batches to pinned memory."""
        return self.device.type == "cuda"

    @property
    def resolved_num_workers(self) -> int:
        """Worker processes of this process."""
        processes = self.trainer.num_devices if self.trainer is not None else 1
        return default_num_workers(processes) if self.num_workers is None else self.num_workers

    # ------------------------------------------------------------------------------------ batch augmentation
    # Worker processes decode and crop images (dataset.py), these methods augment batches, and the model normalizes.
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augments training batches on the device.

        Seeds the global generators per batch, so that a resumed run draws the same numbers, for example for dropout.
        """
        assert self.trainer is not None, "only a Trainer calls this hook"
        if not self.trainer.training:
            return batch
        seed_generators(self.seed, batch.epoch, batch.batch_idx, self.trainer.global_rank)
        return self.augment(batch)

    def augment(self, batch: Batch) -> Batch:
        """Applies `batch_transforms`; images `(N, C, H, W)`, uint8 or float in [0, 1], become float in [0, 1]."""
        assert isinstance(batch.images, Tensor), "training batches have one view per image"
        if batch.batch_idx == 0:  # the loaders of this project check every image; others may not
            check_range(batch.images, "data: the training images are")
        images, labels = batch.images.to(torch.float32, copy=True), batch.labels
        if batch.images.dtype == torch.uint8:
            images.div_(255)
        rng = BatchRNG(self.seed, batch.epoch, batch.batch_idx, batch.indices)
        for transform in self.batch_transforms:
            images, labels = transform(images, labels, rng)
            if batch.batch_idx == 0:
                check_finite(images, transform)
        return batch._replace(images=images, labels=labels)

    # ------------------------------------------------------------------------------------ normalization
    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the training split, measured once."""
        return self.measure(self.split("train"))

    def measure(self, images: Any) -> Statistics:
        """Measures the statistics of a split, with the crop of evaluation."""
        crops = images.for_evaluation(self.eval_crop, self.image_size)
        loader = self.loader(crops, ShardedEpochSampler(len(crops)), self.eval_batch_size)
        return Statistics.of(batch.images for batch in loader if isinstance(batch.images, Tensor))

    def normalization(self) -> tuple[Tensor, Tensor]:
        """Returns the mean and standard deviation of images in [0, 1], each `(C, 1, 1)` or `(C, H, W)`."""
        return normalization(self.mean, self.std, lambda: self.statistics)

    # ------------------------------------------------------------------------------------ splits
    def split(self, name: str) -> Any:
        """Returns the split `name`; raises UserError if it does not exist."""
        if name not in self.splits:
            fix = f"hold out images with --data.{name}_split when training"
            if name == "train":
                fix = "to train on other data, start a new run; --model.weights starts it from these weights"
            raise UserError(f"{self.describe()} has no {name} split\n{fix}")
        return self.splits[name]

    def split_indices(
        self,
        digests: Sequence[str],
        labels: Sequence[Label],
        names: Sequence[str],
        test: int | float,
        groups: Sequence[str] | None = None,
    ) -> dict[str, list[int]]:
        """Splits images that have no splits of their own; returns the sorted indices of each split by name."""
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
            groups=groups,
        )
        for warning in split.warnings:
            rank_zero_print(f"note: {warning}")
        return {"train": split.train, "val": split.val, "test": split.test}

    def describe(self) -> str:
        """Returns a short description of the data, for messages and reports."""
        return type(self).__name__ + (f" at {self.root}" if self.root is not None else "")

    def describe_split(self, name: str) -> str:
        """Returns a short description of a split's images, for messages and reports."""
        return f"{self.describe_source(name)}, {self.describe()}"

    def describe_source(self, name: str) -> str:
        """Returns where the images of a split are from, in a few words."""
        return self.split_sources.get(name, f"the {name} split")

    def provenance(self) -> dict[str, Any]:
        """Returns the fields of `Provenance` as plain types, for the checkpoint."""
        names = {name: list(images.names) for name, images in self.splits.items()}
        size = self.image_size
        return {
            "root": None if self.root is None else str(self.root.resolve()),
            "classes": list(self.classes),
            "class_names": list(self.class_names),
            "pixel_format": list(self.pixel_format),
            "image_size": int(size) if isinstance(size, int) else list(map(int, size)),
            "eval_crop": describe_crop(self.eval_crop),
            "splits": names if self.store_split_names else None,
        }

    def use_provenance(self, provenance: dict[str, Any]) -> None:
        """Makes `setup` use the splits and classes of a checkpoint."""
        self.restored_provenance = Provenance.from_dict(provenance)

    def set_predict_files(self, paths: Sequence[Path]) -> None:
        """Makes `predict` read these files; a parent folder that is named after a class gives the true label."""
        self.predict_paths = list(paths)

    @property
    def predict_images(self) -> Any:
        """The images for `predict`: those of `set_predict_files`, otherwise the test split."""
        if self.predict_paths is None:
            return self.split("test")
        classes = self.restored_provenance.classes if self.restored_provenance else self.classes
        index = {name: label for label, name in enumerate(classes)}
        labels = [-1 if self.multi_label else index.get(path.parent.name, -1) for path in self.predict_paths]
        names = [str(path) for path in self.predict_paths]
        pixel_format = self.pixel_format
        return ImageFileDataset(Path(), names, labels, self.image_size, self.eval_crop, pixel_format=pixel_format)
