"""Crops of single images."""

import re

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from resnet_pl.data.crops import Crop, RandomResizedCrop, ResizeCenterCrop, ScaleCrop
from resnet_pl.data.rng import seeded_rng

SHAPES = [(300, 400), (400, 300), (224, 224), (50, 30), (1, 500), (500, 1), (1, 1), (1000, 40)]


def gradient(height: int, width: int) -> Tensor:
    """Returns a smooth image: red increases to the right, green downwards."""
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return torch.stack([red, green, 255 - red]).round().to(torch.uint8)


@pytest.mark.parametrize("crop", [ScaleCrop(), RandomResizedCrop(), ResizeCenterCrop()])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [8, 32, 224])
def test_any_image_becomes_a_square(crop: Crop, shape: tuple[int, int], size: int) -> None:
    cropped = crop(gradient(*shape), size)
    assert cropped.shape == (3, size, size)
    assert cropped.dtype == torch.uint8


@pytest.mark.parametrize("crop", [ScaleCrop(), RandomResizedCrop()])
@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_inside_and_reach_every_edge(crop: Crop, shape: tuple[int, int]) -> None:
    with seeded_rng(0):
        boxes = torch.tensor([crop.get_params(*shape, 224) for _ in range(1500)])
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert ((top + height <= shape[0]) & (left + width <= shape[1])).all()
    if shape == (300, 400):
        assert 0 in top
        assert 0 in left
        assert (top + height == 300).any()
        assert (left + width == 400).any()


def test_scale_crop_draws_uniform_scales() -> None:
    with seeded_rng(0):
        boxes = [ScaleCrop().get_params(1000, 2000, 224) for _ in range(4000)]
    assert all(height == width for _, _, height, width in boxes)
    resized = torch.tensor([1000 * 224 / side for *_, side in boxes])
    # Uniform over 256 … 480: mean 368, standard deviation 64.95.
    assert 255 < resized.min() < 258
    assert 478 < resized.max() < 482
    assert float(resized.mean()) == pytest.approx(368, abs=5 * 64.95 / 4000**0.5)
    assert float(resized.std()) == pytest.approx(64.95, rel=0.03)


def test_scale_crop_matches_resizing_before_cropping() -> None:
    image = gradient(375, 500)
    for seed in range(20):
        with seeded_rng(seed):
            top, left, side, _ = ScaleCrop().get_params(375, 500, 224)
        with seeded_rng(seed):
            cropped = ScaleCrop()(image, 224)
        scale = 224 / side
        resized = TF.resize(image, [round(375 * scale), round(500 * scale)], antialias=True)
        expected = TF.crop(resized, round(top * scale), round(left * scale), 224, 224)
        # Cropping first rounds the box to the image's pixels: a shift of less than one pixel.
        assert (cropped.int() - expected.int()).abs().max() <= 2


def test_scale_crop_positions_are_uniform() -> None:
    with seeded_rng(0):
        boxes = [ScaleCrop(224, 224).get_params(100, 110, 224) for _ in range(5500)]
    assert {box[::2] for box in boxes} == {(0, 100)}
    counts = torch.bincount(torch.tensor([left for _, left, _, _ in boxes]))
    assert len(counts) == 11
    assert float(((counts - 500) ** 2 / 500).sum()) < 10 + 5 * 20**0.5


def test_random_resized_crop_draws_the_boxes_of_torchvision() -> None:
    crop = RandomResizedCrop(0.2, 0.9, 0.5, 2.0)
    for seed, (height, width) in enumerate(SHAPES * 5):
        with seeded_rng(seed):
            box = crop.get_params(height, width, 224)
        with seeded_rng(seed):
            drawn = v2.RandomResizedCrop(224, (0.2, 0.9), (0.5, 2.0)).make_params([torch.empty(3, height, width)])
        assert box == (drawn["top"], drawn["left"], drawn["height"], drawn["width"])


@pytest.mark.parametrize("contiguous", [False, True])
def test_boxes_are_resized_as_in_torchvision(contiguous: bool) -> None:
    pixels = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = pixels.permute(2, 0, 1).contiguous() if contiguous else pixels.permute(2, 0, 1)
    with seeded_rng(1):
        cropped = RandomResizedCrop()(image, 32)
    with seeded_rng(1):
        box = RandomResizedCrop().get_params(90, 120, 32)
    assert torch.equal(cropped, TF.resized_crop(image, *box, [32, 32], antialias=True))


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, -1, 4, 4), (5, 0, 4, 4), (0, 7, 4, 4)])
def test_a_box_outside_the_image_is_named(box: tuple[int, int, int, int]) -> None:
    class CustomCrop(Crop):
        def get_params(self, height: int, width: int, size: int) -> tuple[int, int, int, int]:
            return box

    with pytest.raises(ValueError, match=rf"CustomCrop\.get_params.*{re.escape(str(box))}.*\(8, 10\)"):
        CustomCrop()(torch.zeros(3, 8, 10, dtype=torch.uint8), 4)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (225, 224), (50, 30), (30, 50), (100, 1000), (7, 112)])
@pytest.mark.parametrize("size", [224, 32])
def test_center_crop_matches_torchvision(shape: tuple[int, int], size: int) -> None:
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torchvision_crop = v2.Compose([v2.Resize({224: 256, 32: 37}[size], antialias=True), v2.CenterCrop(size)])
    assert torch.equal(ResizeCenterCrop()(image, size), torchvision_crop(image))


def test_center_crop_of_an_extreme_aspect_ratio_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    areas = []
    resize = TF.resize

    def recording_resize(*args: object, **kwargs: object) -> Tensor:
        image = resize(*args, **kwargs)
        areas.append(image.shape[-1] * image.shape[-2])
        return image

    monkeypatch.setattr(TF, "resize", recording_resize)
    for image in (gradient(1, 100_001), gradient(100_001, 1)):
        cropped = ResizeCenterCrop()(image, 224)
        long_channel = 0 if image.shape[-1] > 1 else 1
        assert (cropped[long_channel].int() - 127).abs().max() <= 1
    assert max(areas) <= 16 * 256 * 256


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleCrop(200), "ScaleCrop: min_side 200"),
        (lambda: ScaleCrop(300, 256), "max_side 256"),
        (lambda: RandomResizedCrop(0), "RandomResizedCrop: areas 0"),
        (lambda: RandomResizedCrop(0.5, 1.5), "1.5"),
        (lambda: RandomResizedCrop(min_ratio=2), "ratios 2"),
    ],
)
def test_invalid_values_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_draws_from_torch_only_is_not_inherited() -> None:
    class Inherits(ScaleCrop):
        pass

    class Declares(Crop):
        draws_from_torch_only = True

    assert [kind.draws_from_torch_only for kind in (Crop, ScaleCrop, Inherits, Declares)] == [False, True, False, True]
