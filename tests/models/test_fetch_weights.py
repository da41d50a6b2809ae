"""Pretrained weights from a local server: downloaded once, with checksum; messages without a connection."""

import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from resnet_pl.data import download
from resnet_pl.models import cifar_resnet, load_pretrained
from resnet_pl.models.fetch_weights import fetch_weights
from resnet_pl.utils import UserError


def weights() -> bytes:
    torch.manual_seed(3)
    buffer = io.BytesIO()
    torch.save(cifar_resnet(8).state_dict(), buffer)
    return buffer.getvalue()


BODY = weights()
DIGITS = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    requests: list[str]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an empty cache folder for `torch.hub`."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_weights_are_downloaded_once_to_the_cache_of_torch_hub(server, cache):
    url = server.url(f"models/net-{DIGITS[:8]}.pth")
    assert fetch_weights(url) == fetch_weights(url) == cache / f"net-{DIGITS[:8]}.pth"
    assert server.requests == [f"/models/net-{DIGITS[:8]}.pth"]
    assert [path.name for path in cache.iterdir()] == [f"net-{DIGITS[:8]}.pth"]
    assert (cache / f"net-{DIGITS[:8]}.pth").read_bytes() == BODY


def test_downloaded_weights_are_loaded(server):
    model = cifar_resnet(8)
    message = load_pretrained(model, server.url(f"net-{DIGITS[:8]}.pth"), fetch_weights)
    torch.manual_seed(3)
    assert torch.equal(model.fc.weight, cifar_resnet(8).fc.weight)
    assert "tensors loaded" in message


def test_a_wrong_checksum_is_refused(server, cache):
    with pytest.raises(UserError, match="wrong content") as error:
        fetch_weights(server.url("net-0123abcd.pth"))
    assert "net-0123abcd.pth" in str(error.value)
    assert not (cache / "net-0123abcd.pth").exists()


def test_a_file_in_the_cache_is_checked(server, cache):
    cache.mkdir(parents=True)
    (cache / f"net-{DIGITS[:8]}.pth").write_bytes(BODY[:-1])
    with pytest.raises(UserError, match=r"another file: its SHA-256 begins with.*\ndelete it") as error:
        fetch_weights(server.url(f"net-{DIGITS[:8]}.pth"))
    assert str(cache / f"net-{DIGITS[:8]}.pth") in str(error.value) and not server.requests


@pytest.mark.parametrize("name", ["net.pth", "net-20231105.pth", "net-v2.pth", "net-abc.pth"])
def test_a_name_without_a_checksum(server, cache, name):
    assert fetch_weights(server.url(name)).name.endswith(f"-{name}")


def test_the_query_is_not_part_of_the_file_name(server, cache):
    assert fetch_weights(server.url("net.pth?from=a/b.txt#top")).name.endswith("-net.pth")
    assert server.requests == ["/net.pth?from=a/b.txt"]


def test_file_urls_are_not_copied(tmp_path, cache):
    path = tmp_path / "my net.pth"
    path.write_bytes(BODY)
    assert fetch_weights(path.as_uri()) == path
    assert load_pretrained(cifar_resnet(8), path.as_uri(), fetch_weights).startswith("weights file://")
    assert not cache.exists()


def test_the_message_without_a_connection_explains_the_fix(cache):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/resnet34-b627a593.pth"
        with pytest.raises(UserError) as error:
            fetch_weights(url)
    problem, fix = str(error.value).splitlines()
    assert problem.startswith("cannot download weights resnet34-b627a593.pth, tried ")
    assert url in problem
    assert str(cache / "resnet34-b627a593.pth") in fix
    assert "--model.weights null" in fix


def test_two_urls_with_the_same_file_name(server, cache):
    paths = {fetch_weights(server.url(f"{user}/model.safetensors")) for user in "ab"}
    assert len(paths) == len(server.requests) == 2
