"""A training script as the PyTorch tutorials write it: python bare.py train DATA WEIGHTS EPOCHS SEED"""

import csv
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_TENSOR = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
CROP, FLIP = transforms.RandomResizedCrop(128, (0.25, 1)), transforms.RandomHorizontalFlip()
TRAIN = transforms.Compose([CROP, FLIP, *TO_TENSOR])
EVAL = transforms.Compose([transforms.Resize(146), transforms.CenterCrop(128), *TO_TENSOR])


def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    correct = 0
    with torch.inference_mode():
        for images, labels in loader:
            correct += (model(images).argmax(1) == labels).sum().item()
    return correct / len(loader.dataset)  # pyright: ignore[reportArgumentType]


def train(data: str, weights: str, epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    train_set = datasets.ImageFolder(f"{data}/train", TRAIN)
    val_set = datasets.ImageFolder(f"{data}/val", EVAL)
    loader = DataLoader(train_set, batch_size=64, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    val_loader = DataLoader(val_set, batch_size=64, num_workers=2, persistent_workers=True)
    model = models.resnet18(num_classes=len(train_set.classes))
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for epoch in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = loss_function(model(images), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, validation {accuracy(model, val_loader):.4f}", flush=True)
    torch.save({"model": model.state_dict(), "classes": train_set.classes}, weights)


class Photos(torch.utils.data.Dataset):
    def __init__(self, folder: str) -> None:
        self.files = sorted(Path(folder).rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return EVAL(datasets.folder.default_loader(str(self.files[index])))


def predict(folder: str, weights: str, output: str) -> None:
    checkpoint = torch.load(weights)
    model = models.resnet18(num_classes=len(checkpoint["classes"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()
    photos = Photos(folder)
    with torch.inference_mode(), Path(output).open("w", newline="") as file:
        indices = torch.cat([model(images).argmax(1) for images in DataLoader(photos, batch_size=64, num_workers=2)])
        for path, index in zip(photos.files, indices.tolist(), strict=True):
            csv.writer(file).writerow([path, checkpoint["classes"][index]])


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(*sys.argv[2:4], *map(int, sys.argv[4:]))  # pyright: ignore[reportArgumentType]
    else:
        predict(*sys.argv[2:])
