"""CIFAR networks with 6n + 2 layers (§4.2): three stages of n basic blocks with 16, 32 and 64 filters."""

from resnet_pl.models.resnet import ResNet, Shortcut, ZeroPad


def cifar_resnet(
    depth: int = 20,
    num_classes: int = 10,
    in_channels: int = 3,
    shortcut: Shortcut = "A",
    zero_pad: ZeroPad = "both",
    zero_init_residual: bool = False,
    checkpoint_activations: bool = False,
) -> ResNet:
    """CIFAR ResNet with `depth` layers for small images; the paper trains 20, 32, 44, 56, 110 and 1202 (Table 6).

    Args:
        depth: number of layers with weights, 6n + 2: 8, 14, 20 and so on.
        num_classes: number of classes.
        in_channels: number of image channels.
        shortcut: shortcuts (§3.3): A zero-padded identity (the paper's choice here), B projection if the dimensions
            increase, C always projection, none for a plain network.
        zero_pad: position of the zero channels of shortcut A: half on each side, or all at the end.
        zero_init_residual: initialize the weight of the last BatchNorm of each block to zero, so that a block is its
            shortcut at the start (arXiv:1706.02677 §5.1).
        checkpoint_activations: recompute the activations of each block in the backward pass: less memory, more time.

    Raises:
        ValueError: the depth is not 6n + 2, or another argument is not allowed.
    """
    return ResNet(
        "basic",
        [_blocks(depth)] * 3,
        num_classes,
        in_channels,
        shortcut=shortcut,
        stem="cifar",
        width=16,
        zero_pad=zero_pad,
        zero_init_residual=zero_init_residual,
        checkpoint_activations=checkpoint_activations,
    )


def cifar_plain(
    depth: int = 20, num_classes: int = 10, in_channels: int = 3, checkpoint_activations: bool = False
) -> ResNet:
    """CIFAR plain network with `depth` layers: `cifar_resnet` without shortcuts.

    Args:
        depth: number of layers with weights, 6n + 2: 8, 14, 20 and so on.
        num_classes: number of classes.
        in_channels: number of image channels.
        checkpoint_activations: recompute the activations of each block in the backward pass: less memory, more time.

    Raises:
        ValueError: the depth is not 6n + 2, or another argument is not allowed.
    """
    return cifar_resnet(depth, num_classes, in_channels, "none", checkpoint_activations=checkpoint_activations)


def _blocks(depth: int) -> int:
    """Returns n for a depth of 6n + 2."""
    n, remainder = divmod(depth - 2, 6)
    if n >= 1 and not remainder:
        return n
    low = 6 * max(n, 1) + 2
    raise ValueError(f"depth={depth!r}: expected 6n + 2 layers with n ≥ 1; the nearest are {low} and {low + 6}")
