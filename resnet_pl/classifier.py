"""The LightningModule: a backbone with its loss, metrics, optimizer and predictions."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from resnet_pl import checkpoint as ckpt
from resnet_pl.callbacks.stop_on_nan import StopOnNaN
from resnet_pl.callbacks.train_log import TrainLog
from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.loader import Batch
from resnet_pl.data.provenance import resolve_classes
from resnet_pl.data.rng import seeded_rng
from resnet_pl.evaluation.metrics import ClassificationMetrics
from resnet_pl.evaluation.tta import predict_with_tta
from resnet_pl.models.normalize import Normalize
from resnet_pl.models.pretrained import fetch_weights, find_classifier, load_pretrained, reset_classifier
from resnet_pl.optim import Schedule, ScheduledLR, make_optimizer, make_scheduler
from resnet_pl.types import PositiveInt, UnitInterval
from resnet_pl.utils import rank_zero_print


class ImageClassifier(LightningModule):
    """Image classification with any backbone.

    Args:
        backbone: any classification network, such as resnet50, cifar_resnet or torchvision.models.convnext_tiny; its
            last layer is replaced if it does not fit the number of classes.
        weights: pretrained weights of the backbone: a torchvision name such as IMAGENET1K_V1, a URL, or a .pth,
            .safetensors or .ckpt file. Not read when a checkpoint is given.
        num_classes: number of classes; taken from the data by default.
        class_names: a name for each class; taken from the data by default.
        optimizer: any torch optimizer.
        schedule: learning rate over the run.
        base_batch_size: batch size that the optimizer's `lr` is meant for; it is then scaled with the effective batch.
        decay_norm_and_bias: whether weight decay applies to normalization layers and biases too, as in the paper.
        loss: training loss of (logits, labels); cross-entropy by default. Evaluation always uses cross-entropy.
        label_smoothing: share of each training label that is spread over all classes; for cross-entropy only.
        channels_last: whether convolutions use the channels_last memory format, which is faster.
        compile: whether training runs a compiled backbone: its first step takes a minute or more, the others less.
    """

    def __init__(
        self,
        backbone: nn.Module,
        weights: str | None = None,
        num_classes: PositiveInt | None = None,
        class_names: list[str] | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule: Schedule = Schedule(),  # noqa: B008 - never changed, and its values are the defaults in --help
        base_batch_size: PositiveInt | None = None,
        decay_norm_and_bias: bool = True,
        loss: nn.Module | None = None,
        label_smoothing: UnitInterval = 0.0,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings(action="ignore"):  # of modules among the hyperparameters
            self.save_hyperparameters()
        ckpt.to_plain_hparams(self.hparams)  # modules become class_path and init_args, as on the command line
        if loss is not None and label_smoothing:
            raise ValueError("model.label_smoothing is for cross-entropy: remove it, or remove model.loss")
        self.backbone, self.normalize = backbone, Normalize()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing) if loss is None else loss
        self.weights, self.optimizer = weights, optimizer
        # In a checkpoint of a network made in Python, the schedule is a mapping.
        self.schedule = Schedule(**schedule) if isinstance(schedule, dict) else schedule
        self.metrics: ClassificationMetrics | None = None  # needs the number of classes: see configure_model
        self.results: dict[str, Any] = {}  # of the last evaluation
        self.config: dict[str, Any] | None = None  # the command line's whole configuration, for the checkpoint
        self.compiled_forward: Any = None
        self.compiled_shape: tuple[int, ...] | None = None

    # ------------------------------------------------------------------------------------ network
    @property
    def class_names(self) -> list[str]:
        """A name for each class."""
        return self.hparams.class_names or [str(i) for i in range(self.hparams.num_classes or 0)]

    @property
    def _trainer_is_attached(self) -> bool:
        """Whether there is a Trainer: not after `load_from_checkpoint`."""
        with suppress(RuntimeError):
            return self.trainer is not None
        return False

    @property
    def datamodule(self) -> ImageDataModule | None:
        """The data of the running Trainer; None without one, or if it was given plain loaders."""
        data = getattr(self.trainer, "datamodule", None) if self._trainer_is_attached else None
        return data if isinstance(data, ImageDataModule) else None

    def configure_model(self) -> None:
        """Gives the backbone a head for the classes, and its pretrained weights.

        Lightning calls this when the data is known, before it restores a checkpoint.
        """
        fresh = self._trainer_is_attached and self.trainer.ckpt_path is None
        hparams = self.hparams
        # From the data, else as given, else as many as the backbone has.
        hparams.class_names, hparams.num_classes = resolve_classes(
            self.datamodule, hparams.class_names, hparams.num_classes, rename=fresh and self.trainer.training
        )
        if self.metrics is not None:
            return
        num_classes = hparams.num_classes or len(find_classifier(self.backbone)[1].weight)
        with seeded_rng(torch.initial_seed(), torch_only=True):  # the same on any number of processes
            reset_classifier(self.backbone, num_classes)
        if hparams.channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        self.metrics = ClassificationMetrics(num_classes)
        if fresh and self.weights is not None:
            rank_zero_print(load_pretrained(self.backbone, self.weights, fetch_weights))
        if fresh and self.datamodule is not None:
            self.normalize.set(*self.datamodule.normalization())

    def forward(self, images: Tensor) -> Tensor:
        """Images `(N, 3, H, W)`, uint8 or float in [0, 1], to logits `(N, num_classes)`."""
        images = self.normalize(images)
        if self.hparams.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.training and images.shape == self.compiled_shape:
            return self.compiled_forward(images)
        return self.backbone(images)

    # ------------------------------------------------------------------------------------ training
    def configure_callbacks(self) -> list[Callback]:
        """What every training has, from Python too; the command line adds more, see `cli/parser.py`."""
        return [TrainLog(), StopOnNaN()]

    def on_fit_start(self) -> None:
        """Compiles the backbone for training batches; evaluation, and batches of another shape, run eagerly."""
        if self.hparams.compile and self.datamodule is not None and self.compiled_forward is None:
            self.compiled_forward = torch.compile(self.backbone.forward, dynamic=False)
            self.compiled_shape = self.datamodule.batch_shape

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the loss; labels are `(N,)`, or `(N, num_classes)` shares after MixUp.

        `TrainLog` logs `train/loss` and, from the logits, `train/top1` every `log_every_n_steps` steps: `self.log` in
        every step costs more than the step of a small network.
        """
        logits = self(batch.images)
        return {"loss": self.criterion(logits, batch.labels), "logits": logits.detach()}

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer of the configuration, and the schedule, which makes a step after every optimizer step."""
        optimizer = make_optimizer(self.optimizer, self, self.hparams.decay_norm_and_bias)
        if self.hparams.base_batch_size is not None:
            for group in optimizer.param_groups:
                group["lr"] *= self.effective_batch_size / self.hparams.base_batch_size
        scheduler = make_scheduler(optimizer, self.schedule, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def effective_batch_size(self) -> int:
        """Images behind one optimizer step: over processes and accumulated batches."""
        return self.datamodule.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    # ------------------------------------------------------------------------------------ evaluation
    def probabilities(self, batch: Batch) -> Tensor:
        """`(N, num_classes)`; with test-time augmentation the mean over the views of each image."""
        return predict_with_tta(self, batch.images, len(batch.labels))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Updates the metrics."""
        probabilities = self.probabilities(batch)
        self.metrics.update(probabilities, batch.labels)
        return {"probabilities": probabilities}

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Updates the metrics."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns `probabilities` `(N, num_classes)`, `labels` and `indices` `(N,)`."""
        return {"probabilities": self.probabilities(batch), "labels": batch.labels, "indices": batch.indices}

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics; the schedule `plateau` follows top-1."""
        self._log_metrics("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            for scheduler in (config.scheduler for config in self.trainer.lr_scheduler_configs):
                if isinstance(scheduler, ScheduledLR):
                    scheduler.update_plateau(self.results["top1"])

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        """Logs every number that `ClassificationMetrics.compute` returns: add a metric there."""
        self.results = self.metrics.compute()
        self.metrics.reset()
        for name, value in self.results.items():
            if isinstance(value, float):
                self.log(f"{stage}/{name}", value, prog_bar=name == "top1")

    # ------------------------------------------------------------------------------------ checkpoints
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint self-contained: configuration, classes, splits and versions, all plain types."""
        data = self.datamodule
        checkpoint[ckpt.METADATA_KEY] = ckpt.build_metadata(
            self.config, data.provenance() if data is not None else None
        )
