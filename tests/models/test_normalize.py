"""Normalization in front of the backbone."""

import torch

from resnet_pl.models.normalize import Normalize


def test_a_mean_image_is_resized_to_other_image_sizes() -> None:
    normalize = Normalize()
    ramp = torch.linspace(0, 1, 9).expand(3, 9, 9)
    normalize.set(ramp, torch.full((3, 1, 1), 0.5))
    images = torch.rand(2, 3, 9, 9)
    assert torch.equal(normalize(images), (images - ramp) / 0.5)
    resized = normalize(torch.zeros(1, 3, 6, 18))
    assert resized.shape == (1, 3, 6, 18)
    assert torch.all(resized.diff(dim=-1) <= 0) and torch.all(resized.diff(dim=-2) == 0)
    torch.testing.assert_close(resized.mean(), -ramp.mean() / 0.5)


def test_uint8_images_are_scaled() -> None:
    normalize = Normalize()
    normalize.set(torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25))
    assert torch.equal(normalize(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)), torch.full((1, 3, 2, 2), 2.0))


def test_statistics_take_the_precision_of_the_model() -> None:
    trained, loaded = Normalize().to(torch.bfloat16), Normalize()
    trained.set(torch.full((3, 4, 4), 0.5), torch.full((3, 1, 1), 0.25))
    loaded.load_state_dict(trained.state_dict())
    assert loaded.mean.shape == (3, 4, 4) and loaded(torch.zeros(1, 3, 4, 4)).dtype == torch.float32
