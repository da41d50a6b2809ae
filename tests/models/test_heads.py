"""Classifier heads of any network, and networks with several."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_pl import ImageClassifier
from resnet_pl.models import ResNet, find_classifier, reset_classifier
from resnet_pl.models.heads import find_heads, split_outputs, training_loss
from resnet_pl.utils import UserError
from tests.models.test_pretrained import message_of, small_resnet

HEADS = {
    "resnet18": "fc",
    "alexnet": "classifier.6",
    "convnext_tiny": "classifier.2",
    "densenet121": "classifier",
    "efficientnet_b0": "classifier.1",
    "googlenet": "fc",
    "inception_v3": "fc",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3_small": "classifier.3",
    "regnet_y_400mf": "fc",
    "shufflenet_v2_x0_5": "fc",
    "squeezenet1_1": "classifier.1",
    "swin_t": "head",
    "vgg11_bn": "classifier.6",
    "vit_b_32": "heads.head",
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_of_torchvision_models(name):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if "regnet" in name else "meta"):
        model = torchvision.models.get_model(name, weights=None, **options).eval()
        head, old = find_classifier(model)
        assert head == HEADS[name] and len(old.weight) == 1000
        assert not reset_classifier(model, 1000)
        assert model.get_submodule(head) is old
        assert reset_classifier(model, 7)
        new = model.get_submodule(head)
        size = 299 if name == "inception_v3" else 224
        with torch.no_grad():
            assert model(torch.empty(1, 3, size, size)).shape == (1, 7)
    assert type(new) is type(old) and (new.bias is None) == (old.bias is None)
    assert new.weight.device == old.weight.device


def test_reset_classifier_updates_init_args():
    model = small_resnet(5).half()
    assert reset_classifier(model, 9)
    assert model.init_args["num_classes"] == 9
    assert model.fc.weight.dtype == torch.half
    ResNet(**model.init_args).load_state_dict(model.state_dict(), strict=True)


def test_a_model_without_a_head():
    model = small_resnet()
    model.fc = nn.Identity()
    with pytest.raises(UserError, match="ResNet: no classifier layer") as error:
        find_classifier(model)
    message_of(error)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("googlenet", ["fc", "aux1.fc2", "aux2.fc2"]),
        ("inception_v3", ["fc", "AuxLogits.fc"]),
    ],
)
def test_auxiliary_heads_are_replaced_too(name: str, heads: list[str]) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, init_weights=False)
        assert list(find_heads(model)) == heads
        assert reset_classifier(model, 7)
        outputs = model.train()(torch.empty(2, 3, 299, 299))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 7)] * len(heads)
    assert split_outputs(outputs)[0] is outputs.logits


@pytest.mark.slow
def test_both_heads_of_a_distilled_transformer_are_replaced() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=10)
    assert list(find_heads(model)) == ["head", "head_dist"]
    assert reset_classifier(model, 3) and not reset_classifier(model, 3)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(("count", "weight"), [(1, 0.4), (2, 0.3)])
def test_the_weight_of_auxiliary_losses(count: int, weight: float) -> None:
    logits = [torch.randn(4, 5) for _ in range(1 + count)]
    labels = torch.tensor([0, 1, 2, 3])
    criterion = nn.CrossEntropyLoss()
    loss, main = training_loss(criterion, tuple(logits), labels)
    assert main is logits[0]
    torch.testing.assert_close(loss, criterion(main, labels) + weight * sum(criterion(x, labels) for x in logits[1:]))
    assert training_loss(criterion, main, labels)[0] == criterion(main, labels)


@pytest.mark.parametrize("outputs", [{"logits": torch.zeros(2, 5)}, (torch.zeros(2, 5), torch.zeros(2, 64)), (), None])
def test_other_outputs_are_refused_in_a_line(outputs: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Any:
            return outputs

    module = ImageClassifier(Net())
    for training in (True, False):
        module.train(training)
        with pytest.raises(UserError, match=r"model\.backbone: the network returns .*, not logits") as error:
            training_loss(nn.CrossEntropyLoss(), module(torch.zeros(2, 3, 8, 8)), torch.zeros(2).long())
        message_of(error)


class CosineLinear(nn.Linear):
    pass


def test_the_replacement_of_a_special_head_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    for cls, noted in ((CosineLinear, True), (nn.Linear, False)):
        model = nn.Sequential(nn.Flatten(), cls(12, 10))
        assert reset_classifier(model, 3) and type(model[1]) is nn.Linear
        assert ("CosineLinear" in capsys.readouterr().out) is noted
