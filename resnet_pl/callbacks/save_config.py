"""Stores the resolved configuration in config.yaml and in every checkpoint, and passes it to the loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only

from resnet_pl.callbacks.access import get_callbacks, get_datamodule
from resnet_pl.callbacks.loggers import log_hyperparameters
from resnet_pl.checkpoint import METADATA_KEY, build_metadata
from resnet_pl.data.provenance import provenance_of
from resnet_pl.run_dir import write_config


class SaveConfig(Callback):
    """Makes checkpoints self-contained: configuration, splits and versions, as plain types.

    The configuration also is the hyperparameters of W&B, MLflow and other loggers, with the run folder under `run`.

    Args:
        run: run folder; config.yaml is written there.
        config: the resolved configuration.
    """

    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        self.run, self.config = run, config

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes config.yaml: it can be passed to `fit --config`."""
        write_config(self.run, self.config)
        log_hyperparameters(trainer, {"run": f"{self.run.parent.name}/{self.run.name}", **self.config})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Makes a new patience of EarlyStopping take effect: its state would restore the old one."""
        states = checkpoint.get("callbacks") or {}
        for callback in get_callbacks(trainer):
            if isinstance(callback, EarlyStopping) and (state := states.get(callback.state_key)):
                state["patience"] = callback.patience

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the metadata, for any kind of module and data."""
        checkpoint[METADATA_KEY] = build_metadata(self.config, provenance_of(get_datamodule(trainer)))
