"""Checks heat maps on images whose evidence is known: only the stripes of a patch at a random place show the class.

python benchmarks/heatmaps.py --record
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, SwinTransformer, VisionTransformer

from benchmarks.report import PROJECT, command, fill_block, make_parser, reproducible, table
from resnet_pl import ImageClassifier, cifar_resnet
from resnet_pl.evaluation.features import find_feature_map
from resnet_pl.evaluation.heatmaps import heatmaps

PAGE = PROJECT / "docs" / "understand.md"
SIZE, PATCH = 48, 16  # sides of the images and of the patch, pixels
NOTE = """
Images of noise with {size} × {size} pixels have a patch of {patch} × {patch} pixels at a random place. Its stripes are
horizontal or vertical, which is the class. The last column is the share of the {count} test images that are classified
correctly whose heat map has its maximum on the patch; at random it would be {chance:.0%}. One training each."""


class StripedPatches(NamedTuple):
    """Images whose evidence is known.

    Attributes:
        images: `(N, 3, H, W)` float.
        labels: direction of the stripes, `(N,)`.
        places: top and left of the patch, `(N, 2)`.
        patch: side of the patch, pixels.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    patch: int

    @classmethod
    def make(cls, count: int, size: int, patch: int, seed: int) -> StripedPatches:
        """Returns random images."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(count, 3, size, size, generator=generator) * 0.6
        labels = torch.randint(0, 2, (count,), generator=generator)
        places = torch.randint(0, size - patch + 1, (count, 2), generator=generator)
        stripes = (torch.arange(patch) // 2 % 2).float().expand(patch, patch)
        for image, label, (top, left) in zip(images, labels.tolist(), places.tolist(), strict=True):
            image[:, top : top + patch, left : left + patch] = stripes.T if label else stripes
        return cls(images, labels, places, patch)


def flat_head() -> nn.Module:
    """A network like VGG: several layers after the last feature map, which is not averaged."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU(True), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(64 * (SIZE // 8) ** 2, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 2)]
    return nn.Sequential(nn.Sequential(*layers), nn.Sequential(*head))


# A small network of each kind, its training steps and learning rate.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    "ResNet": (lambda: cifar_resnet(8), 60, 3e-3),
    "DenseNet": (lambda: DenseNet(12, (2, 2), 16), 150, 3e-3),
    "VGG": (flat_head, 150, 3e-3),
    "Swin transformer": (lambda: SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4]), 500, 1e-3),
    "ViT": (lambda: VisionTransformer(SIZE, 4, 3, 4, 64, 128), 500, 1e-3),
}


def train(backbone: nn.Module, steps: int, size: int = SIZE, patch: int = PATCH, lr: float = 3e-3) -> ImageClassifier:
    """Trains a network to classify the direction of the stripes."""
    torch.manual_seed(0)
    model = ImageClassifier(backbone, num_classes=2)
    model.configure_model()
    data = StripedPatches.make(steps * 16, size, patch, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for images, labels in zip(data.images.split(16), data.labels.split(16), strict=True):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def localization(model: ImageClassifier, data: StripedPatches) -> tuple[float, float]:
    """Returns the accuracy, and the share of correct predictions whose heat map has its maximum on the patch."""
    with torch.no_grad():
        correct = model(data.images).argmax(1) == data.labels
    maps = heatmaps(model, data.images, data.labels)
    rows, columns = maps.flatten(1).argmax(1) // maps.shape[2], maps.flatten(1).argmax(1) % maps.shape[2]
    offsets = torch.stack([rows, columns], 1) - data.places
    inside = ((offsets >= 0) & (offsets < data.patch)).all(1)
    return float(correct.float().mean()), float(inside[correct].float().mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=500, help="number of test images")
    options = parser.parse_args(argv)
    data, rows = StripedPatches.make(options.images, SIZE, PATCH, seed=1), []
    for name, (build, steps, lr) in NETWORKS.items():
        model = train(build(), steps, lr=lr)
        accuracy, share = localization(model, data)
        grid = find_feature_map(model, data.images[:1].clone())[1]
        rows.append([name, f"{grid.height} × {grid.width}", f"{accuracy:.1%}", f"{share:.1%}"])
        print(*rows[-1], sep="  ")
    note = NOTE.format(size=SIZE, patch=PATCH, count=options.images, chance=(PATCH / SIZE) ** 2)
    text = reproducible(
        command(__file__, argv), table(["Network", "Map", "Accuracy", "Maximum on the patch"], rows) + "\n" + note
    )
    print(text)
    if options.record:
        fill_block(PAGE, "heatmaps", text)


if __name__ == "__main__":
    main()
