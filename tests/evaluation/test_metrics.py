"""Every figure of an evaluation against the same figure worked out plainly with NumPy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from resnet_pl.evaluation.metrics import BinnedCalibrationError, ClassificationMetrics, per_class


def outputs(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities and labels of a net that is right about half the time."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = 2 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2
    return logits.softmax(1), labels


def plainly(probabilities: Tensor, labels: Tensor, bins: int = 15) -> dict[str, Any]:
    p, truth = probabilities.double().numpy(), labels.numpy()
    predicted, confidence = p.argmax(1), p.max(1)
    confusion = np.zeros((p.shape[1],) * 2, dtype=np.int64)
    for row, column in zip(truth, predicted, strict=True):
        confusion[row, column] += 1
    error = 0.0
    for low in range(bins):
        inside = (confidence >= low / bins) & (confidence < (low + 1) / bins + (low == bins - 1))
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - (predicted == truth)[inside].mean())
    fifth = np.sort(p, axis=1)[:, -min(5, p.shape[1])]
    return {
        "top1": (predicted == truth).mean(),
        "top5": None if p.shape[1] <= 5 else (p[np.arange(len(p)), truth] >= fifth).mean(),
        "loss": -np.log(p[np.arange(len(p)), truth]).mean(),
        "calibration_error": error,
        "images": len(truth),
        "confusion": confusion,
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert np.array_equal(found["confusion"], expected["confusion"])
    for name in ("top1", "top5", "images"):
        assert found[name] == (None if expected[name] is None else pytest.approx(expected[name], rel=1e-7)), name
    for name in ("loss", "calibration_error"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name


def measured(probabilities: Tensor, labels: Tensor, batch: int) -> ClassificationMetrics:
    evaluation = ClassificationMetrics(probabilities.shape[1])
    for p, y in zip(probabilities.split(batch), labels.split(batch), strict=True):
        evaluation.update(p, y)
    return evaluation


@pytest.mark.parametrize("classes", [2, 5, 6, 40])
@pytest.mark.parametrize("batch", [64, 1000])
def test_every_figure_is_the_plain_one(classes, batch):
    data = outputs(1000, classes)
    assert_same(measured(*data, batch).compute(), plainly(*data))


def test_top5_says_nothing_of_five_classes():
    assert ClassificationMetrics(5).top5 is None
    assert ClassificationMetrics(6).top5 is not None


def test_reset_forgets_everything():
    evaluation = measured(*outputs(100, 8), 10)
    evaluation.reset()
    data = outputs(60, 8, seed=1)
    evaluation.update(*data)
    assert_same(evaluation.compute(), plainly(*data))


def test_memory_does_not_grow_with_the_data():
    def size(evaluation: ClassificationMetrics) -> int:
        states = [getattr(metric, name) for metric in evaluation.children() for name in metric._defaults]
        assert all(isinstance(state, Tensor) for state in states)
        return sum(state.nbytes for state in states)

    assert size(measured(*outputs(10, 7), 10)) == size(measured(*outputs(5000, 7), 10))


def test_long_sums_stay_exact():
    # A float32 sum that single images are added to would stand still at 2**24.
    metric = BinnedCalibrationError()
    metric.count += 2**24
    metric.update(torch.tensor([[0.9, 0.1]] * 4), torch.zeros(4, dtype=torch.long))
    assert metric.count[13] == 2**24 + 4


def test_confidences_at_the_edges():
    certain = BinnedCalibrationError()
    certain.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert certain.compute() == pytest.approx(0.5)
    assert certain.count.tolist() == [0] * 14 + [2]


def test_a_truth_without_any_probability_costs_much_but_not_everything():
    evaluation = measured(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]), 2)
    assert 20 < evaluation.compute()["loss"] < 100


def test_what_is_not_a_number_shows():
    evaluation = measured(torch.tensor([[0.9, 0.1], [math.nan, math.nan]]), torch.tensor([0, 1]), 2)
    assert math.isnan(evaluation.compute()["loss"])


def test_per_class():
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
    assert per_class(confusion, ["a", "b", "c"]) == {
        "a": {"images": 4, "correct": 3, "top1": 0.75},
        "b": {"images": 0, "correct": 0, "top1": None},
        "c": {"images": 2, "correct": 0, "top1": 0.0},
    }


def _share(rank: int, folder: str, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(sizes)
    )
    probabilities, labels = (part.split(sizes)[rank] for part in outputs(sum(sizes), 9))
    torch.save(measured(probabilities, labels, 10).compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_shares_find_what_one_finds(tmp_path: Path):
    mp.start_processes(_share, (str(tmp_path), [70, 31]), nprocs=2, start_method="fork")
    one = measured(*outputs(101, 9), 10).compute()
    for rank in (0, 1):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        both["confusion"], expected = both["confusion"].numpy(), one | {"confusion": one["confusion"].numpy()}
        assert_same(both, expected)
        assert (both["top1"], both["top5"]) == (one["top1"], one["top5"])
