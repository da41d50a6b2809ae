"""Classifier heads of any network, and networks with several."""

import pytest
import torch
import torchvision
from torch import nn

from resnet_pl.models import ResNet, find_classifier, reset_classifier
from resnet_pl.utils import UserError
from tests.models.test_pretrained import message_of, small_resnet

# ---------------------------------------------------------------- heads

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
