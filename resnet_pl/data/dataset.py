"""Photos in files, as one split of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from resnet_pl.data.cache import DecodedPhotos, file_state, short_hash
from resnet_pl.data.decode import BadImage, read_image, read_jpeg
from resnet_pl.data.rng import keyed_rng
from resnet_pl.data.transforms import CentreCrop, Crop
from resnet_pl.data.views import Views
from resnet_pl.utils import UserError


def check_decoder(device: torch.device) -> None:
    """Raises UserError where torchvision cannot decode a JPEG on a device."""
    try:
        decode_jpeg(encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8)), device=device)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise UserError(f"data.decode: cannot decode photos on {device}: {why}\ngive --data.decode cpu") from error


class Photos(torch.utils.data.Dataset):
    """Photos of one split, read when asked for.

    Args:
        root: folder that the names start from.
        names: path of each photo relative to `root`.
        labels: class index of each photo, -1 where it is not known.
        image_size: side of the net's input, pixels.
        crop: chooses the net's view; evaluation's centre crop by default.
        transforms: further transforms of the cropped uint8 image, in order.
        seed: the run's seed, from which crops and transforms draw.

    Attributes:
        cache: the same photos decoded, which views are then cut from.
        device: where whole batches are decoded; None decodes each photo where it is read.
    """

    cache: DecodedPhotos | None = None
    device: torch.device | None = None

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int],
        image_size: int,
        crop: Crop | None = None,
        transforms: Sequence[nn.Module] = (),
        seed: int = 0,
    ) -> None:
        self.root, self.names, self.labels = root, list(names), list(labels)
        self.image_size, self.crop, self.transforms, self.seed = image_size, crop or CentreCrop(), transforms, seed

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Tells these photos from others: by names, labels and sizes of the files, for contents take long to read."""
        states = [file_state(self.root / name) for name in self.names]
        return short_hash(self.names, self.labels, [state and state[0] for state in states])

    def picture(self, index: int) -> Tensor:
        """`(3, H, W)` uint8, the whole photo as a person looks at it; grey where it has vanished since it was read."""
        with suppress(BadImage):
            return read_image(self.root / self.names[index])
        return torch.full((3, self.image_size, self.image_size), 128, dtype=torch.uint8)

    def through(self, views: Views) -> Photos:
        """These photos, each as a list of views instead of one."""
        photos = copy(self)
        photos.crop, photos.transforms, photos.cache, photos.device = views, (), None, None
        return photos

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int] | BadImage:
        """Returns the `(3, S, S)` uint8 view, label and index of a photo in an epoch, or what is wrong with its file.

        With a `device` the view may be a JPEG's bytes, `(B,)` uint8, which `decode` takes.

        Args:
            key: (epoch, index). The view is a pure function of the seed and these two.
        """
        epoch, index = key
        image = self.cache[index] if self.cache else None
        if image is None and self.device is not None:
            encoded = read_jpeg(self.root / self.names[index])
            if encoded is not None:
                return encoded, self.labels[index], index
        return self._sample(image, epoch, index)

    def _sample(self, image: Tensor | None, epoch: int, index: int) -> tuple[Tensor, int, int] | BadImage:
        try:
            image = read_image(self.root / self.names[index]) if image is None else image
        except BadImage as bad:
            return bad
        # Our own crops draw from torch; seeding the other generators takes a hundredth of a photo's time.
        torch_alone = not self.transforms and type(self.crop).__module__ == Crop.__module__
        with keyed_rng(self.seed, epoch, index, torch_alone=torch_alone):
            image = self.crop(image, self.image_size)
            for transform in self.transforms:
                image = transform(image)
        return image, self.labels[index], index

    def decode(self, samples: Sequence[Any], epoch: int) -> list[Any]:
        """Samples of one epoch with views on the device; those that are bytes are decoded there, in one go."""
        read = [sample for sample in samples if not isinstance(sample, BadImage)]
        waiting = {sample[2]: sample[0] for sample in read if sample[0].ndim == 1}
        images = self._decoded(list(waiting.values()))
        views = {index: self._sample(image, epoch, index) for index, image in zip(waiting, images, strict=True)}
        ready = [sample if isinstance(sample, BadImage) else views.get(sample[2], sample) for sample in samples]
        return [s if isinstance(s, BadImage) else (s[0].to(self.device), *s[1:]) for s in ready]

    def _decoded(self, encoded: list[Tensor]) -> list[Tensor | None]:
        """Photos on the device; None for one that cannot be decoded there, which is then read by itself, or named."""
        if not encoded:
            return []
        if self.device.type == "cuda":
            # The decoder works beside the steps that are still under way, in memory that they have yet to read
            # (pytorch/vision, pull request 9606).
            torch.cuda.current_stream(self.device).synchronize()
        try:
            return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=self.device)
        except RuntimeError as error:
            # nvJPEG's own is of no type that tells.
            if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
                raise
            # One of them fails them all.
            return [None] if len(encoded) == 1 else [image for one in encoded for image in self._decoded([one])]
