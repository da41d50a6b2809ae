"""Frozen layers do not change, bit for bit, until they are unfrozen."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torchvision
from lightning.pytorch import Callback
from torch import Tensor, nn

from resnet_pl.callbacks import Freeze
from resnet_pl.classifier import ImageClassifier
from resnet_pl.models import cifar_resnet
from resnet_pl.utils import UserError
from tests.tiny import Tiny, classifier, optimizer, trainer


def build_backbone() -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet(8, num_classes=4)


class StateRecorder(Callback):
    """Records the backbone's state after each epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.states.append({name: value.clone() for name, value in pl_module.backbone.state_dict().items()})


def fit(freeze: Freeze, epochs: int = 1, **kwargs: Any) -> tuple[ImageClassifier, list[dict[str, Tensor]]]:
    """Returns the module, and the backbone's state at the start and after every epoch."""
    module, recorder = ImageClassifier(build_backbone(), optimizer=optimizer(lr=0.1, weight_decay=0.1)), StateRecorder()
    start = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    run = trainer(callbacks=[freeze, recorder], max_epochs=epochs, limit_train_batches=2, **kwargs)
    run.fit(module, datamodule=Tiny())
    return module, [start, *recorder.states]


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_head_only():
    module, states = fit(Freeze(), 2)
    assert changed(states[0], states[2]) == {"fc.weight", "fc.bias"}
    assert {name for name, p in module.backbone.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}


def test_last_frozen_stage():
    _, states = fit(Freeze(last_frozen="layer2"))
    after = changed(*states)
    assert {name.split(".")[0] for name in after} == {"layer3", "fc"}
    assert "layer3.0.bn1.running_mean" in after


def test_unfrozen_at_an_epoch():
    _, states = fit(Freeze(unfreeze_at_epoch=1), 2)
    assert changed(states[0], states[1]) == {"fc.weight", "fc.bias"}
    assert changed(states[1], states[2]) == set(states[0])


def test_unfrozen_from_the_start():
    _, states = fit(Freeze(unfreeze_at_epoch=0))
    assert changed(*states) == set(states[0])


def test_batchnorm_statistics_stay_frozen_after_a_validation():
    _, states = fit(Freeze(), 2, val_check_interval=1)
    assert changed(states[0], states[2]) == {"fc.weight", "fc.bias"}


def test_the_optimizer_has_every_parameter_from_the_start():
    module, _ = fit(Freeze(unfreeze_at_epoch=5))
    optimized = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.backbone.parameters()}


def test_an_unknown_stage():
    with pytest.raises(UserError, match=r"Freeze\.last_frozen: layer9 ") as error:
        fit(Freeze(last_frozen="layer9"))
    assert "layer1, layer2, layer3" in str(error.value)


def test_a_new_head_is_trained():
    module = ImageClassifier(cifar_resnet(8, num_classes=10))
    trainer(callbacks=[Freeze()], limit_train_batches=1).fit(module, datamodule=Tiny())
    assert {name for name, p in module.backbone.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}


class Token(nn.Module):
    """Like a vision transformer: a parameter that is not in a layer, and a head within a container."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1))
        self.body, self.heads = nn.Linear(192, 5), nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4))

    def forward(self, images: Tensor) -> Tensor:
        return self.heads(self.body(images.flatten(1)) + self.token)


def test_parameters_outside_of_layers_are_frozen_too():
    module = classifier(backbone=Token())
    trainer(callbacks=[Freeze()], limit_train_batches=1).fit(module, datamodule=Tiny())
    assert {name for name, p in module.backbone.named_parameters() if p.requires_grad} == {
        "heads.2.weight", "heads.2.bias",
    }  # fmt: skip


def test_dropout_of_frozen_layers_is_off():
    backbone = torchvision.models.get_model("mobilenet_v3_small")
    module = ImageClassifier(backbone)
    trainer(callbacks=[Freeze(last_frozen="features")], limit_train_batches=1).fit(
        module, datamodule=Tiny(image_size=32)
    )
    assert not any(module.training for module in backbone.features.modules())
    assert backbone.classifier.training


class SaveWithinEpoch(Callback):
    """Saves a checkpoint in the middle of an epoch."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 5:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("unfreeze", [None, 1])
def test_a_run_resumed_within_an_epoch_is_frozen(tmp_path, unfreeze):
    def run(ckpt_path: Any = None) -> ImageClassifier:
        module = classifier()
        callbacks = [Freeze(unfreeze_at_epoch=unfreeze), *([] if ckpt_path else [SaveWithinEpoch(tmp_path / "a.ckpt")])]
        trainer(callbacks=callbacks, max_epochs=2, limit_val_batches=0).fit(
            module, datamodule=Tiny(), ckpt_path=ckpt_path
        )
        return module

    complete = run().state_dict()
    resumed = run(tmp_path / "a.ckpt").state_dict()
    assert changed(complete, resumed) == set()


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": Path(folder, "port").read_text(), "WORLD_SIZE": "2",
        "NODE_RANK": "0", "LOCAL_RANK": str(rank), "RANK": str(rank),
    }  # fmt: skip
    module = classifier(optimizer=optimizer(lr=0.1))
    run = trainer(
        callbacks=[Freeze(unfreeze_at_epoch=1)], max_epochs=2, limit_train_batches=2, limit_val_batches=0,
        strategy="ddp", devices=2,
    )  # fmt: skip
    run.fit(module, datamodule=Tiny())
    torch.save(dict(module.backbone.named_parameters()), f"{folder}/{rank}.pt")


def test_two_processes_have_equal_weights_after_unfreezing(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    mp.start_processes(_train, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    start = dict(build_backbone().named_parameters())
    assert not torch.equal(first["conv1.weight"], start["conv1.weight"])
    assert changed(first, second) == set()
