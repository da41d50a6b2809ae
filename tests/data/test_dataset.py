import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from resnet_pl.data import ImageFolder
from resnet_pl.data import dataset as photos
from resnet_pl.data.dataset import Photos, check_decoder
from resnet_pl.data.decode import BadImage, read_jpeg
from resnet_pl.data.loader import EpochSampler, PhotoLoader, _packed, _unpacked
from resnet_pl.data.transforms import CentreCrop, RandomResizedCrop, ScaleCrop
from resnet_pl.utils import UserError


@pytest.fixture
def names(photo_folder: Path) -> list[str]:
    return sorted(path.relative_to(photo_folder).as_posix() for path in photo_folder.glob("*/*"))


def test_view_label_and_picture(photo_folder: Path, names: list[str]) -> None:
    photos = Photos(photo_folder, names, range(30), 16)
    assert len(photos) == 30
    view, label, index = photos[0, 13]
    assert (view.shape, view.dtype, label, index) == ((3, 16, 16), torch.uint8, 13, 13)
    assert photos.picture(13).shape == (3, 24, 27)
    assert torch.equal(photos[5, 13][0], view), "evaluation's view changes with the epoch"


def test_random_views_are_a_function_of_seed_epoch_and_index(photo_folder: Path, names: list[str]) -> None:
    def view(seed: int, epoch: int, index: int = 13) -> torch.Tensor:
        transforms = [v2.ColorJitter(0.5), v2.RandomErasing(0.5)]
        return Photos(photo_folder, names, range(30), 16, RandomResizedCrop(), transforms, seed)[epoch, index][0]

    torch.manual_seed(0)
    first = view(1, 2)
    torch.manual_seed(1)
    assert torch.equal(view(1, 2), first)
    assert not torch.equal(view(2, 2), first)
    assert not torch.equal(view(1, 3), first)


def own_crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """One that draws from Python and numpy, as nobody should."""
    top, left = random.randint(0, image.shape[-2] - size), np.random.randint(0, image.shape[-1] - size + 1)
    return image[:, top : top + size, left : left + size]


def test_views_of_a_crop_of_ones_own_too(photo_folder: Path, names: list[str]) -> None:
    photos = Photos(photo_folder, names, range(30), 8, own_crop)
    views = [photos[2, index][0] for index in range(30)]
    np.random.seed(0)
    assert all(torch.equal(photos[2, index][0], view) for index, view in enumerate(views))
    assert len({view.numpy().tobytes() for view in views}) > 20


def test_our_crops_leave_other_generators_alone(photo_folder: Path, names: list[str]) -> None:
    states = random.getstate(), np.random.get_state()[1].tobytes()
    for crop in (RandomResizedCrop(), ScaleCrop(), CentreCrop()):
        Photos(photo_folder, names, range(30), 8, crop)[0, 0]
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == states


def test_a_bad_file_is_returned(photo_folder: Path, names: list[str]) -> None:
    (photo_folder / names[0]).write_bytes(b"")
    bad = Photos(photo_folder, names, range(30), 16)[0, 0]
    assert isinstance(bad, BadImage)
    assert bad.path == photo_folder / names[0]
    assert bad.reason == "the file is empty"


# ------------------------------------------------------------------------------------ decoding on the device
@pytest.fixture
def kinds(photo_folder: Path, names: list[str]) -> list[str]:
    """The photos, a PNG and one turned by EXIF among them."""
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(photo_folder / names[3]) as image:
        image.save(photo_folder / names[1], "PNG")
        image.save(photo_folder / names[2], "JPEG", exif=turned, quality=95)
    return names


def by_both(root: Path, names: list[str], device: str, **kwargs: object) -> list[PhotoLoader]:
    """Loaders of the same photos, decoded in the worker and on the device."""
    photos = [Photos(root, names, range(30), 16, RandomResizedCrop(), seed=1) for _ in range(2)]
    photos[1].device = torch.device(device)
    return [PhotoLoader(each, EpochSampler(30, 1, True), 8, **kwargs) for each in photos]


@pytest.mark.parametrize("workers", [0, 1])
def test_decoded_on_the_device(photo_folder: Path, kinds: list[str], workers: int) -> None:
    plain, ours = by_both(photo_folder, kinds, "cpu", num_workers=workers)
    sizes = [sample[0].ndim for sample in (ours.images[0, index] for index in range(30))]
    assert sizes == [1, 3, 3, *[1] * 27], "only JPEGs that lie as they are seen travel as bytes"
    for first, second in zip(plain, ours, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels) and torch.equal(first.indices, second.indices)
    assert ours.images.through(lambda image, size: [image]).device is None


def test_bad_photos_among_those_decoded_on_the_device(photo_folder: Path, names: list[str]) -> None:
    (photo_folder / names[8]).write_bytes(b"no image")
    (photo_folder / names[7]).write_bytes((photo_folder / names[7]).read_bytes()[:400])
    # Damaged in the middle, where only the decoder sees it.
    data = (photo_folder / names[29]).read_bytes()
    start = data.index(b"\xff\xda")
    (photo_folder / names[29]).write_bytes(data[: start + 4] + b"\xff\xd9")
    plain, ours = by_both(photo_folder, names, "cpu", on_bad_image="skip")
    for first, second in zip(plain, ours, strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.indices, second.indices)
    assert plain.skipped == ours.skipped and len(ours.skipped) == 3


def test_a_batch_of_bad_photos_is_stood_in_for(photo_folder: Path, names: list[str]) -> None:
    plain, ours = by_both(photo_folder, names, "cpu", on_bad_image="skip")
    for index in plain.sampler.indices()[8:16].tolist():
        (photo_folder / names[index]).write_bytes(b"")
    for first, second in zip(plain, ours, strict=True):
        assert torch.equal(first.images, second.images) and torch.equal(first.indices, second.indices)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_decoded_on_a_gpu(photo_folder: Path, kinds: list[str]) -> None:
    difference = []
    for first, second in zip(*by_both(photo_folder, kinds, "cuda", num_workers=1), strict=True):
        assert second.images.is_cuda and torch.equal(first.indices, second.indices)
        difference.append((first.images.int() - second.images.cpu().int()).float())
    together = torch.cat(difference)
    # Another decoder rounds otherwise and enlarges colour otherwise; no photo may be another or lie elsewhere.
    assert together.abs().mean() < 3 and together.mean().abs() < 0.5


def test_decoding_on_the_device_needs_a_gpu_and_no_transforms(photo_folder: Path) -> None:
    data = ImageFolder(str(photo_folder), image_size=16, num_workers=0, decode="device")
    data.setup("fit")
    assert data.val_dataloader().images.device is None, "evaluation is the same everywhere"
    with pytest.raises(UserError, match=r"data.decode: photos cannot be decoded on a cpu\n.*--data.decode cpu"):
        data.train_dataloader()
    with pytest.raises(ValueError, match="transforms of single photos"):
        ImageFolder(str(photo_folder), transforms=[v2.RandomErasing()], decode="device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_device_that_cannot_decode_is_told_at_once() -> None:
    with pytest.raises(UserError, match=r"data.decode: cannot decode photos on cuda: .*\ngive --data.decode cpu"):
        check_decoder(torch.device("cuda"))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("full"), RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried")],
)
def test_a_gpu_without_memory_is_not_taken_for_a_bad_photo(
    error: RuntimeError, photo_folder: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    every = Photos(photo_folder, names, [0] * len(names), 16)
    every.device = torch.device("cpu")
    samples = [every[0, index] for index in range(len(names))]
    monkeypatch.setattr(photos, "decode_jpeg", full)
    with pytest.raises(type(error), match=str(error)):
        every.decode(samples, 0)


def test_a_photo_that_the_device_refuses_leaves_the_others_to_it(
    photo_folder: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(encoded: list[torch.Tensor], **kwargs: Any) -> list[torch.Tensor]:
        if any(torch.equal(each, samples[4][0]) for each in encoded):
            raise RuntimeError("Unknown chroma subsampling")
        done.extend(encoded)
        return decode_jpeg(encoded, **kwargs)

    done: list[torch.Tensor] = []
    every = Photos(photo_folder, names, [0] * len(names), 16)
    every.device = torch.device("cpu")
    samples = [every[0, index] for index in range(len(names))]
    expected = every.decode(samples, 0)
    monkeypatch.setattr(photos, "decode_jpeg", refusing)
    for one, other in zip(every.decode(samples, 0), expected, strict=True):
        assert torch.equal(one[0], other[0]) and one[1:] == other[1:]
    assert len(done) == len(names) - 1


def test_a_jpeg_that_stores_rgb_is_decoded_where_it_is_read(photo_folder: Path, names: list[str]) -> None:
    with Image.open(photo_folder / names[0]) as image:
        image.save(photo_folder / names[0], "JPEG", keep_rgb=True)
    assert read_jpeg(photo_folder / names[0]) is None and read_jpeg(photo_folder / names[1]) is not None


def test_bytes_come_from_a_worker_as_one_tensor(photo_folder: Path, kinds: list[str]) -> None:
    _, ours = by_both(photo_folder, kinds, "cpu")
    samples = [*(ours.images[0, index] for index in range(4)), BadImage("x.jpg", "empty")]
    together, lengths, rest = _packed(samples)
    assert len(together) == sum(lengths) and len(lengths) == 2
    assert [sample if isinstance(sample, BadImage) else sample[1] for sample in rest] == [0, 1, 2, 3, samples[4]]
    for one, other in zip(_unpacked(together, lengths, rest)[:4], samples[:4], strict=True):
        assert torch.equal(one[0], other[0]) and one[1:] == other[1:]


def test_photos_are_told_from_others(photo_folder: Path, names: list[str]) -> None:
    def digest(root: Path = photo_folder, names: list[str] = names, label: int = 0) -> str:
        return Photos(root, names, [label] * len(names), 16).digest()

    first = digest()
    assert len(first) == 16 and digest(Path(shutil.copytree(photo_folder, photo_folder.parent / "copy"))) == first
    assert len({first, digest(names=names[::-1]), digest(names=names[1:]), digest(label=1)}) == 4
    with (photo_folder / names[3]).open("ab") as file:
        file.write(b"x")
    longer = digest()
    (photo_folder / names[3]).unlink()
    assert len({first, longer, digest()}) == 3
