"""A head start for short trainings: the first convolution begins by taking apart what pixels have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_pl.data.loader import ShardedEpochSampler
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError


class WhiteningInit(Callback):
    """Starts the backbone's first convolution as whitening filters (Page, 2019; Jordan, 2024).

    They are the principal components of the training images' patches, each scaled to unit variance, once as they are
    and once negated, the greatest first; filters beyond twice their number keep what they started from. All are
    trained like any other weight.

    Args:
        images: training images that patches are taken from.
    """

    def __init__(self, images: PositiveInt = 5000) -> None:
        self.images = images

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback; a run that goes on keeps its filters."""
        if trainer.ckpt_path is not None:
            return
        if pl_module.weights is not None:
            raise UserError("WhiteningInit is for nets from scratch\nleave it out, or give --model.weights null")
        stem = next((module for module in pl_module.backbone.modules() if isinstance(module, nn.Conv2d)), None)
        if stem is None or stem.groups > 1:
            raise UserError("WhiteningInit: the first convolution of the backbone must be dense (groups=1)\nremove it")
        data = trainer.datamodule
        images = data.split("train")
        sampler = ShardedEpochSampler(len(images), data.seed, shuffle=True)
        batches = islice(data.loader(images, sampler, data.batch_size), math.ceil(self.images / data.batch_size))
        views = (pl_module.normalize(batch.images.to(pl_module.device)).float() for batch in batches)
        filters = whitening(F.unfold(view, stem.kernel_size, stride=stem.kernel_size) for view in views)
        count = min(len(filters), stem.out_channels // 2)
        with torch.no_grad():
            stem.weight[:count] = filters[:count].reshape(count, *stem.weight.shape[1:])
            stem.weight[count : 2 * count] = -stem.weight[:count]


def whitening(patches: Iterable[Tensor]) -> Tensor:
    """`(K, K)` filters, a row each, for patches `(N, K, P)`: scaled to unit variance, that of the greatest first."""
    count, total, products = 0, 0, 0
    for each in patches:
        columns = each.transpose(0, 1).flatten(1)
        count, total, products = count + columns.shape[1], total + columns.sum(1), products + columns @ columns.T
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    # What hardly varies is noise, and is not blown up.
    return (vectors * values.clamp_min(1e-4 * values[-1]).rsqrt()).T.flip(0)
