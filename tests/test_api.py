"""`fit`, `test`, `load_run` and `ImageClassifier.predict`: the Python API."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from resnet_pl import ImageClassifier, ImageFolder, cifar_resnet, fit, load_run, test
from resnet_pl.api import Run
from resnet_pl.cli.main import main
from resnet_pl.reports.results import read_results
from resnet_pl.utils import UserError
from tests.conftest import write_photos
from tests.tiny import Tiny, classifier

PROJECT = Path(__file__).parent.parent
SGD = partial(torch.optim.SGD, lr=0.05)
QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


class Fails(Callback):
    """Raises an exception at a step."""

    def __init__(self, error: BaseException, step: int = 0) -> None:
        self.error, self.step = error, step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self.step:
            raise self.error


class TrialPruned(Exception):
    """As a tuner raises it."""


class Linear(LightningModule):
    """A module that is not an ImageClassifier."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3 * 8 * 8, 2)

    def _loss(self, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.fc(batch[0].float().flatten(1)), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(seed: int) -> DataLoader[Any]:
    images = torch.randint(0, 256, (20, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return DataLoader(TensorDataset(images, images.float().mean((1, 2, 3)).gt(127).long()), batch_size=10)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns a run of objects: everything but the optimizer can be described in YAML."""
    root = tmp_path_factory.mktemp("trained")
    model = classifier(optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    data = ImageFolder(str(photos), image_size=16, batch_size=8, num_workers=0)
    return fit([*QUIET, "--trainer.default_root_dir", str(root)], model=model, data=data, epochs=1, name="photos")


def test_the_import_costs_no_torch() -> None:
    code = "import sys; from resnet_pl import fit, test, load_run; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


def test_a_run_of_objects_is_a_run_of_the_command_line(trained: Run) -> None:
    files = {path.name for path in trained.folder.rglob("*")}
    assert files >= {"best.ckpt", "last.ckpt", "config.yaml", "sessions.json", "splits.json"}
    assert trained.metrics["val/top1"] == pytest.approx(trained.best) and "train/loss" in trained.metrics
    assert trained.model is trained.trainer.lightning_module and trained.data.image_size == 16
    results = test(trained.folder)
    assert results["images"] == 3 and results["per_class"].keys() == {"ant", "bee", "cat"}
    assert read_results(trained.folder / "results.json")["top1"] == results["top1"]
    assert test(["--ckpt_path", str(trained.folder), "--tta", "flip"])["protocol"] == "horizontal flip"


def test_what_was_built_in_python_is_passed_again(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--ckpt_path", str(trained.folder)]) == 2
    assert "model.optimizer" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"model\.optimizer"):
        fit(ckpt_path=trained.folder)
    model = classifier(optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    resumed = fit(QUIET, model=model, ckpt_path=trained.folder, epochs=2)
    assert resumed.folder == trained.folder and resumed.trainer.current_epoch == 2


def test_arguments_and_objects_together() -> None:
    config = ["--config", "configs/digits.yaml", *QUIET, "--trainer.limit_train_batches", "1"]
    run = fit([*config, "--trainer.precision", "bf16-mixed"], model=classifier(optimizer=SGD), epochs=1)
    assert run.trainer.precision == "bf16-mixed" and type(run.data).__name__ == "Digits"
    assert run.folder == Path("runs/digits/version_0")
    # The model is described completely, so the command line resumes it.
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1"]) == 0
    optimizer = yaml.safe_load((run.folder / "config.yaml").read_text())["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD" and optimizer["init_args"]["lr"] == 0.05
    with pytest.raises(UserError, match=r"model\.optimizer\.lr"):
        fit(["--model.optimizer.lr", "1"], model=classifier(), data=Tiny())


def test_data_loaders_and_a_module_of_another_class() -> None:
    loaders = [loader(seed) for seed in range(3)]
    model = classifier(backbone=cifar_resnet(8, num_classes=2), optimizer=SGD)
    run = fit(QUIET, model=model, data=loaders, epochs=1)
    assert 0 <= run.metrics["val/top1"] <= 1
    with pytest.raises(UserError, match="lacks data"):
        test(run.folder)
    assert test(run.folder, data=loaders)["images"] == 20
    restored, data = load_run(run.folder, data=loaders)
    pixels = next(iter(data.test_dataloader()))[0]
    with torch.no_grad():
        expected = restored((255 - pixels).float() / 255).softmax(1)
    # How the loaders have prepared the images is not known.
    with pytest.raises(UserError, match="transform="):
        restored.predict(pixels, image_size=8)
    found = restored.predict(pixels, transform=lambda image: (255 - image).float() / 255)
    assert torch.allclose(torch.stack([each.probabilities for each in found]), expected, atol=1e-6)
    other = fit([*QUIET, "--trainer.limit_val_batches", "0"], model=Linear(), data=loaders[0], epochs=1, name="other")
    assert test(other.folder, model=Linear(), data=loaders)["metrics"]["loss"] > 0
    # The class is found by its import path.
    assert type(load_run(other.folder, data=loaders)[0]) is Linear


@pytest.mark.parametrize("error", [TrialPruned("at step 1"), KeyboardInterrupt()])
def test_exceptions_pass_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        fit(QUIET, model=classifier(optimizer=SGD), data=Tiny(), epochs=1, callbacks=[Fails(error)])


def test_a_resumed_run_of_objects_equals_one_without_interruption() -> None:
    whole = fit(QUIET, model=classifier(optimizer=SGD), data=Tiny(), epochs=2, name="whole")
    with pytest.raises(TrialPruned):
        crash = Fails(TrialPruned(), step=5)  # in the second epoch
        fit(QUIET, model=classifier(optimizer=SGD), data=Tiny(), epochs=2, name="part", callbacks=[crash])
    optimizer = lambda p: SGD(p)  # noqa: E731 - the same, without a form in YAML
    resumed = fit(QUIET, model=classifier(optimizer=optimizer), data=Tiny(), epochs=2, name="part", ckpt_path="last")
    assert resumed.folder == Path("runs/part/version_0")
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs"):
        fit(QUIET, model=classifier(), data=Tiny(), epochs=0)
    with pytest.raises(UserError, match="model: a ResNet"):
        fit(QUIET, model=classifier().backbone, data=Tiny())  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="data: a str"):
        fit(QUIET, model=classifier(), data="photos")
    with pytest.raises(UserError, match="data: a TensorDataset"):
        fit(QUIET, model=classifier(), data=(loader(0), loader(1).dataset))
    with pytest.raises(UserError, match="data"):
        fit(QUIET, model=classifier())
    assert not Path("runs").exists() or not list(Path("runs").rglob("version_*"))


def test_predictions_are_those_of_the_command_line(
    trained: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(photos.rglob("000*.jpg"))
    assert main(["predict", "--ckpt_path", str(trained.folder), "--images", str(photos), "--top_k", "3"]) == 0
    rows = (trained.folder / "predictions.csv").read_text().splitlines()[1:]
    model, _ = load_run(trained.folder)
    predictions = model.predict(photos, batch_size=7)
    assert [str(each.source) for each in predictions] == [row.split(",")[0] for row in rows]
    for each, row in zip(predictions, rows, strict=True):
        values = [float(cell) for cell in row.split(",") if re.fullmatch(r"[\d.]+", cell)]
        assert each.class_name in row and max(values) == pytest.approx(each.probability, abs=1e-5)
    restored = ImageClassifier.load_from_checkpoint(trained.folder / "checkpoints/best.ckpt", map_location="cpu")
    assert restored.training
    before = {name: value.clone() for name, value in restored.state_dict().items()}
    image = Image.open(files[0])
    pixels = np.asarray(Image.open(files[1]).convert("RGB"))
    several = restored.predict(
        [str(photos / "ant" / "*0.jpg"), image, pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1)]
    )
    assert restored.training and restored.backbone.training and not several[0].probabilities.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in restored.state_dict().items())
    assert torch.allclose(several[0].probabilities, predictions[0].probabilities, atol=1e-6)
    assert torch.equal(several[2].probabilities, several[3].probabilities)
    assert several[0].probabilities.sum() == pytest.approx(1) and several[1].source is None


@pytest.mark.parametrize("images", ["nowhere/*.jpg", [np.zeros((4, 4), np.uint8)], [torch.zeros(3, 4, 4)], 7])
def test_what_is_no_image(images: Any) -> None:
    with pytest.raises(UserError, match=r"predict: (no images found|a \w+.* is not an image)"):
        classifier().predict(images, transform=lambda image: image)


def test_the_preprocessing_must_be_known() -> None:
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="transform="):
        classifier().predict(pixels)
    assert classifier().predict(pixels, transform=lambda image: image)[0].class_name in "0123"
