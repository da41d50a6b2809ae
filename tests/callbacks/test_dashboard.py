"""Images, graph and hyperparameters that TensorBoard gets, read back from the event files."""

import io
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import Tensor, nn

from resnet_pl.callbacks import EMA, Dashboard, TensorBoardCurves, dashboard
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import train
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.command_line import CommandLine
from resnet_pl.data import BatchTransform
from resnet_pl.optim import Schedule
from tests.tiny import Tiny, classifier, optimizer, trainer


def fit(folder: Path, *callbacks: Any, module: Any = None, data: Any = None, start: int = 0, **kwargs: Any) -> Any:
    """Trains, and returns the events of the run folder."""
    run = folder / "tiny" / "version_0"
    ckpt_path = kwargs.pop("ckpt_path", None)
    logged = trainer(callbacks=list(callbacks), logger=TensorBoardCurves(run, start), log_every_n_steps=2, **kwargs)
    logged.fit(module or classifier(), datamodule=data or Tiny(), ckpt_path=ckpt_path, weights_only=True)
    return events(run)


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0}).Reload()


def images(found: EventAccumulator, tag: str) -> list[tuple[int, np.ndarray]]:
    return [(event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))) for event in found.Images(tag)]


def scalars(found: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def hparams(found: EventAccumulator) -> dict[str, Any]:
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def hparams_metrics(found: EventAccumulator) -> set[str]:
    content = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    return {info.name.tag for info in plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos}


def test_images_and_graph(tmp_path):
    found = fit(tmp_path, Dashboard(), max_epochs=2)
    plots = {"val/confusion", "val/reliability"}
    plots |= {"val/worst_mistakes_heatmaps"} if find_spec("captum") else set()
    assert set(found.Tags()["images"]) == {"train/first_batch", "val/worst_mistakes"} | plots
    assert found.Tags()["graph"] and b"conv1" in found.Graph().SerializeToString()


# ------------------------------------------------------------------------------------ hyperparameters
def test_hyperparameters_are_the_values_in_use(tmp_path):
    module = classifier(
        optimizer=optimizer(lr=0.1, weight_decay=0.01),
        base_batch_size=40,
        decay_norm_and_bias=False,
        label_smoothing=0.1,
    )
    found = fit(tmp_path, Dashboard(graph=False), module=module, max_epochs=2, accumulate_grad_batches=2)
    assert hparams(found) == {
        "backbone": "ResNet", "epochs": 2, "batch_size": 20, "optimizer": "SGD", "lr": pytest.approx(0.05),
        "weight_decay": 0.01, "label_smoothing": 0.1, "seed": 0, "training_data": "Tiny", "num_classes": 4,
    }  # fmt: skip


def test_epochs_of_a_run_limited_by_steps(tmp_path):
    found = fit(tmp_path, Dashboard(graph=False), max_epochs=-1, max_steps=6)
    assert hparams(found)["epochs"] == 1.5


def test_the_metrics_of_the_hyperparameters_are_those_of_the_best_validation(tmp_path):
    class Module(ImageClassifier):
        def on_validation_epoch_end(self) -> None:
            top1, loss = [(0.5, 1.0), (0.75, 0.5), (0.25, 0.1), (0.75, 0.7)][self.trainer.current_epoch]
            results = self.metrics.compute() | {"top1": top1, "loss": loss}
            self.metrics.compute = lambda: results
            super().on_validation_epoch_end()
            del self.metrics.compute

    found = fit(tmp_path, Dashboard(graph=False), module=Module(classifier().backbone), max_epochs=4)
    assert hparams_metrics(found) == {"val_best/top1", "val_best/loss"}
    assert scalars(found, "val_best/top1") == [(3, 0.5), (7, 0.75), (11, 0.75), (15, 0.75)]
    assert [value for _, value in scalars(found, "val_best/loss")] == pytest.approx([1.0, 0.5, 0.5, 0.7])


def test_a_resumed_run_has_one_row_with_the_best_validation_of_both_parts(tmp_path):
    class Save(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "a.ckpt")

    constant = Schedule("constant")
    fit(tmp_path / "resumed", Dashboard(graph=False), Save(), module=classifier(schedule=constant), max_epochs=2)
    time.sleep(1)  # event files are ordered by the second of their creation
    other = classifier(schedule=constant, optimizer=optimizer(lr=0.2))
    resumed = fit(tmp_path / "resumed", Dashboard(graph=False), module=other, start=8, max_epochs=3,
                  ckpt_path=tmp_path / "a.ckpt")  # fmt: skip
    complete = fit(tmp_path / "complete", Dashboard(graph=False), module=classifier(schedule=constant), max_epochs=3)
    # Lightning writes another event file; TensorBoard keeps the hyperparameters of the first.
    assert hparams(resumed) == hparams(complete) | {"epochs": 2}
    assert hparams_metrics(resumed) == {"val_best/top1", "val_best/loss"}
    for tag in ("val_best/top1", "val_best/loss"):
        steps = [step for step, _ in scalars(resumed, tag)]
        assert steps == [3, 7, 11]
        assert scalars(resumed, tag)[:2] == scalars(complete, tag)[:2]
    top1 = [value for _, value in scalars(resumed, "val_best/top1")]
    assert top1 == sorted(top1)


# ------------------------------------------------------------------------------------ images
def test_the_first_batch_is_logged_after_augmentation(tmp_path):
    class Dark(BatchTransform):
        def __call__(self, images: Tensor, labels: Tensor, rng: Any) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(images), labels

    found = fit(tmp_path, Dashboard(images=4, graph=False), data=Tiny(batch_transforms=[Dark()]))
    [(step, sheet)] = images(found, "train/first_batch")
    assert step == 0
    assert (sheet == 0).all(-1).sum() > 4 * 150**2


def test_images_are_throttled_but_those_of_the_last_validation_are_always_logged(tmp_path):
    found = fit(tmp_path / "slow", Dashboard(images=2, graph=False, min_interval_seconds=3600), max_epochs=3)
    assert [step for step, _ in images(found, "val/confusion")] == [3, 11]
    assert len(found.Scalars("val_best/top1")) == 3
    found = fit(tmp_path / "fast", Dashboard(images=2, graph=False, min_interval_seconds=0), max_epochs=2)
    assert [step for step, _ in images(found, "val/confusion")] == [3, 7]


def test_the_last_validation_of_a_run_limited_by_steps_is_logged(tmp_path):
    found = fit(tmp_path, Dashboard(graph=False, min_interval_seconds=3600), max_epochs=-1, max_steps=12)
    assert [step for step, _ in images(found, "val/confusion")] == [3, 11]


def test_the_worst_mistakes_come_first(tmp_path, monkeypatch):
    """Those with the smallest probability of the true class, over all batches; correct predictions are not shown."""
    probabilities = torch.tensor([0.9, 0.4, 0.1, 0.3, 0.2, 0.6])  # of class 0, which is true

    class Fixed(ImageClassifier):
        def probabilities(self, batch: Any) -> Tensor:
            p = probabilities[batch.indices % 6]
            return torch.stack([p, 1 - p], 1)

    captions: list[str] = []
    contact_sheet = dashboard.contact_sheet

    def recorded(images: Any, texts: list[str], marks: Any = None) -> np.ndarray:
        captions[:] = texts
        return contact_sheet(images, texts, marks)

    monkeypatch.setattr(dashboard, "contact_sheet", recorded)
    data = Tiny(classes=2, val_split=12, eval_batch_size=3)
    data.setup("fit")
    data.splits["val"].labels[:] = 0
    fit(tmp_path, Dashboard(images=5, graph=False), module=Fixed(classifier().backbone), data=data)
    assert captions == [f"pred: class 1\ntrue: class 0 ({p})" for p in ("10%", "10%", "20%", "20%", "30%")]


def test_heat_maps_of_the_worst_mistakes(tmp_path, monkeypatch):
    """They are those of the averaged weights, which are validated, and do not change the training."""
    pytest.importorskip("captum")
    weights: list[Tensor] = []
    heatmaps = dashboard.heatmaps

    def recorded(model: Any, inputs: Tensor, classes: Tensor) -> Tensor:
        weights.append(model.backbone.fc.weight.detach().clone())
        return heatmaps(model, inputs, classes)

    monkeypatch.setattr(dashboard, "heatmaps", recorded)
    module, other = classifier(), classifier()
    found = fit(tmp_path / "with", EMA(0.9), Dashboard(graph=False), module=module)
    fit(tmp_path / "without", EMA(0.9), Dashboard(images=0), module=other)
    [(step, mistakes)], [(other_step, maps)] = (
        images(found, f"val/worst_mistakes{suffix}") for suffix in ("", "_heatmaps")
    )
    assert step == other_step and mistakes.shape == maps.shape and not np.array_equal(mistakes, maps)
    assert len(weights) == 1 and torch.equal(weights[0], module.backbone.fc.weight)  # the average, at the end
    states = (each.state_dict() for each in (module, other))
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize("reason", ["no map", "no captum", "an error"])
def test_without_heat_maps_the_mistakes_are_logged(tmp_path, monkeypatch, reason, recwarn):
    module = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))) if reason == "no map" else classifier()
    if reason == "no captum":
        monkeypatch.setitem(sys.modules, "captum.attr", None)
    elif reason == "an error":
        monkeypatch.setattr(dashboard, "heatmaps", lambda *args: 1 / 0)
    found = fit(tmp_path, Dashboard(graph=False), module=module)
    tags = set(found.Tags()["images"])
    assert "val/worst_mistakes" in tags and "val/worst_mistakes_heatmaps" not in tags
    messages = [str(warning.message) for warning in recwarn if "heat maps" in str(warning.message)]
    assert messages == (["heat maps are not logged: division by zero"] if reason == "an error" else [])


def test_no_images(tmp_path):
    found = fit(tmp_path, Dashboard(images=0, graph=False))
    assert not found.Tags()["images"]
    assert not found.Tags()["graph"]


def test_without_validation(tmp_path):
    found = fit(tmp_path, Dashboard(graph=False), data=Tiny(val_split=0))
    assert found.Tags()["images"] == ["train/first_batch"]
    assert not {"val_best/top1", "val_best/loss"} & {*found.Tags()["scalars"]}


def test_the_sanity_check_is_not_logged(tmp_path):
    found = fit(tmp_path, Dashboard(graph=False), num_sanity_val_steps=2)
    assert [step for step, _ in images(found, "val/confusion")] == [3]


def test_without_tensorboard():
    run = trainer(callbacks=[Dashboard()], limit_train_batches=1)
    run.fit(classifier(), datamodule=Tiny())
    assert run.global_step == 1


# ------------------------------------------------------------------------------------ graph
class ModeRecorder(Callback):
    """Records the training mode of each module, and the state of the random number generator."""

    def __init__(self, freeze: bool = False) -> None:
        self.freeze = freeze

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.freeze:
            pl_module.backbone.layer2.eval()
        self.modes = [module.training for module in pl_module.modules()]
        self.random = torch.get_rng_state()


def test_the_graph_does_not_change_training_modes_and_random_numbers(tmp_path):
    before, after = ModeRecorder(freeze=True), ModeRecorder()
    fit(tmp_path, before, Dashboard(), after, limit_train_batches=1)
    assert after.modes == before.modes
    assert set(after.modes) == {True, False}
    assert torch.equal(after.random, before.random)


def test_the_graph_does_not_change_batchnorm_statistics(tmp_path):
    module = classifier()
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}

    class Check(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            after = pl_module.backbone.state_dict()
            self.changed = [name for name in before if not torch.equal(before[name], after[name])]

    check = Check()
    assert fit(tmp_path, Dashboard(), check, module=module, limit_train_batches=1).Tags()["graph"]
    assert check.changed == []


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 4)

    def forward(self, images: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            raise RuntimeError("this model cannot be traced")
        return self.fc(images.flatten(1))


def test_a_model_that_cannot_be_traced_is_trained(tmp_path, capsys):
    module = ImageClassifier(Untraceable())
    with pytest.warns(UserWarning, match="this model cannot be traced"):
        found = fit(tmp_path, Dashboard(), module=module)
    assert not found.Tags()["graph"]
    assert len(found.Scalars("val_best/top1")) == 1
    assert "cannot be traced" not in capsys.readouterr().out


def test_captions_of_mixed_labels(tmp_path, monkeypatch):
    class Mix(BatchTransform):
        def __call__(self, images: Tensor, labels: Tensor, rng: Any) -> tuple[Tensor, Tensor]:
            mixed = torch.tensor([[0.0, 0.25, 0.75, 0.0], [0.0, 1.0, 0.0, 0.0]])
            return images, mixed.repeat(len(labels) // 2, 1)

    captions: list[str] = []
    contact_sheet = dashboard.contact_sheet

    def recorded(images: Any, texts: list[str]) -> np.ndarray:
        captions[:] = texts
        return contact_sheet(images, texts)

    monkeypatch.setattr(dashboard, "contact_sheet", recorded)
    fit(tmp_path, Dashboard(images=2, graph=False), data=Tiny(batch_transforms=[Mix()], val_split=0))
    assert captions == ["class 2 75%\nclass 1 25%", "class 1 100%"]


# ------------------------------------------------------------------------------------ switched off
def test_an_error_is_a_warning_and_turns_the_callback_off(tmp_path, monkeypatch):
    def fails(*args: Any) -> None:
        raise RuntimeError("no space for images")

    monkeypatch.setattr(dashboard, "contact_sheet", fails)
    with pytest.warns(UserWarning, match="Dashboard is off.*no space for images"):
        found = fit(tmp_path, Dashboard(graph=False), max_epochs=2)
    assert found.Tags()["images"] == [] and scalars(found, "curves/loss")


@pytest.mark.parametrize("form", ["--dashboard false", "--dashboard=false", "file"])
def test_it_can_be_switched_off_on_the_command_line(form: str) -> None:
    words = ["--config", "off.yaml"] if form == "file" else form.split()
    Path("off.yaml").write_text("dashboard: false")
    cli = ProjectCLI(CommandLine(["fit", "--data", "Digits", "--model.backbone", "resnet18", *words]), train)
    (found,) = (callback for callback in cli.callbacks if isinstance(callback, Dashboard))
    assert found.is_off  # no hook does anything
    assert cli.plain_config["dashboard"]["enabled"] is False
