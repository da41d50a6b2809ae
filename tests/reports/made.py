"""Synthetic run folders with known values."""

import json
from pathlib import Path
from typing import Any

import yaml

NAMES = "epoch,step,train/top1,val/top1,throughput/epoch_seconds,throughput/images_per_second"
METRICS = "epoch,step,train/loss,train/top1,val/loss,val/top1,lr"


def write_run(folder: Path, model: str = "cifar_resnet", depth: int = 20, seed: int = 0, **facts: Any) -> Path:
    """Writes a trained and tested run: 2 epochs of 10 iterations and 90 seconds each.

    Args:
        folder: the run folder.
        model: class name of the model; plain networks have no shortcut argument.
        depth: number of layers.
        seed: seed of the run.
        **facts: `val_top1` and `train_top1` of the last epoch, `top1` of the test, `lr`, `data`, `shortcut`, `commit`,
            `command`, `digests` of the images; `tested=False` for no test; `options`, more settings by dotted key;
            `classifier`, a class path, writes the section `model` as class and arguments.
    """
    shortcut = {} if "plain" in model else {"shortcut": facts.get("shortcut", "A")}
    config = {
        "seed_everything": seed,
        "name": folder.parent.name,
        "trainer": {"max_steps": 20, "default_root_dir": str(folder.parent.parent)},
        "model": {
            "backbone": {"class_path": f"resnet_pl.models.{model}", "init_args": {"depth": depth, **shortcut}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": facts.get("lr", 0.1)}},
        },
        "data": {
            "class_path": f"resnet_pl.data.{facts.get('data', 'CIFAR10')}",
            "init_args": {"root": f"data/{seed}", "batch_size": 128},
        },
    }
    for key, value in facts.get("options", {}).items():
        *sections, name = key.split(".")
        section: Any = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    if "classifier" in facts:
        config["model"] = {"class_path": facts["classifier"], "init_args": config["model"]}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    train_top1 = facts.get("train_top1", 0.8)
    # In each epoch the first row averages nine iterations, the last row one.
    rows = [
        "0,8,0.1,,,",
        "0,9,0.5,,90,100",
        "0,9,,0.4,,",
        f"1,18,{train_top1},,,",
        f"1,19,,{facts.get('val_top1', 0.7)},,",
        f"1,19,{train_top1 - 0.2},,90,300",
    ]
    (folder / "metrics.csv").write_text("".join(f"{line}\n" for line in [NAMES, *rows]))
    session = {
        "command": facts.get("command", "python cli.py fit"),
        "commit": facts.get("commit", "abc"),
        "parameters": 1000 * depth,
        "data": facts.get("digests", {}),
    }
    session |= {"machine": "a machine", "device": "1 × cpu", "versions": {"torch": "2"}}
    (folder / "sessions.json").write_text(json.dumps([session]))
    if facts.get("tested", True):
        write_test(folder, facts.get("top1", 0.9))
    return folder


def write_test(folder: Path, top1: float, **facts: Any) -> None:
    """Writes a results.json with a single-view test."""
    test = {"protocol": "single view", "split": "test", "checkpoint": "checkpoints/best.ckpt", "data": "CIFAR10"}
    test |= {"top1": top1, "loss": 1.0, "calibration_error": 0.1, "images": 100, "epoch": 1, "step": 20}
    (folder / "results.json").write_text(json.dumps(test | facts))


def write_metrics(path: Path, epochs: int = 4, floor: float = 0.1) -> Path:
    """Writes a metrics.csv with separate rows for training and validation, as Lightning does."""
    lines = [METRICS]
    for epoch in range(epochs):
        step, error = 10 * epoch + 9, floor + 0.8 * 0.5**epoch
        lines += [f"{epoch},{step},{2 * error},{1 - error},,,0.1", f"{epoch},{step},,,{3 * error},{0.98 - error},"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    return path
