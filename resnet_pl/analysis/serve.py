"""Classify photos in the browser, and as a JSON endpoint.

The page shows classes, probabilities and heat maps of the photos that are dropped on it. Programs send photos to
`/predict`, see docs/deploy.md. Nothing is written to the disk or sent to another computer.
"""

from __future__ import annotations

import hashlib
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data.decode import MAX_PIXELS
from resnet_pl.load import load_model
from resnet_pl.run_dir import find_checkpoint
from resnet_pl.types import NonNegativeInt, PositiveInt
from resnet_pl.utils import UserError, require

# Values of the header Host of requests from the same computer.
LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
OWN = "classify images from Python, where you can give their preprocessing: model.predict(images, transform=…)"
WARNING = "warning: every computer that can reach this address can use the server, which has no password and no TLS"


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `serve`."""
    checkpoint = "checkpoint, run folder, best or last"
    parser.add_argument("--ckpt_path", type=str, required=True, help=checkpoint)
    name = "name of the runs that best and last refer to; all runs by default"
    parser.add_argument("--name", type=str | None, default=None, help=name)
    parser.add_argument("--port", type=NonNegativeInt, default=8000, help="port; 0 for any that is free")
    host = "address to listen at; the default accepts requests from this computer only, 0.0.0.0 from all others"
    parser.add_argument("--host", type=str, default="127.0.0.1", help=host)
    device = "device of the network, such as cpu or cuda:1; a GPU by default, if there is one"
    parser.add_argument("--device", type=str | None, default=None, help=device)
    upload = "largest request, megabytes: all its photos together"
    parser.add_argument("--max_megabytes", type=PositiveInt, default=50, help=upload)
    pixels = "largest photo, megapixels"
    parser.add_argument("--max_megapixels", type=PositiveInt, default=50, help=pixels)


def run(settings: Namespace) -> None:
    """Runs the command, until Ctrl-C or SIGTERM."""
    for module in ("starlette", "uvicorn", "python_multipart"):
        require(module, "serve", "serve")
    from resnet_pl.server.app import create_app, create_server
    from resnet_pl.server.worker import Worker

    limits = {"bytes": settings.max_megabytes * 10**6, "pixels": settings.max_megapixels * 10**6}
    if limits["pixels"] > MAX_PIXELS:
        raise UserError(f"serve: --max_megapixels is {settings.max_megapixels}\nit is at most {MAX_PIXELS // 10**6}")
    # Before the model is loaded, so that a port in use is an error at once.
    with _listen(settings.host, settings.port) as listener:
        file = find_checkpoint(settings.ckpt_path, name=settings.name)
        model = _load(file, settings.device)
        if model.preprocessing.image_size is None or model.preprocessing.eval_crop is None:
            raise UserError(f"serve: {file} was trained on data or with a crop of your own\n{OWN}")
        facts, worker = describe(model, file) | {"limits": limits}, Worker(model, limits["pixels"])
        hosts = allowed_hosts(settings.host)
        server = create_server(create_app(worker, facts, hosts))
        if "*" in hosts:
            print(WARNING, file=sys.stderr)
        print(f"Serving {file} at {_address(listener)} (Ctrl-C stops it)", flush=True)
        server.run(sockets=[listener])


def describe(model: ImageClassifier, file: Path) -> dict[str, Any]:
    """Returns what `/model` answers about a model and its checkpoint."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {
        "checkpoint": {"file": file.name, "sha256": digest},
        "classes": model.class_names,
        "multi_label": bool(model.hparams["multi_label"]),
        "image_size": model.preprocessing.image_size,
        "temperature": model.temperature,
        "threshold": model.confidence_threshold,
        "thresholds": None if model.thresholds is None else model.thresholds.tolist(),
    }


def _load(file: Path, device: str | None) -> ImageClassifier:
    model = load_model(file)
    if not isinstance(model, ImageClassifier):
        raise UserError(f"serve: {file} has a {type(model).__name__}\nderive it from ImageClassifier")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device)
    # torch raises RuntimeError for an unknown device, AssertionError without CUDA.
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"serve: --device {device}: {str(error).splitlines()[0]}") from error


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address."""
    try:
        family, *_, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        return socket.create_server((address[0], int(port)), family=family)  # `address` has the port modulo 65,536
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"serve: cannot listen at {host}, port {port}: {reason}\ngive another --port or --host"
        ) from error


def allowed_hosts(host: str) -> list[str]:
    """Returns the Host headers that the server accepts: all (`*`) if other computers can reach the address."""
    try:
        is_local = ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    return [*LOCAL_HOSTS, host] if is_local else ["*"]


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
