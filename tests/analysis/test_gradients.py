"""Gradient norms of the weights of each layer."""

import copy

import pytest
import torch
from torch import Tensor, nn

from resnet_pl.analysis.gradients import gradient_norms
from resnet_pl.models import ResNet, cifar_resnet

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4
BATCHES = list(zip(IMAGES.split(4), LABELS.split(4), strict=True))
LOSS = nn.CrossEntropyLoss(label_smoothing=0.1)


def build() -> ResNet:
    torch.manual_seed(0)
    return cifar_resnet(8, num_classes=4, shortcut="B").eval()


def reference_norms(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The norms from a backward pass of a copy of the model in training mode."""
    model = copy.deepcopy(model).train()
    LOSS(model(batch[0]), batch[1]).backward()
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    return {name.removesuffix(".weight"): float(p.grad.norm()) for name, p in weights.items()}


def test_norms_agree_with_a_backward_pass() -> None:
    model = build()
    norms = gradient_norms(model, BATCHES, LOSS)
    batches = [reference_norms(model, batch) for batch in BATCHES]
    assert list(norms) == list(batches[0]) and len(norms) == 7 + 2 + 1
    mean = {name: sum(batch[name] for batch in batches) / 3 for name in norms}
    assert norms == pytest.approx(mean, rel=1e-5)
    assert batches[0]["fc"] != pytest.approx(batches[1]["fc"], rel=1e-3)


def test_a_known_gradient() -> None:
    # The gradient of the mean of w·x over the batch is the mean of x.
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    images = torch.tensor([[2.0, 8.0], [4.0, 0.0]])
    assert gradient_norms(model, [(images, images)], lambda logits, _: logits.mean()) == {"1": 5.0}


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_model_is_not_changed(recomputed: bool) -> None:
    model = build()
    model.checkpoint_activations = recomputed
    model.layer1.train()
    model.conv1.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms = gradient_norms(model, BATCHES, LOSS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.layer1.training and model.layer1[0].bn1.training and not model.training and not model.bn1.training
    assert all(p.grad is None for p in model.parameters())
    # A frozen layer has a gradient too, and stays frozen.
    assert not model.conv1.weight.requires_grad and norms["conv1"] > 0
    assert norms == pytest.approx(gradient_norms(build(), BATCHES, LOSS), rel=1e-6)


def test_the_gradient_of_an_unused_layer_is_zero() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    model[1].register_module("spare", nn.Linear(2, 2))
    norms = gradient_norms(model, BATCHES, LOSS)
    assert norms["1.spare"] == 0 and norms["1"] > 0


class TwoHeads(nn.Module):
    """In training, also returns the logits of an auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.other = nn.Linear(192, 4), nn.Linear(192, 4)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.main(images.flatten(1)), self.other(images.flatten(1))


def test_an_auxiliary_head_adds_its_weighted_loss() -> None:
    model = TwoHeads()
    model.other.load_state_dict(model.main.state_dict())
    norms = gradient_norms(model, BATCHES, LOSS)
    assert norms["other"] == pytest.approx(0.4 * norms["main"], rel=1e-5)
