"""A metric of your own that chooses best.ckpt, lowers the learning rate and ends the run: the mean cost of predictions.

    python cli.py fit --config configs/digits.yaml --config examples/own_metric.yaml --name cost
    python cli.py test --ckpt_path best --name cost

The result is logged as val/cost and test/cost, printed, and written to results.json; `compare` and `sweep` rank by it.
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanCost(Metric):
    """Mean cost of a prediction: 0 if it is correct, otherwise the cost of an error on an image of this class.

    Args:
        num_classes: number of classes; the model passes it.
        costs: cost of an error on an image of each class, in the order of the class names; 1 by default.
    """

    higher_is_better = False

    def __init__(self, num_classes: int, costs: list[float] | None = None) -> None:
        super().__init__()
        costs = costs or [1.0] * num_classes
        if len(costs) != num_classes:
            raise ValueError(f"{len(costs)} costs for {num_classes} classes")
        self.register_buffer("costs", torch.tensor(costs), persistent=False)  # moves to the device of the model
        # Integer counts: their sum over batches and processes is exact.
        self.add_state("errors", torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of probabilities `(N, K)` and labels `(N,)`."""
        wrong = labels[probabilities.argmax(1) != labels]
        self.errors += wrong.bincount(minlength=len(self.errors))
        self.images += len(labels)

    def compute(self) -> Tensor:
        """Returns the mean cost over all images."""
        return (self.errors * self.costs).sum() / self.images
