"""Large JPEGs are decoded at a fraction of their size for training, with the same crops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from resnet_pl.data import ImageFolder
from resnet_pl.data import decode as decode_module
from resnet_pl.data.crops import Crop, RandomResizedCrop, ResizeCenterCrop, ScaleCrop, reduce_box
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.jpeg import decode_jpeg, read_header
from tests.cli.commands import run

ORIENTATION = 0x0112
SHAPES = [(300, 400), (401, 303), (256, 256), (90, 700)]


def smooth(height: int, width: int) -> Image.Image:
    """Returns an image with a pattern that survives a reduction, and that is not symmetric."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 50), np.sin(y / 60 + 1), np.sin((x + 2 * y) / 90)]
    return Image.fromarray(np.stack([120 + 100 * wave for wave in waves], 2).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, list[str]]:
    """Writes four large photos, each with another EXIF orientation."""
    for number, (height, width) in enumerate(SHAPES):
        exif = Image.Exif()
        exif[ORIENTATION] = [1, 6, 3, 5][number]
        smooth(height, width).save(tmp_path / f"{number}.jpg", quality=95, exif=exif)
    return tmp_path, [f"{number}.jpg" for number in range(len(SHAPES))]


def reductions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that records the reduction of every JPEG that is decoded."""
    recorded: list[int] = []

    def record(data: bytes, header: object, reduction: int = 1, channels: int = 3) -> torch.Tensor:
        recorded.append(reduction)
        return decode_jpeg(data, header, reduction, channels)

    monkeypatch.setattr(decode_module, "decode_jpeg", record)
    return recorded


def mean_difference(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one.double() - two.double()).abs().mean())


def samples(root: Path, names: Sequence[str], size: int, crop: object, scaled: bool) -> list[torch.Tensor]:
    dataset = ImageFileDataset(root, names, [0] * len(names), size, crop, seed=3, scaled_decoding=scaled)
    return [dataset[epoch, index][0] for epoch in range(6) for index in range(len(names))]


@pytest.mark.parametrize("crop", [ScaleCrop(), RandomResizedCrop()])
@pytest.mark.parametrize("size", [8, 32])
def test_crops_are_those_of_a_full_decoding(
    crop: Crop, size: int, photos: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = samples(*photos, size, crop, scaled=False)
    used = reductions(monkeypatch)
    scaled = samples(*photos, size, crop, scaled=True)
    assert {8: {8}, 32: {2, 4}}[size] <= set(used) <= {1, 2, 4, 8}
    # A box is rounded to the reduced pixels: a shift of up to half an output pixel.
    differences = torch.tensor([mean_difference(*pair) for pair in zip(full, scaled, strict=True)])
    assert differences.max() < {8: 12, 32: 8}[size]
    # Boxes of other epochs would be far off.
    others = torch.tensor([mean_difference(*pair) for pair in zip(full, scaled[4:], strict=False)])
    assert others.mean() > {8: 5, 32: 10}[size] * differences.mean()


def test_photos_below_twice_the_need_are_read_as_before(tmp_path: Path) -> None:
    smooth(63, 63).save(tmp_path / "0.jpg")
    full, scaled = (samples(tmp_path, ["0.jpg"], 32, RandomResizedCrop(0.9), each) for each in (False, True))
    assert all(map(torch.equal, full, scaled))


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_pixel_is_the_mean_of_its_block(reduction: int, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    smooth(256, 320).save(path, quality=98, subsampling=0)
    data = path.read_bytes()
    header = read_header(data)
    assert header is not None
    full, reduced = decode_jpeg(data, header).double(), decode_jpeg(data, header, reduction).double()
    assert (torch.nn.functional.avg_pool2d(full, reduction) - reduced).abs().max() < 4
    odd = smooth(13, 29)
    odd.save(path)
    data = path.read_bytes()
    assert decode_jpeg(data, read_header(data), reduction).shape == (3, -(-13 // reduction), -(-29 // reduction))


def test_reduced_boxes_keep_their_size() -> None:
    generator = torch.Generator().manual_seed(0)
    for reduction in (2, 4, 8):
        for top, left, height, width in torch.randint(0, 500, (200, 4), generator=generator).tolist():
            box = (top, left, height + 8, width + 8)
            reduced = reduce_box(box, reduction)
            assert min(reduced[2:]) >= min(box[2:]) // reduction
            for edge, original in zip(reduced, box, strict=True):
                assert abs(edge - original / reduction) <= 1


def test_what_cannot_be_reduced_is_decoded_in_full(
    photos: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, names = photos
    smooth(300, 400).save(root / "5.png")

    class Inverted(ScaleCrop):
        """Wants the full image."""

        def __call__(self, image: torch.Tensor, size: int) -> torch.Tensor:
            assert min(image.shape[1:]) > 80
            return 255 - super().__call__(image, size)

    used = reductions(monkeypatch)
    for crop in (Inverted(), ResizeCenterCrop(), lambda image, size: image[:, :size, :size]):
        samples(root, [*names, "5.png"], 8, crop, scaled=True)
    assert set(used) == {1}

    def refuse(*args: object) -> None:
        raise ValueError

    full = samples(root, names, 32, ScaleCrop(), scaled=False)
    monkeypatch.setattr(decode_module, "decode_jpeg", refuse)
    with_pillow = samples(root, names, 32, ScaleCrop(), scaled=True)
    assert max(map(mean_difference, full, with_pillow)) < 0.1


def test_evaluation_is_exact_and_the_option_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            smooth(150 + number, 200).save(tmp_path / "photos" / name / f"{number}.jpg")
    data = ImageFolder(str(tmp_path / "photos"), image_size=16, val_split=2, test_split=2)
    data.setup("fit")
    used = reductions(monkeypatch)
    for name, expected in (("val", {1}), ("test", {1}), ("train", {4, 8})):
        used.clear()
        for index in range(len(data.split(name))):
            data.split(name)[0, index]
        assert set(used) <= expected and used, name
    argv = ["--config", Path(__file__).parents[2] / "configs/folder.yaml", "--data.root", tmp_path / "photos"]
    small = ["--data.image_size", 16, "--data.batch_size", 4, "--data.num_workers", 0, "--trainer.max_epochs", 1]
    model = ["--model.weights", "null", "--model.backbone", "cifar_resnet", "--model.backbone.depth", 8]
    used.clear()
    run("fit", *argv, *small, *model, "--dashboard", "false", "--data.scaled_decoding", "false")
    assert set(used) == {1}
    version = next(Path("runs").glob("*/version_0"))
    config = yaml.safe_load((version / "config.yaml").read_text())["data"]
    assert config["init_args"]["scaled_decoding"] is False
