"""Exponential moving average (EMA) of the weights, whose decay is small at first, so that short runs profit too."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from resnet_pl.callbacks.checkpoints import monitored
from resnet_pl.evaluation.metrics import ClassificationMetrics
from resnet_pl.evaluation.multi_label import MultiLabelMetrics
from resnet_pl.types import UnitInterval
from resnet_pl.utils import UserError


class EMA(WeightAveraging):
    """Exponential moving average (EMA) of the weights: the average is validated, saved and tested.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's ExponentialMovingAverage: the average
    covers about the last tenth of a short run, and of a long one the last 1 / (1 - decay) steps. The initial weights
    have no influence on it.

    `best.ckpt` is chosen by the averaged weights. The same metric of the weights that are being trained is logged
    with `_raw` after its name, such as `val/top1_raw`; for this, each validation classifies its images twice.

    Args:
        decay: largest decay of the average per optimizer step.
        log_raw: whether the weights that are being trained are validated too.
    """

    def __init__(self, decay: UnitInterval = 0.999, log_raw: bool = True) -> None:
        super().__init__(multi_avg_fn=self._average)
        self.decay, self.log_raw = decay, log_raw
        self._initial = self.state_dict()
        self._raw: dict[str, Tensor] = {}  # the weights that are being trained, during a validation
        self._metrics: ClassificationMetrics | MultiLabelMetrics | None = None  # of these weights

    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        """Updates averaged tensors in place; `count` is the number of updates so far."""
        n = int(count)
        # The average is created before the precision bf16-true converts the module.
        current = [now.to(before.dtype) for before, now in zip(averaged, current, strict=True)]
        get_ema_multi_avg_fn(min(self.decay, (1 + n) / (10 + n)))(averaged, current, count)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts again at the first step: the object can be from an earlier `fit`."""
        if trainer.precision == "64-true":
            raise UserError("trainer.precision: EMA averages in float32\nremove EMA, or use another precision")
        if stage == "fit":
            self.load_state_dict(self._initial)
        super().setup(trainer, pl_module, stage)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores the weights that are being trained, of a resumed run; an evaluation keeps the averaged ones."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the averaged weights into the module, which keeps the thresholds of the last validation."""
        thresholds = getattr(pl_module, "thresholds", None)
        chosen = None if thresholds is None else thresholds.clone()
        super().on_train_end(trainer, pl_module)
        if thresholds is not None:
            thresholds.copy_(chosen)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores the weights that are being trained, and puts the averaged ones into the module."""
        metrics = getattr(pl_module, "metrics", None)
        in_training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.log_raw and in_training and isinstance(metrics, ClassificationMetrics | MultiLabelMetrics):
            self._raw = {f"module.{name}": value.clone() for name, value in pl_module.state_dict().items()}
            self._metrics = deepcopy(metrics).to(torch.float32)  # Lightning calls callbacks before the module's hook
            self._metrics.reset()
        super().on_validation_epoch_start(trainer, pl_module)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Classifies the batch with the stored weights too."""
        if self._metrics is None:
            return
        module: Any = pl_module  # with metrics, it is an ImageClassifier
        batch = module.as_batch(batch, batch_idx)
        with trainer.precision_plugin.val_step_context():
            probabilities = functional_call(_Probabilities(pl_module), self._raw, (batch,))
        self._metrics.update(probabilities, batch.labels)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the monitored metric of the stored weights."""
        super().on_validation_epoch_end(trainer, pl_module)
        if self._metrics is not None:
            choose = [True] if isinstance(self._metrics, MultiLabelMetrics) else []
            results = self._metrics.compute(*choose)
            results = {f"val/{name}": value for name, value in results.items()}
            if (name := monitored(trainer)[0]) in results:
                pl_module.log(f"{name}_raw", results[name])
        self._metrics, self._raw = None, {}


class _Probabilities(nn.Module):
    """The method `probabilities` of a module as a forward pass, for `functional_call`."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    @override
    def forward(self, batch: Any) -> Tensor:
        return self.module.probabilities(batch)
