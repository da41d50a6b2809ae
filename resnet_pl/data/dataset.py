"""A split of image files as a torch Dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.batch_transforms import apply_transforms
from resnet_pl.data.cache import DecodedImageCache, short_hash, stat_key
from resnet_pl.data.crops import Crop, ResizeCenterCrop
from resnet_pl.data.decode import RGB, EncodedImage, PixelFormat, to_displayed
from resnet_pl.data.resizing import Size, height_width
from resnet_pl.data.rng import seeded_rng
from resnet_pl.data.views import Views
from resnet_pl.utils import UserError, in_threads


class ImageFileDataset(torch.utils.data.Dataset[Any]):
    """Image files of one split, decoded on access.

    Args:
        root: folder that the names are relative to.
        names: path of each image relative to `root`.
        labels: class index of each image, -1 if unknown; a tuple of class indices with `num_classes`.
        image_size: size of the network's input: the side of a square, or height and width, pixels.
        crop: crops an image to the network's input; `ResizeCenterCrop` by default.
        transforms: transforms of the cropped uint8 image, applied in order.
        seed: the training seed, for random crops and transforms.
        scaled_decoding: whether large JPEGs are decoded at a fraction of their size where the crop allows it.
        pixel_format: number of channels and range of the pixels; RGB by default.

    Attributes:
        cache: the decoded images, used instead of the files; None without a cache.
        num_classes: the number of classes, if an image can have several.
    """

    cache: DecodedImageCache | None = None
    num_classes: int | None = None

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[Any],
        image_size: Size,
        crop: Callable[[Tensor, Any], Tensor] | None = None,
        transforms: Sequence[nn.Module] = (),
        seed: int = 0,
        scaled_decoding: bool = False,
        pixel_format: PixelFormat = RGB,
    ) -> None:
        self.root, self.names, self.labels = root, list(names), list(labels)
        self.image_size, self.transforms, self.seed = image_size, transforms, seed
        self.scaled_decoding, self.pixel_format = scaled_decoding, pixel_format
        self.crop: Callable[[Tensor, Any], Tensor | list[Tensor]] = crop or ResizeCenterCrop()

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Returns a hash of names, labels and file sizes; hashing the contents would take too long."""
        states = in_threads(lambda name: stat_key(self.root / name), self.names)
        return short_hash(self.names, self.labels, [state and state[0] for state in states])

    def encoded(self, index: int, data: bytes | None = None) -> EncodedImage:
        """Returns an image before decoding; override this for images that are not files.

        Args:
            index: index of the image.
            data: content of its file; by default it is read.

        Raises:
            BadImage: the file is missing or unreadable.
        """
        return EncodedImage(self.root / self.names[index], self.pixel_format, data)

    def load_full_image(self, index: int) -> Tensor:
        """Returns the uncropped image as RGB, `(3, H, W)` uint8; a gray image if the file has disappeared."""
        with suppress(BadImage):
            return to_displayed(self.encoded(index).decode())
        return torch.full((3, *height_width(self.image_size)), 128, dtype=torch.uint8)

    def with_views(self, views: Views) -> ImageFileDataset:
        """Returns a copy that gives several views of each image instead of one crop, for test-time augmentation."""
        dataset = copy(self)
        dataset.crop, dataset.transforms, dataset.cache = views, (), None
        return dataset

    def for_evaluation(self, crop: Crop, image_size: Size) -> ImageFileDataset:
        """Returns a copy with the crop and size of the evaluation, no transforms, and pixels decoded in full."""
        dataset = copy(self)
        dataset.image_size = image_size
        dataset.crop, dataset.transforms, dataset.scaled_decoding, dataset.cache = crop, (), False, None
        return dataset

    def with_transforms(self, transforms: Sequence[nn.Module], seed: int) -> ImageFileDataset:
        """Returns a copy with more transforms of the cropped image, and the training seed for all random numbers."""
        dataset = copy(self)
        dataset.transforms, dataset.seed = [*self.transforms, *transforms], seed
        return dataset

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | list[Tensor], Any, int] | UserError:
        """Returns an image, `(3, S, S)` uint8 (float in [0, 1] if a transform makes it so), its label and its index.

        Returns the error if its file is unreadable, or if a transform returns something else: an exception in a worker
        process loses its type.

        With `num_classes`, the label is `(K,)` float32, 1 for each of its classes and 0 for the others.

        Args:
            key: (epoch, index). Random crops and transforms are a function of the seed, the epoch and the index.
        """
        return self.sample(*key)

    def sample(self, epoch: int, index: int, data: bytes | None = None) -> Any:
        """Returns the sample of an index as `__getitem__` does.

        Args:
            epoch: the epoch, from 0.
            index: index of the image.
            data: content of the file, if it is from another place; by default it is read.
        """
        # Crops without this attribute, such as functions, may draw from any generator.
        torch_only = not self.transforms and getattr(self.crop, "draws_from_torch_only", False)
        with seeded_rng(self.seed, epoch, index, torch_only=torch_only):
            try:
                sample = self._read(index, data)
                sample = apply_transforms(sample, self.transforms) if self.transforms else sample
            except UserError as error:
                return error
        return sample, self._label(index), index

    def _read(self, index: int, data: bytes | None) -> Any:
        """Returns the cropped image; raises BadImage if its file is unreadable."""
        if self.cache:
            reads_only_its_box = isinstance(self.crop, Crop) and self.crop.reads_only_its_box
            cached = self.cache.view(index) if reads_only_its_box else self.cache[index]
            if cached is not None:
                return self.crop(cached, self.image_size)
        encoded = self.encoded(index, data)
        if self.scaled_decoding and isinstance(self.crop, Crop):
            return self.crop.read(encoded, self.image_size)
        return self.crop(encoded.decode(), self.image_size)

    def _label(self, index: int) -> Any:
        if self.num_classes is None:
            return self.labels[index]
        label = torch.zeros(self.num_classes)
        label[list(self.labels[index])] = 1
        return label
