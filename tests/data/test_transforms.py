import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from resnet_pl.data.rng import Draws, keyed_rng
from resnet_pl.data.statistics import Statistics
from resnet_pl.data.transforms import (
    ALEXNET_EIGENVALUES,
    ALEXNET_EIGENVECTORS,
    CentreCrop,
    Crop,
    PadCrop,
    PCAColor,
    RandomFlip,
    RandomResizedCrop,
    ScaleCrop,
)

SHAPES = [(300, 400), (400, 300), (224, 224), (50, 30), (1, 500), (500, 1), (1, 1), (1000, 40)]


def gradient(height: int, width: int) -> Tensor:
    """A smooth photo: red grows to the right, green downwards."""
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return torch.stack([red, green, 255 - red]).round().to(torch.uint8)


def draws(count: int, epoch: int = 0) -> Draws:
    return Draws(0, epoch, 0, torch.arange(count))


# ------------------------------------------------------------------------------------ crops
@pytest.mark.parametrize("crop", [ScaleCrop(), RandomResizedCrop(), CentreCrop()])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [8, 32, 224])
def test_any_photo_becomes_a_square(crop: Crop, shape: tuple[int, int], size: int) -> None:
    view = crop(gradient(*shape), size)
    assert view.shape == (3, size, size)
    assert view.dtype == torch.uint8


@pytest.mark.parametrize("crop", [ScaleCrop(), RandomResizedCrop()])
@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_lie_inside_and_reach_every_edge(crop: Crop, shape: tuple[int, int]) -> None:
    with keyed_rng(0):
        boxes = torch.tensor([crop.box(*shape, 224) for _ in range(1500)])
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert ((top + height <= shape[0]) & (left + width <= shape[1])).all()
    if shape == (300, 400):
        assert 0 in top
        assert 0 in left
        assert (top + height == 300).any()
        assert (left + width == 400).any()


def test_scale_crop_draws_sides_in_proportion() -> None:
    with keyed_rng(0):
        boxes = [ScaleCrop().box(1000, 2000, 224) for _ in range(4000)]
    assert all(height == width for _, _, height, width in boxes)
    resized = torch.tensor([1000 * 224 / side for *_, side in boxes])
    # Uniform over 256 … 480: mean 368, standard deviation 64.95.
    assert 255 < resized.min() < 258
    assert 478 < resized.max() < 482
    assert float(resized.mean()) == pytest.approx(368, abs=5 * 64.95 / 4000**0.5)
    assert float(resized.std()) == pytest.approx(64.95, rel=0.03)


def test_scale_crop_shows_what_resizing_first_would_show() -> None:
    photo = gradient(375, 500)
    for seed in range(20):
        with keyed_rng(seed):
            top, left, side, _ = ScaleCrop().box(375, 500, 224)
        with keyed_rng(seed):
            view = ScaleCrop()(photo, 224)
        scale = 224 / side
        resized = TF.resize(photo, [round(375 * scale), round(500 * scale)], antialias=True)
        expected = TF.crop(resized, round(top * scale), round(left * scale), 224, 224)
        # Cutting first rounds the box to the photo's own pixels: less than one pixel of this gradient's steps.
        assert (view.int() - expected.int()).abs().max() <= 2


def test_scale_crop_positions_are_even() -> None:
    with keyed_rng(0):
        boxes = [ScaleCrop(224, 224).box(100, 110, 224) for _ in range(5500)]
    assert {box[::2] for box in boxes} == {(0, 100)}
    counts = torch.bincount(torch.tensor([left for _, left, _, _ in boxes]))
    assert len(counts) == 11
    assert float(((counts - 500) ** 2 / 500).sum()) < 10 + 5 * 20**0.5


def test_random_resized_crop_is_torchvisions() -> None:
    crop = RandomResizedCrop(0.2, 0.9, 0.5, 2.0)
    for seed, (height, width) in enumerate(SHAPES * 5):
        with keyed_rng(seed):
            box = crop.box(height, width, 224)
        with keyed_rng(seed):
            drawn = v2.RandomResizedCrop(224, (0.2, 0.9), (0.5, 2.0)).make_params([torch.empty(3, height, width)])
        assert box == (drawn["top"], drawn["left"], drawn["height"], drawn["width"])


@pytest.mark.parametrize("planar", [False, True])
def test_a_box_is_resized_as_torchvision_does(planar: bool) -> None:
    pixels = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    photo = pixels.permute(2, 0, 1).contiguous() if planar else pixels.permute(2, 0, 1)
    with keyed_rng(1):
        view = RandomResizedCrop()(photo, 32)
    with keyed_rng(1):
        box = RandomResizedCrop().box(90, 120, 32)
    assert torch.equal(view, TF.resized_crop(photo, *box, [32, 32], antialias=True))


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, -1, 4, 4), (5, 0, 4, 4), (0, 7, 4, 4)])
def test_a_box_outside_the_photo_is_named(box: tuple[int, int, int, int]) -> None:
    class Own(Crop):
        def box(self, height: int, width: int, size: int) -> tuple[int, int, int, int]:
            return box

    with pytest.raises(ValueError, match=rf"Own.box: {re.escape(str(box))} leaves a photo of \(8, 10\)"):
        Own()(torch.zeros(3, 8, 10, dtype=torch.uint8), 4)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (225, 224), (50, 30), (30, 50), (100, 1000), (7, 112)])
@pytest.mark.parametrize("size", [224, 32])
def test_centre_crop_is_torchvisions(shape: tuple[int, int], size: int) -> None:
    photo = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    published = v2.Compose([v2.Resize({224: 256, 32: 37}[size], antialias=True), v2.CenterCrop(size)])
    assert torch.equal(CentreCrop()(photo, size), published(photo))


def test_centre_crop_of_a_line_needs_little_memory_and_keeps_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    areas = []
    resize = TF.resize

    def watched(*args: object, **kwargs: object) -> Tensor:
        image = resize(*args, **kwargs)
        areas.append(image.shape[-1] * image.shape[-2])
        return image

    monkeypatch.setattr(TF, "resize", watched)
    for photo in (gradient(1, 100_001), gradient(100_001, 1)):
        view = CentreCrop()(photo, 224)
        long_channel = 0 if photo.shape[-1] > 1 else 1
        assert (view[long_channel].int() - 127).abs().max() <= 1
    assert max(areas) <= 16 * 256 * 256


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaleCrop(200), "ScaleCrop: min_side 200"),
        (lambda: ScaleCrop(300, 256), "max_side 256"),
        (lambda: RandomResizedCrop(0), "RandomResizedCrop: areas 0"),
        (lambda: RandomResizedCrop(0.5, 1.5), "1.5"),
        (lambda: RandomResizedCrop(min_ratio=2), "ratios 2"),
        (lambda: RandomFlip(1.5), "RandomFlip: probability is 1.5"),
        (lambda: RandomFlip(float("nan")), "probability is nan"),
        (lambda: PadCrop(-1), "PadCrop: padding is -1"),
        (lambda: PCAColor(-0.1), "PCAColor: sigma is -0.1"),
    ],
)
def test_values_out_of_range_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------ batches
def test_half_are_mirrored_each_as_a_whole() -> None:
    images = torch.rand(20, 3, 4, 5).repeat(200, 1, 1, 1)
    flipped, labels = RandomFlip()(images, torch.arange(4000), draws(4000))
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert int(mirrored.sum()) == pytest.approx(2000, abs=5 * 31.6)
    assert torch.equal(labels, torch.arange(4000))
    for probability, expected in ((0.0, images), (1.0, images.flip(-1))):
        assert torch.equal(RandomFlip(probability)(images, labels, draws(4000))[0], expected)


def test_by_turns_each_image_is_mirrored_in_every_other_epoch() -> None:
    images, labels = torch.rand(4000, 3, 2, 3), torch.zeros(4000)
    first, second, third = (
        (RandomFlip(alternate=True)(images, labels, draws(4000, epoch))[0] != images).flatten(1).any(1)
        for epoch in range(3)
    )
    assert torch.equal(first, ~second) and torch.equal(first, third)
    assert int(first.sum()) == pytest.approx(2000, abs=5 * 31.6)


@pytest.mark.parametrize("mean_shape", [(3, 1, 1), (3, 6, 7)])
@pytest.mark.parametrize(("padding", "mode"), [(0, "constant"), (2, "constant"), (9, "constant"), (2, "reflect")])
def test_pad_crop_is_the_plain_definition(padding: int, mode: str, mean_shape: tuple[int, ...]) -> None:
    images, mean = torch.rand(300, 3, 6, 7), torch.rand(mean_shape)
    transform = PadCrop(padding, mode)
    transform.fit(SimpleNamespace(normalization=lambda: (mean, torch.ones(1, 1, 1))))
    views = transform(images, torch.zeros(300), draws(300))[0] - mean

    reference = draws(300)
    tops, lefts = (reference.integers(2 * padding + 1).tolist() for _ in range(2))
    for image, view, top, left in zip(images, views, tops, lefts, strict=True):
        padded = np.pad((image - mean).numpy(), [(0, 0), (padding, padding), (padding, padding)], mode)
        padded = torch.from_numpy(padded)
        torch.testing.assert_close(view, padded[:, top : top + 6, left : left + 7])


def test_pad_crop_offsets_are_even() -> None:
    # One bright pixel in the middle tells where the window lay.
    images = torch.zeros(16_200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    views = PadCrop(4)(images, torch.zeros(16_200), draws(16_200))[0]
    assert (views.sum((1, 2, 3)) == 1).all()
    counts = views.sum(0).flatten()
    assert float(((counts - 200) ** 2 / 200).sum()) < 80 + 5 * 160**0.5


def test_colours_move_as_alexnet_says() -> None:
    count = 50_000
    images = torch.rand(1, 3, 2, 2).expand(count, -1, -1, -1)
    moved, _ = PCAColor(0.1)(images, torch.zeros(count), draws(count))
    shift = moved - images
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    shift = shift[:, :, 0, 0].double()
    vectors, values = torch.tensor(ALEXNET_EIGENVECTORS).double(), torch.tensor(ALEXNET_EIGENVALUES).double()
    # [p1 p2 p3] (a1 l1, a2 l2, a3 l3) with a ~ N(0, 0.1): along each component an independent Gaussian.
    amounts = shift @ vectors / values
    assert amounts.mean(0).abs().max() < 5 * 0.1 / count**0.5
    torch.testing.assert_close(amounts.T.cov(), torch.eye(3).double() * 0.01, atol=3e-4, rtol=0)


def test_published_components_are_orthonormal() -> None:
    vectors = torch.tensor(ALEXNET_EIGENVECTORS)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-3, rtol=0)


def test_colours_fitted_to_the_data() -> None:
    mixture = torch.tensor([[0.3, 0.0, 0.0], [0.2, 0.1, 0.0], [0.1, 0.0, 0.05]])
    covariance = mixture @ mixture.T
    transform = PCAColor(0.5, fitted=True)
    transform.fit(SimpleNamespace(statistics=Statistics(torch.zeros(3, 1, 1), covariance)))
    shift = transform(torch.zeros(50_000, 3, 1, 1), torch.zeros(50_000), draws(50_000))[0].flatten(1)
    # Eigenvalues scale the amounts, so the shifts have the covariance of the pixels, squared.
    torch.testing.assert_close(shift.T.cov(), 0.25 * covariance @ covariance, atol=2e-4, rtol=0.05)
