"""Every metric of an evaluation agrees with NumPy or scikit-learn."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch import Tensor
from torchmetrics import Metric

from resnet_pl.evaluation.calibration_error import ConfidenceBins, adaptive_error, binned_error
from resnet_pl.evaluation.intervals import bootstrap_intervals
from resnet_pl.evaluation.metrics import (
    MACRO,
    ClassificationMetrics,
    accepted_scores,
    class_scores,
    macro_averages,
    per_class,
)
from resnet_pl.evaluation.score_histogram import ScoreHistogram, auroc, average_precision, best_thresholds


def outputs(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns probabilities and labels of a model with a top-1 of about 0.5."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = 2 * torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2
    return logits.softmax(1), labels


def reference(probabilities: Tensor, labels: Tensor, bins: int = 15) -> dict[str, Any]:
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
    scores = {"average": "macro", "zero_division": 0}
    areas = [roc_auc_score(truth == k, p[:, k]) for k in range(p.shape[1])]
    fifth = np.sort(p, axis=1)[:, -min(5, p.shape[1])]
    return {
        "top1": (predicted == truth).mean(),
        "top5": None if p.shape[1] <= 5 else (p[np.arange(len(p)), truth] >= fifth).mean(),
        "loss": -np.log(p[np.arange(len(p)), truth]).mean(),
        "calibration_error": error,
        "adaptive_calibration_error": adaptive(confidence, predicted == truth),
        "precision_macro": precision_score(truth, predicted, **scores),
        "recall_macro": recall_score(truth, predicted, **scores),
        "f1_macro": f1_score(truth, predicted, **scores),
        "balanced_accuracy": balanced_accuracy_score(truth, predicted),
        "auroc": np.mean(areas),
        "images": len(truth),
        "confusion": confusion,
    }


def adaptive(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """The calibration error with 15 bins of equal numbers of images; an image can be in two bins in part."""
    order = np.argsort(confidence)
    gaps = np.concatenate([[0], np.cumsum((confidence - correct)[order])])
    edges = np.linspace(0, len(order), bins + 1)
    return np.abs(np.diff(np.interp(edges, np.arange(len(order) + 1), gaps))).sum() / len(order)


def assert_same(metrics: dict[str, Any], expected: dict[str, Any]) -> None:
    assert metrics.keys() == {*expected, "reliability", "accepted"}
    assert np.array_equal(metrics["confusion"], expected["confusion"])
    for name in ("top1", "top5", "images"):
        assert metrics[name] == (None if expected[name] is None else pytest.approx(expected[name], rel=1e-7)), name
    for name in ("loss", "calibration_error", *MACRO[:-1]):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    for name in ("auroc", "adaptive_calibration_error"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-3), name


def evaluate(probabilities: Tensor, labels: Tensor, batch: int) -> ClassificationMetrics:
    metrics = ClassificationMetrics(probabilities.shape[1])
    for p, y in zip(probabilities.split(batch), labels.split(batch), strict=True):
        metrics.update(p, y)
    return metrics


@pytest.mark.parametrize("classes", [2, 5, 6, 40])
@pytest.mark.parametrize("batch", [64, 1000])
def test_every_metric_agrees_with_numpy(classes, batch):
    data = outputs(1000, classes)
    assert_same(evaluate(*data, batch).compute(), reference(*data))


def test_no_top5_for_five_classes():
    assert ClassificationMetrics(5).top5 is None
    assert ClassificationMetrics(6).top5 is not None


def test_reset():
    metrics = evaluate(*outputs(100, 8), 10)
    metrics.reset()
    data = outputs(60, 8, seed=1)
    metrics.update(*data)
    assert_same(metrics.compute(), reference(*data))


def test_memory_does_not_grow_with_the_dataset():
    def size(metrics: ClassificationMetrics) -> int:
        states = [
            state
            for metric in metrics.children()
            if isinstance(metric, Metric)
            for state in metric.metric_state.values()
        ]
        assert all(isinstance(state, Tensor) for state in states)
        return sum(state.nbytes for state in states)

    assert size(evaluate(*outputs(10, 7), 10)) == size(evaluate(*outputs(5000, 7), 10))


def test_sums_of_many_images_are_exact():
    # A float32 sum stays at 2**24 if ones are added to it.
    metric = ConfidenceBins()
    metric.equal_width[0] += 2**24
    metric.update(torch.tensor([[0.9, 0.1]] * 4), torch.zeros(4, dtype=torch.long))
    assert metric.equal_width[0, 13] == 2**24 + 4


def test_confidences_of_zero_and_one():
    # torchmetrics 1.9 puts a confidence of exactly 1 into a bin of its own (its issue 3510).
    certain = ConfidenceBins()
    certain.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.95, 0.05]]), torch.tensor([0, 0, 0]))
    equal_width, fine = certain.compute()
    assert equal_width[0].tolist() == [0] * 14 + [3]
    assert binned_error(equal_width) == pytest.approx(2.95 / 3 - 2 / 3)
    # Five bins for each of the three images. Two of them have the same confidence and share ten bins.
    assert adaptive_error(fine) == pytest.approx((0.05 + 2 * 0.5) / 3)


def test_the_loss_of_a_label_with_probability_zero_is_finite():
    metrics = evaluate(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]), 2)
    assert 20 < metrics.compute()["loss"] < 100


def test_nan_is_reported():
    metrics = evaluate(torch.tensor([[0.9, 0.1], [math.nan, math.nan]]), torch.tensor([0, 1]), 2)
    assert math.isnan(metrics.compute()["loss"])


def test_per_class():
    confusion = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
    rows = per_class(confusion, ["a", "b", "c"])
    first = {"images": 4, "correct": 3, "top1": 0.75, "precision": 0.6, "recall": 0.75, "f1": pytest.approx(2 / 3)}
    assert {key: rows["a"][key] for key in first} == first
    assert rows["b"] | {"precision_interval": None} == {
        **{"images": 0, "correct": 0, "top1": None, "precision": 0.0, "recall": None, "f1": 0.0},
        **{"precision_interval": None, "recall_interval": None, "f1_interval": rows["b"]["f1_interval"]},
    }
    assert (rows["c"]["recall"], rows["c"]["precision"], rows["c"]["f1"]) == (0.0, None, 0.0)


def test_macro_averages_of_classes_without_images_or_predictions_are_those_of_scikit_learn():
    truth, predicted = [0, 0, 0, 0, 2, 2], [0, 0, 0, 1, 0, 0]
    found = macro_averages(torch.tensor([[3, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]))
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert found[f"{name}_macro"] == pytest.approx(score(truth, predicted, average="macro", zero_division=0)), name
    assert found["balanced_accuracy"] == 0.375  # scikit-learn warns about the class without images


def test_intervals_are_those_of_wilson():
    # 95 % interval of 81 of 263 (Newcombe, 1998, Table I).
    scores = class_scores(81, 263, 81)
    assert scores["recall_interval"] == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert scores["precision"] == 1.0 and scores["precision_interval"][1] == 1.0
    share = 81 / 263
    assert scores["f1"] == pytest.approx(2 * share / (1 + share))
    assert scores["f1_interval"] == pytest.approx([2 * 0.2553 / 1.2553, 2 * 0.3662 / 1.3662], abs=1e-4)


def test_accepted_predictions() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.3, 0.7]])
    metrics = ClassificationMetrics(2)
    metrics.accepted.threshold = float(probabilities[1, 0])  # as `set_calibration` does
    metrics.update(probabilities, torch.tensor([0, 1, 0, 1]))
    found = accepted_scores(*metrics.compute()["accepted"].tolist(), 4)
    assert (found["images"], found["correct"], found["coverage"], found["precision"]) == (2, 1, 0.5, 0.5)
    assert found["coverage_interval"] == pytest.approx([0.15, 0.85], abs=0.005)
    assert accepted_scores(0, 0, 4)["precision"] is None


@pytest.mark.parametrize("scale", [0.1, 3, 30])
def test_score_histograms_agree_with_scikit_learn(scale):
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(1500, 4, generator=generator) < torch.tensor([0.02, 0.2, 0.5, 0.98])
    probabilities = (scale * (torch.randn(1500, 4, generator=generator) + present - 1)).sigmoid()
    metric = ScoreHistogram(4)
    for p, y in zip(probabilities.split(64), present.split(64), strict=True):
        metric.update(p, y)
    counts = metric.compute()
    areas = roc_auc_score(present, probabilities, average=None)
    assert auroc(counts).numpy() == pytest.approx(areas, abs=1e-3)
    precisions = average_precision_score(present, probabilities, average=None)
    assert float(average_precision(counts).mean()) == pytest.approx(precisions.mean(), abs=1e-3)
    thresholds = best_thresholds(counts)
    for k in range(4):
        precision, recall, _ = precision_recall_curve(present[:, k], probabilities[:, k])
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()
        assert f1_score(present[:, k], probabilities[:, k] >= thresholds[k]) == pytest.approx(best, abs=0.005)


def test_areas_of_nearly_equal_probabilities():
    # An early epoch: the log-odds of all images differ by less than 0.2.
    present = torch.arange(12)[:, None] % 3 == 0
    probabilities = (-0.2 + 0.2 * torch.rand(12, 1, generator=torch.Generator().manual_seed(0))).sigmoid()
    metric = ScoreHistogram(1)
    metric.update(probabilities, present)
    assert float(auroc(metric.compute())) == pytest.approx(roc_auc_score(present, probabilities))
    assert float(average_precision(metric.compute())) == pytest.approx(average_precision_score(present, probabilities))


def test_a_threshold_is_in_the_middle_of_the_gap_between_two_groups():
    metric = ScoreHistogram(2)
    metric.update(torch.tensor([[0.9, 0.9], [0.1, 0.1]]), torch.tensor([[True, False], [False, False]]))
    assert best_thresholds(metric.compute()).tolist() == pytest.approx([0.5, 0.5], abs=0.02)


def _evaluate_in_process(rank: int, folder: str, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(sizes)
    )
    probabilities, labels = (part.split(sizes)[rank] for part in outputs(sum(sizes), 9))
    torch.save(evaluate(probabilities, labels, 10).compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_shards_agree_with_one(tmp_path: Path):
    mp.start_processes(_evaluate_in_process, (str(tmp_path), [70, 31]), nprocs=2, start_method="fork")
    one = evaluate(*outputs(101, 9), 10).compute()
    for rank in (0, 1):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        both["confusion"], expected = both["confusion"].numpy(), one | {"confusion": one["confusion"].numpy()}
        assert_same(both, expected)
        assert (both["top1"], both["top5"]) == (one["top1"], one["top5"])


def test_bootstrap_intervals_are_those_of_drawn_images() -> None:
    confusion = torch.tensor([[30, 5, 0], [2, 20, 3], [0, 4, 16]])
    cells = np.repeat(np.arange(9), confusion.flatten())  # of each image
    rng, drawn = np.random.default_rng(1), []
    for _ in range(1000):
        counts = np.bincount(rng.choice(cells, size=len(cells)), minlength=9)
        drawn.append(macro_averages(torch.from_numpy(counts).view(3, 3)))
    for name, found in bootstrap_intervals(confusion).items():
        expected = np.quantile([each[name] for each in drawn], [0.025, 0.975])
        np.testing.assert_allclose(found, expected, atol=0.02)
