"""Contents of a checkpoint, atomic writing, and safe (weights-only) reading."""

from __future__ import annotations

import pickle
import platform
import re
import shutil
import sys
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from resnet_pl import __version__
from resnet_pl._renamed import PACKAGE, adopt_checkpoint, upgrade_checkpoint
from resnet_pl.import_paths import check_names
from resnet_pl.run_dir import BUILT_IN_PYTHON, get_init_args
from resnet_pl.utils import UserError, atomic_write

# Key of this project's metadata, next to Lightning's own keys.
METADATA_KEY = PACKAGE
FORMAT = 3
# Keys of a checkpoint and their types. A file can have other types although its checksums are correct.
SECTION_TYPES: dict[str, type | tuple[type, ...]] = {
    "state_dict": dict,
    "epoch": int,
    "global_step": int,
    "loops": (dict, type(None)),
    "callbacks": (dict, type(None)),
    "hyper_parameters": (dict, type(None)),
    "optimizer_states": (list, type(None)),
    "lr_schedulers": (list, type(None)),
    METADATA_KEY: dict,
}
OPTIONAL = (dict, type(None))
METADATA_TYPES = {"format": int, "config": OPTIONAL, "data": OPTIONAL, "calibration": OPTIONAL}
# Files that `export` writes from a checkpoint, and what they are for.
EXPORTED = {
    ".onnx": "an exported network, for `predict --images` only",
    ".pt2": "an exported network, for torch.export.load",
    ".safetensors": "weights, for --model.weights",
}
# Arguments of ImageClassifier that are read from the data.
CLASS_ARGUMENTS = ("num_classes", "class_names", "multi_label")
# Arguments of a backbone that load pretrained weights, and their values without weights.
PRETRAINED_ARGUMENTS: dict[str, Any] = {"weights": None, "weights_backbone": None, "pretrained": False}
# Sections of the configuration that evaluation needs: model and data, not how the model was trained.
EVALUATION_SECTIONS = ("model", "data", "seed_everything")


def build_metadata(config: dict[str, Any] | None, provenance: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the metadata that makes a checkpoint self-contained; plain types, loadable with `weights_only=True`.

    Args:
        config: resolved configuration of the command line; None for a model built in Python.
        provenance: origin and splits of the images, see `ImageDataModule.provenance`.
    """
    return {"format": FORMAT, "config": config, "data": provenance, "versions": versions()}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that affect results."""
    packages = {"torch": torch, "torchvision": torchvision, "lightning": lightning}
    # torch's version is a subclass of str, which `weights_only=True` rejects.
    numbers = {name: str(package.__version__) for name, package in packages.items()}
    return {"resnet_pl": __version__, **numbers, "python": platform.python_version()}


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without executing code from it.

    Raises:
        UserError: the file is missing, damaged, or not a Lightning checkpoint.
    """
    if not path.is_file():
        raise UserError(f"checkpoint not found: {path}\ncheckpoints are in runs/NAME/version_N/checkpoints")
    if path.suffix in EXPORTED:
        raise UserError(f"{path} is not a checkpoint, but {EXPORTED[path.suffix]}\ngive the checkpoint itself")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            where = damaged if len(damaged) < 100 and damaged.isprintable() else "a file name in the archive"
            raise UserError(f"checkpoint {path} is damaged ({where})\n{_newest_valid_sibling(path)}")
        checkpoint = _load(path)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} is refused: it contains {name[1] if name else 'an object'}, and loading it could execute code\n"
            "if you trust the file, load it with torch.load and save its state_dict alone"
        ) from error
    # For damaged files torch raises a dozen types of exceptions.
    except Exception as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} is truncated or not a checkpoint ({size} bytes)\n{_newest_valid_sibling(path)}"
        ) from error
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise UserError(
            f"{path} is not a training checkpoint; it may contain the weights of a model only\n"
            f"to start from such weights use --model.weights {path}"
        )
    adopt_checkpoint(checkpoint)
    _check_sections(checkpoint, path)
    upgrade_checkpoint(checkpoint)
    return checkpoint


def _load(path: Path) -> Any:
    """Loads a file without executing code from it. Windows could not replace the file while it is mapped."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=sys.platform != "win32")


def _check_sections(checkpoint: Mapping[str, Any], path: Path) -> None:
    metadata = checkpoint.get(METADATA_KEY)
    if metadata is None:  # written by another project
        return
    values = [(key, checkpoint.get(key), kind) for key, kind in SECTION_TYPES.items()]
    if isinstance(metadata, dict):
        values += [(f"{METADATA_KEY}.{key}", metadata.get(key), kind) for key, kind in METADATA_TYPES.items()]
    if isinstance(checkpoint.get("state_dict"), dict):
        values += [(f"state_dict.{key}", value, torch.Tensor) for key, value in checkpoint["state_dict"].items()]
    for name, value, kind in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            problem = "missing" if value is None else f"a {type(value).__name__}"
            raise UserError(f"checkpoint {path} is damaged: {name} is {problem}\n{_newest_valid_sibling(path)}")


def _newest_valid_sibling(path: Path) -> str:
    others = (other for other in path.parent.glob("*.ckpt") if other != path)
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True):
        with suppress(Exception), zipfile.ZipFile(other) as archive:
            if archive.testzip() is None:
                return f"the newest usable checkpoint in this folder is {other}"
    return "no other usable checkpoint in this folder"


def config_of(
    checkpoint: Mapping[str, Any], path: Path, subcommand: str, given: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the configuration in a checkpoint that a subcommand uses; files and options take precedence over it.

    `fit` uses all of it; the others use the model, the data, the seed and the precision. The model is returned as
    `class_path` and `init_args`.

    Args:
        checkpoint: contents of the checkpoint.
        path: its file, for messages.
        subcommand: the subcommand.
        given: sections that the caller has, `model` or `data`.

    Raises:
        UserError: the checkpoint was written by another project, has an unknown format, lacks a section that was built
            in Python, or names code that it must not name, see `import_paths`.
    """
    metadata = checkpoint.get(METADATA_KEY)
    if metadata is None:
        raise UserError(f"{path} was not written by this project\nto use its weights only: --model.weights {path}")
    if not 1 <= metadata["format"] <= FORMAT:
        writer = metadata.get("versions", {}).get("resnet_pl", "a later version")
        raise UserError(
            f"{path} has format {metadata['format']}, this version reads up to {FORMAT}\n"
            f"update resnet_pl (the file was written by {writer})"
        )
    check_names([metadata["config"], checkpoint.get("hyper_parameters")], path)
    hparams = {k: v for k, v in (checkpoint.get("hyper_parameters") or {}).items() if not k.startswith("_")}
    config = dict(metadata["config"] or {})
    _check_complete(config.pop(BUILT_IN_PYTHON, ()), path, subcommand, given)
    model = config.get("model") or {}
    init_args = get_init_args(model)
    # Only the hyperparameters have the classes, which were read from the data. Other hyperparameters of a module need
    # not be arguments of its constructor.
    classes = {*CLASS_ARGUMENTS} if "backbone" in init_args else set()
    arguments = {*init_args} | classes if "class_path" in model else {*hparams}
    init_args |= {name: value for name, value in hparams.items() if name in arguments}
    config["model"] = {
        "class_path": model.get("class_path", "resnet_pl.ImageClassifier"),
        "init_args": strip_pretrained_args(init_args),
    }
    if subcommand == "fit":
        return config
    chosen = {section: config[section] for section in EVALUATION_SECTIONS if config.get(section) is not None}
    if precision := config.get("trainer", {}).get("precision"):
        chosen["trainer"] = {"precision": precision}
    return chosen


def _check_complete(lacking: Collection[str], path: Path, subcommand: str, given: Collection[str]) -> None:
    """Raises UserError if the configuration lacks what a subcommand needs: training needs all, evaluation a section."""
    for name in lacking:
        section, _, argument = name.partition(".")
        if section not in given and (subcommand == "fit" or not argument):
            call = f"fit(ckpt_path=…, {section}=…)" if subcommand == "fit" else f"test(…, {section}=…)"
            raise UserError(
                f"{path} lacks {name}, built in Python without a form in YAML\n"
                f"pass it again, in Python with {call}, or with --{section}"
            )


def update_metadata(path: Path, key: str, value: Any) -> None:
    """Writes a value into the metadata of a checkpoint; None removes it. Everything else in the file stays the same.

    So do its mode and its times, because `best` stands for the newest file of several runs. A link stays a link.
    """
    path = path.resolve()
    checkpoint = _load(path)
    adopt_checkpoint(checkpoint)
    checkpoint[METADATA_KEY].pop(key, None)
    if value is not None:
        checkpoint[METADATA_KEY][key] = value
    with atomic_write(path) as partial:
        torch.save(checkpoint, partial)
        _load(partial)  # an error leaves the file as it was
        shutil.copystat(path, partial)


def strip_pretrained_args(model: dict[str, Any]) -> dict[str, Any]:
    """Removes the pretrained-weights arguments of the backbone: the checkpoint already contains the weights."""
    backbone = model.get("backbone")
    if isinstance(backbone, dict) and backbone.get("init_args"):
        init_args = dict(backbone["init_args"])
        init_args |= {name: value for name, value in PRETRAINED_ARGUMENTS.items() if name in init_args}
        model = {**model, "backbone": {**backbone, "init_args": init_args}}
    return model


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: a crash or a full disk never damages the existing file."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic_write(Path(path)) as partial:
            torch.save(checkpoint, partial)

    @override
    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint and upgrades it if an earlier version wrote it."""
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        adopt_checkpoint(checkpoint)
        upgrade_checkpoint(checkpoint)
        return checkpoint
