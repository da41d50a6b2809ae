"""The net, its loss and metrics in training, and what load_from_checkpoint brings back."""

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


class Kept(Logger):
    """Keeps what is logged: (step, metrics)."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def values(self, name: str) -> dict[int, float]:
        return {step: metrics[name] for step, metrics in self.rows if name in metrics}


class Watch(Callback):
    """The loss and the images of every training batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self.counts.append(len(batch.indices))


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


def test_other_numbers_of_classes_are_both_named():
    with pytest.raises(UserError, match=r"num_classes is 7, but the data has 4 classes") as error:
        fitted(classifier(num_classes=7))
    assert len(str(error.value).splitlines()) == 2


def test_other_classes_than_the_net_was_trained_on():
    module = fitted(classifier())
    other = Tiny(classes=3)
    with pytest.raises(UserError, match="has the 3 classes class 0, class 1, class 2, but") as error:
        trainer(limit_test_batches=1).test(module, datamodule=other, verbose=False)
    assert "4 classes class 0" in str(error.value)


def test_the_head_alone_is_new_where_the_classes_differ():
    net = cifar_resnet(8, num_classes=1000)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module = fitted(ImageClassifier(net, optimizer=optimizer(lr=0.0)))
    assert module.backbone.fc.weight.shape == (4, 64)
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters() if "fc" not in name)


def test_a_head_that_fits_is_kept():
    net = cifar_resnet(8, num_classes=4)
    head = net.fc
    assert fitted(ImageClassifier(net)).backbone.fc is head


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_any_backbone_of_torchvision(name):
    module = fitted(ImageClassifier(torchvision.models.get_model(name)), Tiny(image_size=32), limit_train_batches=1)
    assert find_classifier(module.backbone)[1].weight.shape[0] == 4
    assert module.eval()(images(size=32)).shape == (3, 4)


# ------------------------------------------------------------------------------------ weights


def test_weights_are_read_when_the_fit_starts_and_it_is_told(tmp_path, capsys):
    torch.manual_seed(1)
    source = cifar_resnet(8, num_classes=10)
    torch.save(source.state_dict(), tmp_path / "net.pth")
    module = classifier(weights=str(tmp_path / "net.pth"), optimizer=optimizer(lr=1e-20))
    assert not torch.equal(module.backbone.conv1.weight, source.conv1.weight)
    fitted(module)
    assert torch.equal(module.backbone.conv1.weight, source.conv1.weight)
    assert module.backbone.fc.weight.shape == (4, 64)
    told = capsys.readouterr().out
    assert str(tmp_path / "net.pth") in told
    assert "new head for 4 classes (the file's has 10)" in told


def test_weights_are_not_read_where_a_checkpoint_is_given(tmp_path, monkeypatch):
    trained = classifier(weights=None)
    run = trainer(limit_train_batches=1)
    run.fit(trained, datamodule=Tiny())
    run.save_checkpoint(tmp_path / "a.ckpt")
    monkeypatch.setattr(module_under_test, "load_pretrained", lambda *args: pytest.fail("weights were read"))
    module, again = classifier(weights="DEFAULT"), trainer(max_epochs=2, limit_train_batches=1)
    again.ckpt_path = tmp_path / "a.ckpt"
    again.fit(module, datamodule=Tiny())
    trainer(limit_test_batches=1).test(module, datamodule=Tiny(), verbose=False)


# ------------------------------------------------------------------------------------ loss


def loss_of(module: ImageClassifier, labels: Tensor) -> tuple[float, Tensor]:
    """The loss of a training batch, and the logits it is made of."""
    from resnet_pl.data.loader import Batch

    fitted(module).eval()
    seen = {}
    batch = Batch(images(len(labels)), labels, torch.arange(len(labels)), 0, 0)
    module.backbone.register_forward_hook(lambda net, given, logits: seen.update(logits=logits.detach()))
    return module.training_step(batch, 0)["loss"].item(), seen["logits"]


def test_label_smoothing_spreads_its_share_over_all_classes():
    labels = torch.tensor([0, 1, 3])
    loss, logits = loss_of(classifier(label_smoothing=0.2), labels)
    shares = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    assert loss == pytest.approx(float(-(shares * logits.log_softmax(1)).sum(1).mean()), rel=1e-5)


def test_mixed_labels():
    shares = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.1, 0.9]])
    loss, logits = loss_of(classifier(), shares)
    assert loss == pytest.approx(float(-(shares * logits.log_softmax(1)).sum(1).mean()), rel=1e-5)


class Margin(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 3 * F.multi_margin_loss(logits, labels)


def test_a_loss_of_the_users_own():
    labels = torch.tensor([0, 1, 3])
    loss, logits = loss_of(classifier(loss=Margin()), labels)
    assert loss == pytest.approx(3 * float(F.multi_margin_loss(logits, labels)), rel=1e-5)


def test_validation_is_by_cross_entropy_whatever_is_trained_on():
    data = Tiny()
    module = fitted(classifier(loss=Margin(), label_smoothing=0.0), data, limit_val_batches=1.0)
    split = data.splits["val"]
    with torch.no_grad():
        expected = F.cross_entropy(module.eval()(split.images), split.labels)
    assert module.results["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert module.results["images"] == 20


# ------------------------------------------------------------------------------------ input


def test_bytes_and_floats_are_the_same_image():
    module = fitted(classifier()).eval()
    with torch.no_grad():
        assert torch.allclose(module(images()), module(images().float() / 255), atol=1e-5)


def test_the_net_sees_normalised_images():
    module = fitted(classifier(), Tiny(mean=[0.5, 0.25, 0.0], std=[0.5, 1.0, 2.0]))
    seen = module.normalize(torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)).flatten()
    assert seen.tolist() == pytest.approx([-0.6, -0.05, 0.1])


def test_the_memory_layout_does_not_change_the_result():
    logits = {}
    for layout in (True, False):
        module = fitted(classifier(channels_last=layout), limit_train_batches=4)
        assert module.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last) is layout
        with torch.no_grad():
            logits[layout] = module.eval()(images())
    assert torch.allclose(logits[True], logits[False], atol=1e-4)


def test_training_in_mixed_precision():
    module = fitted(classifier(), precision="bf16-mixed", limit_val_batches=1.0, limit_train_batches=4)
    assert module.backbone.conv1.weight.dtype == torch.float32
    assert math.isfinite(module.results["loss"])
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


# ------------------------------------------------------------------------------------ what is logged


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_logged_loss_is_the_mean_over_every_image_since_the_last_line(every, accumulate):
    watch, kept = Watch(), Kept()
    trainer(
        max_epochs=2, log_every_n_steps=every, accumulate_grad_batches=accumulate, callbacks=[watch], logger=kept,
        limit_val_batches=0,
    ).fit(classifier(), datamodule=Tiny(count=100))  # fmt: skip
    # 60 training images are 6 batches an epoch; a line ends with every so manyth step and with the epoch.
    steps = [index // accumulate for index in range(12)]
    lines, line = [], []
    for index, step in enumerate(steps):
        line.append(watch.losses[index])
        ends = index + 1 == len(steps) or steps[index + 1] != step
        if ends and ((step + 1) % every == 0 or (index + 1) % 6 == 0):
            lines.append((step, sum(line) / len(line)))
            line = []
    assert watch.counts == [10] * 12
    assert list(kept.values("train/loss").items()) == [(step, pytest.approx(mean, rel=1e-5)) for step, mean in lines]
    assert kept.values("train/top1").keys() == kept.values("lr").keys() == dict(lines).keys()


def test_the_logged_top1_is_the_share_of_images_that_were_right():
    kept = Kept()
    trainer(max_epochs=12, logger=kept, limit_val_batches=0).fit(
        classifier(optimizer=optimizer(lr=0.05, momentum=0.9)), datamodule=Tiny()
    )
    found = list(kept.values("train/top1").values())
    assert len(found) == 12
    assert all(value * 40 == pytest.approx(round(value * 40), abs=1e-4) for value in found)
    assert found[0] < 0.7 < found[-1] <= 1


def test_the_logged_rate_is_the_one_the_step_was_made_with():
    kept = Kept()
    schedule = Schedule("step", "iterations", milestones=[2])
    trainer(log_every_n_steps=1, logger=kept, limit_val_batches=0).fit(
        classifier(schedule=schedule, optimizer=optimizer(lr=1.0)), datamodule=Tiny()
    )
    assert kept.values("lr") == {0: 1.0, 1: 1.0, 2: pytest.approx(0.1), 3: pytest.approx(0.1)}


def test_validation_and_test_log_their_figures():
    kept = Kept()
    data, module = Tiny(count=120, classes=6), ImageClassifier(cifar_resnet(8))
    run = trainer(logger=kept)
    run.fit(module, datamodule=data)
    assert {"val/loss", "val/top1", "val/top5"} <= kept.rows[-1][1].keys() | kept.rows[-2][1].keys()
    assert list(kept.values("val/top1").values()) == [pytest.approx(module.results["top1"])]
    run.test(module, datamodule=data, verbose=False)
    assert kept.values("test/top1").popitem()[1] == pytest.approx(module.results["top1"])
    assert module.results["images"] == len(data.splits["test"])


def test_the_sanity_check_leaves_no_trace():
    kept = Kept()
    module = classifier()
    trainer(logger=kept, num_sanity_val_steps=1, callbacks=[]).fit(module, datamodule=Tiny())
    assert module.results["images"] == 20
    assert len(kept.values("val/top1")) == 1


# ------------------------------------------------------------------------------------ averaged weights


class Both(Callback):
    """Works out the average itself, and notes which weights are validated."""

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


def test_averaged_weights_are_validated_saved_and_kept(tmp_path):
    both, module = Both(0.7), ImageClassifier(cifar_resnet(8), optimizer=optimizer(lr=0.1))
    data = Tiny(mean="pixel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callbacks = [EMAWeightAveraging(decay=0.7), both, LastCheckpoint(tmp_path)]
        run = trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
        run.fit(module, datamodule=data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for found in (both.validated, saved["state_dict"]["backbone.conv1.weight"], module.backbone.conv1.weight):
        assert torch.allclose(found, both.average, atol=1e-6)
    assert not torch.allclose(saved["current_model_state"]["backbone.conv1.weight"], both.average, atol=1e-4)
    assert torch.equal(saved["state_dict"]["normalize.mean"], data.statistics.mean_image)
    assert find_classifier(module.backbone)[1].weight.shape[0] == 4


# ------------------------------------------------------------------------------------ checkpoints


def saved(folder: Path, module: ImageClassifier, data: Tiny | None = None) -> Path:
    run = trainer(limit_train_batches=2)
    run.fit(module, datamodule=data or Tiny())
    run.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


@pytest.mark.parametrize("mean", ["pixel", "channel"])
def test_a_net_made_in_python_comes_back_whole(tmp_path, mean):
    module = ImageClassifier(cifar_resnet(8, shortcut="B"), schedule=Schedule("step", milestones=[1]))
    path = saved(tmp_path, module, Tiny(mean=mean))
    loaded = ImageClassifier.load_from_checkpoint(path, map_location="cpu")
    assert loaded.class_names == ["class 0", "class 1", "class 2", "class 3"]
    assert loaded.normalize.mean.shape == ((3, 8, 8) if mean == "pixel" else (3, 1, 1))
    assert torch.equal(loaded.normalize.mean, module.normalize.mean)
    assert loaded.schedule == Schedule("step", milestones=[1])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images()), module.eval()(images()))


def test_a_net_of_others_comes_back_when_it_is_given_again(tmp_path):
    def net() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 9))

    module = ImageClassifier(net(), schedule=Schedule("step", milestones=[1]), optimizer=optimizer())
    path = saved(tmp_path, module)
    loaded = ImageClassifier.load_from_checkpoint(path, backbone=net())
    with torch.no_grad():
        assert torch.equal(loaded(images()), module(images()))
    fitted(loaded)
    assert loaded.schedule == Schedule("step", milestones=[1])


def test_a_checkpoint_holds_plain_types_alone(tmp_path):
    module = classifier(optimizer=optimizer(), loss=Margin(), label_smoothing=0.0)
    told = torch.load(saved(tmp_path, module), weights_only=True)
    assert told["hyper_parameters"]["num_classes"] == 4
    assert told["hyper_parameters"]["backbone"]["init_args"]["layers"] == [1, 1, 1]
    assert told["resnet_pl"]["data"]["classes"] == ["class 0", "class 1", "class 2", "class 3"]
    assert [len(names) for names in told["resnet_pl"]["data"]["splits"].values()] == [40, 20, 20]
    assert told["resnet_pl"]["config"] is None


def test_a_loaded_net_needs_no_data_and_no_weights(tmp_path, monkeypatch):
    path = tmp_path / "net.pth"
    torch.save(cifar_resnet(8).state_dict(), path)
    checkpoint = saved(tmp_path, classifier(weights=str(path)))
    path.unlink()
    loaded = ImageClassifier.load_from_checkpoint(checkpoint)
    assert loaded.eval()(images()).shape == (3, 4)
    assert loaded.weights == str(path)


def test_a_loaded_net_tests_as_it_did(tmp_path):
    module, data = classifier(), Tiny()
    path = saved(tmp_path, module, data)
    trainer().test(module, datamodule=data, verbose=False)
    loaded = ImageClassifier.load_from_checkpoint(path)
    trainer().test(loaded, datamodule=Tiny(), verbose=False)
    for name in ("top1", "loss", "calibration_error", "images"):
        assert loaded.results[name] == module.results[name]
    assert torch.equal(loaded.results["confusion"], module.results["confusion"])


class Order(Callback):
    """The images of every training batch; keeps the state after the sixth."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch.indices.tolist())
        if trainer.global_step == 6 and not self.path.exists():
            trainer.save_checkpoint(self.path)


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_sees_what_was_left_of_it(tmp_path):
    runs = []
    for path in (None, tmp_path / "a.ckpt"):
        module, order = classifier(), Order(tmp_path / "a.ckpt")
        run = trainer(max_epochs=3, callbacks=[order])
        run.fit(module, datamodule=Tiny(), ckpt_path=path)
        runs.append((module.state_dict(), order.seen))
    (whole, every), (resumed, rest) = runs
    assert rest == every[6:]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_prediction_returns_every_image_with_its_truth():
    module, data = fitted(classifier()), Tiny()
    batches = trainer().predict(module, datamodule=data)
    assert torch.cat([batch["indices"] for batch in batches]).tolist() == list(range(20))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == data.splits["test"].labels.tolist()
    total = torch.cat([batch["probabilities"] for batch in batches]).sum(1)
    assert torch.allclose(total, torch.ones(20))
