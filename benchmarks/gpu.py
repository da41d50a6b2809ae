"""Images a second, memory and share of the matrix peak on a GPU: python benchmarks/gpu.py

Runs whole in under ten minutes; what was measured is kept in a file, and a run that was stopped goes on from there.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.report import Kept, arguments, command, commit, report, table, take_turns
from benchmarks.steps import Noise, Stopwatch, bare, build, fit, now, ready, unseen_terminal
from resnet_pl import models
from resnet_pl.analysis.complexity import count_costs
from resnet_pl.cli.parser import ProjectCLI

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Image size, batch and steps timed in each round. One step of those is logged, and waits for the device: in so short a
# time as a small net's fifty steps it would be most of what is measured.
NETS = {
    "resnet50": (224, 256, 50),
    "cifar_resnet": (32, 128, 400),
    "resnet18": (224, 256, 50),
    "resnet152": (224, 128, 20),
}
# The Trainer's word for a precision, and whether float32 products may be TF32's.
PRECISIONS = {"bf16": ("bf16-mixed", True), "TF32": ("32-true", True), "fp32": ("32-true", False)}
COMPILED, BARE = "`fit`, compiled", "bare loop, compiled"
WAYS = ["`fit`", COMPILED, "bare loop", BARE]
NOTE = """
Medians of {rounds} rounds in which the four ways take turns; images are random, uint8 on the device, not augmented.
`fit` is the command line with bar, TensorBoard, metrics.csv, checkpoints and dashboard. Memory is without the images;
the compiled bare loop goes on with the net that `fit` compiled. The share of the peak is 6 × multiply-adds × images/s
over the fastest product of two matrices of {side} in the same precision that was measured here: {peaks}.
"""


def peak(precision: str, side: int) -> float:
    """Floating-point operations a second of the fastest of some products of two matrices."""
    torch.set_float32_matmul_precision("high" if PRECISIONS[precision][1] else "highest")
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(side, side, device=DEVICE, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(20):
        start = now(DEVICE)
        one @ other
        seconds.append(now(DEVICE) - start)
    return 2 * side**3 / min(seconds)


@cache
def noise(images: int, size: int) -> Noise:
    """The data, made once."""
    data = Noise(images, image_size=size, batch_size=1, mean=[0.5] * 3, std=[0.25] * 3)
    data.setup("fit")
    return data


def measure(name: str, precision: str, size: int, batch: int, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Step, first step and peak memory of the four ways of training a net."""
    kind, tf32 = PRECISIONS[precision]
    kept: dict[bool, Any] = {}
    # torch gives up compiling where it has compiled many nets.
    torch.compiler.reset()

    def built_for(folder: str, compiled: bool) -> ProjectCLI:
        net = ["--model.backbone", name, "--model.compile", str(compiled), "--trainer.precision", kind]
        data = ["--data", "benchmarks.steps.Noise", "--data.batch_size", str(batch), "--tf32", str(tf32)]
        # One step in the window is logged.
        data += ["--trainer.log_every_n_steps", str(steps)]
        built = build(folder, *data, *net, "--trainer.devices", "1", "--dashboard.graph", "false")
        built.datamodule = noise(batch * (3 + steps), size)
        built.datamodule.batch_size = batch
        # Compiled once: the other way and later rounds go on with the net.
        built.model = kept.setdefault(compiled, built.model)
        return built

    def run(compiled: bool, alone: bool) -> tuple[float, float, float]:
        watch = Stopwatch(3, steps)
        with tempfile.TemporaryDirectory() as folder, unseen_terminal():
            built = built_for(folder, compiled)
            gc.collect()
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            if alone:
                ready(built)
                bare(built.model, built.datamodule, watch, built.trainer.precision_plugin.forward_context)
            else:
                fit(built, watch)
            built.model.cpu()
            # With the trainer goes its copy of the images.
            built.model.trainer = built.datamodule.trainer = None
        images = len(built.datamodule.splits["train"]) * 3 * size**2
        peak = torch.cuda.max_memory_allocated() - images if DEVICE.type == "cuda" else 0
        return watch.step, watch.first, peak

    chosen = [(False, False), (True, False), (False, True), (True, True)]
    turns = take_turns({way: partial(run, *which) for way, which in zip(WAYS, chosen, strict=True)}, rounds)
    return {
        way: {
            "step": statistics.median(step for step, _, _ in found),
            "first": found[0][1],
            # The first round's has what cuDNN tries out.
            "memory": found[-1][2],
        }
        for way, found in turns.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what is not kept yet, and tells all."""
    argv = sys.argv[1:] if argv is None else argv
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--size", type=int, help="pixels a side, in place of each net's own")
    parser.add_argument("--batch", type=int, help="images a step, in place of each net's own")
    parser.add_argument("--steps", type=int, help="steps timed in each round, in place of each net's own")
    parser.add_argument("--side", type=int, default=8192, help="of the matrices that tell the peak")
    parser.add_argument("--state", type=Path, default=Path("runs/gpu-benchmark.json"), help="what has been measured")
    options = parser.parse_args(argv)
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    setting = f"{where}, torch {torch.__version__}, {commit()}, {options.rounds} rounds"
    kept = Kept(options.state, setting)
    peaks = {p: kept(f"peak {p} {options.side}", partial(peak, p, options.side)) for p in options.precisions}
    rows = []
    # What matters most comes first, in case time runs out.
    for precision in options.precisions:
        for name in options.nets:
            given = (options.size, options.batch, options.steps)
            size, batch, steps = (own or usual for own, usual in zip(given, NETS[name], strict=True))
            with torch.device("meta"):
                adds = sum(layer.multiply_adds for layer in count_costs(getattr(models, name)(), size))
            one = partial(measure, name, precision, size, batch, steps, options.rounds)
            found = kept(f"{name} {precision} {size} {batch} {steps}", one)
            for way, each in found.items():
                speed = batch / each["step"]
                share, of_bare = 6 * adds * speed / peaks[precision], found[BARE]["step"] / each["step"]
                numbers = [f"{each['step'] * 1e3:.2f}", f"{speed:,.0f}", f"{of_bare:.3f}", f"{share:.0%}"]
                told = [f"{each['memory'] / 2**30:.1f}", f"{each['first']:.0f}"]
                rows.append([f"{name}, {size} px, batch {batch}", precision, way, *numbers, *told])
    head = ["net", "precision", "way", "ms a step", "images/s", "of the compiled bare loop", "of the peak"]
    told = ", ".join(f"{name} {flops / 1e12:,.1f} TFLOP/s" for name, flops in peaks.items())
    note = NOTE.format(rounds=options.rounds, side=options.side, peaks=told)
    measured = table([*head, "memory, GiB", "first step, s"], rows)
    reached = {}
    best = kept.found.get(f"{setting}, resnet50 bf16 224 256 50")
    if DEVICE.type == "cuda" and best:
        step = best[COMPILED]["step"]
        reached = {"resnet50": f"{best[BARE]['step'] / step:.3f}"}
        reached |= {"images": f"{256 / step:,.0f}"} if "H200" in where else {}
    report("GPU", command(__file__, argv), "\n".join([measured, note]), options.record, reached)


if __name__ == "__main__":
    main()
