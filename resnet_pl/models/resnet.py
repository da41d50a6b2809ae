"""Residual and plain networks of *Deep Residual Learning for Image Recognition* (He et al., arXiv:1512.03385).

This file depends on torch only. State dicts have the keys of torchvision's ResNets.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BlockName = Literal["basic", "bottleneck"]
Shortcut = Literal["A", "B", "C", "none"]
Variant = Literal["v1", "v1.5"]
Stem = Literal["imagenet", "cifar"]
ZeroPad = Literal["both", "end"]


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution with an output of `ceil(size / stride)` pixels; without bias, because BatchNorm follows."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class PadShortcut(nn.Module):
    """Shortcut A (§3.3): subsampled identity with zero-padded channels; it has no parameters.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        stride: subsampling stride.
        zero_pad: position of the zero channels: half on each side of the input channels, or all at the end.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, zero_pad: ZeroPad) -> None:
        super().__init__()
        extra = out_channels - in_channels
        before = extra // 2 if zero_pad == "both" else 0
        self.padding = (before, extra - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, in_channels, H, W)` to `(N, out_channels, ceil(H / stride), ceil(W / stride))`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions (Fig. 5 left).

    Args:
        in_channels: number of input channels.
        width: number of output channels of both convolutions.
        stride: stride of the first convolution.
        downsample: shortcut from the input to the addition; without it the block is plain and has no addition.
        variant: ignored; the paper and torchvision agree on this block.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, variant: Variant = "v1.5"
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, in_channels, H, W)` to `(N, width, ceil(H / stride), ceil(W / stride))`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            out += self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """Residual block of 1×1, 3×3 and 1×1 convolutions, the last with four times the channels (Fig. 5 right).

    Args:
        in_channels: number of input channels.
        width: number of output channels of the first two convolutions.
        stride: stride of the block.
        downsample: shortcut from the input to the addition; without it the block is plain and has no addition.
        variant: convolution that has the stride: the first 1×1 (v1, the paper) or the 3×3 (v1.5, torchvision).
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, variant: Variant = "v1.5"
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if variant == "v1" else (1, stride)
        self.conv1 = conv(in_channels, width, 1, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, second)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, in_channels, H, W)` to `(N, 4 * width, ceil(H / stride), ceil(W / stride))`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            out += self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Residual or plain network (Table 1, §4.2): stem, stages `layer1`, `layer2` …, average pooling, classifier `fc`.

    Every stage except the first halves the height and width and doubles the channels.

    Args:
        block: `basic` (18 and 34 layers, CIFAR) or `bottleneck` (50 layers and more).
        layers: number of blocks of each stage.
        num_classes: number of classes.
        in_channels: number of image channels.
        shortcut: shortcuts (§3.3): A zero-padded identity, B projection (1×1 convolution) if the dimensions increase,
            C always projection, none for a plain network.
        variant: bottleneck convolution with the stride: the first 1×1 (v1, the paper) or the 3×3 (v1.5, torchvision).
        stem: `imagenet` (7×7 convolution with stride 2, max-pooling) or `cifar` (3×3 convolution).
        width: number of filters of the stem and of the first stage, before the expansion of a bottleneck.
        zero_pad: position of the zero channels of shortcut A: half on each side, or all at the end.
        zero_init_residual: initialize the weight of the last BatchNorm of each block to zero, so that a block is its
            shortcut at the start (arXiv:1706.02677 §5.1).
        checkpoint_activations: recompute the activations of each block in the backward pass: less memory, more time.

    Attributes:
        init_args: the arguments above as plain types; `ResNet(**model.init_args)` has the same architecture.

    Raises:
        ValueError: an argument is not allowed.
    """

    def __init__(
        self,
        block: BlockName,
        layers: list[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        shortcut: Shortcut = "B",
        variant: Variant = "v1.5",
        stem: Stem = "imagenet",
        width: int = 64,
        zero_pad: ZeroPad = "both",
        zero_init_residual: bool = False,
        checkpoint_activations: bool = False,
    ) -> None:
        init_args = {**locals(), "layers": list(layers)}
        super().__init__()
        del init_args["self"], init_args["__class__"]
        _check(init_args)
        self.init_args: dict[str, Any] = init_args
        self.checkpoint_activations = checkpoint_activations

        self.conv1 = conv(in_channels, width, 7, stride=2) if stem == "imagenet" else conv(in_channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        channels = width
        for index, depth in enumerate(layers):
            blocks = []
            for stride in [1 if index == 0 else 2] + [1] * (depth - 1):
                blocks.append(self._block(channels, width * 2**index, stride))
                channels = width * 2**index * blocks[-1].expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._init_weights(zero_init_residual)

    def _block(self, in_channels: int, width: int, stride: int) -> BasicBlock | Bottleneck:
        """Returns a block with its shortcut: the identity, unless the dimensions change or `shortcut` is C or none."""
        args = self.init_args
        cls = Bottleneck if args["block"] == "bottleneck" else BasicBlock
        out_channels = width * cls.expansion
        dimensions_change = stride > 1 or in_channels != out_channels
        downsample: nn.Module | None = nn.Identity()
        if args["shortcut"] == "none":
            downsample = None
        elif args["shortcut"] == "C" or (args["shortcut"] == "B" and dimensions_change):
            downsample = nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
        elif dimensions_change:
            downsample = PadShortcut(in_channels, out_channels, stride, args["zero_pad"])
        return cls(in_channels, width, stride, downsample, args["variant"])

    def _init_weights(self, zero_init_residual: bool) -> None:
        """He initialization (arXiv:1502.01852, fan-out); BatchNorm and `fc` keep the defaults of torch."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the output of every stage for `(N, C, H, W)` images, for example for a detector (Appendix A).

        Returns:
            Feature maps by name, `layer1` first. Their strides are 4, 8, 16 and 32 pixels with the ImageNet stem, and
            1, 2 and 4 with the CIFAR stem.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = {}
        for index in range(len(self.init_args["layers"])):
            name = f"layer{index + 1}"
            stage = getattr(self, name)
            if self.checkpoint_activations and self.training:
                for block in stage:
                    x = _checkpointed(block, x)
            else:
                x = stage(x)
            features[name] = x
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits `(N, num_classes)` of `(N, C, H, W)` images of any size."""
        *_, x = self.forward_features(x).values()
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _check(args: dict[str, Any]) -> None:
    """Raises ValueError if an argument of `ResNet` is not allowed."""
    choices = {"block": BlockName, "shortcut": Shortcut, "variant": Variant, "stem": Stem, "zero_pad": ZeroPad}
    for name, choice in choices.items():
        if args[name] not in get_args(choice):
            raise ValueError(f"{name}={args[name]!r}: expected one of {', '.join(get_args(choice))}")
    for name in ("num_classes", "in_channels", "width"):
        if args[name] < 1:
            raise ValueError(f"{name}={args[name]!r}: expected 1 or more")
    if min(args["layers"], default=0) < 1:
        raise ValueError(f"layers={args['layers']!r}: expected the number of blocks per stage, each 1 or more")
    if args["zero_init_residual"] and args["shortcut"] == "none":
        raise ValueError("zero_init_residual=True: expected False with shortcut='none', as all features would be 0")


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """Returns `block(x)`; the backward pass recomputes its activations, without a second update of BatchNorm."""
    if torch.compiler.is_compiling():
        # The compiled recomputation does not update buffers, and the context manager cannot be traced.
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _preserve_buffers(block)))


@contextmanager
def _preserve_buffers(block: nn.Module) -> Iterator[None]:
    """Replaces the buffers by copies inside the context, so that the running statistics are not updated."""
    buffers = [(module, *item) for module in block.modules() for item in module.named_buffers(recurse=False)]
    for module, name, buffer in buffers:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)


def resnet18(**kwargs: Any) -> ResNet:
    """ResNet-18; `kwargs` are the other arguments of `ResNet`."""
    return ResNet("basic", [2, 2, 2, 2], **kwargs)


def resnet34(**kwargs: Any) -> ResNet:
    """ResNet-34; `kwargs` are the other arguments of `ResNet`."""
    return ResNet("basic", [3, 4, 6, 3], **kwargs)


def resnet50(**kwargs: Any) -> ResNet:
    """ResNet-50; `kwargs` are the other arguments of `ResNet`."""
    return ResNet("bottleneck", [3, 4, 6, 3], **kwargs)


def resnet101(**kwargs: Any) -> ResNet:
    """ResNet-101; `kwargs` are the other arguments of `ResNet`."""
    return ResNet("bottleneck", [3, 4, 23, 3], **kwargs)


def resnet152(**kwargs: Any) -> ResNet:
    """ResNet-152; `kwargs` are the other arguments of `ResNet`."""
    return ResNet("bottleneck", [3, 8, 36, 3], **kwargs)


def plain18(**kwargs: Any) -> ResNet:
    """Plain network with 18 layers (no shortcuts); `kwargs` are the other arguments of `ResNet`."""
    return ResNet("basic", [2, 2, 2, 2], shortcut="none", **kwargs)


def plain34(**kwargs: Any) -> ResNet:
    """Plain network with 34 layers (no shortcuts); `kwargs` are the other arguments of `ResNet`."""
    return ResNet("basic", [3, 4, 6, 3], shortcut="none", **kwargs)
