"""Typed access to attributes that `Trainer` and `LightningModule` do not declare, and facts of a running training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.batch import Batch
from resnet_pl.utils import UserError, first_line

if TYPE_CHECKING:
    from resnet_pl.classifier import ImageClassifier


CLASS_SEPARATOR = "|"  # between the classes of an image


def get_datamodule(trainer: Trainer) -> LightningDataModule | None:
    """Returns the data module of a running Trainer; None if it was given data loaders."""
    return getattr(trainer, "datamodule", None)  # Lightning sets it; its class does not declare it


def is_multi_label(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Whether an image can have several classes, by the data or the module."""
    return bool(getattr(get_datamodule(trainer), "multi_label", None) or pl_module.hparams.get("multi_label"))


def get_image_data(trainer: Trainer) -> ImageDataModule | None:
    """Returns the data module of a running Trainer; None if it is of another kind."""
    data = get_datamodule(trainer)
    return data if isinstance(data, ImageDataModule) else None


def as_classifier(pl_module: LightningModule) -> ImageClassifier:
    """Returns a module that has a backbone, with the type of ours.

    Raises:
        UserError: the module has no backbone.
    """
    if not hasattr(pl_module, "backbone"):
        raise UserError(
            f"trainer.callbacks: a callback needs a module with a `backbone`, {type(pl_module).__name__} has none\n"
            "remove the callback, or derive the module from ImageClassifier"
        )
    return cast("ImageClassifier", pl_module)


def class_names(pl_module: LightningModule, count: int) -> list[str]:
    """Returns the class names of any module: its attribute `class_names`, or else the indices of `count` classes."""
    names = list(getattr(pl_module, "class_names", ()))
    return names + [str(index) for index in range(len(names), count)]


def gather_rows(trainer: Trainer, own: list[Any]) -> list[Any]:
    """Returns the rows of all processes; all of them must call this together."""
    gathered: list[Any] = [own]
    if trainer.world_size > 1:
        gathered = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, own)
    return [row for rows in gathered for row in rows]


def image_indices(trainer: Trainer, outputs: Mapping[str, Any], images: Any, seen: int, count: int) -> Tensor:
    """Returns the index of each image of a batch, `(N,)`.

    Args:
        trainer: the Trainer.
        outputs: what the step has returned.
        images: the split; without one, images are numbered in the order of the loader.
        seen: images of earlier batches in this process.
        count: images in the batch, N.
    """
    if images is not None and outputs.get("indices") is not None:
        return outputs["indices"]
    return torch.arange(seen, seen + count) * trainer.world_size + trainer.global_rank


def worst_decisions(probabilities: Tensor, labels: Tensor, thresholds: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns how certain the worst decision of each image is, its class, and whether it is wrong, each `(N,)`.

    With one class per image this is the prediction. With several, each class is a decision, and the worst one is the
    most certain of the wrong ones.

    Args:
        probabilities: `(N, K)`.
        labels: `(N,)` int64; with several classes per image `(N, K)`, 1 for each of its classes.
        thresholds: probability of each class from which it is predicted, `(K,)`; None with one class per image.
    """
    if thresholds is None:
        confidence, predicted = probabilities.max(1)
        return confidence, predicted, predicted != labels
    found = probabilities >= thresholds.to(probabilities)
    wrong = found != (labels > 0.5)
    certainty, decision = (torch.where(found, probabilities, 1 - probabilities) * wrong).max(1)
    return certainty, decision, wrong.any(1)


def join_classes(chosen: Sequence[Any], names: Sequence[str]) -> str:
    """Returns the names of the classes of an image, such as `cat|dog`, from one true or false value per class."""
    return CLASS_SEPARATOR.join(name for name, each in zip(names, chosen, strict=True) if each)


def image_name(images: Any, index: int) -> str:
    """Returns the name of an image in its split; the index if `images` is None."""
    return str(index) if images is None else images.names[index]


def display_path(images: Any, index: int) -> str:
    """Returns the path of an image of a split, or its name if it is not a file; the index if `images` is None."""
    if images is None:
        return str(index)
    root = getattr(images, "root", None)
    return str(root / images.names[index]) if root is not None else images.names[index]


CallbackType = TypeVar("CallbackType", bound=type[Callback])


def optional(cls: CallbackType) -> CallbackType:
    """Class decorator: an exception in a hook of this callback is a warning, and the callback then does nothing.

    For callbacks that only show something: they must not end a training. `UserError` still ends it. A callback whose
    attribute `is_off` is true does nothing.
    """

    def tolerant(hook: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(hook)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(self, "is_off", False):
                return None
            try:
                return hook(self, *args, **kwargs)
            except UserError:
                raise
            except Exception as error:
                self.is_off = True
                what = f"{type(error).__name__}: {first_line(error)}"
                rank_zero_warn(f"{cls.__name__} is off for the rest of the run: {what}")

        return wrapper

    for name, hook in vars(cls).copy().items():
        if name.startswith("on_"):
            setattr(cls, name, tolerant(hook))
    return cls


def get_callbacks(trainer: Trainer) -> list[Callback]:
    """Returns the callbacks of a Trainer."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]  # assigned by the callback connector


def effective_batch_size(trainer: Trainer) -> int | None:
    """Returns the images per optimizer step: batch size × processes × accumulated batches; None if it is not known."""
    batch_size = getattr(get_datamodule(trainer), "batch_size", None)
    return batch_size and int(batch_size) * trainer.world_size * trainer.accumulate_grad_batches


def batch_size(batch: Any) -> int:
    """Returns the number of images in a batch of any data."""
    return len(batch.indices) if isinstance(batch, Batch) else extract_batch_size(batch)


def is_optimizer_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer has stepped after this training batch; False while gradients are being accumulated."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logging_step(trainer: Trainer) -> bool:
    """Whether `log_every_n_steps` divides the number of optimizer steps so far; never if it is 0."""
    every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # assigned by the logger connector
    return every > 0 and trainer.global_step % every == 0


def base_lr(trainer: Trainer) -> float:
    """Returns the learning rate that the schedule multiplies."""
    for config in trainer.lr_scheduler_configs:
        if base_lrs := getattr(config.scheduler, "base_lrs", None):  # ReduceLROnPlateau and SequentialLR have none
            return float(base_lrs[0])
    return current_lr(trainer)


def current_lr(trainer: Trainer) -> float:
    """Returns the learning rate of the first parameter group; NaN without an optimizer."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    return groups[0]["lr"] if groups else math.nan


def total_steps(trainer: Trainer) -> int | None:
    """Returns the number of optimizer steps at which the run ends; None if it is not limited or not known."""
    total = trainer.estimated_stepping_batches
    return int(total) if 0 < total < math.inf else None
