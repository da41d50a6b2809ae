"""The example of knowledge distillation, with small runs on the digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_pl import load_run
from resnet_pl.data.batch import Batch
from tests.cli.commands import SMALL, failed, run

STUDENT = ["fit", *SMALL, "--model", "examples.distillation.Distilled"]


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    """The last weights of a run."""
    return torch.load(Path(folder) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with other initial weights."""
    root = tmp_path_factory.mktemp("runs")
    run("fit", *SMALL, "--seed_everything", 1, "--name", "teacher", "--trainer.default_root_dir", root)
    return root / "teacher" / "version_0"


def test_a_student_resumes_exactly_and_does_not_store_its_teacher(teacher: Path) -> None:
    student = [*STUDENT, "--model.teacher", teacher]
    run(*student, "--name", "whole")
    run(*student, "--name", "resumed", "--trainer.max_steps", 3)
    run("fit", "--ckpt_path", "runs/resumed/version_0", "--trainer.max_steps", -1)
    whole, stored = state("runs/whole/version_0"), state(teacher)
    assert same(whole, state("runs/resumed/version_0"))
    assert whole.keys() == stored.keys() and not same(whole, stored)
    run("test", "--ckpt_path", "best", "--name", "whole")


def test_the_loss_is_that_of_the_labels_and_of_the_teacher(teacher: Path) -> None:
    from examples.distillation import Distilled

    model, data = load_run(teacher)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student = Distilled(model.backbone, str(teacher), 2.0, 0.25, class_names=model.class_names)
    student.metrics, student.normalize = model.metrics, model.normalize
    student.on_fit_start()
    images, labels = data.split("test").images[:8] / 255, torch.arange(8)
    loss = student.training_step(Batch.of((images, labels), 0), 0)["loss"]
    # The student has the weights of the teacher: the cross-entropy with its probabilities is their entropy.
    softened = (model(images) / 2).softmax(1)
    expected = 0.75 * torch.nn.functional.cross_entropy(model(images), labels)
    expected += 0.25 * 4 * -(softened * softened.log()).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert same(before, student.teacher[0].state_dict()) and not student.teacher[0].training


def test_a_teacher_of_other_classes_is_refused(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failed(capsys, 1, *STUDENT, "--model.teacher", teacher, "--data", "tests.own.PlainData")
    assert "has other classes than the data" in message
