"""Transfer learning: part of the backbone stays as it is, for the whole run or until an epoch."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from resnet_pl.models.pretrained import find_classifier
from resnet_pl.types import NonNegativeInt
from resnet_pl.utils import UserError


class Freeze(BaseFinetuning):
    """Freezes the backbone, but never its head; frozen BatchNorm layers keep their statistics.

    Args:
        last_frozen: the last stage that is frozen, such as `layer2`; the whole backbone if not given.
        unfreeze_at_epoch: epoch, from 0, at which everything is trained; never if not given.
    """

    def __init__(self, last_frozen: str | None = None, unfreeze_at_epoch: NonNegativeInt | None = None) -> None:
        super().__init__()
        self.last_frozen, self.unfreeze_at_epoch = last_frozen, unfreeze_at_epoch

    def _frozen(self, backbone: nn.Module) -> list[nn.Module]:
        """The children of the backbone that are frozen, without the head."""
        names = [name for name, _ in backbone.named_children()]
        if self.last_frozen is not None and self.last_frozen not in names:
            raise UserError(
                f"Freeze.last_frozen: {self.last_frozen} is no stage of the backbone\nits stages are {', '.join(names)}"
            )
        head = find_classifier(backbone)[1]
        last = names.index(self.last_frozen) if self.last_frozen is not None else len(names)
        children = [child for _, child in backbone.named_children()][: last + 1]
        return [part for child in children for part in _modules_except(child, head)]

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """See Lightning's BaseFinetuning."""
        # Those in no child, such as the class token of a vision transformer.
        for parameter in pl_module.backbone.parameters(recurse=False):
            parameter.requires_grad_(False)
        for part in self._frozen(pl_module.backbone):
            part.requires_grad_(False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreezes when it is time; the optimiser has held all parameters from the start."""
        if self.unfreeze_at_epoch is None or epoch < self.unfreeze_at_epoch:
            return
        strategy, frozen = pl_module.trainer.strategy, not all(p.requires_grad for p in pl_module.parameters())
        pl_module.backbone.requires_grad_(True)
        if frozen and isinstance(strategy, DDPStrategy):
            # DDP averages the gradients of what could be trained when it was made: the processes would drift apart.
            strategy.model = pl_module
            strategy.configure_ddp()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that goes on in the middle of an epoch sees no start of that epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        super().on_train_epoch_start(trainer, pl_module)
        pl_module.backbone.train()
        if self.unfreeze_at_epoch is None or trainer.current_epoch < self.unfreeze_at_epoch:
            for part in self._frozen(pl_module.backbone):
                # In training mode BatchNorm would go on changing its statistics, and dropout would drop.
                part.eval()


def _modules_except(module: nn.Module, head: nn.Module) -> list[nn.Module]:
    """The parts of a module, cut no finer than needed to leave the head out."""
    if module is head:
        return []
    if not any(part is head for part in module.modules()):
        return [module]
    return [part for child in module.children() for part in _modules_except(child, head)]
