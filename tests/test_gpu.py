"""Tests that need a GPU; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

from resnet_pl import ImageClassifier
from resnet_pl.data import Cutout, Digits, MixUp, PadCrop, RandomFlip
from resnet_pl.models import cifar_resnet
from resnet_pl.reports.results import read_results
from tests.cli.commands import SMALL, rows, run
from tests.test_distributed import run as run_processes
from tests.tiny import Tiny, classifier, trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
ON_GPU = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_results_agree_between_gpu_and_cpu(precision: str, tmp_path: Path) -> None:
    run("fit", *SMALL, *ON_GPU, "--trainer.default_root_dir", tmp_path, "--trainer.precision", precision)
    folder = tmp_path / "digits/version_0"
    assert all(torch.isfinite(torch.tensor(float(row["train/loss"]))) for row in rows(folder) if row["train/loss"])
    for name, device in (("gpu", ON_GPU), ("cpu", ["--trainer.accelerator", "cpu"])):
        options = ["--trainer.precision", "32-true", "--tf32", "false"]
        run("test", "--ckpt_path", folder, *device, *options, "--output", tmp_path / name)
    gpu, cpu = (read_results(tmp_path / name / "results.json") for name in ("gpu", "cpu"))
    assert gpu["images"] == cpu["images"] == 360
    assert abs(gpu["top1"] - cpu["top1"]) <= 1 / 360 and gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-2)


def test_in_memory_datasets_are_on_the_gpu() -> None:
    data = Tiny()
    fit = trainer(accelerator="gpu", max_steps=1)
    fit.fit(classifier(), datamodule=data)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.is_cuda and batch.labels.is_cuda


def test_steps_do_not_synchronize_with_the_gpu() -> None:
    class SyncCheck(ImageClassifier):
        def on_train_batch_start(self, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("error" if batch_idx == 2 else torch.cuda.get_sync_debug_mode())

        def on_train_batch_end(self, outputs, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("default" if batch_idx == 7 else torch.cuda.get_sync_debug_mode())

    # Loading, augmentation, step and hooks of steps 3 to 8.
    transforms = [RandomFlip(), PadCrop(2), Cutout(2)]
    fit = trainer(accelerator="gpu", max_steps=9, log_every_n_steps=50)
    try:
        fit.fit(SyncCheck(cifar_resnet(8)), datamodule=Digits(batch_size=32, batch_transforms=transforms, mix=MixUp()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert fit.global_step == 9


class AverageOnGPU(Callback):
    """Fails if the averaged weights are not on the GPU."""

    def on_train_end(self, trainer, pl_module):
        (average,) = (callback for callback in trainer.callbacks if isinstance(callback, EMAWeightAveraging))
        checkpoint = {"state_dict": pl_module.state_dict()}
        average.on_save_checkpoint(trainer, pl_module, checkpoint)  # replaces it by the average
        assert "current_model_state" in checkpoint and all(value.is_cuda for value in checkpoint["state_dict"].values())


def test_averaged_weights_are_on_the_gpu(tmp_path: Path) -> None:
    callbacks = ["--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks+", "tests.test_gpu.AverageOnGPU"]
    run("fit", *SMALL, *ON_GPU, "--trainer.default_root_dir", tmp_path, *callbacks)


def test_compiled_and_eager_training_agree() -> None:
    weights = []
    # Without TF32, independent of earlier tests.
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(allow_tf32=False, benchmark=False):
        for compiled in (False, True):
            model = classifier(compile=compiled)
            trainer(accelerator="gpu", max_steps=5).fit(model, datamodule=Tiny())
            weights.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters()]))
    torch.set_float32_matmul_precision(precision)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_synchronized_batchnorm_on_two_gpus_equals_one(tmp_path: Path) -> None:
    common = ["fit", *SMALL, "--trainer.accelerator", "gpu", "--trainer.default_root_dir", str(tmp_path)]
    run_processes(tmp_path, *common, "--trainer.devices", "1", "--data.batch_size", "64", "--name", "one")
    half = ["--trainer.devices", "2", "--data.batch_size", "32", "--trainer.sync_batchnorm", "true", "--name", "two"]
    run_processes(tmp_path, *common, *half)
    one, two = (
        torch.load(tmp_path / f"{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    )
    for key, value in one.items():
        torch.testing.assert_close(value.cpu(), two[key].cpu(), rtol=1e-3, atol=1e-4)


def test_optimizers_that_keep_their_step_on_the_cpu(tmp_path: Path) -> None:
    options = ["--model.optimizer", "AdamW", "--model.optimizer.fused", "false", "--model.optimizer.lr", "0.001"]
    run("fit", *SMALL, *ON_GPU, *options, "--trainer.default_root_dir", tmp_path)
    assert (tmp_path / "digits/version_0/checkpoints/last.ckpt").is_file()
