"""Crops of images to the network's input size; they run in the worker processes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from resnet_pl.data.decode import EncodedImage
from resnet_pl.data.jpeg import REDUCTIONS
from resnet_pl.data.resizing import Size, center_crop, height_width, interpolate, resize_to_cover, rounded

# Top, left, height and width in pixels.
Box = tuple[int, int, int, int]


class Crop:
    """Base class of crops: chooses a box of the image and resizes it. Name your own subclass in YAML.

    The size of the network's input is one number for a square, `(height, width)` if `image_size` has two numbers.

    Attributes:
        draws_from_torch_only: whether the crop draws from torch's global generator and no other. Then the generators of
            Python and NumPy are not seeded, which saves 1 % of the loading time. Each subclass must set this itself.
    """

    draws_from_torch_only: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Not inherited: a subclass of a crop that sets it may draw from any generator.
        cls.draws_from_torch_only = vars(cls).get("draws_from_torch_only", False)

    def get_params(self, height: int, width: int, size: Any) -> Box:
        """Returns the box (top, left, height, width) in pixels; random crops draw from torch's global generator.

        Args:
            height: height of the image, pixels.
            width: width of the image, pixels.
            size: size of the network's input, pixels.
        """
        raise NotImplementedError

    def for_evaluation(self) -> Crop:
        """Returns the crop that evaluates a network that was trained with this one."""
        return ResizeCenterCrop()

    def __call__(self, image: Tensor, size: Any) -> Tensor:
        """Crops `(C, H, W)` uint8 to the box, then resizes it to the size of the network's input."""
        return self._resize(image, self._draw_box(image.shape[-2], image.shape[-1], size), size)

    @property
    def reads_only_its_box(self) -> bool:
        """Whether the crop is defined by `get_params` alone; False for a subclass with its own `__call__`."""
        return type(self).__call__ is Crop.__call__

    def read(self, encoded: EncodedImage, size: Size) -> Tensor:
        """Decodes and crops a file; decodes a JPEG at a half, quarter or eighth if the box still has `size` pixels.

        The box is chosen in the full image, so that it is the same as without the reduction. A subclass with its own
        `__call__` gets the full image.

        Args:
            encoded: the file.
            size: size of the network's input, pixels.

        Returns:
            `(C, H, W)` uint8 of this size.
        """
        if encoded.jpeg_size is None or not self.reads_only_its_box:
            return self(encoded.decode(), size)
        box = self._draw_box(*encoded.jpeg_size, size)
        least_height, least_width = height_width(size)
        ratio = min(box[2] / least_height, box[3] / least_width)
        reduction = next((each for each in REDUCTIONS if ratio >= each), 1)
        image = encoded.decode(reduction)
        # A file that only Pillow reads is decoded in full.
        return self._resize(image, box if image.shape[1:] == encoded.jpeg_size else reduce_box(box, reduction), size)

    def _draw_box(self, height: int, width: int, size: Size) -> Box:
        """Returns the box; raises ValueError if it is outside the image."""
        top, left, box_height, box_width = box = self.get_params(height, width, size)
        if min(top, left) < 0 or top + box_height > height or left + box_width > width:
            raise ValueError(
                f"{type(self).__name__}.get_params: box {box} is outside an image of {(height, width)} pixels"
            )
        return box

    def _resize(self, image: Tensor, box: Box, size: Size) -> Tensor:
        top, left, height, width = box
        cropped = image[..., top : top + height, left : left + width]
        # Decoders return channels_last; resizing it is a third faster than resizing contiguous channels.
        cropped = (cropped if image.ndim == 4 else cropped[None]).contiguous(memory_format=torch.channels_last)
        # The kernel of torchvision's resize, without its dispatch overhead (3 % of the loading time).
        resized = interpolate(cropped, height_width(size))
        return resized if image.ndim == 4 else resized[0]


def reduce_box(box: Box, reduction: int) -> Box:
    """Returns a box of an image as a box of the image reduced by a factor; its edges are rounded to pixels."""
    top, left, height, width = box
    edges = [(2 * edge + reduction) // (2 * reduction) for edge in (top, left, top + height, left + width)]
    return edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]


def _randint(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


class ScaleCrop(Crop):
    """The paper's scale augmentation (§3.4): shorter side resized to a random length, then a random square crop.

    If the network's input is not square, the image is resized in proportion to the largest box of that shape in it.

    Args:
        min_side: minimum length of the shorter side for a crop of 224 pixels; scaled in proportion for other sizes.
        max_side: maximum length of the shorter side for a crop of 224 pixels.
    """

    draws_from_torch_only = True

    def __init__(self, min_side: int = 256, max_side: int = 480) -> None:
        if not 224 <= min_side <= max_side:
            raise ValueError(
                f"ScaleCrop: min_side {min_side} must be 224 or more, and max_side {max_side} not below min_side"
            )
        self.min_side, self.max_side = min_side, max_side

    @override
    def get_params(self, height: int, width: int, size: Size) -> Box:
        rows, columns = height_width(size)
        short = min(height * columns, width * rows)  # the largest box has short / columns rows
        drawn = _randint(self.min_side, self.max_side)
        box_height, box_width = (max(1, round(short / side * 224 / drawn)) for side in (columns, rows))
        return _randint(0, height - box_height), _randint(0, width - box_width), box_height, box_width


class RandomResizedCrop(Crop):
    """Crop with random area and aspect ratio, as torchvision's RandomResizedCrop.

    Args:
        min_area: minimum fraction of the image's area.
        max_area: maximum fraction of the image's area.
        min_ratio: minimum width / height, relative to that of the network's input.
        max_ratio: maximum width / height, relative to that of the network's input.
    """

    draws_from_torch_only = True

    def __init__(
        self, min_area: float = 0.08, max_area: float = 1.0, min_ratio: float = 3 / 4, max_ratio: float = 4 / 3
    ) -> None:
        if not 0 < min_area <= max_area <= 1 or not 0 < min_ratio <= max_ratio:
            raise ValueError(f"RandomResizedCrop: areas {min_area} to {max_area}, ratios {min_ratio} to {max_ratio}")
        self.area, self.ratio = (min_area, max_area), (min_ratio, max_ratio)
        self.log_ratio = torch.tensor(self.ratio).log().tolist()

    def get_params(self, height: int, width: int, size: Size) -> Box:
        """Draws the same box as torchvision, whose `make_params` is much slower."""
        rows, columns = height_width(size)
        shape = columns / rows
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.area).item()
            ratio = shape * torch.empty(1).uniform_(*self.log_ratio).exp_().item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return _randint(0, height - h), _randint(0, width - w), h, w
        # The largest centered box.
        w = min(width, max(1, round(height * shape * self.ratio[1])))
        h = min(height, max(1, round(width / (shape * self.ratio[0]))))
        return (height - h) // 2, (width - w) // 2, h, w


class ResizeCenterCrop(Crop):
    """The evaluation crop: shorter side resized to size × 256 / 224, then the center square.

    As a training crop it disables random cropping.
    """

    draws_from_torch_only = True

    def __call__(self, image: Tensor, size: Size) -> Tensor:
        """Resizes `(…, H, W)` first, then crops it, as for published accuracies."""
        return center_crop(resize_to_cover(image, size), *height_width(size))


class CenterCrop(Crop):
    """The largest centered box with the shape of the network's input, resized to it.

    The evaluation crop of data in memory: an image of the network's size stays unchanged.
    """

    draws_from_torch_only = True

    @override
    def for_evaluation(self) -> Crop:
        return self

    def __call__(self, image: Tensor, size: Size) -> Tensor:
        """Crops `(C, H, W)` uint8 first, then resizes it."""
        (rows, columns), (height, width) = height_width(size), image.shape[-2:]
        box_height = torch.sym_max(1, torch.sym_min(height, rounded(width * rows, columns)))
        box_width = torch.sym_max(1, torch.sym_min(width, rounded(height * columns, rows)))
        return self._resize(center_crop(image, box_height, box_width), (0, 0, box_height, box_width), size)


class Letterbox(Crop):
    """The entire image: resized to fit into the network's input, and padded at two sides. Evaluation does the same.

    For objects at the edges of the images, which the other crops cut off.

    Args:
        fill: gray level of the padding, 0 to 255.
    """

    draws_from_torch_only = True

    def __init__(self, fill: int = 128) -> None:
        if not 0 <= fill <= 255:
            raise ValueError(f"Letterbox: fill is {fill}, it must be between 0 and 255")
        self.fill, self.init_args = fill, {"fill": fill}

    @override
    def for_evaluation(self) -> Crop:
        return self

    @override
    def get_params(self, height: int, width: int, size: Size) -> Box:
        return 0, 0, height, width

    @override
    def _resize(self, image: Tensor, box: Box, size: Size) -> Tensor:
        (rows, columns), (box_height, box_width) = height_width(size), box[2:]
        height = torch.sym_min(rows, torch.sym_max(1, rounded(box_height * columns, box_width)))
        width = torch.sym_min(columns, torch.sym_max(1, rounded(box_width * rows, box_height)))
        top, left = (rows - height) // 2, (columns - width) // 2
        padding = [left, columns - width - left, top, rows - height - top]
        return F.pad(super()._resize(image, box, (height, width)), padding, value=self.fill)


def describe_crop(crop: Crop) -> dict[str, Any] | None:
    """Returns a crop of the evaluation as plain types for the checkpoint; None for the usual `ResizeCenterCrop`."""
    if type(crop) is ResizeCenterCrop:
        return None
    cls = type(crop)
    module = "resnet_pl.data" if cls.__module__ == __name__ else cls.__module__
    return {"class_path": f"{module}.{cls.__qualname__}", "init_args": getattr(crop, "init_args", {})}
