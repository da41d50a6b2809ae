"""Trains with parameters, gradients and optimizer state sharded over the processes (FSDP2), for very wide networks.

    torchrun --nproc-per-node 2 cli.py fit --config configs/digits.yaml --config examples/cluster/sharded.yaml

Checkpoints are ordinary files: `test`, `predict` and `export` need no second process.
"""

from typing import Any

import torch
from torch.distributed.fsdp import fully_shard

from resnet_pl import ImageClassifier
from resnet_pl.models.resnet import BasicBlock, Bottleneck


class ShardedClassifier(ImageClassifier):
    """An `ImageClassifier` whose residual blocks are sharded one by one, so that one at a time is complete.

    Args:
        channels_last: FSDP does not support other memory formats than the default one.
        kwargs: the arguments of `ImageClassifier`.
    """

    def __init__(self, channels_last: bool = False, **kwargs: Any) -> None:
        super().__init__(channels_last=channels_last, **kwargs)
        self.sharded = False

    def configure_model(self) -> None:
        """Shards the network after its head is replaced; without the strategy it is not sharded."""
        super().configure_model()
        if self.device_mesh is None or self.sharded:
            return
        self.sharded, mesh = True, self.device_mesh["data_parallel"]
        for block in self.backbone.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                fully_shard(block, mesh=mesh)
        fully_shard(self.backbone, mesh=mesh)

    def on_train_batch_end(self, *args: Any) -> None:
        """Copies the BatchNorm statistics of the first process to the others, as DDP does."""
        if self.sharded:
            for buffer in self.backbone.buffers():
                torch.distributed.broadcast(buffer, 0)
