"""Transfer learning: freezes the backbone or its first stages, for the entire run or until an epoch."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from resnet_pl.callbacks.access import as_classifier
from resnet_pl.models.heads import find_heads
from resnet_pl.types import NonNegativeInt
from resnet_pl.utils import UserError


class Freeze(BaseFinetuning):
    """Freezes the backbone up to a stage, by default all of it except the classifier head.

    Frozen BatchNorm layers do not update their statistics.

    Args:
        last_frozen: name of the last frozen stage, such as `layer2`; by default the entire backbone is frozen.
        unfreeze_at_epoch: epoch, counted from 0, from which all parameters are trained; never by default.
    """

    def __init__(self, last_frozen: str | None = None, unfreeze_at_epoch: NonNegativeInt | None = None) -> None:
        super().__init__()
        self.last_frozen, self.unfreeze_at_epoch = last_frozen, unfreeze_at_epoch

    def _frozen(self, backbone: nn.Module) -> list[nn.Module]:
        """Returns the frozen modules of the backbone, without the head."""
        names = [name for name, _ in backbone.named_children()]
        if self.last_frozen is not None and self.last_frozen not in names:
            raise UserError(
                f"Freeze.last_frozen: {self.last_frozen} is not a stage of the backbone\nuse one of {', '.join(names)}"
            )
        heads = list(find_heads(backbone).values())
        last = names.index(self.last_frozen) if self.last_frozen is not None else len(names)
        children = [child for _, child in backbone.named_children()][: last + 1]
        return [module for child in children for module in _modules_except(child, heads)]

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Disables the gradients of the frozen parameters."""
        backbone = as_classifier(pl_module).backbone
        # Parameters of the backbone itself, such as the class token of a vision transformer.
        for parameter in backbone.parameters(recurse=False):
            parameter.requires_grad_(False)
        for module in self._frozen(backbone):
            module.requires_grad_(False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreezes everything at `unfreeze_at_epoch`; the optimizer has all parameters from the start."""
        if self.unfreeze_at_epoch is None or epoch < self.unfreeze_at_epoch:
            return
        strategy, frozen = pl_module.trainer.strategy, not all(p.requires_grad for p in pl_module.parameters())
        as_classifier(pl_module).backbone.requires_grad_(True)
        if frozen and isinstance(strategy, DDPStrategy):
            # DDP synchronizes the gradients of parameters that required them when it was created: create it again.
            strategy.model = pl_module
            strategy.configure_ddp()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freezes in a run that resumes within an epoch: Lightning does not call `on_train_epoch_start` there."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Unfreezes if it is time, and sets frozen modules to evaluation mode."""
        super().on_train_epoch_start(trainer, pl_module)
        backbone = as_classifier(pl_module).backbone.train()
        if self.unfreeze_at_epoch is None or trainer.current_epoch < self.unfreeze_at_epoch:
            for module in self._frozen(backbone):
                # In training mode BatchNorm would update its statistics, and dropout would be active.
                module.eval()


def _modules_except(module: nn.Module, heads: Sequence[nn.Module]) -> list[nn.Module]:
    """Returns the largest submodules of `module` that do not contain a head."""
    if any(module is head for head in heads):
        return []
    if not any(submodule is head for submodule in module.modules() for head in heads):
        return [module]
    return [submodule for child in module.children() for submodule in _modules_except(child, heads)]
