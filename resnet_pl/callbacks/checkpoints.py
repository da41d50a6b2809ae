"""The two checkpoints of a run: the best by validation top-1, and the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from resnet_pl.errors import Diverged


class BestCheckpoint(ModelCheckpoint):
    """Keeps the net with the best validation top-1 as best.ckpt; nothing where no images are held out.

    Of equals it keeps the later: on few validation images several epochs share the best score, and under a falling
    learning rate the later is the better net.

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

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """See Lightning's ModelCheckpoint."""
        equal = current is not None and self.best_model_score is not None and current >= self.best_model_score
        return bool(equal) or super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers the best score wherever the run folder has been moved to, as long as its best.ckpt came along."""
        best, score = Path(self.dirpath) / "best.ckpt", state_dict["best_model_score"]
        if best.is_file() and score is not None:
            place = str(best)
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": place,
                "kth_best_model_path": place,
                "best_k_models": {place: score},
            }
        super().load_state_dict(state_dict)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the state after each epoch, and at an error, as last.ckpt.

    Lightning's own `save_last` writes only when the best one changes too, so that a run would go on from an old epoch.

    Args:
        folder: where the checkpoint goes.
    """

    def __init__(self, folder: Path) -> None:
        # Always at the end of an epoch: by default only where every epoch is validated, once.
        super().__init__(dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a state is worth keeping; an error before must not replace the file that is being resumed."""
        self.save_on_exception = True
        super().on_train_start(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps the state, but not one that has gone wrong."""
        if not isinstance(exception, Diverged):
            super().on_exception(trainer, pl_module, exception)
