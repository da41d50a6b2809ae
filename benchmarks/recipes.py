"""What each recipe gives, by paired seeds: python benchmarks/recipes.py --jobs 2 --record

Trains with `sweep`, which resumes, and pairs each run with the run without the recipe that has the same seed.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import PROJECT, fill_block, make_parser, table
from resnet_pl.cli import main as cli
from resnet_pl.reports.run_finder import read_runs
from resnet_pl.reports.run_reader import Run
from resnet_pl.utils import UserError

PAGE = PROJECT / "docs" / "recipes.md"
HEAD = ["Recipe", "Difference in test top-1", "Of each seed", "n", "Test top-1", "Epochs", "Time"]
RECIPES = ["adamw", "muon", "one-cycle", "ema", "mixup", "cutmix", "trivial-augment", "random-erasing"]
RESNET8 = ["--model.backbone.depth", "8", "--trainer.max_epochs"]
# The networks that other studies start from: teacher, weights for transfer, and the networks of `paper lesion`.
NETS = ["sweep", "--config", "configs/cifar10.yaml", "--name", "nets", "--test", "--grid", "seed_everything=0"]
NETS_OPTIONS = ["--grid", "model.backbone=cifar_resnet,cifar_plain", "--", "--trainer.max_epochs", "6"]
TRAINED = "runs/nets/seed0-cifar_resnet/version_0"


@dataclass(frozen=True)
class Study:
    """Runs of the same model, data and length, with and without recipes.

    Args:
        title: what was trained.
        name: name of its sweeps, whose runs are in runs/NAME.
        without: name of the runs without a recipe, after the seed.
        sweeps: arguments of each sweep: configuration, grid except the seed, and options of `fit`.
    """

    title: str
    name: str
    without: str
    sweeps: Sequence[tuple[str, str, Sequence[str]]]

    def commands(self, seeds: str, jobs: str) -> list[list[str]]:
        """Returns the arguments of the command line, one list for each sweep."""
        fixed = ["--grid", f"seed_everything={seeds}", "--name", self.name, "--jobs", jobs, "--test"]
        return [
            ["sweep", "--config", f"configs/{base}.yaml", *fixed, "--grid", grid, "--", *options]
            for base, grid, options in self.sweeps
        ]


def grid(base: str, *recipes: str) -> str:
    """Returns the values of a grid: a config without a recipe, which is the config on top of itself, and with each."""
    return f"config=configs/{base}.yaml," + ",".join(f"configs/recipes/{recipe}.yaml" for recipe in recipes)


STUDIES = [
    Study(
        "ResNet-8 on CIFAR-10, 4 epochs",
        "recipes",
        "cifar10",
        [
            ("cifar10", grid("cifar10", *RECIPES), [*RESNET8, "4"]),
            ("cifar10", "model.label_smoothing=0.1", [*RESNET8, "4"]),
        ],
    ),
    Study(
        "ResNet-20 on the digits, at most 60 epochs",
        "early-stopping",
        "digits",
        [("digits", grid("digits", "early-stopping"), ["--trainer.max_epochs", "60"])],
    ),
    Study(
        "ResNet-20 on the flowers at 32 × 32 pixels, 10 epochs, from ResNet-20 trained for 6 epochs on CIFAR-10",
        "head-only",
        "flowers-scratch",
        [
            (
                "flowers-scratch",
                grid("flowers-scratch", "head-only"),
                [
                    *["--model.backbone", "cifar_resnet", "--model.backbone.depth", "20", "--data.image_size", "32"],
                    *["--model.weights", f"{TRAINED}/checkpoints/best.ckpt", "--trainer.max_epochs", "10"],
                ],
            )
        ],
    ),
    Study(
        "ResNet-8 on CIFAR-10, 5 epochs: distillation from ResNet-20 trained for 6 epochs, with a weight of 0.5",
        "distillation",
        "teacher_weight0",
        [
            (
                "cifar10",
                "model.teacher_weight=0,0.5",
                [
                    *["--model", "examples.distillation.Distilled", "--model.teacher", TRAINED],
                    *RESNET8,
                    "5",
                ],
            )
        ],
    ),
]


def rows(runs: Iterable[Run], without: str) -> list[list[object]]:
    """Returns a row of the table for each recipe that was trained with a seed that was also trained without it.

    Args:
        runs: tested runs, named SEED-RECIPE.
        without: name of the runs without a recipe, after the seed.
    """
    named: dict[str, dict[str, Run]] = defaultdict(dict)
    for run in runs:
        seed, _, recipe = run.path.parent.name.partition("-")
        named[recipe][seed] = run
    bases = named.pop(without, {})
    found: list[list[object]] = []
    for recipe, trained in named.items():
        pairs = [(bases[seed], run) for seed, run in sorted(trained.items()) if seed in bases]
        if not pairs:
            continue
        differences = [100 * (run.test_top1 - base.test_top1) for base, run in pairs]
        spread = f" ± {statistics.stdev(differences):.2f}" if len(pairs) > 1 else ""
        each = ", ".join(f"{difference:+.2f}" for difference in differences)
        top1 = statistics.mean(run.test_top1 for _, run in pairs)
        epochs = statistics.mean(len(run.metrics["throughput/epoch_seconds"][0]) for _, run in pairs)
        ratio = statistics.median(run.seconds / base.seconds for base, run in pairs)
        mean = f"{statistics.mean(differences):+.2f}{spread}"
        found.append([f"`{recipe}`", mean, each, len(pairs), f"{top1:.2%}", f"{epochs:.0f}", f"× {ratio:.2f}"])
    return found


def section(study: Study, runs: Sequence[Run]) -> str:
    """Returns the Markdown of a study."""
    commands = "\n".join(shlex.join(["python", "cli.py", *words]) for words in study.commands("0,1,2", "2"))
    title = f"### {study.title}\n\n```bash\n{commands}\n```\n"
    bases = [run for run in runs if run.path.parent.name.partition("-")[2] == study.without]
    if not (lines := rows(runs, study.without)):
        return f"{title}\nNot measured yet.\n"
    mean = statistics.mean(run.test_top1 for run in bases)
    session = runs[0].sessions[0]
    commits = ", ".join(dict.fromkeys(str(run.sessions[0]["commit"]) for run in runs))
    return (
        f"{title}\n{table(HEAD, lines)}\n\nWithout a recipe: {mean:.2%} (n = {len(bases)}). "
        f"Commit {commits}; {session['device']} ({session['machine']}).\n"
    )


def finished(name: str) -> list[Run]:
    """Returns the tested runs of a sweep."""
    try:
        runs, skipped = read_runs([Path("runs") / name])
    except UserError:
        return []
    print(*skipped, sep="\n")
    return [run for run in runs if run.results]


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is missing, and reports."""
    parser = make_parser(__doc__)
    parser.add_argument("--jobs", default="1", help="number of runs in parallel")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--no-run", action="store_true", help="report on the runs that exist, without training")
    options = parser.parse_args(argv)
    if not options.no_run:
        cli.main([*NETS, "--jobs", options.jobs, *NETS_OPTIONS])
        for study in reversed(STUDIES):  # the longest is the last
            for words in study.commands(options.seeds, options.jobs):
                cli.main(words)
    sections = [section(study, finished(study.name)) for study in STUDIES]
    print("\n".join(sections))
    if options.record:
        fill_block(PAGE, "recipes", "\n".join(sections))


if __name__ == "__main__":
    main()
