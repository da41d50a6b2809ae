"""Pretrained weights of the Hugging Face Hub, from a local server that answers as the hub does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from resnet_pl.models import cifar_resnet, load_pretrained
from resnet_pl.models.fetch_weights import fetch_weights
from resnet_pl.utils import UserError
from tests.models.test_fetch_weights import BODY

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789" * 4


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> bool:
        """Sends the headers; returns whether the file exists."""
        name, file = self.path.split("/")[2], self.path.rpartition("/")[2]
        found = self.path.startswith("/user/net/") and file == "pytorch_model.bin"
        self.send_response(200 if found else 404)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound" if name in ("net", "empty") else "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(BODY).hexdigest()}"')
        self.send_header("Content-Length", str(len(BODY)) if found else "0")
        self.end_headers()
        return found

    def do_GET(self) -> None:
        if self.answer():
            self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace("https://huggingface.co", endpoint)
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_weights_of_a_repository_are_loaded_and_cached(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cifar_resnet(8)
    message = load_pretrained(model, "hf://user/net", fetch_weights)
    assert message.startswith("weights hf://user/net: ")
    torch.manual_seed(3)
    assert torch.equal(model.fc.weight, cifar_resnet(8).fc.weight)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_weights("hf://user/net").name == "pytorch_model.bin"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("hf://user/empty", "neither model.safetensors nor pytorch_model.bin"),
        ("hf://user/missing", "Repository Not Found"),
        ("hf://a/b/c", "Repo id must be"),
        ("hf://", "Repo id must"),
    ],
)
def test_what_is_not_on_the_hub_is_named(url: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"weights {url}: .*{problem}") as error:
        fetch_weights(url)
    assert len(str(error.value).splitlines()) == 2


def test_the_fix_without_a_connection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot be reached.*\n.*--model.weights FILE"):
        fetch_weights("hf://user/net")
