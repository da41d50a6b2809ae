"""The generalization gap; the other values of the callback are tested with the classifier and in exact resume."""

from typing import Any

import pytest
from lightning.pytorch import Callback

from tests.test_classifier import MemoryLogger
from tests.tiny import Tiny, classifier, trainer


class CorrectCounter(Callback):
    """Counts correct predictions and images of each training epoch."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, int]] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.epochs.append((0, 0))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        correct, images = self.epochs[-1]
        correct += int((outputs["logits"].argmax(1) == batch.labels).sum())
        self.epochs[-1] = correct, images + len(batch.labels)


@pytest.mark.parametrize(("every", "validated"), [(1, [0, 1, 2]), (2, [1])])
def test_the_generalization_gap_is_that_of_complete_epochs(every, validated):
    logger, counter = MemoryLogger(), CorrectCounter()
    # Four steps per epoch: two rows per epoch, at steps 3 and 4, then at 2 and 4, and so on.
    run = trainer(callbacks=[counter], logger=logger, max_epochs=3, log_every_n_steps=3, check_val_every_n_epoch=every)
    run.fit(classifier(), datamodule=Tiny())
    top1, gap = logger.values("val/top1"), logger.values("val/generalization_gap")
    steps = [4 * epoch + 3 for epoch in validated]
    assert [*gap] == [*top1] == steps
    for epoch, step in zip(validated, steps, strict=True):
        correct, images = counter.epochs[epoch]
        assert gap[step] == pytest.approx(correct / images - top1[step])


def test_without_validation_there_is_no_generalization_gap():
    logger = MemoryLogger()
    trainer(logger=logger, limit_val_batches=0).fit(classifier(), datamodule=Tiny())
    assert logger.values("train/top1") and not logger.values("val/generalization_gap")
