"""ImageClassifier: classes, weights, loss, metrics and logs in training, and `load_from_checkpoint`."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_pl import classifier as module_under_test
from resnet_pl.callbacks import LastCheckpoint
from resnet_pl.classifier import ImageClassifier
from resnet_pl.models import cifar_resnet, find_classifier
from resnet_pl.optim import Schedule
from resnet_pl.utils import UserError
from tests.tiny import Tiny, classifier, optimizer, trainer


class MemoryLogger(Logger):
    """Records what is logged as (step, metrics)."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def values(self, name: str) -> dict[int, float]:
        return {step: metrics[name] for step, metrics in self.rows if name in metrics}


class LossRecorder(Callback):
    """Records the loss and the number of images of every training batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self.counts.append(len(batch.indices))


class Interrupted(Callback):
    """Raises an error after the first validation batch."""

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        raise KeyError


def fitted(module: ImageClassifier, data: Tiny | None = None, **kwargs: Any) -> ImageClassifier:
    kwargs = {"limit_train_batches": 2, "limit_val_batches": 0} | kwargs
    trainer(**kwargs).fit(module, datamodule=data or Tiny())
    return module


def images(count: int = 3, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


# ------------------------------------------------------------------------------------ classes


def test_classes_come_from_the_data():
    module = fitted(ImageClassifier(cifar_resnet(8)), Tiny(classes=3))
    assert (module.hparams.num_classes, module.class_names) == (3, ["class 0", "class 1", "class 2"])
    assert module(images()).shape == (3, 3)


def test_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match=r"num_classes is 7, but the data has 4 classes") as error:
        fitted(classifier(num_classes=7))
    assert len(str(error.value).splitlines()) == 2


def test_other_classes_than_in_training_are_refused():
    module = fitted(classifier())
    other = Tiny(classes=3)
    with pytest.raises(UserError, match="class 0, class 1, class 2") as error:
        trainer(limit_test_batches=1).test(module, datamodule=other, verbose=False)
    assert "class 3" in str(error.value)


def test_only_the_head_is_replaced_if_the_number_of_classes_differs():
    model = cifar_resnet(8, num_classes=1000)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = fitted(ImageClassifier(model, optimizer=optimizer(lr=0.0)))
    assert module.backbone.fc.weight.shape == (4, 64)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters() if "fc" not in name)


def test_a_head_of_the_right_width_is_not_replaced():
    model = cifar_resnet(8, num_classes=4)
    head = model.fc
    assert fitted(ImageClassifier(model)).backbone.fc is head


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_torchvision_backbones(name):
    module = fitted(ImageClassifier(torchvision.models.get_model(name)), Tiny(image_size=32), limit_train_batches=1)
    assert find_classifier(module.backbone)[1].weight.shape[0] == 4
    assert module.eval()(images(size=32)).shape == (3, 4)


# ------------------------------------------------------------------------------------ weights


def test_weights_are_loaded_and_reported_when_fit_starts(tmp_path, capsys):
    torch.manual_seed(1)
    source = cifar_resnet(8, num_classes=10)
    torch.save(source.state_dict(), tmp_path / "net.pth")
    module = classifier(weights=str(tmp_path / "net.pth"), optimizer=optimizer(lr=1e-20))
    assert not torch.equal(module.backbone.conv1.weight, source.conv1.weight)
    fitted(module)
    assert torch.equal(module.backbone.conv1.weight, source.conv1.weight)
    assert module.backbone.fc.weight.shape == (4, 64)
    output = capsys.readouterr().out
    assert str(tmp_path / "net.pth") in output
    assert "4 classes" in output and "10" in output


def test_weights_are_not_loaded_if_a_checkpoint_is_restored(tmp_path, monkeypatch):
    trained = classifier(weights=None)
    run = trainer(limit_train_batches=1)
    run.fit(trained, datamodule=Tiny())
    run.save_checkpoint(tmp_path / "a.ckpt")
    monkeypatch.setattr(module_under_test, "load_pretrained", lambda *args: pytest.fail("weights were loaded"))
    module, again = classifier(weights="DEFAULT"), trainer(max_epochs=2, limit_train_batches=1)
    again.ckpt_path = tmp_path / "a.ckpt"
    again.fit(module, datamodule=Tiny())
    trainer(limit_test_batches=1).test(module, datamodule=Tiny(), verbose=False)


# ------------------------------------------------------------------------------------ loss


def loss_of(module: ImageClassifier, labels: Tensor) -> tuple[float, Tensor]:
    """Returns the loss of a training batch and its logits."""
    from resnet_pl.data.batch import Batch

    fitted(module).eval()
    seen = {}
    batch = Batch(images(len(labels)), labels, torch.arange(len(labels)), 0, 0)
    module.backbone.register_forward_hook(lambda model, given, logits: seen.update(logits=logits.detach()))
    return module.training_step(batch, 0)["loss"].item(), seen["logits"]


def test_label_smoothing():
    labels = torch.tensor([0, 1, 3])
    loss, logits = loss_of(classifier(label_smoothing=0.2), labels)
    targets = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    assert loss == pytest.approx(float(-(targets * logits.log_softmax(1)).sum(1).mean()), rel=1e-5)


def test_labels_as_probabilities():
    targets = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.1, 0.9]])
    loss, logits = loss_of(classifier(), targets)
    assert loss == pytest.approx(float(-(targets * logits.log_softmax(1)).sum(1).mean()), rel=1e-5)


class Margin(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 3 * F.multi_margin_loss(logits, labels)


def test_a_custom_loss():
    labels = torch.tensor([0, 1, 3])
    loss, logits = loss_of(classifier(loss=Margin()), labels)
    assert loss == pytest.approx(3 * float(F.multi_margin_loss(logits, labels)), rel=1e-5)


def test_validation_always_reports_cross_entropy():
    data = Tiny()
    module = fitted(classifier(loss=Margin(), label_smoothing=0.0), data, limit_val_batches=1.0)
    split = data.splits["val"]
    with torch.no_grad():
        expected = F.cross_entropy(module.eval()(split.images), split.labels)
    assert module.results["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert module.results["images"] == 20


# ------------------------------------------------------------------------------------ input


def test_uint8_and_float_images_give_the_same_logits():
    module = fitted(classifier()).eval()
    with torch.no_grad():
        assert torch.allclose(module(images()), module(images().float() / 255), atol=1e-5)


def test_images_are_normalized():
    module = fitted(classifier(), Tiny(mean=[0.5, 0.25, 0.0], std=[0.5, 1.0, 2.0]))
    seen = module.normalize(torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)).flatten()
    assert seen.tolist() == pytest.approx([-0.6, -0.05, 0.1])


def test_channels_last_does_not_change_the_logits():
    logits = {}
    for layout in (True, False):
        module = fitted(classifier(channels_last=layout), limit_train_batches=4)
        assert module.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last) is layout
        with torch.no_grad():
            logits[layout] = module.eval()(images())
    assert torch.allclose(logits[True], logits[False], atol=1e-4)


def test_mixed_precision():
    module = fitted(classifier(), precision="bf16-mixed", limit_val_batches=1.0, limit_train_batches=4)
    assert module.backbone.conv1.weight.dtype == torch.float32
    assert math.isfinite(module.results["loss"])
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


# ------------------------------------------------------------------------------------ what is logged


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_logged_loss_is_the_mean_since_the_last_row(every, accumulate):
    recorder, logger = LossRecorder(), MemoryLogger()
    trainer(
        max_epochs=2, log_every_n_steps=every, accumulate_grad_batches=accumulate, callbacks=[recorder], logger=logger,
        limit_val_batches=0,
    ).fit(classifier(), datamodule=Tiny(count=100))  # fmt: skip
    # 60 training images are 6 batches per epoch; a row is logged every `every` steps and at the end of an epoch.
    steps = [index // accumulate for index in range(12)]
    lines, line = [], []
    for index, step in enumerate(steps):
        line.append(recorder.losses[index])
        ends = index + 1 == len(steps) or steps[index + 1] != step
        if ends and ((step + 1) % every == 0 or (index + 1) % 6 == 0):
            lines.append((step, sum(line) / len(line)))
            line = []
    assert recorder.counts == [10] * 12
    assert list(logger.values("train/loss").items()) == [(step, pytest.approx(mean, rel=1e-5)) for step, mean in lines]
    assert logger.values("train/top1").keys() == logger.values("lr").keys() == dict(lines).keys()


def test_the_logged_top1_is_the_fraction_of_correct_images():
    logger = MemoryLogger()
    trainer(max_epochs=12, logger=logger, limit_val_batches=0).fit(
        classifier(optimizer=optimizer(lr=0.05, momentum=0.9)), datamodule=Tiny()
    )
    found = list(logger.values("train/top1").values())
    assert len(found) == 12
    assert all(value * 40 == pytest.approx(round(value * 40), abs=1e-4) for value in found)
    assert found[0] < 0.7 < found[-1] <= 1


def test_the_logged_learning_rate_is_that_of_the_step():
    logger = MemoryLogger()
    schedule = Schedule("step", "iterations", milestones=[2])
    trainer(log_every_n_steps=1, logger=logger, limit_val_batches=0).fit(
        classifier(schedule=schedule, optimizer=optimizer(lr=1.0)), datamodule=Tiny()
    )
    assert logger.values("lr") == {0: 1.0, 1: 1.0, 2: pytest.approx(0.1), 3: pytest.approx(0.1)}


def test_validation_and_test_log_their_metrics():
    logger = MemoryLogger()
    data, module = Tiny(count=120, classes=6), ImageClassifier(cifar_resnet(8))
    run = trainer(logger=logger)
    run.fit(module, datamodule=data)
    assert {"val/loss", "val/top1", "val/top5"} <= {name for _, metrics in logger.rows for name in metrics}
    assert list(logger.values("val/top1").values()) == [pytest.approx(module.results["top1"])]
    run.test(module, datamodule=data, verbose=False)
    assert logger.values("test/top1").popitem()[1] == pytest.approx(module.results["top1"])
    assert module.results["images"] == len(data.splits["test"])


def test_the_sanity_check_logs_nothing():
    logger = MemoryLogger()
    module = classifier()
    trainer(logger=logger, num_sanity_val_steps=1, callbacks=[]).fit(module, datamodule=Tiny())
    assert module.results["images"] == 20
    assert len(logger.values("val/top1")) == 1


# ------------------------------------------------------------------------------------ averaged weights


class AverageRecorder(Callback):
    """Computes the average on its own, and records which weights are validated."""

    def __init__(self, decay: float) -> None:
        self.decay, self.average, self.validated = decay, None, None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weight = pl_module.backbone.conv1.weight.detach()
        if self.average is None:
            self.average = weight.clone()
        else:
            self.average = self.decay * self.average + (1 - self.decay) * weight

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.validated = pl_module.backbone.conv1.weight.detach().clone()


def test_averaged_weights_are_validated_and_saved(tmp_path):
    average, module = AverageRecorder(0.7), ImageClassifier(cifar_resnet(8), optimizer=optimizer(lr=0.1))
    data = Tiny(mean="pixel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callbacks = [EMAWeightAveraging(decay=0.7), average, LastCheckpoint(tmp_path)]
        run = trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
        run.fit(module, datamodule=data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for found in (average.validated, saved["state_dict"]["backbone.conv1.weight"], module.backbone.conv1.weight):
        assert torch.allclose(found, average.average, atol=1e-6)
    assert not torch.allclose(saved["current_model_state"]["backbone.conv1.weight"], average.average, atol=1e-4)
    assert torch.equal(saved["state_dict"]["normalize.mean"], data.statistics.mean_image)
    assert find_classifier(module.backbone)[1].weight.shape[0] == 4


# ------------------------------------------------------------------------------------ checkpoints


def saved(folder: Path, module: ImageClassifier, data: Tiny | None = None) -> Path:
    run = trainer(limit_train_batches=2)
    run.fit(module, datamodule=data or Tiny())
    run.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


@pytest.mark.parametrize("mean", ["pixel", "channel"])
def test_load_from_checkpoint_restores_a_model_built_in_python(tmp_path, mean):
    module = ImageClassifier(cifar_resnet(8, shortcut="B"), schedule=Schedule("step", milestones=[1]))
    path = saved(tmp_path, module, Tiny(mean=mean))
    loaded = ImageClassifier.load_from_checkpoint(path, map_location="cpu")
    assert loaded.class_names == ["class 0", "class 1", "class 2", "class 3"]
    assert loaded.normalize.mean.shape == ((3, 8, 8) if mean == "pixel" else (3, 1, 1))
    assert torch.equal(loaded.normalize.mean, module.normalize.mean)
    assert loaded.schedule == Schedule("step", milestones=[1])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images()), module.eval()(images()))


def test_load_from_checkpoint_with_a_backbone_argument(tmp_path):
    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 9))

    module = ImageClassifier(model(), schedule=Schedule("step", milestones=[1]), optimizer=optimizer())
    path = saved(tmp_path, module)
    loaded = ImageClassifier.load_from_checkpoint(path, backbone=model())
    with torch.no_grad():
        assert torch.equal(loaded(images()), module(images()))
    fitted(loaded)
    assert loaded.schedule == Schedule("step", milestones=[1])


def test_a_checkpoint_has_plain_types_only(tmp_path):
    module = classifier(optimizer=optimizer(), loss=Margin(), label_smoothing=0.0)
    checkpoint = torch.load(saved(tmp_path, module), weights_only=True)
    assert checkpoint["hyper_parameters"]["num_classes"] == 4
    assert checkpoint["hyper_parameters"]["backbone"]["init_args"]["layers"] == [1, 1, 1]
    assert checkpoint["resnet_pl"]["data"]["classes"] == ["class 0", "class 1", "class 2", "class 3"]
    assert [len(names) for names in checkpoint["resnet_pl"]["data"]["splits"].values()] == [40, 20, 20]
    assert checkpoint["resnet_pl"]["config"] is None


def test_load_from_checkpoint_needs_neither_data_nor_weights(tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    torch.save(cifar_resnet(8).state_dict(), path)
    checkpoint = saved(tmp_path, classifier(weights=str(path)))
    path.unlink()
    loaded = ImageClassifier.load_from_checkpoint(checkpoint)
    assert loaded.eval()(images()).shape == (3, 4)
    assert loaded.weights == str(path)


def test_a_loaded_model_has_the_same_test_metrics(tmp_path):
    module, data = classifier(), Tiny()
    path = saved(tmp_path, module, data)
    trainer().test(module, datamodule=data, verbose=False)
    loaded = ImageClassifier.load_from_checkpoint(path)
    trainer().test(loaded, datamodule=Tiny(), verbose=False)
    for name in ("top1", "loss", "calibration_error", "images"):
        assert loaded.results[name] == module.results[name]
    assert torch.equal(loaded.results["confusion"], module.results["confusion"])


class BatchOrder(Callback):
    """Records the images of every training batch; saves a checkpoint after the sixth step."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch.indices.tolist())
        if trainer.global_step == 6 and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_a_run_resumed_within_an_epoch_trains_on_the_remaining_batches(tmp_path):
    runs = []
    for path in (None, tmp_path / "a.ckpt"):
        module, order = classifier(), BatchOrder(tmp_path / "a.ckpt")
        run = trainer(max_epochs=3, callbacks=[order])
        run.fit(module, datamodule=Tiny(), ckpt_path=path)
        runs.append((module.state_dict(), order.seen))
    (uninterrupted, every), (resumed, remaining) = runs
    assert remaining == every[6:]
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_predict_returns_probabilities_and_labels_of_every_image():
    module, data = fitted(classifier()), Tiny()
    batches = trainer().predict(module, datamodule=data)
    assert torch.cat([batch["indices"] for batch in batches]).tolist() == list(range(20))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == data.splits["test"].labels.tolist()
    total = torch.cat([batch["probabilities"] for batch in batches]).sum(1)
    assert torch.allclose(total, torch.ones(20))


def test_an_interrupted_validation_does_not_count_in_the_next() -> None:
    module, data = fitted(classifier()), Tiny()
    with pytest.raises(KeyError):
        trainer(callbacks=[Interrupted()]).validate(module, datamodule=data)
    trainer().validate(module, datamodule=data)
    assert module.results["images"] == 20


def test_a_plain_trainer_loads_the_head_of_a_checkpoint(tmp_path):
    module, data = fitted(classifier()), Tiny()
    run = trainer()
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    fresh = ImageClassifier(cifar_resnet(8))
    trainer().test(fresh, datamodule=data, ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    assert torch.equal(fresh.backbone.fc.weight, module.backbone.fc.weight)
    with pytest.raises(UserError, match="no head for 4 classes"):
        trainer().test(ImageClassifier(cifar_resnet(8)), datamodule=data)


def test_a_training_follows_an_evaluation_without_a_head() -> None:
    module = ImageClassifier(cifar_resnet(8), optimizer=optimizer(), class_weights=[1, 2, 3, 4])
    with pytest.raises(UserError, match="train it first"):
        trainer().validate(module, datamodule=Tiny())
    trainer().fit(module, datamodule=Tiny())
    assert module.results["images"] == 20


def test_balanced_weights_are_computed_after_an_evaluation() -> None:
    module, data = classifier(class_weights="balanced"), Tiny(count=90)
    trainer().validate(module, datamodule=data)
    trainer().fit(module, datamodule=data)
    assert module.criterion.weight.unique().numel() > 1


def test_metrics_are_exact_in_low_precision() -> None:
    module, data = fitted(classifier()), Tiny(count=800, val_split=700)
    trainer(precision="bf16-true").validate(module, datamodule=data)
    images = data.splits["val"]
    with torch.no_grad():
        logits = module.eval().to(torch.bfloat16)(images.images)
    assert module.results["loss"] == pytest.approx(float(F.cross_entropy(logits.float(), images.labels)), rel=2e-3)
