"""The CIFAR nets of 6n + 2 layers (§4.2): three stages of n basic blocks, 16, 32 and 64 filters wide."""

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
    """The residual net of `depth` layers for small images; the paper trains 20, 32, 44, 56, 110 and 1202 (Table 6).

    Args:
        depth: layers with weights: 6n + 2, which is 8, 14, 20 and so on.
        num_classes: classes, the width of the last layer.
        in_channels: channels of the images.
        shortcut: A zero-padded identity (the paper's choice here), B projection where dimensions grow, C projection
            everywhere, none for a plain net.
        zero_pad: where shortcut A adds its zero channels: half on each side, or all at the end.
        zero_init_residual: start the last BatchNorm of every block at zero, so that a block starts as its shortcut.
        checkpoint_activations: recompute each block's activations in the backward pass: less memory, more time.

    Raises:
        ValueError: no net has this depth, or another argument is not allowed.
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
    """The plain net of `depth` layers: `cifar_resnet` without its shortcuts.

    Args:
        depth: layers with weights: 6n + 2, which is 8, 14, 20 and so on.
        num_classes: classes, the width of the last layer.
        in_channels: channels of the images.
        checkpoint_activations: recompute each block's activations in the backward pass: less memory, more time.

    Raises:
        ValueError: no net has this depth, or another argument is not allowed.
    """
    return cifar_resnet(depth, num_classes, in_channels, "none", checkpoint_activations=checkpoint_activations)


def _blocks(depth: int) -> int:
    """The n of a depth of 6n + 2."""
    n, rest = divmod(depth - 2, 6)
    if n >= 1 and not rest:
        return n
    low = 6 * max(n, 1) + 2
    raise ValueError(f"depth={depth!r}: expected 6n + 2 layers with n ≥ 1; the nearest are {low} and {low + 6}")
