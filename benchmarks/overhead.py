"""What `fit` costs a step over a bare loop in the same process with the same loader: python benchmarks/overhead.py"""

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

from benchmarks.report import alone, arguments, command, report, table, take_turns
from benchmarks.steps import Stopwatch, bare, build, fit, ready, unseen_terminal
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.data import ImageDataModule

CIFAR, LINEAR = "ResNet-20, CIFAR, batch 128", "a linear layer, 8 px, batch 8"
COLD = "a linear layer, with 128 MiB written in between"
# Options of fit, steps left out and steps timed.
NETS: dict[str, tuple[list[str], int, int]] = {
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
        "--model.backbone benchmarks.steps.Evicting --data.image_size 8 --data.batch_size 8".split(),
        30,
        300,
    ),
    LINEAR: (
        "--model.backbone benchmarks.steps.Nothing --data.image_size 8 --data.batch_size 8".split(),
        100,
        1000,
    ),
}
BARE, OFF, FULL, PLAIN = "bare loop", "`fit`, everything off", "`fit` of the command line", "`fit`, plain habits"
NOTE = """
Medians of {rounds} rounds in which the sides take turns, each in a process of its own; ratios and differences are
medians of each round's own, in brackets the least and the greatest. All sides have one net, one loader, batch
transforms and normalisation. Validation and checkpoints come at the ends of epochs, outside of what is timed; a step
that is logged is always in it.
*Everything off* is a Trainer without bar, logger, checkpoints and callbacks other than the module's own, which sum up
loss and top-1 and stop at NaN. *The command line* has all it has by default: bar, TensorBoard, metrics.csv,
checkpoints, dashboard, stopping at a signal, loss, top-1. *Plain habits* is a LightningModule that calls `self.log` for
loss and accuracy in every step, with bar, TensorBoard and checkpoints.
*Written in between* makes a step of the linear layer find the processor's caches empty, as a step of a large net does.
"""


class Plain(LightningModule):
    """How a classifier is written in most tutorials: everything logged in every step.

    Args:
        built: what the command line would train; its net, loss and optimiser are taken.
    """

    def __init__(self, built: ProjectCLI) -> None:
        super().__init__()
        self.net, self.accuracy = built.model, MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """See LightningModule."""
        logits = self.net(batch.images)
        loss = cross_entropy(logits, batch.labels)
        self.log("loss", loss, prog_bar=True)
        self.accuracy(logits, batch.labels)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See LightningModule."""
        return self.net.optimizer(list(self.net.parameters()))


def built_for(net: str, folder: str, steps: int) -> ProjectCLI:
    """The command line's `fit` of a net, long enough, on the processor or the first GPU."""
    options = NETS[net][0]
    images = steps * int(options[options.index("--data.batch_size") + 1])
    # In every window there is a logging step, however short it is.
    logged = ["--trainer.log_every_n_steps", str(min(50, steps))]
    data = ["--data", "benchmarks.steps.Noise", "--data.count", str(images)]
    return build(folder, *data, *options, *logged, "--trainer.devices", "1")


def plain_fit(model: LightningModule, data: ImageDataModule, watch: Stopwatch, **kwargs: Any) -> Stopwatch:
    """Trains as from Python, with a Trainer of a few arguments."""
    given = {"devices": 1, "use_distributed_sampler": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    Trainer(max_epochs=1, callbacks=[watch], **given | kwargs).fit(model, datamodule=data)
    return watch


def step(side: str, net: str, skip: int, steps: int, profile: cProfile.Profile | None = None) -> float:
    """Seconds of a step of one side."""
    watch = Stopwatch(skip, steps, profile)
    with tempfile.TemporaryDirectory() as folder, unseen_terminal():
        built = built_for(net, folder, skip + steps)
        if side == FULL:
            return fit(built, watch).step
        if side == OFF:
            off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            return plain_fit(built.model, built.datamodule, watch, **off, enable_autolog_hparams=False).step
        ready(built)
        if side == BARE:
            return bare(built.model, built.datamodule, watch).step
        return plain_fit(Plain(built), built.datamodule, watch, default_root_dir=folder).step


def places(profile: cProfile.Profile, steps: int) -> list[tuple[str, float]]:
    """Own microseconds a step by file, the largest first; what C does is put down to the file that called it."""
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
    """Measures and tells."""
    argv = sys.argv[1:] if argv is None else argv
    parser = arguments(__doc__, rounds=7)
    every = list(range(len(NETS)))
    parser.add_argument("--nets", type=int, nargs="+", default=every, help=f"of {', '.join(NETS)}: positions")
    parser.add_argument("--steps", type=int, help="steps timed in each round, in place of each net's own number")
    parser.add_argument("--one", type=json.loads, help="one measurement, which is printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(step(**options.one)))
        return
    rows: list[list[str]] = []
    reached: dict[str, str] = {}
    costs: dict[str, float] = {}
    for net in [list(NETS)[number] for number in options.nets]:
        _, skip, steps = NETS[net]
        steps, skip = options.steps or steps, min(skip, options.steps or skip)
        sides = [BARE, OFF, FULL, PLAIN] if net == LINEAR else [BARE, FULL]
        ones = {side: {"side": side, "net": net, "skip": skip, "steps": steps} for side in sides}
        found = take_turns({side: partial(alone, __file__, one) for side, one in ones.items()}, options.rounds)
        for side, each in found.items():
            pairs = list(zip(found[BARE], each, strict=True))
            speeds = [alone / seconds for alone, seconds in pairs]
            speed = statistics.median(speeds)
            more = statistics.median(seconds - alone for alone, seconds in pairs) * 1e6
            spread = f"{speed:.3f} ({min(speeds):.3f} to {max(speeds):.3f})"
            told = ["1.000", ""] if side == BARE else [spread, f"{more:+,.0f}"]
            rows.append([net, side, f"{statistics.median(each) * 1e3:,.3f}", *told])
            figures = {CIFAR: ("loop", spread), LINEAR: ("step", f"{more:,.0f} µs")}
            if side == FULL:
                costs[net] = more
            # The targets are of a processor, and of all steps.
            if side == FULL and net in figures and not options.steps and not torch.cuda.is_available():
                name, figure = figures[net]
                reached[name] = figure
    if "loop" in reached and float(reached["loop"].split()[0]) < 0.98 and {COLD, LINEAR} <= set(costs):
        warm, cold = costs[LINEAR], costs[COLD]
        reached["loop"] += f": what costs {warm:,.0f} µs a step costs {cold:,.0f} µs where a net empties the caches"
    told = table(["step", "side", "ms a step", "speed, of the bare loop's", "µs more than bare"], rows)
    # Of the last net of the loop above.
    profile = cProfile.Profile()
    step(FULL, net, skip, steps, profile)
    found = places(profile, steps)
    whole = sum(each for _, each in found)
    shares = table(["file", "share of a step"], [[f"`{file}`", f"{each / whole:.0%}"] for file, each in found[:15]])
    note = NOTE.format(rounds=options.rounds)
    left = f"Where a step of the last net goes in `fit` of the command line, under a profiler:\n\n{shares}"
    report(
        "Overhead: `fit` against a bare loop",
        command(__file__, argv),
        "\n".join([told, note, left]),
        options.record,
        reached,
    )


if __name__ == "__main__":
    main()
