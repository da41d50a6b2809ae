"""Knowledge distillation (Hinton et al., arXiv:1503.02531): a small network learns from a larger one.

    python cli.py fit --config configs/cifar10.yaml --name teacher
    python cli.py fit --config configs/cifar10.yaml --model examples.distillation.Distilled \\
        --model.teacher runs/teacher/version_0 --model.backbone.depth 8 --name student
    python cli.py test --ckpt_path best --name student

Both have the same classes. The teacher sees the augmented images of the student. What it gives: docs/recipes.md
"""

from typing import Any

import torch
from torch import Tensor, nn

from resnet_pl import ImageClassifier, load_model


class Distilled(ImageClassifier):
    """Learns the labels and the class probabilities of a teacher.

    Args:
        teacher: run folder or checkpoint of the teacher.
        temperature: what the logits of both are divided by before the softmax.
        teacher_weight: weight of the teacher in the loss, from 0 to 1; the labels have the rest.
    """

    def __init__(
        self, backbone: nn.Module, teacher: str, temperature: float = 4.0, teacher_weight: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.teacher_path, self.softmax_temperature, self.teacher_weight = teacher, temperature, teacher_weight
        # In a list, so that it is neither trained nor part of this model's checkpoints.
        self.teacher: list[ImageClassifier] = []

    def on_fit_start(self) -> None:
        super().on_fit_start()
        teacher = load_model(self.teacher_path)  # in evaluation mode
        if teacher.class_names != self.class_names:
            raise ValueError(f"the teacher {self.teacher_path} has other classes than the data")
        self.teacher = [teacher.to(self.device)]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        batch = self.as_batch(batch, batch_idx)
        logits = self(batch.images)
        with torch.no_grad():
            target = (self.teacher[0](batch.images) / self.softmax_temperature).softmax(1)
        soft = nn.functional.cross_entropy(logits / self.softmax_temperature, target) * self.softmax_temperature**2
        loss = (1 - self.teacher_weight) * self.criterion(logits, batch.labels) + self.teacher_weight * soft
        return {"loss": loss, "logits": logits.detach()}
