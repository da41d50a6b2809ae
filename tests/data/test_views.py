"""Test-time augmentation of image files and of images in memory."""

from pathlib import Path

import torch
from torchvision.transforms.v2 import functional as TF

from resnet_pl.data import ImageFolder
from resnet_pl.data.crops import ResizeCenterCrop
from resnet_pl.data.views import MultiScale, five_crops
from tests.conftest import write_photos
from tests.tiny import Tiny


def test_five_crops_are_the_corners_and_the_center_of_the_resized_image() -> None:
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    crops = five_crops(image, 112)
    resized = TF.resize(image, [128], antialias=True)
    width = resized.shape[-1]
    corners = [(0, 0), (0, width - 112), (16, 0), (16, width - 112)]
    for crop, (top, left) in zip(crops[:4], corners, strict=True):
        assert torch.equal(crop, resized[:, top : top + 112, left : left + 112])
    assert torch.equal(crops[4], ResizeCenterCrop()(image, 112))


def test_default_scales_are_proportional_to_the_papers() -> None:
    assert MultiScale().scales_for(224) == [224, 256, 384, 480, 640]
    assert MultiScale().scales_for(32) == [32, 37, 55, 69, 91]
    views = MultiScale([40, 64])(torch.zeros(3, 50, 100, dtype=torch.uint8), 32)
    assert [tuple(view.shape[1:]) for view in views] == [(40, 80), (64, 128)]


def test_views_of_different_sizes_are_grouped(tmp_path: Path) -> None:
    data = ImageFolder(root=str(write_photos(tmp_path / "photos", count=10)), image_size=16, num_workers=0)
    data.setup("test")
    data.views = MultiScale([16, 24])
    batch = next(iter(data.test_dataloader()))
    count = len(batch.labels)
    owners = torch.cat([group.owners for group in batch.images])
    assert owners.bincount(minlength=count).tolist() == [2] * count
    dataset = data.split("test")
    for group in batch.images:
        for view, owner in zip(group.images, group.owners.tolist(), strict=True):
            image = dataset.load_full_image(int(batch.indices[owner]))
            assert torch.equal(view, TF.resize(image, [min(view.shape[1:])], antialias=True))
    # Training has no views.
    assert next(iter(data.train_dataloader())).images.shape[1:] == (3, 16, 16)


def test_views_of_images_in_memory() -> None:
    data = Tiny()
    data.setup("test")
    plain = next(iter(data.test_dataloader())).images
    data.views = five_crops
    groups = next(iter(data.test_dataloader())).images
    assert len(groups) == 5 and groups[0].images.shape == plain.shape
    assert torch.equal(groups[4].images, TF.center_crop(TF.resize(plain, [9], antialias=True), [8, 8]))
    assert isinstance(next(iter(data.train_dataloader())).images, torch.Tensor)
