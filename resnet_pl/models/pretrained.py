"""Weights for a net: a torchvision name, a URL or a file goes in; a head for other classes stays new."""

import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
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
"""Keys under which training programs keep a net's weights among other things."""

WRAPPERS = r"(?:module\.|_orig_mod\.)*"
"""What DataParallel and `torch.compile` put before a key."""

RENAMES = (
    (r"^linear\.", "fc."),  # the widespread CIFAR-10 nets
    (r"\.shortcut\.", ".downsample."),
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),  # torchvision's DenseNet files
)

TORCHVISION = {
    ("basic", (2, 2, 2, 2)): "ResNet18_Weights",
    ("basic", (3, 4, 6, 3)): "ResNet34_Weights",
    ("bottleneck", (3, 4, 6, 3)): "ResNet50_Weights",
    ("bottleneck", (3, 4, 23, 3)): "ResNet101_Weights",
    ("bottleneck", (3, 8, 36, 3)): "ResNet152_Weights",
}
"""torchvision's weights by block and layers of our net."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights of a net in a `.pth`, `.pt`, `.ckpt` or `.safetensors` file, on the CPU.

    Reading never runs code from the file. Of a classifier's checkpoint only what is under `backbone.` is kept;
    the prefixes of DataParallel and `torch.compile` are removed.

    Raises:
        UserError: the file is missing, damaged, holds no weights, or cannot be read without running code from it.
    """
    content = _read(path)
    while isinstance(content, dict) and any(isinstance(content.get(key), dict) for key in STATE_DICT_KEYS):
        content = next(content[key] for key in STATE_DICT_KEYS if isinstance(content.get(key), dict))
    items = content.items() if isinstance(content, dict) else ()
    state = {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{path}: holds no weights\nexpected what torch.save(model.state_dict(), ...) writes")
    prefix = WRAPPERS + r"backbone\." + WRAPPERS
    if any(re.match(prefix, key) for key in state):
        return {re.sub(f"^{prefix}", "", key): value for key, value in state.items() if re.match(prefix, key)}
    return {re.sub(f"^{WRAPPERS}", "", key): value for key, value in state.items()}


def _read(path: Path) -> Any:
    """Whatever the file holds."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights")
    load = partial(torch.load, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        load = _safetensors(path).load_file
    try:
        return load(path)
    # The readers raise a dozen kinds of error for a damaged file.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and "Unsupported operand" not in str(error):
            raise UserError(
                f"{path}: refused, for reading it would run code from the file\n"
                "load it where you trust it and write its weights alone: torch.save(model.state_dict(), 'weights.pth')"
            ) from error
        raise UserError(
            f"{path}: not a file of weights, or cut short ({type(error).__name__})\n"
            "expected what torch.save or safetensors writes; if you downloaded it, download it again"
        ) from error


def _safetensors(path: Path) -> ModuleType:
    """safetensors is an optional package, needed for its own files only."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(f"{path}: this kind of file needs a package\npip install safetensors") from error
    return safetensors.torch


def save_weights(net: nn.Module, path: Path, told: Mapping[str, str]) -> None:
    """Writes a net's weights alone, as `.safetensors`, with a few words beside them; raises UserError."""
    save = _safetensors(path).save_file
    with atomic_write(path) as partial:
        save({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, partial, dict(told))


def load_pretrained(net: nn.Module, weights: str, fetch: Callable[[str], Path]) -> str:
    """Load weights into a net, matched by name; the head is left as it is where its shape differs.

    Args:
        net: any classification net.
        weights: a path, a URL (http, https, file), or a torchvision name: full (`ResNet34_Weights.IMAGENET1K_V1`) or,
            for our own ResNets, short (`IMAGENET1K_V1`, `DEFAULT`).
        fetch: brings a URL's file here and returns its path.

    Returns:
        A line that says what was loaded.

    Raises:
        UserError: no such weights, or weights of another net.
    """
    source, path = _locate(net, weights, fetch)
    wanted = net.state_dict()
    state = {_renamed(key, wanted): value for key, value in read_state_dict(path).items()}
    head, layer = find_classifier(net)
    file_head = state.get(f"{head}.weight", layer.weight)
    message = ""
    if file_head.shape != layer.weight.shape:
        message = f"; new head for {len(layer.weight)} classes (the file's has {len(file_head)})"
        state = {key: value for key, value in state.items() if not key.startswith(f"{head}.")}
        wanted = {key: value for key, value in wanted.items() if not key.startswith(f"{head}.")}
    _check_fit(state, wanted, f"{path}: does not fit {_describe(net)}")
    net.load_state_dict(state, strict=False)
    return f"weights {source}: {len(state)} tensors loaded{message}"


def _locate(net: nn.Module, weights: str, fetch: Callable[[str], Path]) -> tuple[str, Path]:
    """The full name of the weights and their file."""
    if re.match(r"(https?|file)://", weights):
        return weights, fetch(weights)
    path = Path(weights).expanduser()
    # The suffix of a file is in lower case, what follows the dot of a torchvision name is not.
    if path.is_file() or re.search(r"[/\\]", weights) or path.suffix[1:2].islower():
        return weights, path
    entry = _torchvision_weights(net, weights)
    return str(entry), fetch(entry.url)


def _torchvision_weights(net: nn.Module, name: str) -> WeightsEnum:
    """The torchvision weights with this full or short name."""
    args = net.init_args if isinstance(net, ResNet) else {}
    if args.get("block") == "bottleneck" and args["variant"] == "v1":
        raise UserError(f"weights {name}: torchvision's bottlenecks are v1.5, this net's are v1\nset variant to v1.5")
    full = name
    if "." not in name:
        enum = TORCHVISION.get((args.get("block"), tuple(args.get("layers", ()))))
        if enum is None or args["shortcut"] != "B" or args["stem"] != "imagenet":
            raise UserError(
                f"weights {name}: torchvision has none for {_describe(net)}, as far as a short name can tell\n"
                "give a path, a URL or a full name such as ConvNeXt_Tiny_Weights.IMAGENET1K_V1"
            )
        full = f"{enum}.{name}"
    try:
        return get_weight(full)
    except (ValueError, KeyError) as error:
        raise UserError(_unknown_weights(name, full)) from error


def _unknown_weights(name: str, full: str) -> str:
    """What to say of a torchvision name that does not exist."""
    enums = [get_model_weights(model) for model in list_models(module=torchvision.models)]
    known = [f"{enum.__name__}.{member}" for enum in enums for member in enum.__members__]
    available = [entry for entry in known if entry.startswith(f"{full.split('.')[0]}.")]
    near = similar(full, available or known, 2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return (
        f"weights {name}: torchvision has no such weights{hint}\n"
        f"available: {', '.join(available) or 'a path, a URL, or a name of docs.pytorch.org/vision/stable/models.html'}"
    )


def _renamed(key: str, wanted: dict[str, Tensor]) -> str:
    """The net's own name for a key of the file."""
    new = key
    for pattern, replacement in RENAMES:
        new = re.sub(pattern, replacement, new)
    return new if new in wanted and key not in wanted else key


def _check_fit(state: dict[str, Tensor], wanted: dict[str, Tensor], complaint: str) -> None:
    """Raise UserError unless every tensor has its place, of its shape."""
    # BatchNorm's counters came with torch 0.4.1, and only a cumulative average reads them.
    missing = [f"missing {k}" for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [f"unexpected {k}" for k in state if k not in wanted]
    reshaped = [
        f"{key} is {tuple(value.shape)} in the file, {tuple(wanted[key].shape)} in the net"
        for key, value in state.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    if first := next(iter(missing + unexpected + reshaped), ""):
        counts = f"{len(missing)} keys missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape"
        raise UserError(f"{complaint}: {counts}\nthe first: {first}")


def _describe(net: nn.Module) -> str:
    """A net in a few words."""
    if not isinstance(net, ResNet):
        return type(net).__name__
    return "ResNet({block}, {layers}, shortcut {shortcut}, {stem} stem, width {width})".format(**net.init_args)


def find_classifier(net: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The name and module of the last classifier layer of any classification net.

    That is the last `nn.Linear`; in a net without one, such as SqueezeNet, the last 1×1 convolution with a bias.

    Raises:
        UserError: there is no such layer.
    """
    modules = list(net.named_modules())
    heads = [(name, module) for name, module in modules if isinstance(module, nn.Linear)]
    heads = heads or [
        (name, module)
        for name, module in modules
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.bias is not None
    ]
    if not heads:
        raise UserError(f"{type(net).__name__}: no classifier layer found\nexpected an nn.Linear, or a 1×1 nn.Conv2d")
    return heads[-1]


def reset_classifier(net: nn.Module, num_classes: int) -> bool:
    """Replace the classifier layer by a new one if it is not `num_classes` wide; whether it did."""
    name, head = find_classifier(net)
    if len(head.weight) == num_classes:
        return False
    like = {"bias": head.bias is not None, "device": head.weight.device, "dtype": head.weight.dtype}
    if isinstance(head, nn.Linear):
        new = nn.Linear(head.in_features, num_classes, **like)
    else:
        new = nn.Conv2d(head.in_channels, num_classes, 1, head.stride, **like)
    net.set_submodule(name, new)
    if isinstance(net, ResNet):
        net.init_args["num_classes"] = num_classes
    return True


def fetch_weights(url: str) -> Path:
    """Downloads a file of weights into torch's own cache, where torchvision looks too, unless it is there already.

    torchvision's file names end in the first digits of their SHA-256 (with a letter, unlike a date), which are checked.
    """
    path = Path(url2pathname(urlsplit(url).path))
    if url.startswith("file:"):
        return path
    digits = re.search(r"-(?=\d*[a-f])([a-f0-9]{8,})\.", path.name)
    path = Path(torch.hub.get_dir()) / "checkpoints" / path.name
    hint = "or train from scratch with --model.weights null"
    return fetch([url], path, f"sha256-prefix:{digits[1]}" if digits else None, what="weights", hint=hint)
