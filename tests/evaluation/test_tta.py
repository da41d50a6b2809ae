"""Test-time augmentation: probabilities averaged over views."""

import torch
from torch import Tensor, nn

from resnet_pl.data.views import View, WithHorizontalFlip, group_by_size, single
from resnet_pl.evaluation.tta import predict_with_tta


class Net(nn.Module):
    """Model for images of any size that distinguishes left from right and records its largest batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.largest_batch = 0

    def forward(self, images: Tensor) -> Tensor:
        self.largest_batch = max(self.largest_batch, len(images))
        left, right = images.float().tensor_split(2, dim=-1)
        return self.fc(torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1) / 255).softmax(1)


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_an_image_and_its_horizontal_flip() -> None:
    model, batch = Net(), images(4, 3, 6, 6)
    single_view = model(batch)
    assert torch.equal(predict_with_tta(model, batch, 4), single_view)
    owners = torch.arange(4)
    averaged = predict_with_tta(model, [View(view, owners) for view in WithHorizontalFlip(single)(batch, 6)], 4)
    torch.testing.assert_close(averaged, (single_view + model(batch.flip(-1))) / 2)
    assert not torch.allclose(averaged, single_view)


def test_views_of_different_sizes_are_averaged() -> None:
    model = Net()
    views = [[images(3, 6, 6), images(3, 8, 10)], [images(3, 8, 10)], [images(3, 6, 6), images(3, 6, 6)]]
    groups = group_by_size(views)
    assert sorted(len(group.images) for group in groups) == [2, 3]
    expected = torch.stack([torch.stack([model(v[None])[0] for v in image_views]).mean(0) for image_views in views])
    torch.testing.assert_close(predict_with_tta(model, groups, 3), expected)


def test_a_forward_pass_has_at_most_as_many_views_as_images() -> None:
    model = Net()
    views = View(images(20, 3, 6, 6), torch.arange(4).repeat(5))
    scores = predict_with_tta(model, [views], 4)
    assert model.largest_batch == 4
    torch.testing.assert_close(scores, model(views.images).view(5, 4, -1).mean(0))
