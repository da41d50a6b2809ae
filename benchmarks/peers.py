"""The same training with this project, a bare PyTorch loop, timm and fastai: python benchmarks/peers.py --flowers DIR

Every peer trains ResNet-18 from scratch on the same images: flower photos at 128 pixels, batch 64, random resized crop
and flip, SGD with momentum and a cosine schedule, float32, two workers. The weights of the last epoch predict the test
images, and the accuracy is computed here from those predictions. Each peer has an environment below --envs, which is
made on first use. timm's training script is not in its package: --timm is a clone of its repository.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import (
    PROJECT,
    MeasurementCache,
    command,
    git_commit,
    make_parser,
    report,
    run_interleaved,
    table,
)
from resnet_pl import Flowers

SCRIPTS = Path(__file__).parent / "peer_scripts"
COLD = 1000
NOTE = """
ResNet-18 from scratch at 128 pixels, {epochs} epochs of {train} flower photos, tested on {test}; mean ± standard
deviation of {seeds} seeds. The time is that of the entire command, with start-up, validation and checkpoints, and
images/s are training images in that time. Memory is the peak of all processes of the command, shared pages counted
once. Prediction is one command for {cold:,} photos, with start-up. Lines are those of the script, or the options of the
commands and the lines of the configuration, that a user writes; comments and empty lines do not count. The peers are
interleaved within each round. timm is version {timm}; fastai is version {fastai}.
"""
FASTAI = "2.8.12"


@dataclass(frozen=True)
class Peer:
    """A tool that trains and predicts.

    Args:
        packages: what its environment needs; empty: the environment of this project.
        train: returns the command, from data folder, output folder, epochs and seed.
        predict: returns the command, from a folder of photos, and the output folder of `train`.
        predictions: returns the predicted class by file name, from the output folder.
        files: what a user writes, besides the commands.
    """

    train: Callable[[Path, Path, int, int], list[str]]
    predict: Callable[[Path, Path], list[str]]
    predictions: Callable[[Path, list[str]], dict[str, str]]
    packages: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def lines(self) -> int:
        """Returns the number of lines that a user writes."""
        written = [line for path in self.files for line in path.read_text(encoding="utf-8").splitlines()]
        code = [line for line in written if line.strip() and not line.strip().startswith(("#", '"""'))]
        words = [*self.train(Path("DATA"), Path("OUT"), 1, 0), *self.predict(Path("PHOTOS"), Path("OUT"))]
        return len(code) + sum(word.startswith("--") for word in words)


def script_peer(script: str, weights: str, packages: tuple[str, ...] = ()) -> Peer:
    """Returns a peer that is one script."""
    path = SCRIPTS / script
    return Peer(
        lambda data, out, epochs, seed: [str(path), "train", str(data), str(out / weights), str(epochs), str(seed)],
        lambda photos, out: [str(path), "predict", str(photos), str(out / weights), str(out / "predictions.csv")],
        lambda out, classes: {Path(row[0]).name: row[1] for row in rows(out / "predictions.csv")},
        packages,
        (path,),
    )


def rows(path: Path) -> list[list[str]]:
    """Returns the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def our_command(data: Path, out: Path, epochs: int, seed: int) -> list[str]:
    """The command `fit` of this project."""
    words = [str(PROJECT / "cli.py"), "fit", "--config", str(SCRIPTS / "ours.yaml"), "--data.root", str(data)]
    words += ["--trainer.max_epochs", str(epochs), "--seed_everything", str(seed), "--data.num_workers", "2"]
    return [*words, "--trainer.default_root_dir", str(out)]


def our_prediction(photos: Path, out: Path) -> list[str]:
    """The command `predict` of this project."""
    last = out / "peers" / "version_0" / "checkpoints" / "last.ckpt"
    words = [str(PROJECT / "cli.py"), "predict", "--ckpt_path", str(last), "--images", str(photos)]
    return [*words, "--data.num_workers", "2", "--output", str(out / "predictions")]


def our_predictions(out: Path, classes: list[str]) -> dict[str, str]:
    """What `predict` wrote, by file name."""
    head, *lines = rows(out / "predictions" / "predictions.csv")
    return {Path(line[0]).name: line[head.index("prediction")] for line in lines}


def timm_peer(clone: Path) -> Peer:
    """timm's own scripts."""
    size = ["--model", "resnet18", "--num-classes", "5", "--device", "cpu", "--workers", "2", "--batch-size", "64"]

    def train(data: Path, out: Path, epochs: int, seed: int) -> list[str]:
        words = [str(clone / "train.py"), str(data), "--train-split", "train", "--val-split", "val", *size]
        words += ["--input-size", "3", "128", "128", "--scale", "0.25", "1", "--color-jitter", "0"]
        words += ["--train-interpolation", "bilinear", "--opt", "momentum", "--lr", "0.05", "--weight-decay", "5e-4"]
        words += ["--sched", "cosine", "--sched-on-updates", "--warmup-epochs", "0", "--smoothing", "0.1"]
        words += ["--epochs", str(epochs), "--seed", str(seed), "--output", str(out)]
        return [*words, "--experiment", "timm"]

    def predict(photos: Path, out: Path) -> list[str]:
        words = [str(clone / "inference.py"), str(photos), "--split", "", *size, "--img-size", "128"]
        words += ["--checkpoint", str(out / "timm" / "last.pth.tar"), "--results-dir", str(out)]
        return [*words, "--results-file", "predictions", "--topk", "1", "--include-index", "--no-console-results"]

    def predictions(out: Path, classes: list[str]) -> dict[str, str]:
        head, *lines = rows(out / "predictions.csv")
        return {Path(line[0]).name: classes[int(line[head.index("index")])] for line in lines}

    return Peer(train, predict, predictions)


def peers(timm: Path | None) -> dict[str, Peer]:
    """Returns the peers by name."""
    ours = Peer(our_command, our_prediction, our_predictions, files=(SCRIPTS / "ours.yaml",))
    known = {"resnet_pl": ours, "bare PyTorch loop": script_peer("bare.py", "weights.pth")}
    known |= {"timm, `train.py`": timm_peer(timm)} if timm else {}
    return known | {"fastai": script_peer("fastai_script.py", "learner.pkl", (f"fastai=={FASTAI}",))}


def timm_version(clone: Path | None) -> str:
    """Returns the version of a clone of timm."""
    text = (clone / "timm" / "version.py").read_text(encoding="utf-8") if clone else "'not measured'"
    return text.replace('"', "'").split("'")[1]


@dataclass
class Usage:
    """Peak memory of a process and its children, in bytes, sampled twice a second."""

    pid: int
    peak: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        """Samples until `stop`."""
        while not self._done.wait(0.5):
            self.peak = max(self.peak, sum(map(_proportional_memory, _descendants(self.pid))))

    def stop(self) -> int:
        """Ends the sampling and returns the peak."""
        self._done.set()
        return self.peak


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in _descendants(int(child)))]


def _proportional_memory(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def run(python: Path, words: Sequence[str], log: Path) -> tuple[float, int]:
    """Runs a command; returns its seconds and its peak memory in bytes."""
    start = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with log.open("ab") as file:
        process = subprocess.Popen([str(python), *words], stdout=file, stderr=file, env=env, cwd=log.parent)
        usage = Usage(process.pid)
        thread = threading.Thread(target=usage.sample)
        thread.start()
        code = process.wait()
        seconds, peak = time.perf_counter() - start, usage.stop()
        thread.join()
    if code:
        raise SystemExit(f"{' '.join(words)} ended with exit code {code}; see {log}")
    return seconds, peak


def prepare(flowers: Path, folder: Path, per_class: int | None) -> tuple[list[str], Path]:
    """Links the images of each split of `Flowers` into folder/data, and others for the timing of the prediction.

    Returns:
        The classes, and the folder with photos for the prediction.
    """
    data = Flowers(flowers, image_size=128)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    photos = folder / "photos"
    shutil.rmtree(folder / "data", ignore_errors=True)
    shutil.rmtree(photos, ignore_errors=True)
    photos.mkdir(parents=True)
    for name in ("train", "val", "test"):
        split = data.split(name)
        counts = dict.fromkeys(data.class_names, 0)
        for path, label in zip(split.names, split.labels, strict=True):
            class_name = data.class_names[label]
            # Two photos of different classes have the same name.
            target = folder / "data" / name / class_name / f"{class_name}_{Path(path).name}"
            counts[class_name] += 1
            if per_class is None or counts[class_name] <= per_class:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(flowers.absolute() / path)
    for path in sorted((folder / "data" / "train").rglob("*.jpg"))[:: max(1, 2900 // COLD)][:COLD]:
        (photos / path.name).symlink_to(path.resolve())
    return data.class_names, photos


def measure(
    peer: Peer, python: Path, work: Path, photos: Path, classes: list[str], epochs: int, seed: int
) -> dict[str, Any]:
    """Trains, tests and predicts; returns the figures."""
    data, out = work / "data", work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    log = work / "log.txt"
    seconds, memory = run(python, peer.train(data, out, epochs, seed), log)
    run(python, peer.predict(data / "test", out), log)
    truth = {path.name: path.parent.name for path in (data / "test").rglob("*.jpg")}
    guesses = peer.predictions(out, classes)
    if guesses.keys() != truth.keys():
        raise SystemExit(f"{len(guesses)} of {len(truth)} test images were predicted; see {log}")
    predict_seconds, _ = run(python, peer.predict(photos, out), log)
    images = len(list((data / "train").rglob("*.jpg"))) * epochs
    correct = sum(guesses[name] == label for name, label in truth.items())
    return {
        "seconds": seconds, "images_per_second": images / seconds, "memory": memory,
        "accuracy": correct / len(truth), "predict_seconds": predict_seconds,
    }  # fmt: skip


def environment(peer: Peer, name: str, folder: Path | None) -> Path:
    """Returns the Python of a peer; makes its environment if it is missing."""
    if not peer.packages:
        return Path(sys.executable)
    if folder is None:
        raise SystemExit(f"{name} needs an environment of its own: give --envs FOLDER")
    path = folder.absolute() / re.sub(r"\W+", "_", name)
    if not (path / "done").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(path)], check=True)
        subprocess.run([str(path / "bin" / "python"), "-m", "pip", "install", "-q", *peer.packages], check=True)
        (path / "done").touch()
    return path / "bin" / "python"


def spread(values: Sequence[float], text: str) -> str:
    """Returns mean ± standard deviation in a format."""
    mean = text.format(statistics.mean(values))
    return f"{mean} ± {text.format(statistics.stdev(values))}" if len(values) > 1 else mean


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument("--flowers", type=Path, required=True, help="folder of the flower photos")
    parser.add_argument("--work", type=Path, required=True, help="folder for links to the images, and for outputs")
    parser.add_argument("--envs", type=Path, help="folder for the environments of peers")
    parser.add_argument("--timm", type=Path, help="clone of timm's repository")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per_class", type=int, help="images of each class and split, to try the script")
    parser.add_argument("--only", nargs="+", help="names of peers")
    parser.add_argument("--state", type=Path, help="file for each measurement; an interrupted benchmark resumes")
    options = parser.parse_args(argv)
    known = peers(options.timm.absolute() if options.timm else None)
    known = {name: peer for name, peer in known.items() if not options.only or name in options.only}
    work = options.work.absolute()
    classes, photos = prepare(options.flowers, work, options.per_class)
    setting = f"{options.epochs}, {options.per_class}, {git_commit()}"
    cache = MeasurementCache(options.state, setting)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in known}
    for seed in range(options.seeds):
        calls = {}
        for name, peer in known.items():
            python = environment(peer, name, options.envs)
            calls[f"{name}, seed {seed}"] = partial(measure, peer, python, work, photos, classes, options.epochs, seed)
        for key, [result] in run_interleaved(calls, 1, cache).items():
            results[key.rsplit(", seed", 1)[0]].append(result)
    table_rows = []
    for name, peer in known.items():
        column = {key: [each[key] for each in results[name]] for key in results[name][0]}
        minutes, gigabytes = [each / 60 for each in column["seconds"]], [each / 1e9 for each in column["memory"]]
        cells = [spread(minutes, "{:.1f}"), spread(column["images_per_second"], "{:.0f}"), spread(gigabytes, "{:.1f}")]
        cells += [spread([100 * each for each in column["accuracy"]], "{:.1f}")]
        table_rows.append([name, *cells, spread(column["predict_seconds"], "{:.0f}"), peer.lines()])
    head = ["", "Training (min)", "Images/s", "Memory (GB)", "Test accuracy (%)", "Prediction (s)", "Lines"]
    counts = {name: len(list((work / "data" / name).rglob("*.jpg"))) for name in ("train", "test")}
    counts |= {"cold": len(list(photos.iterdir())), "epochs": options.epochs, "seeds": options.seeds}
    note = NOTE.format(**counts, timm=timm_version(options.timm), fastai=FASTAI)
    words = [*command(__file__, []), "--flowers", "data/flower_photos", "--work", "runs/peers"]
    words += ["--envs", "runs/peer_envs", "--timm", "pytorch-image-models"]
    report("Compared with other tools", words, table(head, table_rows) + "\n" + note.rstrip(), options.record)


if __name__ == "__main__":
    main()
