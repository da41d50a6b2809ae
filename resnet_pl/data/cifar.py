"""CIFAR-10 and CIFAR-100: 60,000 images of 32×32 pixels, from the official binary archives or an .npz of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from resnet_pl.data.batch_transforms import BatchTransform, PadCrop, RandomFlip
from resnet_pl.data.download import DownloadMixin, extract
from resnet_pl.data.statistics import Mean, Std
from resnet_pl.data.tensors import TensorDataModule, TensorImageDataset
from resnet_pl.data.typed_kwargs import CIFARArgs, ImageDataModuleArgs
from resnet_pl.types import PositiveInt, Unpack
from resnet_pl.utils import UserError, expand_path, first_line

PIXELS = 3 * 32 * 32


class _CIFAR(DownloadMixin, TensorDataModule):
    """Base class of both data sets, with the paper's augmentation, normalization and validation split (§4.2).

    Args:
        root: folder of the .npz or the unpacked binary files.
        download: whether the archive is downloaded if the images are missing.
        mean: mean that is subtracted from images in [0, 1]; the mean image of the training split by default (§4.2).
        std: standard deviation that images are divided by; no division by default.
        batch_transforms: augmentation of training batches; horizontal flip, padding by 4 pixels and random crop by
            default (§4.2). A list replaces the default, `+` appends to it.
        val_split: fraction (below 1) or number of training images held out for validation; 0 trains on all images.
        test_split: not used; CIFAR has a test split.
    """

    # The flip first: the mean image, which the padding is filled with, is not symmetric.
    defaults = {"batch_transforms": [RandomFlip, partial(PadCrop, padding=4)]}
    paper_batch_size = 128
    npz: ClassVar[str]
    binaries: ClassVar[dict[str, list[str]]]
    # Bytes before each image in the binary files; the last of them is the label.
    label_bytes: ClassVar[int]
    names: ClassVar[Sequence[str]]

    def __init__(
        self,
        root: str,
        download: bool = True,
        batch_size: PositiveInt = 128,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32,
        mean: Mean = "pixel",
        std: Std = None,
        batch_transforms: list[BatchTransform] | None = None,
        val_split: int | float = 5000,
        test_split: int | float = 0.1,
        **kwargs: Unpack[ImageDataModuleArgs],
    ) -> None:
        if image_size != 32:
            raise ValueError(f"{type(self).__name__}: image_size is {image_size}, but CIFAR images have 32×32 pixels")
        super().__init__(
            batch_size=batch_size,
            image_size=image_size,
            mean=mean,
            std=std,
            batch_transforms=batch_transforms,
            val_split=val_split,
            test_split=test_split,
            **kwargs,
        )
        self.root: Path = Path(expand_path(root))  # pyright: ignore[reportIncompatibleVariableOverride] - set only here
        self.download = download

    def _binaries(self, split: str) -> list[Path] | None:
        """Returns the binary files of a split, in the root or one folder below; None if any is missing."""
        for folder in (self.root, *sorted(path for path in self.root.glob("*") if path.is_dir())):
            paths = [folder / name for name in self.binaries[split]]
            if all(path.is_file() for path in paths):
                return paths
        return None

    @override
    def is_downloaded(self) -> bool:
        return (self.root / self.npz).is_file() or all(self._binaries(split) for split in self.binaries)

    @override
    def unpack(self, archive: Path) -> None:
        extract(archive, self.root)

    @override
    def read(self) -> dict[str, TensorImageDataset]:
        self.classes = list(self.names)
        if (self.root / self.npz).is_file():
            return self._read_npz(self.root / self.npz)
        return {split: self._read_binaries(split) for split in self.binaries}

    def _read_npz(self, path: Path) -> dict[str, TensorImageDataset]:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {
                    split: self._make_dataset(split, arrays[f"x_{split}"], arrays[f"y_{split}"])
                    for split in self.binaries
                }
        # A damaged file makes NumPy raise almost anything: BadZipFile, EOFError, KeyError, TypeError, ...
        except Exception as error:
            raise UserError(
                f"cannot read {path}: {first_line(error)}\n"
                "it must contain the uint8 arrays x_train, x_test (N, 32, 32, 3) and the labels y_train, y_test"
            ) from error

    def _read_binaries(self, split: str) -> TensorImageDataset:
        paths = self._binaries(split)
        if paths is None:
            raise UserError(
                f"{type(self).__name__} not found in {self.root}: no {self.npz} and no {self.binaries[split][0]}\n"
                f"download it with --data.download true, or unpack {self.urls[0]} there"
            )
        files = [np.fromfile(path, dtype=np.uint8) for path in paths]
        record = self.label_bytes + PIXELS
        for path, content in zip(paths, files, strict=True):
            if len(content) == 0 or len(content) % record:
                raise UserError(f"{path} is empty or truncated\nunpack {Path(self.urls[0]).name} again")
        data = np.concatenate(files).reshape(-1, record)
        images = data[:, self.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        try:
            return self._make_dataset(split, images, data[:, self.label_bytes - 1])
        except ValueError as error:
            name = type(self).__name__
            raise UserError(f"{paths[0].parent} does not contain {name}: {error}\nunpack it again") from error

    def _make_dataset(self, split: str, images: np.ndarray, labels: np.ndarray) -> TensorImageDataset:
        """Returns a checked split of `(N, 32, 32, 3)` images and `(N,)` or `(N, 1)` labels."""
        labels = labels.reshape(-1).astype(np.int64)
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise ValueError(f"x_{split} is {images.dtype} of shape {images.shape}")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError(f"y_{split} has labels {labels.min()} to {labels.max()}, for {len(self.classes)} classes")
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return TensorImageDataset(pixels, torch.from_numpy(labels), [f"{split}/{i:05d}" for i in range(len(labels))])


class CIFAR10(_CIFAR):
    """CIFAR-10, downloaded (170 MB) if missing.

    Args:
        root: folder of cifar10.npz or the unpacked binary files.
    """

    urls = ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    checksum = "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    npz = "cifar10.npz"
    binaries = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    label_bytes = 1
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

    def __init__(self, root: str = "data/cifar10", **kwargs: Unpack[CIFARArgs]) -> None:
        super().__init__(root=root, **kwargs)


class CIFAR100(_CIFAR):
    """CIFAR-100 with fine labels, downloaded (169 MB) if missing.

    Args:
        root: folder of cifar100.npz or the unpacked binary files.
    """

    urls = ["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"]
    checksum = "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
    npz = "cifar100.npz"
    binaries = {"train": ["train.bin"], "test": ["test.bin"]}
    label_bytes = 2
    names = (
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
        "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
        "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard "
        "lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear "
        "pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark "
        "shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone "
        "television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
    ).split()

    def __init__(self, root: str = "data/cifar100", **kwargs: Unpack[CIFARArgs]) -> None:
        super().__init__(root=root, **kwargs)
