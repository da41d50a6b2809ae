"""What only a GPU can show; skipped where there is none."""

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
from tests.test_distributed import run as started
from tests.tiny import Tiny, classifier, trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
ON_GPU = ["--trainer.accelerator", "gpu", "--trainer.devices", "1"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_checkpoint_measures_the_same_on_either_device(precision: str, tmp_path: Path) -> None:
    run("fit", *SMALL, *ON_GPU, "--trainer.default_root_dir", tmp_path, "--trainer.precision", precision)
    folder = tmp_path / "digits/version_0"
    assert all(torch.isfinite(torch.tensor(float(row["train/loss"]))) for row in rows(folder) if row["train/loss"])
    for name, device in (("gpu", ON_GPU), ("cpu", ["--trainer.accelerator", "cpu"])):
        exact = ["--trainer.precision", "32-true", "--tf32", "false"]
        run("test", "--ckpt_path", folder, *device, *exact, "--output", tmp_path / name)
    gpu, cpu = (read_results(tmp_path / name / "results.json") for name in ("gpu", "cpu"))
    assert gpu["images"] == cpu["images"] == 360
    assert abs(gpu["top1"] - cpu["top1"]) <= 1 / 360 and gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-2)


def test_images_in_memory_lie_on_the_gpu() -> None:
    data = Tiny()
    fit = trainer(accelerator="gpu", max_steps=1)
    fit.fit(classifier(), datamodule=data)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.is_cuda and batch.labels.is_cuda


def test_no_step_waits_for_the_gpu_between_logging_steps() -> None:
    class Watched(ImageClassifier):
        def on_train_batch_start(self, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("error" if batch_idx == 2 else torch.cuda.get_sync_debug_mode())

        def on_train_batch_end(self, outputs, batch, batch_idx):
            torch.cuda.set_sync_debug_mode("default" if batch_idx == 7 else torch.cuda.get_sync_debug_mode())

    # Loading, augmentation, step and hooks of steps 3 to 8.
    transforms = [RandomFlip(), PadCrop(2), Cutout(2)]
    fit = trainer(accelerator="gpu", max_steps=9, log_every_n_steps=50)
    try:
        fit.fit(Watched(cifar_resnet(8)), datamodule=Digits(batch_size=32, batch_transforms=transforms, mix=MixUp()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert fit.global_step == 9


class Placed(Callback):
    """Fails where an average of the weights is kept elsewhere than they are."""

    def on_train_end(self, trainer, pl_module):
        (average,) = (each for each in trainer.callbacks if isinstance(each, EMAWeightAveraging))
        assert all(parameter.is_cuda for parameter in average._average_model.parameters())


def test_an_average_of_the_weights_lies_on_the_gpu(tmp_path: Path) -> None:
    callbacks = ["--trainer.callbacks+", "EMAWeightAveraging", "--trainer.callbacks+", "tests.test_gpu.Placed"]
    run("fit", *SMALL, *ON_GPU, "--trainer.default_root_dir", tmp_path, *callbacks)


def test_compiled_and_eager_learn_the_same() -> None:
    weights = []
    # Products in full, however an earlier test has left them.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(allow_tf32=False, benchmark=False):
        for compiled in (False, True):
            net = classifier(compile=compiled)
            trainer(accelerator="gpu", max_steps=5).fit(net, datamodule=Tiny())
            weights.append(torch.cat([p.detach().flatten().cpu() for p in net.parameters()]))
    torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_with_synchronised_batchnorm_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    common = ["fit", *SMALL, "--trainer.accelerator", "gpu", "--trainer.default_root_dir", str(tmp_path)]
    started(tmp_path, *common, "--trainer.devices", "1", "--data.batch_size", "64", "--name", "one")
    half = ["--trainer.devices", "2", "--data.batch_size", "32", "--trainer.sync_batchnorm", "true", "--name", "two"]
    started(tmp_path, *common, *half)
    one, two = (
        torch.load(tmp_path / f"{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    )
    for key, value in one.items():
        torch.testing.assert_close(value.cpu(), two[key].cpu(), rtol=1e-3, atol=1e-4)
