"""examples/streaming.py: chunks give the figures of the folder, no image is lost, and training resumes exactly."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from resnet_pl import ImageFolder, load_run
from resnet_pl.cli import main as cli
from tests.cli.commands import PROJECT, run
from tests.conftest import write_photos
from tests.test_distributed import run_forked

litdata = pytest.importorskip("litdata")

RUN = Path("runs/resnet/version_0")
SPLITS = {"val_split": 0.2, "test_split": 0.25}
FIT = ["fit", "--data", "examples.streaming.StreamedImages", "--data.image_size", "32", "--data.batch_size", "8"]
FIT += ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--model.optimizer.lr", "0.01"]
FIT += ["--dashboard.graph", "false", "--trainer.callbacks+=tests.examples.test_streaming.Stop"]


class Stop(Callback):
    """Records the images of each step; sends SIGTERM to its process after the step that the variable STOP names."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.step = [batch.epoch, batch.batch_idx, *batch.indices.tolist()]

    def on_before_backward(self, trainer: Any, *args: Any) -> None:
        with Path(f"steps{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(self.step) + "\n")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if os.environ.get("STOP") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGTERM)


def convert(folder: Path) -> None:
    """Writes 60 photos into `photos`, and their chunks."""
    from examples import convert_to_litdata

    write_photos(folder / "photos", count=20)
    words = [str(word) for option, share in SPLITS.items() for word in (f"--{option}", share)]
    convert_to_litdata.main([str(folder / "photos"), str(folder / "chunks"), "--workers", "2", *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streaming")
    convert(path)
    return path


def weights() -> dict[str, Any]:
    return torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def steps(rank: int = 0) -> list[list[int]]:
    return [json.loads(line) for line in Path(f"steps{rank}.jsonl").read_text().splitlines()]


def predictions() -> dict[str, dict[str, str]]:
    with (RUN / "predictions.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_chunks_hold_the_files_and_splits_of_the_folder(folder: Path) -> None:
    from examples.streaming import StreamedImages

    data = ImageFolder(str(folder / "photos"), **SPLITS)
    data.setup("test")
    loaded = StreamedImages(str(folder / "chunks"))
    loaded.setup("test")
    about = json.loads(litdata.StreamingDataset(str(folder / "chunks/about"))[0])
    assert about.pop("classes") == ["ant", "bee", "cat"]
    for split, (names, labels) in about.items():
        images = data.split(split)
        assert sorted(zip(names, labels, strict=True)) == sorted(zip(images.names, images.labels, strict=True))
        assert (names == images.names) == (split != "train")
        streamed = loaded.split(split)
        assert torch.equal(streamed.load_full_image(0), images.load_full_image(images.names.index(names[0])))
        chunks = litdata.StreamingDataset(str(folder / "chunks" / split))
        for index, name in enumerate(names):
            item = chunks[index]
            assert item["index"] == index and bytes(item["file"]) == (folder / "photos" / name).read_bytes()


# In the middle of an epoch, and at its end.
@pytest.mark.parametrize(("workers", "stops"), [(0, [6]), pytest.param(2, [4, 6], marks=pytest.mark.slow)])
def test_resume_is_exact(folder: Path, workers: int, stops: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    fit = [*FIT, "--data.root", folder / "chunks", "--data.num_workers", workers, "--trainer.max_epochs", "3"]
    run(*fit)
    expected, seen, start = weights(), steps(), Path.cwd()
    epochs = [[index for number, _, *indices in seen if number == epoch for index in indices] for epoch in range(3)]
    assert all(len(epoch) == len(set(epoch)) == 32 for epoch in epochs) and epochs[0] != epochs[1]
    for step in stops:
        (start / str(step)).mkdir()
        monkeypatch.chdir(start / str(step))
        monkeypatch.setenv("STOP", str(step))
        assert cli.main([str(word) for word in fit]) == 143
        monkeypatch.delenv("STOP")
        run("fit", "--ckpt_path", "last")
        assert steps() == seen, step
        assert all(torch.equal(value, weights()[name]) for name, value in expected.items()), step


def test_an_epoch_continues_with_moved_chunks_and_another_number_of_workers(folder: Path) -> None:
    from examples.streaming import StreamedImages

    def loader(place: Path, workers: int, state: dict[str, Any] | None = None) -> Any:
        data = StreamedImages(str(place), batch_size=8, image_size=32, num_workers=workers)
        data.setup("fit")
        data.load_state_dict(state or {})
        return data.train_dataloader()

    def indices(batches: Iterable[Any]) -> list[int]:
        return [index for batch in batches for index in batch.indices.tolist()]

    expected, started = indices(loader(folder / "chunks", 0)), loader(folder / "chunks", 0)
    batches = iter(started)
    done, state = indices([next(batches), next(batches)]), started.state_dict()
    moved = Path(shutil.copytree(folder / "chunks", "moved"))
    assert done + indices(loader(moved, 0, state)) == expected
    other = loader(moved, 2, state)
    rest = list(other)
    assert sorted(done + indices(rest)) == sorted(expected) and [batch.batch_idx for batch in rest] == [2, 3]
    assert [(batch.epoch, batch.batch_idx) for batch in other] == [(1, index) for index in range(4)]


# 15 images. A batch has fewer images than is asked for if a process would have none.
@pytest.mark.parametrize(("count", "size"), [(2, 2), (3, 2), (2, 64), (4, 8)])
def test_each_image_is_evaluated_once(folder: Path, count: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.streaming import StreamedImages

    found: list[int] = []
    monkeypatch.setenv("WORLD_SIZE", str(count))
    for rank in range(count):
        monkeypatch.setenv("GLOBAL_RANK", str(rank))
        data = StreamedImages(str(folder / "chunks"), eval_batch_size=size, image_size=32, num_workers=rank % 3)
        data.setup("test")
        loader = data.test_dataloader()
        batches = list(loader)
        assert len(loader) == len(batches) > 0
        found += [index for batch in batches for index in batch.indices.tolist()]
    assert sorted(found) == list(range(15))


def evaluate(test: Callable[..., None]) -> tuple[float, dict[str, Any], dict[str, dict[str, str]]]:
    """Evaluates a checkpoint by its path alone; returns the accuracy, the results per class and the predictions."""
    for command in ("test", "predict"):
        test(command, "--ckpt_path", "best", "--data.eval_batch_size", "2")
    result = json.loads((RUN / "results.json").read_text())
    assert result["images"] == len(predictions()) == 15
    return result["top1"], result["per_class"], predictions()


def test_evaluation_equals_that_of_the_folder(folder: Path) -> None:
    run(*FIT, "--data.root", folder / "chunks", "--data.num_workers", "0", "--trainer.max_epochs", "1")
    top1, _, predicted = evaluate(run)
    model, _ = load_run(RUN)
    data = ImageFolder(str(folder / "photos"), **SPLITS)
    data.setup("test")
    names, labels = data.split("test").names, data.split("test").labels
    found = model.predict([folder / "photos" / name for name in names])
    assert [*predicted] == names and model.class_names == ["ant", "bee", "cat"]
    assert [row["prediction"] for row in predicted.values()] == [each.class_name for each in found]
    correct = [each.class_name == model.class_names[label] for each, label in zip(found, labels, strict=True)]
    assert top1 == sum(correct) / 15


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_have_the_figures_of_one(folder: Path) -> None:
    # In a new process: one that forks must not have threads.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "tests.examples.test_streaming", str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    run(*FIT, "--data.root", folder / "chunks", "--data.num_workers", "0", "--trainer.max_epochs", "1")

    def fork(count: int, *argv: str) -> None:
        assert run_forked(count, Path.cwd(), *argv) == [0] * count

    assert evaluate(partial(fork, 1)) == evaluate(partial(fork, 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
