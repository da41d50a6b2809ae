"""What a checkpoint holds; how it is written so that nothing is lost, and read so that nothing is executed."""

from __future__ import annotations

import pickle
import platform
import re
import zipfile
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch.plugins.io import TorchCheckpointIO

from resnet_pl import __version__
from resnet_pl._compat import INSTANTIATOR
from resnet_pl._renamed import upgrade_checkpoint, upgrade_path
from resnet_pl.run_dir import get_init_args
from resnet_pl.utils import UserError, atomic_write

# Where a checkpoint keeps what this project adds to Lightning's own keys.
METADATA_KEY = "resnet_pl"
FORMAT = 3
# What a checkpoint holds, and of which kind: another is damaged, in a way that no checksum of a file tells.
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
METADATA_TYPES = {"format": int, "config": (dict, type(None)), "data": (dict, type(None))}
# Sections that rebuild a net and its data; how and where it was trained is of no concern to a test.
EVALUATION_SECTIONS = ("model", "data", "seed_everything")


def build_metadata(config: dict[str, Any] | None, provenance: dict[str, Any] | None) -> dict[str, Any]:
    """The part of a checkpoint that makes it self-contained; plain types only, so that reading it executes nothing.

    Args:
        config: the resolved configuration of the command line, None for a network built from Python.
        provenance: where the images came from, see `ImageDataModule.provenance`.
    """
    return {"format": FORMAT, "config": config, "data": provenance, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    packages = {"torch": torch, "torchvision": torchvision, "lightning": lightning}
    # torch's is a class of its own, which a reader that executes nothing refuses.
    found = {name: str(package.__version__) for name, package in packages.items()}
    return {"resnet_pl": __version__, **found, "python": platform.python_version()}


def to_plain_hparams(hparams: MutableMapping[str, Any]) -> None:
    """Replaces objects in hyperparameters, in place, by the plain description the command line would have given.

    A backbone that knows its own arguments becomes `class_path` and `init_args`; other objects are removed, and
    `load_from_checkpoint` must then be given them again.
    """
    plain = {}
    for name, value in hparams.items():
        if hasattr(value, "init_args"):
            path = upgrade_path(f"{type(value).__module__}.{type(value).__name__}")
            value = {"class_path": path, "init_args": dict(value.init_args)}
        elif is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            # A subclass, such as numpy's numbers, is not a plain type to `torch.load(weights_only=True)`.
            value = int(value) if isinstance(value, int) else float(value)
        if value is None or isinstance(value, str | bool | int | float | list | dict):
            plain[name] = value
    if "backbone" in plain:
        plain |= INSTANTIATOR
    hparams.clear()
    hparams.update(plain)


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without executing anything in it.

    Raises:
        UserError: the file is missing, damaged, or no checkpoint of Lightning's.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}\ncheckpoints are in runs/NAME/version_N/checkpoints")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            where = damaged if len(damaged) < 100 and damaged.isprintable() else "the name of a part"
            raise UserError(f"the checkpoint {path} is damaged ({where})\n{_newest_valid_sibling(path)}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} holds {culprit[1] if culprit else 'an object'}, which reading would execute; it is not read\n"
            "if you trust its source, load it there and save its state_dict alone"
        ) from error
    # The readers raise a dozen kinds of error for a damaged file.
    except Exception as error:
        size = path.stat().st_size
        raise UserError(
            f"{path} is truncated or no checkpoint ({size} bytes)\n{_newest_valid_sibling(path)}"
        ) from error
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise UserError(
            f"{path} is no checkpoint of a run, perhaps a net's weights alone\n"
            f"start from such weights with --model.weights {path}"
        )
    _check_sections(checkpoint, path)
    upgrade_checkpoint(checkpoint)
    return checkpoint


def _check_sections(checkpoint: Mapping[str, Any], path: Path) -> None:
    own = checkpoint.get(METADATA_KEY)
    if own is None:  # another project's
        return
    found = [(key, checkpoint.get(key), kind) for key, kind in SECTION_TYPES.items()]
    found += (
        [(f"{METADATA_KEY}.{key}", own.get(key), kind) for key, kind in METADATA_TYPES.items()]
        if isinstance(own, dict)
        else []
    )
    if isinstance(checkpoint.get("state_dict"), dict):
        found += [(f"state_dict.{key}", value, torch.Tensor) for key, value in checkpoint["state_dict"].items()]
    for name, value, kind in found:
        if not isinstance(value, kind) or isinstance(value, bool):
            what = "not there" if value is None else f"a {type(value).__name__}"
            raise UserError(f"the checkpoint {path} is damaged: its {name} is {what}\n{_newest_valid_sibling(path)}")


def _newest_valid_sibling(path: Path) -> str:
    others = (other for other in path.parent.glob("*.ckpt") if other != path)
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True):
        with suppress(Exception), zipfile.ZipFile(other) as archive:
            if archive.testzip() is None:
                return f"the newest good one there is {other}"
    return "there is no good one beside it"


def config_of(checkpoint: Mapping[str, Any], path: Path, subcommand: str) -> dict[str, Any]:
    """The configuration that a checkpoint brings to a subcommand, the lowest in precedence.

    `fit` takes all of it; evaluation takes the network, the data and the precision. The model comes as `class_path` and
    `init_args`.

    Raises:
        UserError: the checkpoint was written by another project, or in a format that is not known.
    """
    own = checkpoint.get(METADATA_KEY)
    if own is None:
        raise UserError(f"{path} was not written by this project\ntake its weights alone with --model.weights {path}")
    if not 1 <= own["format"] <= FORMAT:
        raise UserError(
            f"{path} has the format {own['format']}, this version reads up to {FORMAT}\n"
            f"update resnet_pl (it was written by {own.get('versions', {}).get('resnet_pl', 'a later version')})"
        )
    hparams = {k: v for k, v in (checkpoint.get("hyper_parameters") or {}).items() if not k.startswith("_")}
    config = dict(own["config"] or {})
    model = config.get("model") or {}
    # What the network has learned from the data, its classes, is in the hyperparameters alone.
    config["model"] = {
        "class_path": model.get("class_path", "resnet_pl.ImageClassifier"),
        "init_args": strip_pretrained_args({**get_init_args(model), **hparams}),
    }
    if subcommand == "fit":
        return config
    chosen = {section: config[section] for section in EVALUATION_SECTIONS if config.get(section) is not None}
    if precision := config.get("trainer", {}).get("precision"):
        chosen["trainer"] = {"precision": precision}
    return chosen


def strip_pretrained_args(model: dict[str, Any]) -> dict[str, Any]:
    """A network's arguments with nothing to download: its backbone's own `weights` are in the checkpoint already."""
    backbone = model.get("backbone")
    if isinstance(backbone, dict) and backbone.get("init_args"):
        init_args = dict(backbone["init_args"])
        init_args |= {name: None for name in ("weights", "weights_backbone") if name in init_args}
        init_args |= {name: False for name in ("pretrained",) if name in init_args}
        model = {**model, "backbone": {**backbone, "init_args": init_args}}
    return model


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: a crash or a full disk never harms the file that was there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See Lightning's CheckpointIO."""
        with atomic_write(Path(path)) as partial:
            torch.save(checkpoint, partial)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See Lightning's CheckpointIO; brings a checkpoint of an earlier version to this one's format."""
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        upgrade_checkpoint(checkpoint)
        return checkpoint
