"""Networks in plain torch, for `backbone` in YAML files, and pretrained weights."""

from resnet_pl.models.cifar_nets import cifar_plain, cifar_resnet
from resnet_pl.models.heads import find_classifier, reset_classifier
from resnet_pl.models.pretrained import load_pretrained
from resnet_pl.models.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    plain18,
    plain34,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from resnet_pl.models.weights_file import read_state_dict

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "cifar_plain",
    "cifar_resnet",
    "find_classifier",
    "load_pretrained",
    "plain18",
    "plain34",
    "read_state_dict",
    "reset_classifier",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]

# Names that `--model.backbone` accepts without an import path.
NETWORKS = [name for name in __all__ if name.startswith(("ResNet", "resnet", "plain", "cifar"))]
