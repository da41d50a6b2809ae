"""A stored checkpoint gives the same class probabilities as when it was made.

`pinned_checkpoint/` has a small ResNet, trained briefly on the digits, and its probabilities. If a change is meant to
alter them, say so in CHANGELOG.md and make both files again: `python -m tests.test_pinned_probabilities`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet_pl import fit, load_run

PINNED = Path(__file__).parent / "pinned_checkpoint"
OPTIONS = [
    *["--data", "Digits", "--model.backbone", "resnet_pl.models.ResNet", "--model.backbone.layers", "[1]"],
    *["--model.backbone.block", "basic", "--model.backbone.width", "8", "--model.backbone.stem", "cifar"],
    *["--trainer.logger", "false", "--trainer.accelerator", "cpu"],
]


def synthetic(height: int, width: int) -> Tensor:
    """Returns three images `(3, 3, H, W)` uint8 of smooth waves, without random numbers."""
    y, x, c = torch.arange(height)[:, None] / height, torch.arange(width) / width, torch.arange(9).view(3, 3, 1, 1)
    return (127.5 + 127 * torch.sin(6 * (c + 1) * x + 4 * y + c)).to(torch.uint8)


def probabilities() -> dict[str, Any]:
    """Returns what the checkpoint gives for images of the network's size, and of another size."""
    model, data = load_run(PINNED / "model.ckpt")
    with torch.no_grad():
        direct = model(synthetic(data.image_size, data.image_size)).softmax(1)
        tested = model(data.split("test").images[:3]).softmax(1)
    predicted = [each.probabilities.tolist() for each in model.predict(synthetic(40, 33))]
    return {"direct": direct.tolist(), "test images": tested.tolist(), "predict": predicted}


@pytest.mark.parametrize("name", ["direct", "test images", "predict"])
def test_probabilities_are_those_of_the_time_when_the_checkpoint_was_made(name: str) -> None:
    expected = json.loads((PINNED / "probabilities.json").read_text())
    actual = probabilities()
    assert actual.keys() == expected.keys()
    torch.testing.assert_close(torch.tensor(actual[name]), torch.tensor(expected[name]), rtol=0, atol=1e-5)


def test_test_images_are_predicted_as_they_are_tested() -> None:
    model, data = load_run(PINNED / "model.ckpt")
    images = data.split("test").images[:3]
    predicted = torch.stack([each.probabilities for each in model.predict(images)])
    torch.testing.assert_close(predicted, model(images).softmax(1))


if __name__ == "__main__":
    run = fit(OPTIONS, epochs=5, name="pinned")
    checkpoint = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)
    # Only training needs these.
    checkpoint |= {"optimizer_states": [], "lr_schedulers": [], "callbacks": {}, "loops": None}
    PINNED.mkdir(exist_ok=True)
    torch.save(checkpoint, PINNED / "model.ckpt")
    (PINNED / "probabilities.json").write_text(json.dumps(probabilities(), indent=1))
