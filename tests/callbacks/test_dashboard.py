"""What TensorBoard is given, read back from the events file."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from resnet_pl.callbacks import BestCheckpoint, Dashboard, dashboard
from resnet_pl.classifier import ImageClassifier
from tests.tiny import Tiny, classifier, trainer


def fit(folder: Path, *callbacks: Any, module: Any = None, data: Any = None, **kwargs: Any) -> EventAccumulator:
    logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)
    run = trainer(callbacks=list(callbacks), logger=logger, log_every_n_steps=2, **kwargs)
    run.fit(module or classifier(), datamodule=data or Tiny())
    logger.finalize("success")
    return events(folder)


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def pictures(found: EventAccumulator, tag: str) -> list[tuple[int, np.ndarray]]:
    return [(event.step, np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))) for event in found.Images(tag)]


def test_everything_is_there(tmp_path):
    module = classifier()
    module.config = {
        "seed_everything": 3,
        "model": {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}, "weights": None},
        "data": {"init_args": {"mean": [0.5, 0.5, 0.5]}},
        "name": "not this",
    }
    found = fit(tmp_path, Dashboard(), BestCheckpoint(tmp_path / "c"), module=module, max_epochs=2,
                enable_checkpointing=True)  # fmt: skip
    tags = found.Tags()
    assert {"train/first_batch", "val/confusion", "val/worst_mistakes"} <= set(tags["images"])
    scalars = {"train/loss", "train/top1", "lr", "val/top1", "val/loss", "hp/best_val_top1"}
    assert scalars <= set(tags["scalars"])
    assert tags["graph"]
    assert b"conv1" in found.Graph().SerializeToString()
    best = [(event.step, event.value) for event in found.Scalars("hp/best_val_top1")]
    top1 = [event.value for event in found.Scalars("val/top1")]
    assert best == [(0, 0), (3, top1[0]), (7, max(top1))]
    assert hyper_parameters(found) == {
        "seed": 3, "optimizer": "SGD", "optimizer.lr": 0.1,
        "data.mean": "[0.5, 0.5, 0.5]",
    }  # fmt: skip


def hyper_parameters(found: EventAccumulator) -> dict[str, Any]:
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_the_first_batch_is_what_the_net_sees(tmp_path):
    """Augmented, in [0, 1], as many as asked for; the sheet of dark images is dark."""

    class Dark(nn.Module):
        def fit(self, data: Any) -> None:
            pass

        def forward(self, images: Tensor, labels: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(images), labels

    found = fit(tmp_path, Dashboard(images=4, graph=False), data=Tiny(batch_transforms=[Dark()]))
    [(step, picture)] = pictures(found, "train/first_batch")
    assert step == 0
    assert (picture == 0).all(-1).sum() > 4 * 150**2


def test_drawings_are_throttled_but_the_last_is_always_made(tmp_path):
    found = fit(tmp_path / "slow", Dashboard(graph=False, min_interval_seconds=3600), max_epochs=4)
    assert [step for step, _ in pictures(found, "val/confusion")] == [3, 15]
    assert len(found.Scalars("hp/best_val_top1")) == 5
    found = fit(tmp_path / "fast", Dashboard(graph=False, min_interval_seconds=0), max_epochs=4)
    assert [step for step, _ in pictures(found, "val/confusion")] == [3, 7, 11, 15]


def test_the_last_validation_is_drawn_also_where_steps_set_the_end(tmp_path):
    found = fit(tmp_path, Dashboard(graph=False, min_interval_seconds=3600), max_epochs=-1, max_steps=12)
    assert [step for step, _ in pictures(found, "val/confusion")] == [3, 11]


def test_the_worst_mistakes_come_first(monkeypatch):
    """The least probability of the truth over all batches, of those that are wrong."""
    drawn = {}
    monkeypatch.setattr(dashboard, "contact_sheet", lambda images, captions, marks: drawn.update(captions=captions))
    monkeypatch.setattr(dashboard, "_draw", lambda *args: None)
    monkeypatch.setattr(dashboard, "confusion_matrix", lambda *args: None)
    board = Dashboard(images=3)
    writer = SimpleNamespace(experiment=SimpleNamespace(add_scalar=lambda *args: None))
    monkeypatch.setattr(dashboard, "_tensorboard", lambda trainer: writer)
    split = SimpleNamespace(load_full_image=lambda index: torch.full((3, 1, 1), index, dtype=torch.uint8))
    run = SimpleNamespace(
        max_epochs=1, max_steps=-1, current_epoch=0, global_step=4, sanity_checking=False, checkpoint_callbacks=[],
        state=SimpleNamespace(fn="fit"), datamodule=SimpleNamespace(splits={"val": split}),
    )  # fmt: skip
    module = SimpleNamespace(class_names=["a", "b"], results={"top1": 0.5, "confusion": torch.zeros(2, 2)})
    board.on_validation_start(run, module)
    for first, truths in ((0, [0.9, 0.4, 0.1]), (3, [0.3, 0.2, 0.6])):
        p = torch.tensor(truths)
        batch = SimpleNamespace(labels=torch.zeros(3, dtype=torch.long), indices=torch.arange(first, first + 3))
        board.on_validation_batch_end(run, module, {"probabilities": torch.stack([p, 1 - p], 1)}, batch, 0)
    board.on_validation_end(run, module)
    assert drawn["captions"] == ["b\nis a (10%)", "b\nis a (20%)", "b\nis a (30%)"]


def test_no_pictures_where_none_are_asked_for(tmp_path):
    found = fit(tmp_path, Dashboard(images=0, graph=False))
    assert found.Tags()["images"] == ["val/confusion"]
    assert not found.Tags()["graph"]


def test_nothing_held_out(tmp_path):
    found = fit(tmp_path, Dashboard(graph=False), data=Tiny(val_split=0))
    assert found.Tags()["images"] == ["train/first_batch"]
    assert "hp/best_val_top1" not in found.Tags()["scalars"]


def test_the_sanity_check_is_not_drawn(tmp_path):
    found = fit(tmp_path, Dashboard(graph=False), num_sanity_val_steps=2)
    assert [step for step, _ in pictures(found, "val/confusion")] == [3]


def test_without_tensorboard_nothing_happens():
    run = trainer(callbacks=[Dashboard()], limit_train_batches=1)
    run.fit(classifier(), datamodule=Tiny())
    assert run.global_step == 1


class Modes(Callback):
    """The modes of the net's parts and the state of the random numbers when training starts."""

    def __init__(self, put_to_rest: bool = False) -> None:
        self.put_to_rest = put_to_rest

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.put_to_rest:
            pl_module.backbone.layer2.eval()
        self.modes = [module.training for module in pl_module.modules()]
        self.random = torch.get_rng_state()


def test_drawing_the_graph_leaves_every_part_in_its_mode(tmp_path):
    before, after = Modes(put_to_rest=True), Modes()
    fit(tmp_path, before, Dashboard(), after, limit_train_batches=1)
    assert after.modes == before.modes
    assert set(after.modes) == {True, False}
    assert torch.equal(after.random, before.random)


def test_drawing_the_graph_leaves_the_statistics_of_batchnorm(tmp_path):
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
            raise RuntimeError("this net cannot be traced")
        return self.fc(images.flatten(1))


def test_a_net_that_cannot_be_drawn_is_trained_all_the_same(tmp_path, capsys):
    module = ImageClassifier(Untraceable())
    with pytest.warns(UserWarning, match="graph is not drawn: this net cannot be traced"):
        found = fit(tmp_path, Dashboard(), module=module)
    assert not found.Tags()["graph"]
    assert len(found.Scalars("val/top1")) == 1
    assert "cannot be traced" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "caption"),
    [(torch.tensor(1), "bee"), (torch.tensor([0.0, 0.25, 0.75]), "cat 75%\nbee 25%"),
     (torch.tensor([0.0, 1.0, 0.0]), "bee 100%")],
)  # fmt: skip
def test_captions_of_plain_and_mixed_labels(label, caption):
    assert dashboard._label(label, ["ant", "bee", "cat"]) == caption
