"""The LightningModule: backbone, loss, metrics, optimizer, and the training, evaluation and prediction steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import torch
from jsonargparse.typing import register_type
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from typing_extensions import override

from resnet_pl import checkpoint as ckpt
from resnet_pl.callbacks.access import effective_batch_size, get_datamodule, get_image_data
from resnet_pl.callbacks.finders import FinderResults
from resnet_pl.callbacks.stop_on_nan import StopOnNaN
from resnet_pl.callbacks.train_log import TrainLog
from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.batch import Batch, check_labels
from resnet_pl.data.provenance import provenance_of, resolve_classes, resolve_multi_label
from resnet_pl.data.resizing import Size
from resnet_pl.data.rng import seeded_rng
from resnet_pl.evaluation.calibration import rescale
from resnet_pl.evaluation.classify import Prediction, Preprocessing, classify
from resnet_pl.evaluation.features import collect_features
from resnet_pl.evaluation.metrics import ClassificationMetrics
from resnet_pl.evaluation.multi_label import MultiLabelMetrics
from resnet_pl.evaluation.tta import predict_with_tta
from resnet_pl.losses import MultiLabelLoss, check_kind, check_number, set_class_weights
from resnet_pl.lr_schedulers import configure_lr_scheduler, update_plateau
from resnet_pl.models.fetch_weights import fetch_weights
from resnet_pl.models.heads import check_channels, find_classifier, reset_classifier, split_outputs, training_loss
from resnet_pl.models.normalize import Normalize
from resnet_pl.models.pretrained import load_pretrained
from resnet_pl.models.published import load_published
from resnet_pl.optim import Schedule, ScheduledLR, check_layout, make_optimizer, make_scheduler
from resnet_pl.plain_types import to_plain_hparams
from resnet_pl.types import NonNegativeFloat, PositiveInt, UnitInterval
from resnet_pl.utils import UserError, rank_zero_print

# The weights of a loss are a list of numbers, in YAML and in checkpoints.
register_type(Tensor, Tensor.tolist, lambda numbers: torch.tensor(numbers, dtype=torch.float32))


class ImageClassifier(LightningModule):
    """Image classifier with any backbone.

    Args:
        backbone: classification network, such as resnet50, cifar_resnet or torchvision.models.convnext_tiny. Its last
            layer is replaced if its number of outputs differs from the number of classes.
        weights: pretrained weights of the backbone: a torchvision name such as IMAGENET1K_V1, a URL
            (hf://user/name for the Hugging Face Hub), or a .pth, .safetensors or .ckpt file. Ignored when a checkpoint
            is restored.
        num_classes: number of classes; read from the data by default.
        class_names: name of each class; read from the data by default.
        multi_label: whether an image can have several classes, or none; read from the data by default. Each class then
            has a probability of its own (sigmoid), and a threshold, which the validation chooses.
        optimizer: any torch optimizer.
        schedule: learning rate schedule, a cosine by default.
        lr_scheduler: any torch scheduler, in place of `schedule`.
        lr_scheduler_interval: whether `lr_scheduler` is updated after every step or every epoch; by default after every
            step if it is made for steps, as OneCycleLR and CyclicLR are, else after every epoch.
        base_batch_size: batch size for which the optimizer's `lr` was chosen. If set, `lr` is multiplied by
            effective batch size / base_batch_size (linear scaling rule, arXiv:1706.02677).
        decay_norm_and_bias: whether weight decay also applies to normalization layers and biases, as in the paper.
        loss: training loss, called with (logits, labels); by default cross-entropy, or binary cross-entropy if
            `multi_label`. Evaluation always reports these.
        label_smoothing: label smoothing factor (arXiv:1512.00567); for the default loss only.
        class_weights: weight of each class in the training loss, or `balanced`: inversely proportional to its number of
            training images. The loss of the evaluation has no weights. With MixUp and CutMix, weights with a mean
            over the images that is not 1 also scale the loss.
        metrics: further metrics of the evaluation by name, such as torchmetrics.classification.MulticlassF1Score. Each
            is created with the number of classes, and updated with probabilities `(N, K)` and labels `(N,)`.
        channels_last: whether to use the channels_last memory format, which makes convolutions faster.
        compile: whether to train with torch.compile. The first step takes a minute or more; the others are faster.
    """

    def __init__(
        self,
        backbone: nn.Module,
        weights: str | None = None,
        num_classes: PositiveInt | None = None,
        class_names: list[str] | None = None,
        multi_label: bool | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule: Schedule = Schedule(),  # noqa: B008 - never modified; --help shows its values as defaults
        lr_scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] | None = None,
        base_batch_size: PositiveInt | None = None,
        decay_norm_and_bias: bool = True,
        loss: nn.Module | None = None,
        label_smoothing: UnitInterval = 0.0,
        class_weights: Literal["balanced"] | list[NonNegativeFloat] | None = None,
        metrics: dict[str, Callable[[int], Metric]] | None = None,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings(action="ignore"):  # Lightning warns about modules; the next line replaces them
            self.save_hyperparameters()
        # A subclass that does not take an argument has no hyperparameter of it; the classes are read from the data.
        for name, value in (("num_classes", num_classes), ("class_names", class_names), ("multi_label", multi_label)):
            self.hparams.setdefault(name, value)
        to_plain_hparams(self.hparams)  # a module becomes its class_path and init_args, as in a YAML file
        if loss is not None and label_smoothing:
            raise UserError("model.label_smoothing is for the default loss only\nset --model.label_smoothing 0")
        self.backbone, self.normalize = backbone, Normalize()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing) if loss is None else loss
        self.has_default_loss, self.label_smoothing, self.class_weights = loss is None, label_smoothing, class_weights
        self.channels_last, self.compiles = channels_last, compile
        self.weights, self.optimizer = weights, optimizer
        self.base_batch_size, self.decay_norm_and_bias = base_batch_size, decay_norm_and_bias
        self.output_names, self.is_published = class_names, False  # see `load_published`
        self.lr: float | None = None  # in place of the optimizer's; Lightning's learning rate finder sets it
        # `load_from_checkpoint` passes the schedule as a dict.
        self.schedule = Schedule(**schedule) if isinstance(schedule, dict) else schedule
        self.lr_scheduler, self.lr_scheduler_interval = lr_scheduler, lr_scheduler_interval
        self.own_metrics = metrics or {}
        # Created in configure_model, when the number of classes is known.
        self.metrics: ClassificationMetrics | MultiLabelMetrics
        self.preprocessing = Preprocessing()  # of the checkpoint that was loaded
        self.has_untrained_head = False
        self.temperature = 1.0  # see `set_calibration`
        self.confidence_threshold: float | None = None
        self.results: dict[str, Any] = {}  # metrics of the last evaluation
        self.compiled_forward: Callable[[Tensor], Tensor] | None = None
        self.compiled_shape: tuple[int, ...] | None = None

    # ------------------------------------------------------------------------------------ model
    @property
    def class_names(self) -> list[str]:
        """Name of each class; its index if the class has no name."""
        return self.hparams["class_names"] or [str(i) for i in range(self.hparams["num_classes"] or 0)]

    @property
    def _has_trainer(self) -> bool:
        """Whether a Trainer is attached; False after `load_from_checkpoint`."""
        with suppress(RuntimeError):
            return self.trainer is not None
        return False

    @property
    def datamodule(self) -> ImageDataModule | None:
        """Data module of the Trainer; None without a Trainer, or if it has another kind of data."""
        return get_image_data(self.trainer) if self._has_trainer else None

    @override
    def configure_model(self) -> None:
        """Replaces the head if the number of classes differs, and loads pretrained weights.

        Lightning calls this hook after the data module's `setup` and before it restores a checkpoint.
        """
        no_checkpoint = self._has_trainer and self.trainer.ckpt_path is None
        is_new_run = no_checkpoint and self.trainer.training
        self._find_classes(no_checkpoint, is_new_run)
        hparams = self.hparams
        num_classes = hparams["num_classes"] or len(find_classifier(self.backbone)[1].weight)
        if hasattr(self, "metrics"):  # the network is complete since an earlier call
            if is_new_run:  # an evaluation before the training has not counted the images of each class
                self.has_untrained_head = False
                if self.class_weights is not None:
                    setattr(self.criterion, "pos_weight" if hparams["multi_label"] else "weight", None)
                self._configure_loss(num_classes, is_new_run)
            return
        if self.datamodule is not None and self.datamodule.pixel_format.channels != 3:
            check_channels(self.backbone, self.datamodule.pixel_format.channels, no_checkpoint and self.weights)
        if hparams["num_classes"] is None and is_new_run:
            rank_zero_print(
                f"note: the data has no attribute `classes`: the network keeps its {num_classes:,} outputs\n"
                "set the attribute, or --model.num_classes (in Python num_classes=)"
            )
        self._configure_loss(num_classes, is_new_run)
        with seeded_rng(torch.initial_seed(), torch_only=True):  # the same head for any number of processes
            has_new_head = reset_classifier(self.backbone, num_classes)
        # Lightning has not loaded the checkpoint of `Trainer().test(module, ckpt_path=…)` yet.
        self.has_untrained_head = has_new_head and no_checkpoint and not is_new_run
        if self.channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        metrics_class = MultiLabelMetrics if hparams["multi_label"] else ClassificationMetrics
        self.metrics = metrics_class(num_classes, self.own_metrics)
        if is_new_run and self.weights is not None:
            digests = (provenance_of(self.datamodule) or {}).get("digests")
            names = hparams["class_names"]
            rank_zero_print(load_pretrained(self.backbone, self.weights, fetch_weights, names, digests))
        if no_checkpoint and self.datamodule is not None:
            self.normalize.set(*self.datamodule.normalization())

    def _find_classes(self, no_checkpoint: bool, is_new_run: bool) -> None:
        """Stores the classes of the data, else the given ones; without either, the backbone keeps its outputs.

        Weights that are evaluated without training keep their head, with its classes.
        """
        hparams = self.hparams
        data = get_datamodule(self.trainer) if self._has_trainer else None
        keeps_head = self.is_published or not hasattr(self, "metrics")
        if no_checkpoint and not is_new_run and self.weights is not None and keeps_head:
            published = load_published(self.backbone, self.weights, fetch_weights, data, self.output_names)
            rank_zero_print(published.message)
            hparams["class_names"], hparams["num_classes"] = published.class_names, published.num_classes
            self.is_published = True
        else:
            hparams["class_names"], hparams["num_classes"] = resolve_classes(
                data, hparams["class_names"], hparams["num_classes"], is_new_run
            )
        hparams["multi_label"] = resolve_multi_label(data, hparams["multi_label"])

    def _configure_loss(self, num_classes: int, is_new_run: bool) -> None:
        """Selects the default loss of the data, and sets the class weights of a new run."""
        several = self.hparams["multi_label"]
        if several and self.has_default_loss:
            self.criterion = MultiLabelLoss(self.label_smoothing)
        check_kind(self.criterion, several)
        check_number(getattr(self.criterion, "weight", None), num_classes, "model.loss.weight")
        if (weights := self.class_weights) is not None:
            images: Any = None  # a checkpoint restores the weights
            if is_new_run:
                images = self.datamodule.split("train") if self.datamodule else get_datamodule(self.trainer)
            set_class_weights(self.criterion, weights, num_classes, images, several)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Computes logits `(N, num_classes)` of images `(N, 3, H, W)`, uint8 or float in [0, 1].

        In training mode a network with auxiliary heads returns a tuple, see `models/heads.py`.
        """
        images = self.normalize(images)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.compiled_forward is not None and self.training and self.compiled_shape in (None, images.shape):
            return self.compiled_forward(images)
        outputs = self.backbone(images)
        return outputs if self.training else split_outputs(outputs)[0]

    # ------------------------------------------------------------------------------------ training
    @override
    def configure_callbacks(self) -> list[Callback]:
        """Callbacks of every `fit`, from Python too; the command line adds those of `cli/train.py`."""
        return [TrainLog(), StopOnNaN(), FinderResults()]

    @override
    def on_fit_start(self) -> None:
        """Compiles the backbone for training batches; evaluation and batches of another shape run uncompiled.

        Removes the calibration, which is for the weights from before this training.
        """
        self.set_calibration()
        if self.compiles and self.compiled_forward is None:
            self.compiled_forward = torch.compile(self.backbone.forward, dynamic=False)
            self.compiled_shape = None if self.datamodule is None else self.datamodule.batch_shape

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns `loss` and `logits` of a batch; labels are `(N,)`, or `(N, num_classes)` probabilities after MixUp.

        With `multi_label`, labels are `(N, num_classes)`, 1 for each class of an image, and only the loss is returned.

        With data of another kind the batch is `(images, labels)`, as its data loader returns it.

        The callback `TrainLog` logs `train/loss` and `train/top1` every `log_every_n_steps` steps. `self.log` in every
        step would take longer than the step of a small model.
        """
        batch = self.as_batch(batch, batch_idx)
        loss, logits = training_loss(self.criterion, self(batch.images), batch.labels)
        return {"loss": loss} if self.hparams["multi_label"] else {"loss": loss, "logits": logits.detach()}

    def as_batch(self, batch: Any, batch_idx: int) -> Batch:
        """Returns the batch of any data as a `Batch`; of other data, the labels of the first one are checked."""
        if isinstance(batch, Batch):
            return batch
        batch = Batch.of(batch, batch_idx)
        if batch_idx == 0:
            check_labels(batch.labels, self.metrics.num_classes, self.hparams["multi_label"])
        return batch

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns the optimizer, and the schedule, which is updated after every optimizer step by default."""
        optimizer = make_optimizer(self.optimizer, self, self.decay_norm_and_bias)
        check_layout(optimizer, self.trainer, self.channels_last)
        for group in optimizer.param_groups:
            if self.lr is not None:
                group["lr"] = self.lr
            elif base_batch_size := self.base_batch_size:
                group["lr"] *= self.effective_batch_size / base_batch_size
        schedule: Any
        if self.lr_scheduler is None:
            schedule = {"scheduler": make_scheduler(optimizer, self.schedule, self.trainer), "interval": "step"}
        else:
            schedule = configure_lr_scheduler(self.lr_scheduler, optimizer, self.lr_scheduler_interval, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    @override
    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Updates a scheduler."""
        try:
            super().lr_scheduler_step(scheduler, metric)
        except ValueError as error:  # OneCycleLR: its length is that of the first run
            fix = "a run with this scheduler cannot become longer; start another from its weights with --model.weights"
            raise UserError(f"model.lr_scheduler: {error}\n{fix}") from error

    @property
    def effective_batch_size(self) -> int:
        """Images per optimizer step: batch size × processes × accumulated batches."""
        if (size := effective_batch_size(self.trainer)) is None:
            raise UserError(
                "model.base_batch_size: the data has no `batch_size`\nset this attribute of the data module"
            )
        return size

    # ------------------------------------------------------------------------------------ evaluation
    def to_probabilities(self, logits: Tensor) -> Tensor:
        """Converts logits `(N, num_classes)` to float32 probabilities; the temperature divides the logits."""
        logits = logits.float() / self.temperature
        return logits.sigmoid() if self.hparams["multi_label"] else logits.softmax(1)

    def set_calibration(self, temperature: float = 1.0, confidence_threshold: float | None = None) -> None:
        """Sets the calibration of the evaluation; by default there is none.

        Args:
            temperature: what the logits are divided by. With `multi_label`, the thresholds change with the
                probabilities, so that the predicted classes stay the same.
            confidence_threshold: probability of the most probable class below which a prediction is `unknown`.
        """
        if self.thresholds is not None:
            self.thresholds.copy_(rescale(self.thresholds, temperature / self.temperature))
        if isinstance(metrics := getattr(self, "metrics", None), ClassificationMetrics):
            metrics.accepted.threshold = confidence_threshold
        self.temperature, self.confidence_threshold = temperature, confidence_threshold

    @property
    def thresholds(self) -> Tensor | None:
        """Probability of each class from which it is predicted, `(num_classes,)`; None without `multi_label`."""
        metrics = getattr(self, "metrics", None)
        return metrics.thresholds if isinstance(metrics, MultiLabelMetrics) else None

    def probabilities(self, batch: Batch) -> Tensor:
        """Class probabilities `(N, num_classes)`; with test-time augmentation, the mean over the views of an image."""
        return predict_with_tta(lambda images: self.to_probabilities(self(images)), batch.images, len(batch.labels))

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        batch = self.as_batch(batch, batch_idx)
        probabilities = self.probabilities(batch)
        self.metrics.update(probabilities, batch.labels)
        return {"probabilities": probabilities, "labels": batch.labels, "indices": batch.indices}

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.validation_step(batch, batch_idx)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Returns `probabilities` `(N, num_classes)`, `labels` `(N,)` (-1 if unknown) and `indices` `(N,)`."""
        if isinstance(batch, Tensor):
            batch = (batch, torch.full((len(batch),), -1))  # images without labels
        batch = self.as_batch(batch, batch_idx)
        return {"probabilities": self.probabilities(batch), "labels": batch.labels, "indices": batch.indices}

    def predict(
        self,
        images: Any,
        batch_size: int = 64,
        image_size: Size | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Prediction]:
        """Classifies images with the preprocessing of the evaluation, in evaluation mode and without gradients.

        Args:
            images: one image or several: paths of files and folders, glob patterns, PIL images, arrays `(H, W, 3)` and
                tensors `(3, H, W)`, both RGB and uint8, also as batches. All are cropped as in the evaluation.
            batch_size: images per forward pass.
            image_size: size of the network's input in pixels, the side of a square or height and width; that of the
                training by default.
            transform: converts an image `(3, H, W)` uint8 to an input of this model, in place of resizing and cropping.
                Needed if the model was trained on data that is not an `ImageDataModule`.

        Raises:
            UserError: the preprocessing is not known, or something is not an image.
        """
        known = self.preprocessing if self.datamodule is None else Preprocessing.of_data(self.datamodule)
        prepare = transform or known.function(image_size)
        return classify(self, images, prepare, batch_size, known.pixel_format)

    def features(self, images: Any, **options: Any) -> Tensor:
        """Returns the features of images, `(N, C)` float32: the inputs of the classifier head, see `predict`."""
        with collect_features(self) as features:
            self.predict(images, **options)
        return torch.cat(features)

    @override
    def on_validation_epoch_start(self) -> None:
        """Begins to count; raises UserError if the head was never trained."""
        if self.has_untrained_head:
            raise UserError(
                f"the network has no head for {self.hparams['num_classes']} classes: a new one would be evaluated "
                "without training\ntrain it first, or give a checkpoint"
            )
        if self.dtype != torch.float32:  # with precision bf16-true, sums would be too inexact
            self.metrics.to(torch.float32)
        self.metrics.reset()  # an evaluation that an error ended has left its counts

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    @override
    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics, and reports top-1 (with `multi_label`, mAP) to the schedule for `plateau`."""
        self._log_metrics("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            for config in self.trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, ScheduledLR):
                    config.scheduler.update_plateau(self.results["map" if self.hparams["multi_label"] else "top1"])
                elif self.lr_scheduler is not None:
                    update_plateau(config.scheduler, self.results)

    @override
    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        """Logs every float that `compute` of the metrics returns, also those of `metrics`."""
        if isinstance(self.metrics, MultiLabelMetrics):
            self.results = self.metrics.compute(choose_thresholds=self.trainer.state.fn == "fit")
        else:
            self.results = self.metrics.compute()
        self.metrics.reset()
        for name, value in self.results.items():
            if isinstance(value, float):
                self.log(f"{stage}/{name}", value, prog_bar=name in ("top1", "map"))

    # ------------------------------------------------------------------------------------ checkpoints
    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the preprocessing, for `predict`, the thresholds, and the calibration, unless it will be trained."""
        self.preprocessing, self.has_untrained_head = Preprocessing.of_checkpoint(checkpoint), False
        metadata = checkpoint.get(ckpt.METADATA_KEY) or {}
        self.set_calibration()
        if metadata.get("thresholds") is not None and self.thresholds is not None:
            self.thresholds.copy_(torch.tensor(metadata["thresholds"]))
        if (calibration := metadata.get("calibration")) and not (self._has_trainer and self.trainer.training):
            self.set_calibration(calibration["temperature"], calibration.get("threshold"))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the splits and versions, as plain types; the callback `SaveConfig` also adds the configuration."""
        checkpoint.setdefault(ckpt.METADATA_KEY, ckpt.build_metadata(None, provenance_of(self.datamodule)))
        metadata = checkpoint[ckpt.METADATA_KEY]
        if self.thresholds is not None:
            metadata["thresholds"] = rescale(self.thresholds, 1 / self.temperature).tolist()
        if self.temperature != 1 or self.confidence_threshold is not None:
            metadata["calibration"] = {"temperature": self.temperature, "threshold": self.confidence_threshold}
