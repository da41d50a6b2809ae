"""The two checkpoints of a run: the best by validation top-1, and the last."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the net with the best validation top-1 as best.ckpt; nothing where no images are held out.

    Args:
        folder: where the checkpoint goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder, filename="best", monitor="val/top1", mode="max", enable_version_counter=False
        )  # fmt: skip

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See Lightning's Callback."""
        if "val" not in getattr(trainer.datamodule, "splits", {"val": None}):
            self.save_top_k = 0
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the state after each epoch, and at an error, as last.ckpt.

    Lightning's own `save_last` writes only when the best one changes too, so that a run would go on from an old epoch.

    Args:
        folder: where the checkpoint goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(dirpath=folder, filename="last", enable_version_counter=False, save_on_exception=True)
