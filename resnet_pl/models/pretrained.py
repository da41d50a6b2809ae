"""Pretrained weights from torchvision, a URL or a file; the head is not loaded if the number of classes differs."""

import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
import torchvision.models
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights, get_weight, list_models

from resnet_pl.data.download import fetch
from resnet_pl.models.resnet import ResNet
from resnet_pl.utils import UserError, atomic_write, similar

STATE_DICT_KEYS = ("state_dict", "model", "model_state_dict", "net")
"""Keys under which training programs save the state dict of a model in a checkpoint."""

WRAPPERS = r"(?:module\.|_orig_mod\.)*"
"""Prefixes that DataParallel and `torch.compile` add to keys."""

RENAMES = (
    (r"^linear\.", "fc."),  # github.com/kuangliu/pytorch-cifar
    (r"\.shortcut\.", ".downsample."),
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),  # torchvision's DenseNet files
)

TORCHVISION: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "ResNet18_Weights",
    ("basic", (3, 4, 6, 3)): "ResNet34_Weights",
    ("bottleneck", (3, 4, 6, 3)): "ResNet50_Weights",
    ("bottleneck", (3, 4, 23, 3)): "ResNet101_Weights",
    ("bottleneck", (3, 8, 36, 3)): "ResNet152_Weights",
}
"""torchvision's weights for a `ResNet`, by its `block` and `layers`."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the state dict of a model from a `.pth`, `.pt`, `.ckpt` or `.safetensors` file, on the CPU.

    No code from the file is executed. From a checkpoint of this project only the backbone is returned. Prefixes of
    DataParallel and `torch.compile` are removed from the keys.

    Raises:
        UserError: the file is missing, damaged, has no weights, or cannot be read without executing code.
    """
    content = _read(path)
    while isinstance(content, dict) and any(isinstance(content.get(key), dict) for key in STATE_DICT_KEYS):
        content = next(content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), dict))
    items = content.items() if isinstance(content, dict) else ()
    state = {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path}: no weights found\nexpected a file written with torch.save(model.state_dict(), ...)")
    prefix = WRAPPERS + r"backbone\." + WRAPPERS
    if any(re.match(prefix, key) for key in state):
        return {re.sub(f"^{prefix}", "", key): value for key, value in state.items() if re.match(prefix, key)}
    return {re.sub(f"^{WRAPPERS}", "", key): value for key, value in state.items()}


def _read(path: Path) -> Any:
    """Returns the content of a file."""
    if not path.is_file():
        raise UserError(f"weights file not found: {path}")
    load = partial(torch.load, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        load = _safetensors(path).load_file
    try:
        return load(path)
    # For damaged files torch and safetensors raise a dozen types of exceptions.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error):
            raise UserError(
                f"{path} is refused: loading this pickle could execute code\n"
                "if you trust the file, load it and save its weights: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise UserError(
            f"{path} is truncated or not a weights file ({type(error).__name__})\n"
            "expected a file written by torch.save or safetensors; if you downloaded it, download it again"
        ) from error


def _safetensors(path: Path) -> ModuleType:
    """Imports safetensors, an optional package."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(f"{path}: .safetensors files need the package safetensors\npip install safetensors") from error
    return safetensors.torch


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the weights of a model as `.safetensors`, with metadata in the file's header.

    Raises:
        UserError: safetensors is not installed, or `path` cannot be written.
    """
    save = _safetensors(path).save_file
    with atomic_write(path) as partial:
        save({name: value.cpu().contiguous() for name, value in model.state_dict().items()}, partial, dict(metadata))


def load_pretrained(model: nn.Module, weights: str, fetch: Callable[[str], Path]) -> str:
    """Loads pretrained weights into a model; its head is unchanged if the number of classes differs.

    Args:
        model: classification network.
        weights: path, URL (http, https, file), or torchvision name: a full one (`ResNet34_Weights.IMAGENET1K_V1`) or,
            for this project's ResNets, a short one (`IMAGENET1K_V1`, `DEFAULT`).
        fetch: downloads a URL and returns the path of the file.

    Returns:
        A message that describes the loaded weights.

    Raises:
        UserError: the weights do not exist, or belong to another network.
    """
    source, path = _locate(model, weights, fetch)
    expected = model.state_dict()
    state = {_convert_key(key, expected): value for key, value in read_state_dict(path).items()}
    head, layer = find_classifier(model)
    file_head = state.get(f"{head}.weight", layer.weight)
    message = ""
    if file_head.shape != layer.weight.shape:
        message = f"; new head for {len(layer.weight)} classes (the file has {len(file_head)})"
        state = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
        expected = {key: value for key, value in expected.items() if not key.startswith(f"{head}.")}
    _check_keys(state, expected, f"{path} does not match {_describe(model)}")
    model.load_state_dict(state, strict=False)
    return f"weights {source}: {len(state)} tensors loaded{message}"


def _locate(model: nn.Module, weights: str, fetch: Callable[[str], Path]) -> tuple[str, Path]:
    """Returns the full name of the weights and their file."""
    if re.match(r"(https?|file)://", weights):
        return weights, fetch(weights)
    path = Path(weights).expanduser()
    # File suffixes are lowercase; in a torchvision name the part after the dot is uppercase.
    if path.is_file() or re.search(r"[/\\]", weights) or path.suffix[1:2].islower():
        return weights, path
    entry = _torchvision_weights(model, weights)
    return str(entry), fetch(entry.url)


def _torchvision_weights(model: nn.Module, name: str) -> WeightsEnum:
    """Returns the torchvision weights with a full or short name."""
    args = model.init_args if isinstance(model, ResNet) else {}
    if args.get("block") == "bottleneck" and args["variant"] == "v1":
        raise UserError(f"weights {name}: torchvision's bottlenecks are v1.5, this model's are v1\nset variant to v1.5")
    full = name
    if "." not in name:
        enum = TORCHVISION.get((args["block"], tuple(args["layers"]))) if args else None
        if enum is None or args["shortcut"] != "B" or args["stem"] != "imagenet":
            raise UserError(
                f"weights {name}: torchvision has no weights for {_describe(model)}\n"
                "give a path, a URL or a full name such as ConvNeXt_Tiny_Weights.IMAGENET1K_V1"
            )
        full = f"{enum}.{name}"
    try:
        return get_weight(full)
    except (ValueError, KeyError) as error:
        raise UserError(_unknown_weights(name, full)) from error


def _unknown_weights(name: str, full: str) -> str:
    """Returns the message for a torchvision name that does not exist."""
    enums = [get_model_weights(model) for model in list_models(module=torchvision.models)]
    known = [f"{enum.__name__}.{member}" for enum in enums for member in enum.__members__]
    available = [entry for entry in known if entry.startswith(f"{full.split('.')[0]}.")]
    near = similar(full, available or known, 2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return (
        f"weights {name}: torchvision has no such weights{hint}\n"
        f"available: {', '.join(available) or 'a path, a URL, or a name of docs.pytorch.org/vision/stable/models.html'}"
    )


def _convert_key(key: str, expected: Mapping[str, Tensor]) -> str:
    """Returns the model's key for a key of the file."""
    new = key
    for pattern, replacement in RENAMES:
        new = re.sub(pattern, replacement, new)
    return new if new in expected and key not in expected else key


def _check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], problem: str) -> None:
    """Raises UserError if keys or shapes differ."""
    # torch 0.4.1 added BatchNorm's `num_batches_tracked`; only cumulative averages use it.
    missing = [f"missing {k}" for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [f"unexpected {k}" for k in state if k not in expected]
    mismatched = [
        f"{key} is {tuple(value.shape)} in the file, {tuple(expected[key].shape)} in the model"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if first := next(iter(missing + unexpected + mismatched), ""):
        counts = f"{len(missing)} keys missing, {len(unexpected)} unexpected, {len(mismatched)} with another shape"
        raise UserError(f"{problem}: {counts}\nthe first: {first}")


def _describe(model: nn.Module) -> str:
    """Returns a short description of a model."""
    if not isinstance(model, ResNet):
        return type(model).__name__
    return "ResNet({block}, {layers}, shortcut {shortcut}, {stem} stem, width {width})".format(**model.init_args)


def find_classifier(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Returns the name and module of the classifier layer of any classification network.

    It is the last `nn.Linear`, or in a network without one, such as SqueezeNet, the last 1×1 convolution with a bias.

    Raises:
        UserError: the network has no such layer.
    """
    modules = list(model.named_modules())
    heads: list[tuple[str, nn.Linear | nn.Conv2d]]
    heads = [(name, module) for name, module in modules if isinstance(module, nn.Linear)]
    heads = heads or [
        (name, module)
        for name, module in modules
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.bias is not None
    ]
    if not heads:
        raise UserError(f"{type(model).__name__}: no classifier layer found\nexpected an nn.Linear, or a 1×1 nn.Conv2d")
    return heads[-1]


def reset_classifier(model: nn.Module, num_classes: int) -> bool:
    """Replaces the classifier layer if it has another number of classes; returns whether it did."""
    name, head = find_classifier(model)
    if len(head.weight) == num_classes:
        return False
    options = {"bias": head.bias is not None, "device": head.weight.device, "dtype": head.weight.dtype}
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, num_classes, **options)
    else:
        new = nn.Conv2d(head.in_channels, num_classes, 1, cast("tuple[int, int]", head.stride), **options)
    model.set_submodule(name, new)
    if isinstance(model, ResNet):
        model.init_args["num_classes"] = num_classes
    return True


def fetch_weights(url: str) -> Path:
    """Downloads a weights file to the cache of `torch.hub`, unless it exists there, and returns its path.

    File names of torchvision end in the first digits of the SHA-256 checksum, which is verified. A number without a
    letter is not a checksum: it can be a date.
    """
    path = Path(url2pathname(urlsplit(url).path))
    if url.startswith("file:"):
        return path
    digits = re.search(r"-(?=\d*[a-f])([a-f0-9]{8,})\.", path.name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / path.name
    hint = "or train from scratch with --model.weights null"
    return fetch([url], path, f"sha256-prefix:{digits[1]}" if digits else None, what="weights", hint=hint)
