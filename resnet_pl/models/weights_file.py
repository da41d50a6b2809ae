"""Reads the weights in files of any project without executing code from them, and writes `.safetensors` files."""

import argparse
import json
import pathlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resnet_pl._renamed import FORMER_PACKAGES
from resnet_pl.checkpoint import METADATA_KEY
from resnet_pl.utils import UserError, atomic_write, require

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net", "teacher")
"""Keys under which training programs save the state dict of a model in a checkpoint; the last one is DINO's."""

WRAPPERS = r"(?:module\.|_orig_mod\.)*"
"""Prefixes that DataParallel and `torch.compile` add to keys."""

SAFE_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(name)) for name in "?bBhHiIlLqQefdgFDUS"},
    # The function that unpickles numpy's scalars, under its names in numpy 2 and 1.
    np.float64(0).__reduce__()[0],
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
]
"""Classes without code of their own, in which training programs save their options and metrics."""


@dataclass
class WeightsFile:
    """The weights in a file.

    Attributes:
        state: state dict of the network.
        classes: class names in the order of the outputs; None if the file does not have them.
        is_checkpoint: whether it is a checkpoint of this project.
        trained: fingerprints of the training images, see `digests.fingerprints`; empty if they are not known.
    """

    state: dict[str, Tensor]
    classes: list[str] | None = None
    is_checkpoint: bool = False
    trained: str = ""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the state dict of a model from a file, see `read_weights`."""
    return read_weights(path).state


def read_weights(path: Path) -> WeightsFile:
    """Reads the weights of a network from a `.pth`, `.pt`, `.ckpt` or `.safetensors` file, on the CPU.

    No code from the file is executed. From a checkpoint of this project only the backbone is returned. Prefixes of
    DataParallel and `torch.compile` are removed from the keys.

    Raises:
        UserError: the file is missing, damaged, has no weights, or cannot be read without executing code.
    """
    content, classes = _read(path)
    is_checkpoint = isinstance(content, dict) and not content.keys().isdisjoint([METADATA_KEY, *FORMER_PACKAGES])
    data = (content.get(METADATA_KEY) or {}).get("data") if isinstance(content, dict) else None
    trained = ((data or {}).get("digests") or {}).get("train", "")
    while isinstance(content, dict) and any(isinstance(content.get(key), dict) for key in STATE_DICT_KEYS):
        content = next(content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), dict))
    items = content.items() if isinstance(content, dict) else ()
    state = {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path}: no weights found\nexpected a file written with torch.save(model.state_dict(), ...)")
    prefix = WRAPPERS + r"backbone\." + WRAPPERS
    if any(re.match(prefix, key) for key in state):
        state = {re.sub(f"^{prefix}", "", key): value for key, value in state.items() if re.match(prefix, key)}
    else:
        state = {re.sub(f"^{WRAPPERS}", "", key): value for key, value in state.items()}
    return WeightsFile(state, classes, is_checkpoint, trained)


def _read(path: Path) -> tuple[Any, list[str] | None]:
    """Returns the content of a file, and the class names that this project has stored in it."""
    if not path.is_file():
        raise UserError(f"weights file not found: {path}")
    try:
        if path.suffix == ".safetensors":
            with require("safetensors", "export", str(path)).safe_open(path, "pt") as file:
                names = json.loads((file.metadata() or {}).get("classes", "null"))
                return {key: file.get_tensor(key) for key in file.keys()}, _as_names(names)  # noqa: SIM118
        with torch.serialization.safe_globals(SAFE_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    # For damaged files torch and safetensors raise a dozen types of exceptions.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error):
            name = re.search(r"GLOBAL (\S+)", str(error))
            raise UserError(
                f"{path} is refused: it contains {name[1] if name else 'an object'}, and loading it could execute code"
                "\nif you trust the file, load it and save its weights: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise UserError(
            f"{path} is truncated or not a weights file ({type(error).__name__})\n"
            "expected a file written by torch.save or safetensors; if you downloaded it, download it again"
        ) from error
    hparams = content.get("hyper_parameters") if isinstance(content, dict) else None
    return content, _as_names(hparams.get("class_names") if isinstance(hparams, Mapping) else None)


def _as_names(names: Any) -> list[str] | None:
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the weights of a model as `.safetensors`, with metadata in the file's header.

    Raises:
        UserError: safetensors is not installed, or `path` cannot be written.
    """
    safetensors = require("safetensors.torch", "export", "a .safetensors file")
    # Copies: the format refuses tensors that share memory, such as tied weights.
    state = {name: value.cpu().contiguous().clone() for name, value in model.state_dict().items()}
    with atomic_write(path) as temporary:
        # Not `save_file`, which gives the file a mode that others cannot read.
        temporary.write_bytes(safetensors.save(state, metadata=dict(metadata)))
