"""Whitening initialization of the first convolution (Page, 2019; Jordan, 2024, arXiv 2404.00498)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_pl.callbacks.access import as_classifier, get_image_data
from resnet_pl.data.samplers import ShardedEpochSampler
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError


class WhiteningInit(Callback):
    """Initializes the first convolution of the backbone with whitening filters, for short training runs from scratch.

    The filters are the principal components of image patches, scaled to unit variance, in order of decreasing variance,
    followed by their negatives. Remaining filters keep their initialization. All filters are trainable.

    Args:
        images: number of training images that the patches are taken from.
    """

    def __init__(self, images: PositiveInt = 5000) -> None:
        self.images = images

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the filters; a resumed run has them in its checkpoint."""
        if trainer.ckpt_path is not None:
            return
        module, data = as_classifier(pl_module), get_image_data(trainer)
        if module.weights is not None:
            raise UserError(
                "WhiteningInit is for training from scratch\nremove the callback, or set --model.weights null"
            )
        if data is None:
            raise UserError("WhiteningInit: the data module is not an ImageDataModule\nremove the callback")
        stem = next((layer for layer in module.backbone.modules() if isinstance(layer, nn.Conv2d)), None)
        if stem is None or stem.groups > 1:
            raise UserError("WhiteningInit: the backbone has no first convolution with groups=1\nremove the callback")
        split = data.split("train")
        sampler = ShardedEpochSampler(len(split), data.seed, shuffle=True)
        batches = islice(data.loader(split, sampler, data.batch_size), math.ceil(self.images / data.batch_size))
        images = (
            module.normalize(batch.images.to(module.device)).float()
            for batch in batches
            if isinstance(batch.images, Tensor)
        )
        # Patches of the size of the filters, without overlap.
        filters = whitening_filters(F.unfold(each, stem.kernel_size, stride=stem.kernel_size) for each in images)
        count = min(len(filters), stem.out_channels // 2)
        with torch.no_grad():
            stem.weight[:count] = filters[:count].reshape(count, *stem.weight.shape[1:])
            stem.weight[count : 2 * count] = -stem.weight[:count]


def whitening_filters(patches: Iterable[Tensor]) -> Tensor:
    """Returns filters `(K, K)`, one per row, whose outputs are uncorrelated and have unit variance.

    Args:
        patches: tensors `(N, K, P)`: N images with P patches of K values.
    """
    count = 0
    total = products = torch.zeros(())
    for batch in patches:
        columns = batch.transpose(0, 1).flatten(1)
        count, total, products = count + columns.shape[1], total + columns.sum(1), products + columns @ columns.T
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    # Directions with almost no variance are noise: their gain is limited.
    return (vectors * values.clamp_min(1e-4 * values[-1]).rsqrt()).T.flip(0)
