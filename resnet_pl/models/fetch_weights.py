"""Downloads pretrained weights from a URL or from the Hugging Face Hub."""

import hashlib
import re
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch

from resnet_pl.data.cache import short_hash
from resnet_pl.data.download import fetch
from resnet_pl.utils import UserError, require

FROM_SCRATCH = "--model.weights null --model.optimizer AdamW --model.optimizer.lr 0.001 --trainer.max_epochs 60"
"""Options for training without weights on a few hundred photos; benchmarks/small_data.py compares optimizers."""

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in a repository of the Hugging Face Hub, in order of preference."""


def fetch_weights(url: str) -> Path:
    """Downloads a weights file to the cache of `torch.hub`, unless it exists there, and returns its path.

    A name without a checksum gets a hash of the URL: the weights of many networks are called `model.safetensors`.
    Those of `hf://user/name` or `hf://user/name@revision` are in the cache of the Hugging Face Hub.

    File names of torchvision end in the first digits of the SHA-256 checksum, which is verified, also of a file that
    was put there. A number without a letter is not a checksum: it can be a date.

    Raises:
        UserError: the file cannot be downloaded, or has another checksum than its name says.
    """
    if url.startswith("hf:"):
        return _fetch_from_hub(url)
    path = Path(url2pathname(urlsplit(url).path))
    if url.startswith("file:"):
        return path
    digits = re.search(r"-(?=\d*[a-f])([a-f0-9]{8,})\.", path.name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / (path.name if digits else f"{short_hash(url)}-{path.name}")
    if digits and path.is_file():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(digits[1]):
            raise UserError(
                f"{path} is damaged or another file: its SHA-256 begins with {found[: len(digits[1])]}\n"
                "delete it to download it again, or give your own file by its path: --model.weights PATH"
            )
    hint = f"or train from scratch: {FROM_SCRATCH}"
    return fetch([url], path, f"sha256-prefix:{digits[1]}" if digits else None, what="weights", hint=hint)


def _fetch_from_hub(url: str) -> Path:
    """Downloads the weights of a repository of the Hugging Face Hub, unless they are in its cache."""
    hub: Any = require("huggingface_hub", "hf", url)
    errors: Any = import_module("huggingface_hub.errors")
    name, _, revision = url.removeprefix("hf://").partition("@")
    offline = False
    for file in HUB_FILES:
        try:
            return Path(hub.hf_hub_download(name, file, revision=revision or None, local_files_only=offline))
        except errors.RemoteEntryNotFoundError:
            continue
        except errors.LocalEntryNotFoundError:
            offline = True  # the other file can be in the cache
        except (errors.HFValidationError, errors.HfHubHTTPError, OSError) as error:
            raise UserError(
                f"weights {url}: {' '.join(str(error).split())[:200]}\n"
                "give hf://USER/NAME or hf://USER/NAME@REVISION; a private repository needs the variable HF_TOKEN"
            ) from error
    if offline:
        raise UserError(
            f"weights {url}: the Hugging Face Hub cannot be reached, and the file is not in its cache\n"
            "download it on another machine and give its path: --model.weights FILE"
        )
    raise UserError(f"weights {url}: the repository has neither {' nor '.join(HUB_FILES)}\ngive the URL of a file")
