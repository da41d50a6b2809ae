"""MixUp and CutMix."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from resnet_pl.data import BatchTransform, CutMix, MixUp, RandomChoice
from resnet_pl.data.rng import BatchRNG

CLASSES = 10


def mix(
    transform: BatchTransform, batch_idx: int = 0, epoch: int = 0, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mixes constant images: image i has the value i / 10 and class i, so a mixed image shows its weights."""
    transform.fit(SimpleNamespace(classes=list(range(CLASSES))))
    images = (torch.arange(10) / 10)[:, None, None, None].expand(-1, 3, 16, 12)
    labels = torch.arange(10) if labels is None else labels
    return transform(images, labels, BatchRNG(0, epoch, batch_idx, torch.arange(10)))


@pytest.mark.parametrize("kind", [MixUp, CutMix])
@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_labels_match_the_mixed_images(kind: type[CutMix] | type[MixUp], alpha: float) -> None:
    weights = []
    for batch_idx in range(200):
        images, labels = mix(kind(alpha), batch_idx)
        torch.testing.assert_close(labels.sum(1), torch.ones(10))
        assert ((labels > 0).sum(1) <= 2).all()
        # The mean of a mixed image is the weighted mean of its partners' values.
        torch.testing.assert_close(images.mean((1, 2, 3)), labels @ (torch.arange(10) / 10), atol=1e-5, rtol=0)
        weights.append(float(labels[0, 0]))
    assert 0.3 < sum(weights) / 200 < 0.7
    assert min(weights) < 0.3
    assert max(weights) > 0.95


def test_cutmix_pastes_one_box() -> None:
    for batch_idx in range(50):
        images, labels = mix(CutMix(), batch_idx)
        pasted = images[1, 0] == 0
        rows, columns = pasted.any(1), pasted.any(0)
        assert torch.equal(pasted, rows[:, None] & columns[None, :])
        assert float(labels[1, 0]) == pytest.approx(float(pasted.double().mean()), abs=1e-6)


@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_mixing_is_reproducible_and_differs_between_batches(kind: type[CutMix] | type[MixUp]) -> None:
    for first, again in zip(mix(kind(), 3, 2), mix(kind(), 3, 2), strict=True):
        assert torch.equal(first, again)
    weights = {float(mix(kind(), batch_idx, epoch)[1][0, 0]) for batch_idx in range(5) for epoch in range(5)}
    assert len(weights) > 15


def test_probability() -> None:
    mixed = [bool((mix(MixUp(probability=0.25), batch_idx)[1][0, 0] < 1).item()) for batch_idx in range(400)]
    assert sum(mixed) == pytest.approx(100, abs=5 * 8.7)
    images, labels = mix(MixUp(probability=0.0))
    assert torch.equal(labels, torch.eye(10))
    assert torch.equal(images[:, 0, 0, 0], torch.arange(10) / 10)


def test_cutmix_after_mixup() -> None:
    _, labels = mix(CutMix(), labels=mix(MixUp())[1])
    torch.testing.assert_close(labels.sum(1), torch.ones(10))


@pytest.mark.parametrize("values", [{"alpha": 0}, {"alpha": -1.0}, {"alpha": float("nan")}, {"probability": 2}])
def test_invalid_values_are_named(values: dict[str, float]) -> None:
    name = next(iter(values))
    for kind in (MixUp, CutMix):
        with pytest.raises(ValueError, match=f"{kind.__name__}.*{name}"):
            kind(**values)


def test_a_random_choice_mixes_each_batch_in_one_way() -> None:
    kinds = []
    for batch_idx in range(100):
        images, labels = mix(RandomChoice([MixUp(), CutMix()]), batch_idx)
        again, _ = mix(RandomChoice([MixUp(), CutMix()]), batch_idx)
        assert torch.equal(images, again)
        # MixUp blends all pixels of an image, CutMix leaves some as they were.
        if 0.1 < float(labels[0, 0]) < 0.9:
            kinds.append(len(images[1, 0].unique()))
    assert 0.3 < kinds.count(1) / len(kinds) < 0.7 and set(kinds) == {1, 2}


def test_a_random_choice_needs_transforms() -> None:
    with pytest.raises(ValueError, match="transforms is empty"):
        RandomChoice([])
