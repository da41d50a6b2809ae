"""Compiled training: the same losses and state dict keys, one compilation, and uncompiled evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from resnet_pl.callbacks import Freeze
from resnet_pl.classifier import ImageClassifier
from resnet_pl.models.resnet import ResNet
from tests.tiny import Tiny, classifier, optimizer, trainer


class CountingBackend:
    """A `torch.compile` backend that runs the graph with torch's operations, without other rounding; counts graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> CountingBackend:
    """Replaces Inductor, which takes a minute."""
    counting_backend, compile_ = CountingBackend(), torch.compile
    torch.compiler.reset()
    monkeypatch.setattr(
        torch, "compile", lambda call, **kwargs: compile_(call, **kwargs | {"backend": counting_backend})
    )
    return counting_backend


class Losses(Callback):
    """Records the loss of every training batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


class Small(nn.Module):
    """Convolution, BatchNorm and head; fast to trace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.bn(self.conv(images)).relu().mean((2, 3)))


class HeadOnly(nn.Sequential):
    """A linear classifier."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(192, 4))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


def fitted(
    compile: bool, *callbacks: Callback, model_class: type[nn.Module] = Small, **kwargs: Any
) -> tuple[list[float], ImageClassifier, Trainer]:
    """Trains two epochs of four batches with validation (smaller last batch); returns losses, model and trainer."""
    torch.manual_seed(0)
    losses = Losses()
    module = ImageClassifier(model_class(), optimizer=optimizer(lr=0.05, momentum=0.9), compile=compile)
    run = trainer(max_epochs=2, callbacks=[losses, *callbacks], **kwargs)
    run.fit(module, datamodule=Tiny(eval_batch_size=7))
    return losses.values, module, run


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_losses_weights_and_keys_do_not_change_and_it_compiles_once(backend: CountingBackend) -> None:
    eager_losses, eager, _ = fitted(compile=False)
    assert backend.graphs == 0
    losses, module, _ = fitted(compile=True)
    assert losses == eager_losses
    assert len(losses) == 8
    assert equal_states(module, eager)
    assert backend.graphs == 1


def checkpointed() -> nn.Module:
    return ResNet("basic", [1, 1], num_classes=4, stem="cifar", width=4, checkpoint_activations=True)


@pytest.mark.parametrize("model_class", [Small, checkpointed])
def test_backward_graphs_give_the_same_losses(model_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    eager_losses, eager, _ = fitted(compile=False, model_class=model_class)
    compile_ = torch.compile
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda call, **kwargs: compile_(call, **kwargs | {"backend": "aot_eager"}))
    losses, module, _ = fitted(compile=True, model_class=model_class)
    assert losses == pytest.approx(eager_losses, rel=1e-4)
    for key, value in eager.state_dict().items():
        assert torch.allclose(module.state_dict()[key].float(), value.float(), rtol=1e-3, atol=1e-5), key


def test_evaluation_and_other_shapes_are_not_compiled(backend: CountingBackend) -> None:
    _, module, run = fitted(compile=True)
    assert backend.graphs == 1
    shape = run.datamodule.batch_shape
    for other in ((shape[0] - 1, *shape[1:]), (*shape[:2], 9, 9)):
        module.train()(torch.rand(other))
    with torch.no_grad():
        module.eval()(torch.rand(shape))
    assert backend.graphs == 1


def test_a_second_fit_does_not_compile_again(backend: CountingBackend) -> None:
    _, module, _ = fitted(compile=True)
    trainer().fit(module, datamodule=Tiny())
    assert backend.graphs == 1


def test_unfreezing_layers(backend: CountingBackend) -> None:
    eager_losses, eager, _ = fitted(False, Freeze(last_frozen="bn", unfreeze_at_epoch=1))
    losses, module, _ = fitted(True, Freeze(last_frozen="bn", unfreeze_at_epoch=1))
    assert losses == eager_losses
    assert equal_states(module, eager)
    assert backend.graphs == 2  # frozen and unfrozen


def test_averaged_weights(backend: CountingBackend) -> None:
    eager_losses, eager, _ = fitted(False, EMAWeightAveraging(decay=0.5))
    losses, module, _ = fitted(True, EMAWeightAveraging(decay=0.5))
    assert losses == eager_losses
    assert equal_states(module, eager)
    assert backend.graphs == 1


def test_a_second_model_in_the_process_is_compiled_too(backend: CountingBackend) -> None:
    fitted(compile=True)
    fitted(compile=True, model_class=HeadOnly)
    assert backend.graphs == 2
    torch.compile(lambda x: x.sin() + 1)(torch.rand(3))
    assert backend.graphs == 3  # torch's global state is unchanged


def test_a_resume_at_the_last_batch_of_an_epoch_stays_compiled(backend: CountingBackend, tmp_path: Any) -> None:
    class SaveThree(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "three.ckpt")

    fitted(False, SaveThree())
    losses, module = Losses(), ImageClassifier(Small(), optimizer=optimizer(lr=0.05, momentum=0.9), compile=True)
    trainer(max_epochs=2, callbacks=[losses]).fit(module, datamodule=Tiny(), ckpt_path=tmp_path / "three.ckpt")
    assert len(losses.values) == 5
    assert backend.graphs == 1


def test_a_checkpoint_resumes_with_and_without_compilation(backend: CountingBackend, tmp_path: Any) -> None:
    *_, run = fitted(compile=True)
    run.save_checkpoint(tmp_path / "two.ckpt")
    after = []
    for compile in (False, True):
        losses = Losses()
        module = ImageClassifier(Small(), optimizer=optimizer(lr=0.05, momentum=0.9), compile=compile)
        trainer(max_epochs=3, callbacks=[losses]).fit(module, datamodule=Tiny(), ckpt_path=tmp_path / "two.ckpt")
        after.append(losses.values)
    assert after[0] == after[1]
    assert len(after[0]) == 4


def test_compilation_is_off_by_default(backend: CountingBackend) -> None:
    module = classifier()
    trainer(limit_train_batches=1).fit(module, datamodule=Tiny())
    assert backend.graphs == 0
