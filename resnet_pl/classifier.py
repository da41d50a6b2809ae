"""The LightningModule: a backbone with its loss, metrics, optimiser and predictions."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from resnet_pl import checkpoint as ckpt
from resnet_pl.callbacks.bad_loss import BadLoss, check
from resnet_pl.callbacks.exact_resume import ExactResume
from resnet_pl.classes import count_classes, names_of
from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.loader import Batch
from resnet_pl.evaluation.metrics import Evaluation
from resnet_pl.evaluation.tta import average_scores
from resnet_pl.models.compiled import compile_training
from resnet_pl.models.normalize import Normalize
from resnet_pl.models.pretrained import fetch_weights, find_head, load_weights, set_num_classes
from resnet_pl.optim import Schedule, ScheduledLR, Share, fuse, parameter_groups
from resnet_pl.resume import changed_arguments, check_net
from resnet_pl.utils import UserError, tell


class ImageClassifier(LightningModule):
    """Classifies images with any backbone.

    Args:
        backbone: any classification net; its last layer is replaced where its width differs from the classes.
        weights: what the backbone starts from: a torchvision name such as IMAGENET1K_V1, a URL, or a .pth,
            .safetensors or .ckpt file. Not read where a checkpoint is given.
        num_classes: number of classes; taken from the data if not given.
        class_names: a name for each class; taken from the data if not given.
        optimizer: any torch optimiser.
        schedule: learning rate over the run.
        base_batch_size: batch size that the optimiser's `lr` is meant for; it is then scaled with the effective batch.
        decay_norm_and_bias: whether weight decay applies to normalisation layers and biases too, as in the paper.
        loss: training loss of (logits, labels); cross-entropy if not given. Evaluation is always by cross-entropy.
        label_smoothing: share of each training label that is spread over all classes; for cross-entropy alone.
        channels_last: memory layout that convolutions are faster in.
        compile: whether training runs the net compiled: its first step then takes a minute or more, the others less.
        on_bad_loss: what to do at a loss of NaN or infinity: stop, at the next logging step, or skip the batch; then
            every step waits for its loss. The names of its images go to bad_batches.csv.
    """

    def __init__(
        self,
        backbone: nn.Module,
        weights: str | None = None,
        num_classes: PositiveInt | None = None,
        class_names: list[str] | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule: Schedule = Schedule(),  # noqa: B008 - never changed, and its values are --help's defaults
        base_batch_size: PositiveInt | None = None,
        decay_norm_and_bias: bool = True,
        loss: nn.Module | None = None,
        label_smoothing: Share = 0.0,
        channels_last: bool = True,
        compile: bool = False,
        on_bad_loss: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # Lightning advises to leave the backbone out; it is replaced by its description right below.
            warnings.simplefilter("ignore")
            self.save_hyperparameters()
        if self.hparams.backbone is backbone:
            # Built from Python: keep a description of the backbone, not the backbone, in the hyper-parameters.
            plain = ckpt.plain_arguments(self.hparams)
            self.hparams.clear()
            self.hparams.update(plain)
            self._hparams_initial = self._hparams
        self.backbone, self.normalize = backbone, Normalize()
        # A checkpoint of a net made in Python holds the schedule as a mapping.
        self.schedule = Schedule(**schedule) if isinstance(schedule, dict) else schedule
        self.optimizer, self.base_batch_size = optimizer, base_batch_size
        self.weights, self.decay_norm_and_bias, self.channels_last = weights, decay_norm_and_bias, channels_last
        if loss is not None and label_smoothing:
            raise ValueError("model.label_smoothing is for cross-entropy: leave it out, or leave model.loss out")
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing) if loss is None else loss
        # Filled by the command line: the whole resolved configuration, which the checkpoint carries.
        self.config: dict[str, Any] | None = None
        self.evaluation: Evaluation | None = None
        self.results: dict[str, Any] = {}
        # Set by the command line where a checkpoint will be restored: nothing pretrained is then read.
        self.restoring = False
        # Set by the command line: whether a test averages each view with its mirror image.
        self.mirror = False
        self._seen: Tensor | None = None
        self._bad_loss = BadLoss()
        # Whether any batch takes part in the coming step.
        self._steps = False
        # Of the images since the last step, while a warm-up waits for the training error: how many, and how many wrong.
        self._wrong: Tensor | None = None
        self._scheduler: ScheduledLR | None = None
        # Arguments of the optimiser that a run goes on with other values of, by parameter group.
        self._changed: set[str] = set()
        self._asked: list[dict[str, Any]] = []

    def __setattr__(self, name: str, value: Any) -> None:
        """See Module; without the search for parameters where Lightning notes its hooks, over 40 times a step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ------------------------------------------------------------------------------------ the net
    @property
    def class_names(self) -> list[str]:
        """A name for each class."""
        return self.hparams.class_names or [str(i) for i in range(self.hparams.num_classes or 0)]

    def configure_model(self) -> None:
        """Fits the net to the classes of the data, or of the checkpoint, and loads the weights it starts from.

        Lightning calls this once the data is known and before a checkpoint is restored; some callbacks call it earlier.
        """
        data = getattr(self._trainer, "datamodule", None)
        own = self.hparams
        if data is not None and data.predict_paths is None:
            # At the start of training names may be given for the data's classes.
            own.class_names = names_of(data, own.class_names, renamed=self._trainer.training and not self.restoring)
        if self.evaluation is not None:
            return
        if own.class_names or own.num_classes:
            own.num_classes = count_classes(own.class_names, own.num_classes)
        num_classes = own.num_classes or find_head(self.backbone)[1].weight.shape[0]
        set_num_classes(self.backbone, num_classes)
        if self.channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        self.evaluation = Evaluation(num_classes)
        if self._trainer is None or self.restoring:
            return
        if self.weights is not None:
            tell(load_weights(self.backbone, self.weights, fetch_weights))
        if data is not None:
            self.normalize.set(*data.normalization())

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` uint8, or float in [0, 1], to logits `(N, num_classes)`."""
        images = self.normalize(images)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.backbone(images)

    # ------------------------------------------------------------------------------------ training
    def configure_callbacks(self) -> list[Callback]:
        """What every training has, from Python too."""
        return [ExactResume(), self._bad_loss]

    def on_train_start(self) -> None:
        """Gives the loader its place in the epoch: it was made, to learn the run's length, before that was known.

        And the optimiser what is asked of it now: with its state it was given the values from before.
        """
        self.trainer.fit_loop._load_combined_loader_states()
        for group, asked in zip(self.optimizers().param_groups, self._asked, strict=True):
            group.update(asked)
        if self.hparams.compile:
            compile_training(self.backbone)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch; what is logged stays on the device until a logging step."""
        if self._scheduler is not None:
            # Not where the last step ended: that would have broken it off.
            self._scheduler.check()
        logits = self(batch.images)
        loss = self.loss(logits, batch.labels)
        if self.hparams.on_bad_loss == "skip" and self._bad_loss.leaves_out(self.trainer, self, batch, loss):
            # No gradient, but one that every process takes part in.
            return 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        self._steps = True
        self._bad_loss.note(self.trainer, batch, loss)
        with torch.no_grad():
            labels = batch.labels.argmax(1) if batch.labels.ndim > 1 else batch.labels
            size = len(labels)
            correct = (logits.argmax(1) == labels).sum(dtype=torch.float32)
            seen = torch.stack([loss.detach().float() * size, correct, correct.new_full((), size)])
            self._seen = seen if self._seen is None else self._seen + seen
            if self._scheduler is not None and self._scheduler.errors is not None:
                wrong = torch.stack([size - correct, correct.new_full((), size)])
                self._wrong = wrong if self._wrong is None else self._wrong + wrong
        # Of the accumulated batches only the last one's line is kept.
        if self.trainer._logger_connector.should_update_logs and not self.trainer.fit_loop._should_accumulate():
            self._log_training()
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """See LightningModule; where all its batches are left out there is no step: momentum would move the weights."""
        if self.hparams.on_bad_loss == "skip":
            loss = optimizer_closure()
            if not self._steps:
                return
            self._steps, optimizer_closure = False, lambda: loss
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def lr_scheduler_step(self, scheduler: ScheduledLR, metric: Any) -> None:
        """See LightningModule; a warm-up that ends by training error is told the error of all processes."""
        if scheduler.errors is None or self._wrong is None:
            scheduler.step()
            return
        wrong, images = self.trainer.strategy.reduce(self._wrong, reduce_op="sum").tolist()
        self._wrong = None
        scheduler.warm(wrong / images)

    def _log_training(self) -> None:
        """Mean loss and top-1 since they were logged last, over this process's images."""
        total, correct, count = check(self.trainer, self)
        self._bad_loss.recent.clear()
        self.log("train/loss", total / count)
        # With `prog_bar` Lightning would ask the device for it in every step to come.
        self.trainer._logger_connector._progress_bar_metrics["train/loss"] = total / count
        self.log("train/top1", correct / count)
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        self._seen = None

    def on_train_epoch_end(self) -> None:
        """Logs what the last logging step left over, so that no epoch goes by without a line."""
        if self._seen is not None:
            self._log_training()

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser named in the configuration, and the schedule that follows every batch."""
        try:
            optimizer = self.optimizer(parameter_groups(self, self.decay_norm_and_bias))
        except ValueError as error:
            raise UserError(f"model.optimizer: {error}") from error
        fuse(optimizer)
        if self.base_batch_size is not None:
            for group in optimizer.param_groups:
                group["lr"] *= self.effective_batch_size / self.base_batch_size
        self._asked = [{key: group[key] for key in self._changed & group.keys()} for group in optimizer.param_groups]
        trainer = self.trainer
        if self.schedule.shape == "plateau" and "val" not in trainer.datamodule.splits:
            raise UserError(
                "model.schedule.shape: plateau follows the validation, and no images are held out\n"
                "hold some out with --data.val_split, or choose another shape"
            )
        # Else the length of an epoch is not known where steps alone set the end.
        trainer.fit_loop.setup_data()
        total = trainer.estimated_stepping_batches
        # Lightning steps at the end of an epoch, however few batches have been accumulated.
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        self._scheduler = ScheduledLR(optimizer, self.schedule, total, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler, "interval": "step"}}

    @property
    def effective_batch_size(self) -> int:
        """Images behind one step of the optimiser: over processes and accumulated batches."""
        return self.trainer.datamodule.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    # ------------------------------------------------------------------------------------ evaluation
    def probabilities(self, batch: Batch) -> Tensor:
        """`(N, K)`, averaged over the views that the batch has of each image, and over mirror images where asked."""
        return average_scores(self, batch.images, len(batch.labels), self.mirror)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns `probabilities` `(N, K)`."""
        probabilities = self.probabilities(batch)
        self.evaluation.update(probabilities, batch.labels)
        return {"probabilities": probabilities}

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns `probabilities` `(N, K)`, `labels` and `indices` `(N,)`."""
        probabilities = self.probabilities(batch)
        return {"probabilities": probabilities, "labels": batch.labels, "indices": batch.indices}

    def _finish(self, stage: str) -> None:
        self.results = self.evaluation.compute()
        self.evaluation.reset()
        shown = {key: self.results[key] for key in ("loss", "top1", "top5") if self.results[key] is not None}
        for name, value in shown.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "top1")

    def on_validation_epoch_end(self) -> None:
        """Logs the validation's figures and tells the schedule."""
        self._finish("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.observe(self.results["top1"])

    def on_test_epoch_end(self) -> None:
        """Logs the test's figures."""
        self._finish("test")

    # ------------------------------------------------------------------------------------ checkpoints
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the whole story into the checkpoint: configuration, data, versions, all plain types."""
        data = getattr(self._trainer, "datamodule", None)
        provenance = data.provenance() if isinstance(data, ImageDataModule) else None
        checkpoint[ckpt.KEY] = ckpt.story(self.config, provenance)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compares the checkpoint with the net before a weight is touched."""
        fitting = self._trainer is not None and self._trainer.state.fn == "fit"
        if fitting and not checkpoint.get("optimizer_states"):
            raise UserError("the checkpoint holds weights alone, no training to go on with\nuse it as --model.weights")
        if fitting:
            trained = (checkpoint.get(ckpt.KEY) or {}).get("config")
            self._changed = changed_arguments(trained or {}, self.config or {})
        given = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith("backbone.")}
        check_net(self.backbone.state_dict(), {key.removeprefix("backbone."): value for key, value in given.items()})
