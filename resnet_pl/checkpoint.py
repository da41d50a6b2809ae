"""What a checkpoint holds; how it is written so that nothing is lost, and read so that nothing is executed."""

from __future__ import annotations

import pickle
import platform
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch.plugins.io import TorchCheckpointIO

from resnet_pl import __version__
from resnet_pl.utils import UserError, replacing

# Where a checkpoint keeps what this project adds to Lightning's own keys.
KEY = "resnet_pl"
FORMAT = 1
# What a checkpoint holds, and of which kind: another is damaged, in a way that no checksum of a file tells.
SECTIONS: dict[str, type | tuple[type, ...]] = {
    "state_dict": dict,
    "epoch": int,
    "global_step": int,
    "loops": (dict, type(None)),
    "callbacks": (dict, type(None)),
    "hyper_parameters": (dict, type(None)),
    "optimizer_states": (list, type(None)),
    "lr_schedulers": (list, type(None)),
    KEY: dict,
}
STORY = {"format": int, "config": (dict, type(None)), "data": (dict, type(None))}
# Sections that rebuild a net and its data; how and where it was trained is of no concern to a test.
EVALUATION_SECTIONS = ("model", "data", "seed_everything")


def story(config: dict[str, Any] | None, provenance: dict[str, Any] | None) -> dict[str, Any]:
    """The part of a checkpoint that lets it stand alone; plain types only, so that reading it executes nothing.

    Args:
        config: the resolved configuration of the command line, None for a net built from Python.
        provenance: where the images came from, see `ImageDataModule.provenance`.
    """
    return {"format": FORMAT, "config": config, "data": provenance, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    packages = {"torch": torch, "torchvision": torchvision, "lightning": lightning}
    # torch's is a class of its own, which a reader that executes nothing refuses.
    found = {name: str(package.__version__) for name, package in packages.items()}
    return {"resnet_pl": __version__, **found, "python": platform.python_version()}


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments given from Python, in the plain form that the command line would have given them.

    A backbone that knows its own arguments becomes `class_path` and `init_args`; other objects are left out, and
    `load_from_checkpoint` must then be given them again.
    """
    plain = {}
    for name, value in arguments.items():
        if hasattr(value, "init_args"):
            value = {
                "class_path": f"{type(value).__module__}.{type(value).__name__}",
                "init_args": dict(value.init_args),
            }
        elif is_dataclass(value):
            value = asdict(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            # A subclass, such as numpy's numbers, is no plain type to a reader that executes nothing.
            value = int(value) if isinstance(value, int) else float(value)
        if value is None or isinstance(value, str | bool | int | float | list | dict):
            plain[name] = value
    if "backbone" in plain:
        plain["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
    return plain


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
            raise UserError(f"the checkpoint {path} is damaged ({where})\n{_newest_beside(path)}")
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
        raise UserError(f"{path} is truncated or no checkpoint ({size} bytes)\n{_newest_beside(path)}") from error
    if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
        raise UserError(
            f"{path} is no checkpoint of a run, perhaps a net's weights alone\n"
            f"start from such weights with --model.weights {path}"
        )
    _check_sections(checkpoint, path)
    return checkpoint


def _check_sections(checkpoint: Mapping[str, Any], path: Path) -> None:
    told = checkpoint.get(KEY)
    if told is None:  # another project's
        return
    found = [(key, checkpoint.get(key), kind) for key, kind in SECTIONS.items()]
    found += [(f"{KEY}.{key}", told.get(key), kind) for key, kind in STORY.items()] if isinstance(told, dict) else []
    if isinstance(checkpoint.get("state_dict"), dict):
        found += [(f"state_dict.{key}", value, torch.Tensor) for key, value in checkpoint["state_dict"].items()]
    for name, value, kind in found:
        if not isinstance(value, kind) or isinstance(value, bool):
            what = "not there" if value is None else f"a {type(value).__name__}"
            raise UserError(f"the checkpoint {path} is damaged: its {name} is {what}\n{_newest_beside(path)}")


def _newest_beside(path: Path) -> str:
    others = (other for other in path.parent.glob("*.ckpt") if other != path)
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True):
        with suppress(Exception), zipfile.ZipFile(other) as archive:
            if archive.testzip() is None:
                return f"the newest good one there is {other}"
    return "there is no good one beside it"


def config_of(checkpoint: Mapping[str, Any], path: Path, subcommand: str) -> dict[str, Any]:
    """The configuration that a checkpoint brings to a subcommand, the lowest in precedence.

    `fit` takes all of it; evaluation takes the net, the data and the precision.

    Raises:
        UserError: the checkpoint was written by something else, or in a format that is not known.
    """
    told = checkpoint.get(KEY)
    if told is None:
        raise UserError(f"{path} was not written by this project\ntake its weights alone with --model.weights {path}")
    if not 1 <= told["format"] <= FORMAT:
        raise UserError(
            f"{path} has the format {told['format']}, this version reads up to {FORMAT}\n"
            f"update resnet_pl (it was written by {told.get('versions', {}).get('resnet_pl', 'a later version')})"
        )
    hyper_parameters = {k: v for k, v in (checkpoint.get("hyper_parameters") or {}).items() if not k.startswith("_")}
    config = dict(told["config"] or {})
    # What the net learnt from the data, its classes, is in the hyper-parameters alone.
    config["model"] = without_pretrained({**config.get("model", {}), **hyper_parameters})
    if subcommand == "fit":
        return config
    chosen = {section: config[section] for section in EVALUATION_SECTIONS if config.get(section) is not None}
    if precision := config.get("trainer", {}).get("precision"):
        chosen["trainer"] = {"precision": precision}
    return chosen


def without_pretrained(model: dict[str, Any]) -> dict[str, Any]:
    """A net's configuration with nothing to fetch: its backbone's own `weights` are in the checkpoint already."""
    backbone = model.get("backbone")
    if isinstance(backbone, dict) and backbone.get("init_args"):
        init_args = dict(backbone["init_args"])
        init_args |= {name: None for name in ("weights", "weights_backbone") if name in init_args}
        init_args |= {name: False for name in ("pretrained",) if name in init_args}
        model = {**model, "backbone": {**backbone, "init_args": init_args}}
    return model


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: a crash or a full disk never harms the file that was there."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See Lightning's CheckpointIO."""
        with replacing(Path(path)) as partial:
            torch.save(checkpoint, partial)
