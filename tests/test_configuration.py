"""What the command line sets for the whole process before training: float32 products and cuDNN's choice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.profilers import Profiler, SimpleProfiler

from resnet_pl.cli import parser as configuration
from resnet_pl.cli.parser import ConfiguredCLI
from resnet_pl.patches import Unprofiled, short_names
from resnet_pl.request import Request
from tests.test_cli import SMALL


class Built(ConfiguredCLI):
    """Builds and does not run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def build(folder: Path, *options: str) -> Built:
    with short_names():
        return Built(Request(["fit", *SMALL, "--trainer.default_root_dir", str(folder), *options]))


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leaves the switches as they were."""
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(kept[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = kept[1:]
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("allowed", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_one_choice_for_both_switches(
    allowed: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = not allowed
    monkeypatch.setattr(configuration.torch.cuda, "is_available", lambda: True)
    build(tmp_path, "--tf32", str(allowed), "--trainer.accelerator", "cpu")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (precision, allowed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_processor_keeps_its_precision(tmp_path: Path) -> None:
    torch.set_float32_matmul_precision("highest")
    build(tmp_path)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ([], True),
        (["--trainer.deterministic", "true"], False),
        (["--trainer.benchmark", "false"], False),
        (["--trainer.benchmark", "true"], True),
    ],
)
def test_cudnn_looks_for_the_fastest_unless_runs_must_be_alike(
    options: list[str], chosen: bool, tmp_path: Path
) -> None:
    torch.backends.cudnn.benchmark = not chosen
    build(tmp_path, *options)
    assert torch.backends.cudnn.benchmark is chosen


@pytest.mark.parametrize(("options", "device"), [([], "cpu"), (["--trainer.callbacks.device", "meta"], "meta")])
def test_an_average_of_the_weights_lies_where_they_are_trained(options: list[str], device: str, tmp_path: Path) -> None:
    built = build(tmp_path, "--trainer.accelerator", "cpu", "--trainer.callbacks+", "EMAWeightAveraging", *options)
    (average,) = (each for each in built.trainer.callbacks if isinstance(each, EMAWeightAveraging))
    assert average._device == torch.device(device)


@pytest.mark.parametrize(
    ("options", "profiler"), [([], Unprofiled), (["--trainer.profiler", "simple"], SimpleProfiler)]
)
def test_nothing_is_profiled_unless_it_is_asked_for(
    options: list[str], profiler: type[Profiler], tmp_path: Path
) -> None:
    built = build(tmp_path, *options)
    assert type(built.trainer.profiler) is profiler
    with built.trainer.profiler.profile("outer"), built.trainer.profiler.profile("inner"):
        pass


@pytest.mark.parametrize("kept", [True, False])
def test_a_processor_keeps_what_steps_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    asked = []
    monkeypatch.setattr(configuration, "keep_freed_memory", lambda: asked.append(True))
    build(tmp_path, "--trainer.accelerator", "cpu", "--keep_memory", str(kept))
    assert asked == [True] * kept
