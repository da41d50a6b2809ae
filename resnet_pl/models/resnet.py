"""The nets of *Deep Residual Learning for Image Recognition* (He et al., arXiv 1512.03385), residual and plain.

This file needs torch and nothing else. State-dict keys are torchvision's, so weights pass both ways with `strict=True`.
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
    """A convolution whose output is `ceil(size / stride)` pixels a side; BatchNorm follows it, so it has no bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)


class PadShortcut(nn.Module):
    """Shortcut A (§3.3): the identity, subsampled and with channels of zeros added. It has no parameters.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: every how many pixels one is kept.
        zero_pad: where the zeros go: half of them on each side of the input's channels, or all at the end.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, zero_pad: ZeroPad) -> None:
        super().__init__()
        extra = out_channels - in_channels
        before = extra // 2 if zero_pad == "both" else 0
        self.padding = (before, extra - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_channels, H, W)` to `(N, out_channels, ceil(H / stride), ceil(W / stride))`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions (Fig. 5 left).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions.
        stride: stride of the first convolution.
        downsample: carries the input to the addition; None leaves the addition out, which makes the block plain.
        variant: not used: the paper and torchvision agree on this block.
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
        """`(N, in_channels, H, W)` to `(N, width, ceil(H / stride), ceil(W / stride))`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            out += self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the last four times as wide (Fig. 5 right).

    Args:
        in_channels: channels of the input.
        width: channels of the first two convolutions.
        stride: stride of the block.
        downsample: carries the input to the addition; None leaves the addition out, which makes the block plain.
        variant: where the stride is: in the first 1×1 (v1, the paper) or in the 3×3 (v1.5, torchvision).
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
        """`(N, in_channels, H, W)` to `(N, 4 * width, ceil(H / stride), ceil(W / stride))`."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            out += self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A residual or plain net (Table 1, §4.2): stem, stages `layer1`, `layer2` …, average pool, linear classifier.

    Every stage but the first halves the height and width and doubles the channels.

    Args:
        block: `basic` (18 and 34 layers, CIFAR) or `bottleneck` (50 layers and more).
        layers: blocks in each stage.
        num_classes: classes, the width of the last layer.
        in_channels: channels of the images.
        shortcut: §3.3: A zero-padded identity, B projection (1×1 convolution) where dimensions grow, C projection
            everywhere, none for a plain net.
        variant: where a bottleneck strides: in its first 1×1 (v1, the paper) or its 3×3 (v1.5, torchvision).
        stem: `imagenet` (7×7/2 and max-pool /2) or `cifar` (3×3, no max-pool).
        width: filters of the stem and of the first stage, before the bottleneck's expansion.
        zero_pad: where shortcut A adds its zero channels: half on each side, or all at the end.
        zero_init_residual: start the last BatchNorm of every block at zero, so that a block starts as its shortcut
            (arXiv 1706.02677 §5.1).
        checkpoint_activations: recompute each block's activations in the backward pass: less memory, more time.

    Attributes:
        init_args: the arguments above, as plain types: `ResNet(**net.init_args)` is the same net.

    Raises:
        ValueError: an argument has a value that is not allowed.
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
        """One block with the shortcut of its net: identity wherever nothing asks for more."""
        args = self.init_args
        cls = Bottleneck if args["block"] == "bottleneck" else BasicBlock
        out_channels = width * cls.expansion
        grows = stride > 1 or in_channels != out_channels
        downsample: nn.Module | None = nn.Identity()
        if args["shortcut"] == "none":
            downsample = None
        elif args["shortcut"] == "C" or (args["shortcut"] == "B" and grows):
            downsample = nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
        elif grows:
            downsample = PadShortcut(in_channels, out_channels, stride, args["zero_pad"])
        return cls(in_channels, width, stride, downsample, args["variant"])

    def _init_weights(self, zero_init_residual: bool) -> None:
        """He initialisation (arXiv 1502.01852, fan-out); BatchNorm and `fc` keep torch's own."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """The feature pyramid of `(N, C, H, W)` images, such as a detector wants (Appendix A).

        Returns:
            The output of every stage by name, `layer1` first. With the ImageNet stem their strides are 4, 8, 16 and 32
            pixels, with the CIFAR stem 1, 2 and 4.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = {}
        for index in range(len(self.init_args["layers"])):
            name = f"layer{index + 1}"
            stage = self.get_submodule(name)
            if self.checkpoint_activations and self.training:
                for block in stage:
                    x = _checkpointed(block, x)
            else:
                x = stage(x)
            features[name] = x
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Class scores before the softmax, `(N, num_classes)`, of `(N, C, H, W)` images of any size."""
        *_, x = self.forward_features(x).values()
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _check(args: dict[str, Any]) -> None:
    """Raise ValueError for the first of `ResNet`'s arguments that is not allowed."""
    choices = {"block": BlockName, "shortcut": Shortcut, "variant": Variant, "stem": Stem, "zero_pad": ZeroPad}
    for name, choice in choices.items():
        if args[name] not in get_args(choice):
            raise ValueError(f"{name}={args[name]!r}: expected one of {', '.join(get_args(choice))}")
    for name in ("num_classes", "in_channels", "width"):
        if args[name] < 1:
            raise ValueError(f"{name}={args[name]!r}: expected 1 or more")
    if min(args["layers"], default=0) < 1:
        raise ValueError(f"layers={args['layers']!r}: expected the number of blocks of each stage, 1 or more each")
    if args["zero_init_residual"] and args["shortcut"] == "none":
        raise ValueError("zero_init_residual=True: expected False with shortcut='none', whose features would all be 0")


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, its activations recomputed in the backward pass; BatchNorm counts the batch once all the same."""
    if torch.compiler.is_compiling():
        # A compiled graph recomputes values alone: it needs no guard, and cannot trace one.
        return checkpoint(block, x, use_reentrant=False)
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _preserve_buffers(block)))


@contextmanager
def _preserve_buffers(block: nn.Module) -> Iterator[None]:
    """Let what runs inside update copies of the buffers, so that the running statistics stay as they were."""
    kept = [(module, *item) for module in block.modules() for item in module.named_buffers(recurse=False)]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


def resnet18(**kwargs: Any) -> ResNet:
    """ResNet-18; takes the other arguments of `ResNet`."""
    return ResNet("basic", [2, 2, 2, 2], **kwargs)


def resnet34(**kwargs: Any) -> ResNet:
    """ResNet-34; takes the other arguments of `ResNet`."""
    return ResNet("basic", [3, 4, 6, 3], **kwargs)


def resnet50(**kwargs: Any) -> ResNet:
    """ResNet-50; takes the other arguments of `ResNet`."""
    return ResNet("bottleneck", [3, 4, 6, 3], **kwargs)


def resnet101(**kwargs: Any) -> ResNet:
    """ResNet-101; takes the other arguments of `ResNet`."""
    return ResNet("bottleneck", [3, 4, 23, 3], **kwargs)


def resnet152(**kwargs: Any) -> ResNet:
    """ResNet-152; takes the other arguments of `ResNet`."""
    return ResNet("bottleneck", [3, 8, 36, 3], **kwargs)


def plain18(**kwargs: Any) -> ResNet:
    """ResNet-18 without its shortcuts; takes the other arguments of `ResNet`."""
    return ResNet("basic", [2, 2, 2, 2], shortcut="none", **kwargs)


def plain34(**kwargs: Any) -> ResNet:
    """ResNet-34 without its shortcuts; takes the other arguments of `ResNet`."""
    return ResNet("basic", [3, 4, 6, 3], shortcut="none", **kwargs)
