"""What is about to be trained, printed and written into the run folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from resnet_pl.checkpoint import versions
from resnet_pl.run_dir import git_commit, job_id, write_config, write_session, write_splits
from resnet_pl.utils import shell_command


class RunSummary(Callback):
    """Prints what is about to be trained and writes it down, once nothing can stop the first step any more.

    Args:
        run: the run folder; config.yaml, splits.json and sessions.json are written there.
        args: the command line.
    """

    def __init__(self, run: Path, args: Sequence[str] = ()) -> None:
        self.run, self.args = run, args

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        rows = {
            "run": f"{self.run}" + (f", going on from step {trainer.global_step:,}" if trainer.global_step else ""),
            "net": _net(pl_module),
            "data": _data(trainer),
            "batch": _batch(trainer, pl_module),
            "training": _training(trainer, pl_module),
            "device": f"{device_name(trainer)}, precision {trainer.precision}{_tf32(trainer)}",
        }
        for name, text in rows.items():
            print(f"{name:<10}{text}")
        write_config(self.run, pl_module.config or {})
        write_splits(self.run, trainer.datamodule.provenance())
        write_session(self.run, _session(trainer, self.args))

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that the training was not broken off."""
        write_session(self.run, {"ended": _now()}, new=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _session(trainer: Trainer, args: Sequence[str]) -> dict[str, Any]:
    """What this start of the run is like."""
    splits = trainer.datamodule.splits
    return {
        "command": shell_command(args),
        "commit": git_commit(),
        "launch": job_id(),
        "started": _now(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "device": device_name(trainer),
        "threads": torch.get_num_threads(),
        "data": {part: images.digest() for part, images in splits.items() if hasattr(images, "digest")},
        "parameters": sum(p.numel() for p in trainer.lightning_module.parameters()),
        "versions": versions(),
    }


def _net(pl_module: LightningModule) -> str:
    spec = pl_module.hparams.get("backbone") or {}
    name = spec.get("class_path", type(pl_module.backbone).__name__) if isinstance(spec, dict) else str(spec)
    name = name.removeprefix("resnet_pl.models.").removeprefix("resnet.")
    depth = (spec.get("init_args") or {}).get("depth") if isinstance(spec, dict) else None
    total = sum(p.numel() for p in pl_module.parameters())
    trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
    frozen = "" if trained == total else f", {trained:,} of them trained"
    compiled = ", compiled in the first step" if pl_module.hparams.get("compile") else ""
    return f"{name}{'' if depth is None else f' {depth}'}, {total:,} parameters{frozen}{compiled}"


def _data(trainer: Trainer) -> str:
    data = trainer.datamodule
    counts = " + ".join(f"{len(images):,} {part}" for part, images in data.splits.items())
    return f"{data.describe()}: {counts} images, {len(data.classes)} classes"


def _batch(trainer: Trainer, pl_module: LightningModule) -> str:
    size, paper = pl_module.effective_batch_size, trainer.datamodule.paper_batch_size
    parts = [f"{trainer.datamodule.batch_size} images"]
    parts += [f"{trainer.world_size} processes"] if trainer.world_size > 1 else []
    parts += [f"{trainer.accumulate_grad_batches} accumulated"] if trainer.accumulate_grad_batches > 1 else []
    told = f"{size}" + (f" ({' × '.join(parts)})" if len(parts) > 1 else "")
    return told if size == paper else f"{told}; the paper's is {paper}"


def _training(trainer: Trainer, pl_module: LightningModule) -> str:
    optimizer, schedule = trainer.optimizers[0], pl_module.schedule
    rates = [config.scheduler.base_lrs[0] for config in trainer.lr_scheduler_configs]
    warmup = f" after {schedule.warmup:g} {schedule.unit} of warm-up" if schedule.warmup else ""
    length = trainer.estimated_stepping_batches
    steps = f"{length:,} iterations" if length != float("inf") else "no set end"
    epochs = f"{trainer.max_epochs} epochs, " if trainer.max_epochs not in (None, -1) else ""
    rate = rates[0] if rates else optimizer.param_groups[0]["lr"]
    return f"{type(optimizer).__name__}, learning rate {rate:g}, {schedule.shape}{warmup}, {epochs}{steps}"


def _tf32(trainer: Trainer) -> str:
    """Whether a GPU computes in TF32 what is kept in float32."""
    used = trainer.strategy.root_device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return " with TF32 products" if used and "16" not in trainer.precision else ""


def device_name(trainer: Trainer) -> str:
    """The devices a run is on, in a few words."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {torch.get_num_threads()} threads"
    return f"{trainer.world_size} × {name}"
