"""Training throughput and memory on a GPU: python benchmarks/gpu.py

A full run takes less than ten minutes. Measurements are saved in a file, from which an interrupted run resumes.
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

from benchmarks.report import MeasurementCache, command, git_commit, make_parser, report, run_interleaved, table
from benchmarks.steps import (
    Noise,
    Stopwatch,
    build_fit,
    hidden_terminal,
    run_fit,
    run_plain_loop,
    setup_without_trainer,
    synchronized_time,
)
from resnet_pl import models
from resnet_pl.analysis.complexity import count_costs
from resnet_pl.cli.parser import ProjectCLI

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Image size, batch size and timed steps per round. One of these steps is logged and waits for the device; the steps
# must be many enough that this wait does not dominate a small network's time.
MODELS = {
    "resnet50": (224, 256, 50),
    "cifar_resnet": (32, 128, 400),
    "resnet18": (224, 256, 50),
    "resnet152": (224, 128, 20),
}
# Precision of the Trainer, and whether TF32 is allowed for float32 matrix products.
PRECISIONS = {"bf16": ("bf16-mixed", True), "TF32": ("32-true", True), "fp32": ("32-true", False)}
COMPILED, LOOP_COMPILED = "`fit`, compiled", "plain PyTorch loop, compiled"
VARIANTS = ["`fit`", COMPILED, "plain PyTorch loop", LOOP_COMPILED]
NOTE = """
Medians of {rounds} interleaved rounds; images are random, uint8 on the device, not augmented. `fit` is the command line
with progress bar, TensorBoard, metrics.csv, checkpoints and dashboard. Memory excludes the images; the compiled plain
loop uses the model that `fit` has compiled. The fraction of the peak is 6 × multiply-adds × images/s, divided by the
throughput of the fastest product of two {side}×{side} matrices in the same precision, measured here: {peaks}.
"""


def peak_flops(precision: str, side: int) -> float:
    """Measures the fastest product of two `side` × `side` matrices; returns floating-point operations per second."""
    torch.set_float32_matmul_precision("high" if PRECISIONS[precision][1] else "highest")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(20):
        start = synchronized_time(DEVICE)
        one @ other
        seconds.append(synchronized_time(DEVICE) - start)
    return 2 * side**3 / min(seconds)


@cache
def noise(images: int, size: int) -> Noise:
    """Returns the data module of random images, created once per size."""
    data = Noise(images, image_size=size, batch_size=1, mean=[0.5] * 3, std=[0.25] * 3)
    data.setup("fit")
    return data


def measure(name: str, precision: str, size: int, batch: int, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measures all variants of training a network.

    Returns:
        For each variant `step`: mean time of a step, seconds; `first`: time of the first step, seconds; `memory`: peak
        memory without the images, bytes.
    """
    trainer_precision, tf32 = PRECISIONS[precision]
    models_by_compiled: dict[bool, Any] = {}
    # torch stops compiling a function after several recompilations.
    torch.compiler.reset()

    def build(folder: str, compiled: bool) -> ProjectCLI:
        model = ["--model.backbone", name, "--model.compile", str(compiled), "--trainer.precision", trainer_precision]
        data = ["--data", "benchmarks.steps.Noise", "--data.batch_size", str(batch), "--tf32", str(tf32)]
        # One of the timed steps is logged.
        data += ["--trainer.log_every_n_steps", str(steps)]
        cli = build_fit(folder, *data, *model, "--trainer.devices", "1", "--dashboard.graph", "false")
        cli.datamodule = noise(batch * (3 + steps), size)
        cli.datamodule.batch_size = batch
        # A model is compiled once: the other variant and later rounds use the same one.
        cli.model = models_by_compiled.setdefault(compiled, cli.model)
        return cli

    def run(compiled: bool, plain_loop: bool) -> tuple[float, float, float]:
        watch = Stopwatch(3, steps)
        with tempfile.TemporaryDirectory() as folder, hidden_terminal():
            cli = build(folder, compiled)
            gc.collect()
            if DEVICE.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            if plain_loop:
                setup_without_trainer(cli)
                run_plain_loop(cli.model, cli.datamodule, watch, cli.trainer.precision_plugin.forward_context)
            else:
                run_fit(cli, watch)
            cli.model.cpu()
            cli.model.trainer = cli.datamodule.trainer = None
            # Frees the images on the device: objects of the configuration still refer to the loader.
            loader = cli.datamodule._train_loader
            loader._images = loader._labels = None
        images = len(cli.datamodule.splits["train"]) * 3 * size**2
        peak = torch.cuda.max_memory_allocated() - images if DEVICE.type == "cuda" else 0
        return watch.step, watch.first, peak

    arguments = [(False, False), (True, False), (False, True), (True, True)]
    calls = {variant: partial(run, *each) for variant, each in zip(VARIANTS, arguments, strict=True)}
    return {
        variant: {
            "step": statistics.median(step for step, _, _ in results),
            "first": results[0][1],
            # The first round's includes the workspaces of the algorithms that cuDNN tries.
            "memory": results[-1][2],
        }
        for variant, results in run_interleaved(calls, rounds).items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures what has not been measured yet, and reports everything."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__, rounds=2)
    parser.add_argument("--models", "--nets", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--size", type=int, help="image size in pixels, instead of each network's own")
    parser.add_argument("--batch", type=int, help="images per step, instead of each network's own")
    parser.add_argument("--steps", type=int, help="timed steps per round, instead of each network's own")
    parser.add_argument("--side", type=int, default=8192, help="size of the matrices whose product gives the peak")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path("runs/gpu-benchmark.json"),
        help="file of measurements; an interrupted run resumes from it",
    )
    options = parser.parse_args(argv)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    setting = f"{device}, torch {torch.__version__}, {git_commit()}, {options.rounds} rounds"
    cache = MeasurementCache(options.state, setting)
    peaks = {p: cache(f"peak {p} {options.side}", partial(peak_flops, p, options.side)) for p in options.precisions}
    rows = []
    # The most important comes first, in case time runs out.
    for precision in options.precisions:
        for name in options.models:
            given = (options.size, options.batch, options.steps)
            size, batch, steps = (value or default for value, default in zip(given, MODELS[name], strict=True))
            with torch.device("meta"):
                adds = sum(layer.multiply_adds for layer in count_costs(getattr(models, name)(), size))
            one = partial(measure, name, precision, size, batch, steps, options.rounds)
            results = cache(f"{name} {precision} {size} {batch} {steps}", one)
            for variant, each in results.items():
                speed = batch / each["step"]
                fraction, ratio = 6 * adds * speed / peaks[precision], results[LOOP_COMPILED]["step"] / each["step"]
                numbers = [f"{each['step'] * 1e3:.2f}", f"{speed:,.0f}", f"{ratio:.3f}", f"{fraction:.0%}"]
                numbers += [f"{each['memory'] / 2**30:.1f}", f"{each['first']:.0f}"]
                rows.append([f"{name}, {size} px, batch {batch}", precision, variant, *numbers])
    head = ["Model", "Precision", "Variant", "ms/step", "Images/s", "Relative to the compiled plain loop"]
    head += ["Fraction of peak", "Memory (GiB)", "First step (s)"]
    rates = ", ".join(f"{name} {flops / 1e12:,.1f} TFLOP/s" for name, flops in peaks.items())
    note = NOTE.format(rounds=options.rounds, side=options.side, peaks=rates)
    measured = {}
    best = cache.results.get(f"{setting}, resnet50 bf16 224 256 50")
    if DEVICE.type == "cuda" and best:
        step = best[COMPILED]["step"]
        measured = {"resnet50": f"{best[LOOP_COMPILED]['step'] / step:.3f}"}
        measured |= {"images": f"{256 / step:,.0f}"} if "H200" in device else {}
    body = "\n".join([table(head, rows), note]).rstrip()
    report("GPU", command(__file__, argv), body, options.record, measured)


if __name__ == "__main__":
    main()
