"""Weights from a server on this machine: fetched once, verified by their name, and what is said without a network."""

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
from resnet_pl.models.pretrained import fetch_weights
from resnet_pl.utils import UserError


def weights() -> bytes:
    torch.manual_seed(3)
    buffer = io.BytesIO()
    torch.save(cifar_resnet(8).state_dict(), buffer)
    return buffer.getvalue()


BODY = weights()
DIGITS = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    asked: list[str]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetched_once_into_torchs_own_cache(server, cache):
    url = server.url(f"models/net-{DIGITS[:8]}.pth")
    assert fetch_weights(url) == fetch_weights(url) == cache / f"net-{DIGITS[:8]}.pth"
    assert server.asked == [f"/models/net-{DIGITS[:8]}.pth"]
    assert [path.name for path in cache.iterdir()] == [f"net-{DIGITS[:8]}.pth"]
    assert (cache / f"net-{DIGITS[:8]}.pth").read_bytes() == BODY


def test_loaded_into_a_net(server):
    net = cifar_resnet(8)
    message = load_pretrained(net, server.url(f"net-{DIGITS[:8]}.pth"), fetch_weights)
    torch.manual_seed(3)
    assert torch.equal(net.fc.weight, cifar_resnet(8).fc.weight)
    assert "tensors loaded" in message


def test_other_content_than_the_name_says(server, cache):
    with pytest.raises(UserError, match="wrong content") as error:
        fetch_weights(server.url("net-0123abcd.pth"))
    assert "net-0123abcd.pth" in str(error.value)
    assert not (cache / "net-0123abcd.pth").exists()


@pytest.mark.parametrize("name", ["net.pth", "net-20231105.pth", "net-v2.pth", "net-abc.pth"])
def test_a_name_without_digits_of_a_checksum(server, cache, name):
    assert fetch_weights(server.url(name)) == cache / name


def test_a_query_is_no_part_of_the_name(server, cache):
    assert fetch_weights(server.url("net.pth?from=a/b.txt#top")) == cache / "net.pth"
    assert server.asked == ["/net.pth?from=a/b.txt"]


def test_a_file_of_this_machine_is_read_where_it_is(tmp_path, cache):
    path = tmp_path / "my net.pth"
    path.write_bytes(BODY)
    assert fetch_weights(path.as_uri()) == path
    assert load_pretrained(cifar_resnet(8), path.as_uri(), fetch_weights).startswith("weights file://")
    assert not cache.exists()


def test_without_a_network_two_lines_say_what_to_do(cache):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/resnet34-b627a593.pth"
        with pytest.raises(UserError) as error:
            fetch_weights(url)
    what, way_out = str(error.value).splitlines()
    assert what.startswith("cannot download weights resnet34-b627a593.pth, tried ")
    assert url in what
    assert str(cache / "resnet34-b627a593.pth") in way_out
    assert "--model.weights null" in way_out
