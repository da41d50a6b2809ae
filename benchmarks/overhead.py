"""Overhead of `fit` per step over a plain PyTorch loop with the same data loader: python benchmarks/overhead.py"""

from __future__ import annotations

import cProfile
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from benchmarks.report import command, make_parser, report, run_in_subprocess, run_interleaved, table
from benchmarks.steps import Stopwatch, build_fit, hidden_terminal, run_fit, run_plain_loop, setup_without_trainer
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.data import ImageDataModule

CIFAR, LINEAR = "ResNet-20, CIFAR, batch 128", "a linear layer, 8 px, batch 8"
COLD = "a linear layer, cold caches"
# Options of fit, warm-up steps and timed steps.
MODELS: dict[str, tuple[list[str], int, int]] = {
    CIFAR: (
        "--model.backbone cifar_resnet --data.augment true --data.image_size 32 --data.batch_size 128".split(),
        2,
        30,
    ),
    "ResNet-18, 128 px, batch 32": (
        "--model.backbone resnet18 --data.image_size 128 --data.batch_size 32".split(),
        1,
        10,
    ),
    COLD: (
        "--model.backbone benchmarks.steps.CacheEvictingModel --data.image_size 8 --data.batch_size 8".split(),
        30,
        300,
    ),
    LINEAR: (
        "--model.backbone benchmarks.steps.LinearModel --data.image_size 8 --data.batch_size 8".split(),
        100,
        1000,
    ),
}
LOOP, OFF, FULL, TYPICAL = (
    "plain PyTorch loop",
    "`fit`, everything off",
    "`fit`, command line",
    "`fit`, typical LightningModule",
)
NOTE = """
Medians of {rounds} interleaved rounds, each measurement in its own process; ratios and differences are computed per
round, and their median is given, with minimum and maximum in parentheses. All variants have the same model, data
loader, batch transforms and normalization. Validation and checkpoints are at the ends of epochs, outside the timed
steps; one of the timed steps is always logged.

*Everything off* is a Trainer without progress bar, logger and checkpoints, and with the module's own callbacks only,
which sum up loss and top-1 and stop at NaN. *Command line* has all defaults: progress bar, TensorBoard, metrics.csv,
checkpoints, dashboard, graceful stop at a signal, loss, top-1. *Typical LightningModule* calls `self.log` for loss and
accuracy in every step, with progress bar, TensorBoard and checkpoints. *Cold caches* writes 128 MiB in each step, so
that the next step finds the CPU's caches empty, as a step of a large network does.
"""


class TypicalModule(LightningModule):
    """A classifier as in most tutorials, which logs everything in every step.

    Args:
        cli: a `fit` that is set up; its model and optimizer are used.
    """

    def __init__(self, cli: ProjectCLI) -> None:
        super().__init__()
        self.model, self.accuracy = cli.model, MulticlassAccuracy(10, average="micro")

    @override
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Returns the loss of a batch, and logs it with the accuracy."""
        logits = self.model(batch.images)
        loss = cross_entropy(logits, batch.labels)
        self.log("loss", loss, prog_bar=True)
        self.accuracy(logits, batch.labels)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.model.optimizer(list(self.model.parameters()))


def build(model: str, folder: str, steps: int) -> ProjectCLI:
    """Sets up `fit` of one of `MODELS` for a number of steps, on the CPU or the first GPU."""
    options = MODELS[model][0]
    images = steps * int(options[options.index("--data.batch_size") + 1])
    # At least one of the timed steps is logged.
    logged = ["--trainer.log_every_n_steps", str(min(50, steps))]
    data = ["--data", "benchmarks.steps.Noise", "--data.count", str(images)]
    return build_fit(folder, *data, *options, *logged, "--trainer.devices", "1")


def fit_with_trainer(model: LightningModule, data: ImageDataModule, watch: Stopwatch, **kwargs: Any) -> Stopwatch:
    """Trains with a Trainer that is created in Python."""
    settings = {
        "devices": 1,
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    Trainer(max_epochs=1, callbacks=[watch], **settings | kwargs).fit(model, datamodule=data)
    return watch


def step_seconds(variant: str, model: str, skip: int, steps: int, profile: cProfile.Profile | None = None) -> float:
    """Measures the mean time of a step.

    Args:
        variant: how the model is trained.
        model: one of `MODELS`.
        skip: warm-up steps.
        steps: timed steps.
        profile: records the timed steps.
    """
    watch = Stopwatch(skip, steps, profile)
    with tempfile.TemporaryDirectory() as folder, hidden_terminal():
        cli = build(model, folder, skip + steps)
        if variant == FULL:
            return run_fit(cli, watch).step
        if variant == OFF:
            off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            return fit_with_trainer(cli.model, cli.datamodule, watch, **off, enable_autolog_hparams=False).step
        setup_without_trainer(cli)
        if variant == LOOP:
            return run_plain_loop(cli.model, cli.datamodule, watch).step
        return fit_with_trainer(TypicalModule(cli), cli.datamodule, watch, default_root_dir=folder).step


def time_by_file(profile: cProfile.Profile, steps: int) -> list[tuple[str, float]]:
    """Returns files and their own time per step in microseconds, longest first; C code counts for the calling file."""
    profile.create_stats()
    total: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, callers) in profile.stats.items():
        if not file.startswith("~"):
            total[_short(file)] += own
            continue
        for (caller, _, _), counts in callers.items():
            total[_short(caller)] += counts[2]
    return [(file, seconds / steps * 1e6) for file, seconds in total.most_common()]


def _short(file: str) -> str:
    path = Path(file)
    names = ("site-packages", Path(__file__).parent.parent.name)
    start = max((number for number, part in enumerate(path.parts) if part in names), default=-1)
    return "/".join(path.parts[start + 1 :][-4:])


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__, rounds=7)
    positions = list(range(len(MODELS)))
    listed = "; ".join(f"{number} {name}" for number, name in enumerate(MODELS))
    parser.add_argument("--models", "--nets", type=int, nargs="+", default=positions, help=listed)
    parser.add_argument("--steps", type=int, help="timed steps per round, instead of each model's own number")
    parser.add_argument("--one", type=json.loads, help="a single measurement, printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(step_seconds(**options.one)))
        return
    rows: list[list[str]] = []
    measured: dict[str, str] = {}
    overheads: dict[str, float] = {}
    for model in [list(MODELS)[number] for number in options.models]:
        _, skip, steps = MODELS[model]
        steps, skip = options.steps or steps, min(skip, options.steps or skip)
        variants = [LOOP, OFF, FULL, TYPICAL] if model == LINEAR else [LOOP, FULL]
        common = {"model": model, "skip": skip, "steps": steps}
        calls = {each: partial(run_in_subprocess, __file__, {"variant": each, **common}) for each in variants}
        results = run_interleaved(calls, options.rounds)
        for variant, each in results.items():
            pairs = list(zip(results[LOOP], each, strict=True))
            ratios = [loop / seconds for loop, seconds in pairs]
            overhead = statistics.median(seconds - loop for loop, seconds in pairs) * 1e6
            spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            cells = ["1.000", ""] if variant == LOOP else [spread, f"{overhead:+,.0f}"]
            rows.append([model, variant, f"{statistics.median(each) * 1e3:,.3f}", *cells])
            figures = {CIFAR: ("loop", spread), LINEAR: ("step", f"{overhead:,.0f} µs")}
            if variant == FULL:
                overheads[model] = overhead
            # The targets are for a CPU, and for the default number of steps.
            if variant == FULL and model in figures and not options.steps and not torch.cuda.is_available():
                name, figure = figures[model]
                measured[name] = figure
    if "loop" in measured and float(measured["loop"].split()[0]) < 0.98 and {COLD, LINEAR} <= set(overheads):
        warm, cold = overheads[LINEAR], overheads[COLD]
        measured["loop"] += f": the overhead of {warm:,.0f} µs per step grows to {cold:,.0f} µs with cold CPU caches"
    head = ["Model", "Variant", "ms/step", "Throughput relative to the plain loop", "Overhead (µs/step)"]
    # The loop ended with the last of the models.
    profile = cProfile.Profile()
    step_seconds(FULL, model, skip, steps, profile)
    files = time_by_file(profile, steps)
    total = sum(each for _, each in files)
    fractions = [[f"`{file}`", f"{each / total:.0%}"] for file, each in files[:15]]
    profiled = f"Time of a step by file, from a profile of *{model}* with *command line*:\n\n"
    body = "\n".join(
        [table(head, rows), NOTE.format(rounds=options.rounds), profiled + table(["File", "Time"], fractions)]
    )
    report("Overhead: `fit` vs a plain PyTorch loop", command(__file__, argv), body, options.record, measured)


if __name__ == "__main__":
    main()
