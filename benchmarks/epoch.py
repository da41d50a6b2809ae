"""An epoch of ResNet-20 on CIFAR: the command line against the classical scripts: python benchmarks/epoch.py"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.profiler import profile
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import v2

from benchmarks.report import alone, arguments, command, report, table, take_turns
from benchmarks.steps import Stopwatch, build, fit, unseen_terminal
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.data import CIFAR10
from resnet_pl.models import cifar_resnet

PROJECT = Path(__file__).parent.parent
BATCH, VAL = 128, 5000
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
CLASSICAL, V2, TIMM = SCRIPTS = "classical script", "torchvision's v2 transforms", "timm's loader"
EAGER, COMPILED, HALF = "`fit`", "`fit --model.compile true`", "`fit --trainer.precision bf16-mixed`"
NOTE = """
Medians of {rounds} rounds in which the sides take turns, each in a process of its own; an epoch is {steps} steps of
{batch} images, computed from those after the first, which is told apart: with its start of workers, or compilation. No
validation. The scripts are a loop of forward, backward and SGD's step with `loss.item()` and accuracy in each, eager,
contiguous, with a DataLoader of 2 workers over torchvision's `CIFAR10`, cropped and mirrored as in the paper by PIL and
ToTensor, or by v2 on uint8 tensors; timm's `create_loader` has its own random crop. `fit` is the command line with
`configs/cifar10.yaml`, in float32 unless told otherwise.
Compiling costs {compiling}
"""


def write_noise(folder: Path, count: int) -> None:
    """An .npz as CIFAR-10's, of random images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, number in (("train", count), ("test", 10)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(number) % 10
    np.savez(folder / "cifar10.npz", **arrays)


def cifar(root: str, transform: Any) -> datasets.CIFAR10:
    """torchvision's data set of the same training images, whatever files they are in here."""
    data = CIFAR10(root=root)
    data.prepare_data()
    data.setup("fit")
    images = data.splits["train"]
    dataset = datasets.CIFAR10.__new__(datasets.CIFAR10)
    datasets.VisionDataset.__init__(dataset, transform=transform)
    dataset.data, dataset.targets = images.images.permute(0, 2, 3, 1).numpy(), images.labels.tolist()
    return dataset


def script_loader(side: str, root: str, workers: int) -> DataLoader | Any:
    """The loader of one of the scripts."""
    shuffled = {"batch_size": BATCH, "shuffle": True, "num_workers": workers, "drop_last": True}
    if side == CLASSICAL:
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        ready = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        return DataLoader(cifar(root, transforms.Compose(augment + ready)), **shuffled)
    if side == V2:
        crop = [v2.PILToTensor(), v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        ready = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        return DataLoader(cifar(root, v2.Compose(crop + ready)), **shuffled)
    from timm.data import create_loader

    size = {"input_size": (3, 32, 32), "batch_size": BATCH, "is_training": True, "num_workers": workers}
    plain = {"color_jitter": None, "use_prefetcher": False, "persistent_workers": False, "mean": MEAN, "std": STD}
    return create_loader(cifar(root, None), **size, **plain)


def script(side: str, root: str, watch: Stopwatch, workers: int) -> None:
    """The loop of a classical script: nothing of ours but net and images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, loader = cifar_resnet(20).to(device), script_loader(side, root, workers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    net.train()
    watch.start(device)
    running, right = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = net(images)
        loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
        right += (logits.argmax(1) == labels).sum().item()
        if watch.tick(device):
            return


def built(folder: str, root: str, *options: str) -> ProjectCLI:
    """`fit` of ResNet-20 on the CIFAR-10 in a folder, for an epoch without validation."""
    fixed = ["--data.root", root, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0"]
    config = ["--config", str(PROJECT / "configs" / "cifar10.yaml")]
    return build(folder, *config, *fixed, "--trainer.devices", "1", *options)


def measured(side: str, root: str, steps: int, workers: int, options: Sequence[str]) -> dict[str, float]:
    """Trains an epoch of so many steps on one side; returns seconds of the first step, and of each later one.

    Args:
        side: name in the table.
        root: folder of CIFAR-10.
        steps: steps of an epoch.
        workers: of the scripts' loaders.
        options: further ones of `fit`.
    """
    watch = Stopwatch(1, steps - 1)
    if side in SCRIPTS:
        script(side, root, watch, workers)
    else:
        with tempfile.TemporaryDirectory() as folder, unseen_terminal():
            fit(built(folder, root, *options, *side.strip("`").split()[1:]), watch)
    return {"first": watch.first, "step": watch.step}


def convolutions(root: str, steps: int, options: Sequence[str]) -> float:
    """Share of the processor's or GPU's time in so many eager steps that convolutions take, forwards and backwards."""
    profiled = profile()
    watch = Stopwatch(1, steps, SimpleNamespace(enable=profiled.start, disable=profiled.stop))
    with tempfile.TemporaryDirectory() as folder, unseen_terminal():
        fit(built(folder, root, *options), watch)
    gpu = torch.cuda.is_available()
    own = {
        event.key: event.self_device_time_total if gpu else event.self_cpu_time_total
        for event in profiled.key_averages()
    }
    steps = {key: each for key, each in own.items() if key.startswith("aten::")}
    return sum(each for key, each in steps.items() if "conv" in key) / sum(steps.values())


def reached(epochs: dict[str, float], share: float) -> dict[str, str | None]:
    """Figures for the table of targets, on a processor."""
    if CLASSICAL not in epochs or torch.cuda.is_available():
        return {}
    speed = {side: epochs[CLASSICAL] / each for side, each in epochs.items()}
    found = {name: f"{speed[side]:.2f}" for name, side in (("epoch", EAGER), ("compiled", COMPILED)) if side in speed}
    if speed.get(COMPILED, 1.5) < 1.5:
        found["compiled"] += f": {share:.0%} of an eager step are convolutions, which it leaves as they are"
    return found


def compiling(first: dict[str, list[float]], epochs: dict[str, float], share: float) -> str:
    """When compilation has paid back, in words."""
    if COMPILED not in first or EAGER not in first:
        return "nothing here: it was not measured."
    cost, gain = first[COMPILED][0] - statistics.median(first[EAGER]), epochs[EAGER] - epochs[COMPILED]
    when = f"paid back in epoch {math.ceil(cost / gain)}" if gain > 0 else "never paid back here"
    left = f"Of an eager step's operations {share:.0%} are convolutions, which it leaves as they are."
    return f"{cost:.0f} s once, {when}. {left}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and tells."""
    argv = sys.argv[1:] if argv is None else argv
    names = {"classical": CLASSICAL, "v2": V2, "timm": TIMM, "fit": EAGER, "compiled": COMPILED, "half": HALF}
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--root", help="folder of CIFAR-10; random images if not given")
    parser.add_argument("--images", type=int, default=45000, help="random images to make, those for validation apart")
    parser.add_argument("--steps", type=int, help="steps that an epoch is computed from, in place of all")
    parser.add_argument("--workers", type=int, default=2, help="processes of the scripts' loaders")
    parser.add_argument("--sides", nargs="+", choices=names, default=list(names), help="what is measured")
    parser.add_argument("--one", type=json.loads, help="one measurement, which is printed as JSON")
    options, more = parser.parse_known_args(argv)
    if options.one:
        print(json.dumps(measured(**options.one)))
        return
    sides = [names[name] for name in options.sides]
    try:
        import timm  # noqa: F401
    except ImportError:
        sides = [side for side in sides if side != TIMM]
    whole = options.images // BATCH
    steps = options.steps or whole
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as made:
        # What was compiled once is not compiled again, unless it was in another folder.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        if options.root is None:
            write_noise(Path(made), options.images + VAL)
        root = options.root or made
        ones = {
            side: {"side": side, "root": root, "steps": steps, "workers": options.workers, "options": more}
            for side in sides
        }
        found = take_turns({side: partial(alone, __file__, one) for side, one in ones.items()}, options.rounds)
        share = convolutions(root, min(5, steps - 1), more) if COMPILED in sides else 0
    epochs = {side: statistics.median(one["step"] for one in each) * whole for side, each in found.items()}
    first = {side: [one["first"] for one in each] for side, each in found.items()}
    base = epochs[sides[0]]
    rows = [
        [side, f"{each:.1f}", f"{whole * BATCH / each:,.0f}", f"{base / each:.2f}", f"{first[side][0]:.1f}"]
        for side, each in epochs.items()
    ]
    head = ["", "seconds an epoch", "images/s", f"times the {sides[0]}'s speed", "first step of the first epoch, s"]
    note = NOTE.format(rounds=options.rounds, steps=whole, batch=BATCH, compiling=compiling(first, epochs, share))
    missing = "" if TIMM in sides or "timm" not in options.sides else "timm is not installed.\n"
    report(
        "Epoch: ResNet-20 on CIFAR",
        command(__file__, argv),
        "\n".join([table(head, rows), note + missing]).rstrip(),
        options.record,
        reached(epochs, share),
    )


if __name__ == "__main__":
    main()
