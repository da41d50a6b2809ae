"""An epoch of ResNet-20 on CIFAR-10: `fit` compared with conventional scripts: python benchmarks/epoch.py"""

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

from benchmarks.report import command, make_parser, report, run_in_subprocess, run_interleaved, table
from benchmarks.steps import Stopwatch, build_fit, hidden_terminal, run_fit
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.data import CIFAR10
from resnet_pl.models import cifar_resnet

PROJECT = Path(__file__).parent.parent
BATCH, VAL = 128, 5000
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
CONVENTIONAL, V2, TIMM = SCRIPTS = (
    "conventional script",
    "script with torchvision v2 transforms",
    "script with timm's loader",
)
EAGER, COMPILED, HALF = "`fit`", "`fit --model.compile true`", "`fit --trainer.precision bf16-mixed`"
NOTE = """
Medians of {rounds} interleaved rounds, each measurement in its own process. An epoch is {steps} steps of {batch}
images; its time is computed from the steps after the first, which is reported separately because it includes worker
start-up or compilation. No validation. The scripts are a loop of forward pass, backward pass and SGD step, with
`loss.item()` and accuracy in each step, eager, in the default memory format, with a DataLoader of 2 workers over
torchvision's `CIFAR10`. Images are cropped and flipped as in the paper, by PIL and ToTensor, or by v2 transforms on
uint8 tensors; timm's `create_loader` has its own random crop. `fit` is the command line with `configs/cifar10.yaml`, in
float32 unless another precision is given.

{compilation}
"""


def write_noise(folder: Path, count: int) -> None:
    """Writes an .npz file in the format of `CIFAR10`, with random images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, number in (("train", count), ("test", 10)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(number) % 10
    np.savez(folder / "cifar10.npz", **arrays)


def cifar(root: str, transform: Any) -> datasets.CIFAR10:
    """Returns torchvision's data set with the training images that `fit` uses, whichever files they are read from."""
    data = CIFAR10(root=root)
    data.prepare_data()
    data.setup("fit")
    images = data.splits["train"]
    dataset = datasets.CIFAR10.__new__(datasets.CIFAR10)
    datasets.VisionDataset.__init__(dataset, transform=transform)
    dataset.data, dataset.targets = images.images.permute(0, 2, 3, 1).numpy(), images.labels.tolist()
    return dataset


def script_loader(variant: str, root: str, workers: int) -> DataLoader | Any:
    """Returns the data loader of one of the scripts."""
    options = {"batch_size": BATCH, "shuffle": True, "num_workers": workers, "drop_last": True}
    if variant == CONVENTIONAL:
        augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        ready = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        return DataLoader(cifar(root, transforms.Compose(augment + ready)), **options)
    if variant == V2:
        crop = [v2.PILToTensor(), v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
        ready = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        return DataLoader(cifar(root, v2.Compose(crop + ready)), **options)
    from timm.data import create_loader

    size = {"input_size": (3, 32, 32), "batch_size": BATCH, "is_training": True, "num_workers": workers}
    plain = {"color_jitter": None, "use_prefetcher": False, "persistent_workers": False, "mean": MEAN, "std": STD}
    return create_loader(cifar(root, None), **size, **plain)


def run_script(variant: str, root: str, watch: Stopwatch, workers: int) -> None:
    """Trains as a conventional script does; only the model and the images are from this package."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, loader = cifar_resnet(20).to(device), script_loader(variant, root, workers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    model.train()
    watch.start(device)
    running_loss, correct = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        correct += (logits.argmax(1) == labels).sum().item()
        if watch.tick(device):
            return


def build_epoch(folder: str, root: str, *options: str) -> ProjectCLI:
    """Sets up `fit` of ResNet-20 on the CIFAR-10 in `root`, for one epoch without validation."""
    fixed = ["--data.root", root, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0"]
    config = ["--config", str(PROJECT / "configs" / "cifar10.yaml")]
    return build_fit(folder, *config, *fixed, "--trainer.devices", "1", *options)


def measure(variant: str, root: str, steps: int, workers: int, options: Sequence[str]) -> dict[str, float]:
    """Trains one epoch with one of the variants.

    Args:
        variant: name in the table.
        root: folder of CIFAR-10.
        steps: steps of the epoch.
        workers: workers of the scripts' data loaders.
        options: further options of `fit`.

    Returns:
        `first`: time of the first step, seconds; `step`: mean time of the other steps, seconds.
    """
    watch = Stopwatch(1, steps - 1)
    if variant in SCRIPTS:
        run_script(variant, root, watch, workers)
    else:
        with tempfile.TemporaryDirectory() as folder, hidden_terminal():
            run_fit(build_epoch(folder, root, *options, *variant.strip("`").split()[1:]), watch)
    return {"first": watch.first, "step": watch.step}


def convolution_fraction(root: str, steps: int, options: Sequence[str]) -> float:
    """Profiles `steps` eager steps; returns the fraction of CPU or GPU time in convolutions, forward and backward."""
    profiled = profile()
    watch = Stopwatch(1, steps, SimpleNamespace(enable=profiled.start, disable=profiled.stop))
    with tempfile.TemporaryDirectory() as folder, hidden_terminal():
        run_fit(build_epoch(folder, root, *options), watch)
    gpu = torch.cuda.is_available()
    times = {
        event.key: event.self_device_time_total if gpu else event.self_cpu_time_total
        for event in profiled.key_averages()
        if event.key.startswith("aten::")
    }
    return sum(each for key, each in times.items() if "conv" in key) / sum(times.values())


def target_figures(epochs: dict[str, float], fraction: float) -> dict[str, str]:
    """Figures for the table of targets, whose targets are for a CPU.

    Args:
        epochs: seconds per epoch of each variant.
        fraction: fraction of the time of an eager step in convolutions.
    """
    if CONVENTIONAL not in epochs or torch.cuda.is_available():
        return {}
    speed_up = {variant: epochs[CONVENTIONAL] / each for variant, each in epochs.items()}
    rows = (("epoch", EAGER), ("compiled", COMPILED))
    figures = {name: f"{speed_up[variant]:.2f}" for name, variant in rows if variant in speed_up}
    if speed_up.get(COMPILED, 1.5) < 1.5:
        figures["compiled"] += f": {describe_convolutions(fraction)}"
    return figures


def describe_compilation(first: dict[str, list[float]], epochs: dict[str, float], fraction: float) -> str:
    """Describes what compilation costs, and after which epoch it has paid off.

    Args:
        first: seconds of the first step of each variant, in each round.
        epochs: seconds per epoch of each variant.
        fraction: fraction of the time of an eager step in convolutions.
    """
    if COMPILED not in first or EAGER not in first:
        return "Compilation was not measured."
    cost, gain = first[COMPILED][0] - statistics.median(first[EAGER]), epochs[EAGER] - epochs[COMPILED]
    when = f"it pays off in epoch {math.ceil(cost / gain)}" if gain > 0 else "it does not pay off here"
    return f"Compilation takes {cost:.0f} s once; {when}. {describe_convolutions(fraction)}."


def describe_convolutions(fraction: float) -> str:
    """Describes what limits the gain of compilation."""
    return (
        f"{fraction:.0%} of an eager step's operator time is in convolutions, which `torch.compile` does not speed up"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    names = {"conventional": CONVENTIONAL, "v2": V2, "timm": TIMM, "fit": EAGER, "compiled": COMPILED, "half": HALF}
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--root", help="folder of CIFAR-10; random images if not given")
    parser.add_argument("--images", type=int, default=45000, help="random training images; validation images are added")
    parser.add_argument("--steps", type=int, help="measured steps; by default the entire epoch")
    parser.add_argument("--workers", type=int, default=2, help="workers of the scripts' data loaders")
    parser.add_argument("--variants", "--sides", nargs="+", choices=names, default=list(names), help="rows to measure")
    parser.add_argument("--one", type=json.loads, help="a single measurement, printed as JSON")
    options, more = parser.parse_known_args(argv)
    if options.one:
        print(json.dumps(measure(**options.one)))
        return
    variants = [names[name] for name in options.variants]
    try:
        import timm  # noqa: F401
    except ImportError:
        variants = [variant for variant in variants if variant != TIMM]
    epoch_steps = options.images // BATCH
    steps = options.steps or epoch_steps
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as noise:
        # An empty folder: otherwise the compiled code of an earlier run would be reused.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        if options.root is None:
            write_noise(Path(noise), options.images + VAL)
        root = options.root or noise
        common = {"root": root, "steps": steps, "workers": options.workers, "options": more}
        calls = {each: partial(run_in_subprocess, __file__, {"variant": each, **common}) for each in variants}
        results = run_interleaved(calls, options.rounds)
        fraction = convolution_fraction(root, min(5, steps - 1), more) if COMPILED in variants else 0
    epochs = {name: statistics.median(one["step"] for one in each) * epoch_steps for name, each in results.items()}
    first = {name: [one["first"] for one in each] for name, each in results.items()}
    base = epochs[variants[0]]
    rows = [
        [name, f"{each:.1f}", f"{epoch_steps * BATCH / each:,.0f}", f"{base / each:.2f}", f"{first[name][0]:.1f}"]
        for name, each in epochs.items()
    ]
    head = ["Variant", "Seconds per epoch", "Images/s", f"Speed-up over the {variants[0]}", "First step (s)"]
    compilation = describe_compilation(first, epochs, fraction)
    note = NOTE.format(rounds=options.rounds, steps=epoch_steps, batch=BATCH, compilation=compilation)
    missing = "" if TIMM in variants or "timm" not in options.variants else "timm is not installed.\n"
    report(
        "Epoch: ResNet-20 on CIFAR-10",
        command(__file__, argv),
        "\n".join([table(head, rows), note + missing]).rstrip(),
        options.record,
        target_figures(epochs, fraction),
    )


if __name__ == "__main__":
    main()
