"""Scores averaged over views and mirror images."""

import torch
from torch import Tensor, nn

from resnet_pl.data.views import View, WithHorizontalFlip, group_by_size, single
from resnet_pl.evaluation.tta import predict_with_tta


class Net(nn.Module):
    """Takes images of any size; knows left from right; remembers its largest batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.most = 0

    def forward(self, images: Tensor) -> Tensor:
        self.most = max(self.most, len(images))
        left, right = images.float().tensor_split(2, dim=-1)
        return self.fc(torch.cat([left.mean((2, 3)), right.mean((2, 3))], 1) / 255)


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_one_view_and_its_mirror_image() -> None:
    net, batch = Net(), images(4, 3, 6, 6)
    plain = net(batch).softmax(1)
    assert torch.equal(predict_with_tta(net, batch, 4), plain)
    owners = torch.arange(4)
    both = predict_with_tta(net, [View(view, owners) for view in WithHorizontalFlip(single)(batch, 6)], 4)
    torch.testing.assert_close(both, (plain + net(batch.flip(-1)).softmax(1)) / 2)
    assert not torch.allclose(both, plain)


def test_softmax_outputs_of_each_image_are_averaged_whatever_their_sizes() -> None:
    net = Net()
    views = [[images(3, 6, 6), images(3, 8, 10)], [images(3, 8, 10)], [images(3, 6, 6), images(3, 6, 6)]]
    groups = group_by_size(views)
    assert sorted(len(group.images) for group in groups) == [2, 3]
    by_hand = torch.stack([torch.stack([net(v[None]).softmax(1)[0] for v in own]).mean(0) for own in views])
    torch.testing.assert_close(predict_with_tta(net, groups, 3), by_hand)


def test_no_more_views_at_once_than_images() -> None:
    net = Net()
    views = View(images(20, 3, 6, 6), torch.arange(4).repeat(5))
    scores = predict_with_tta(net, [views], 4)
    assert net.most == 4
    torch.testing.assert_close(scores, net(views.images).softmax(1).view(5, 4, -1).mean(0))
