"""`serve`: the answers of the endpoint, its errors and limits, and the command itself."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from resnet_pl.analysis.serve import LOCAL_HOSTS, allowed_hosts, describe
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.main import main
from resnet_pl.evaluation.classify import Preprocessing
from resnet_pl.load import load_model
from resnet_pl.server import uploads
from resnet_pl.server.app import MAX_IN_MEMORY, create_app, create_server
from resnet_pl.server.uploads import Photo
from resnet_pl.server.worker import Worker
from tests.cli.commands import refused
from tests.tiny import classifier

STATIC = Path(uploads.__file__).with_name("static")
LIMITS = {"bytes": 3_000_000, "pixels": 1_500_000}


class Server:
    """A server in a thread; `request` returns status, headers and body."""

    def __init__(self, model: ImageClassifier, facts: dict[str, Any]) -> None:
        self.model = model
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        app = create_app(Worker(model, LIMITS["pixels"]), facts, LOCAL_HOSTS)
        self.server = create_server(app)
        self.thread = threading.Thread(target=self.server.run, args=([listener],))
        self.thread.start()

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
        return request(self.port, method, path, body, **headers)

    def predict(self, body: bytes, path: str = "/predict", **headers: str) -> tuple[int, dict[str, Any]]:
        """Posts a body and returns status and answer."""
        status, _, answer = self.request("POST", path, body, **headers)
        return status, json.loads(answer)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()


def request(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


@pytest.fixture(scope="module")
def served(trained: Path) -> Iterator[Server]:
    """A server for the checkpoint of a small training."""
    file = trained / "checkpoints/best.ckpt"
    model = load_model(file)
    server = Server(model, describe(model, file) | {"limits": LIMITS})
    yield server
    server.stop()


def photo(size: tuple[int, int] = (40, 30), kind: str = "JPEG", **options: Any) -> bytes:
    """A file with a photo-like image: smooth colors that differ everywhere."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.stack([x * 255 // size[0], y * 255 // size[1], (x + y) % 256], axis=2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def form(*files: tuple[str, bytes], fields: Sequence[str] = ()) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a multipart form."""
    parts = [f'form-data; name="f"; filename="{name}"\r\n\r\n'.encode() + data for name, data in files]
    parts += [f'form-data; name="{name}"\r\n\r\ntext'.encode() for name in fields]
    body = b"".join(b"--limit\r\nContent-Disposition: " + part + b"\r\n" for part in parts) + b"--limit--\r\n"
    return body, {"Content_Type": "multipart/form-data; boundary=limit"}


def test_photos_are_classified_as_by_the_model(served: Server) -> None:
    files = [("a.jpg", photo()), ("b ü.png", photo((20, 60), "PNG"))]
    body, headers = form(*files, fields=["ignored"])
    status, answer = served.predict(body, "/predict?top_k=3", **headers)
    assert status == 200
    images = [Image.open(io.BytesIO(data)) for _, data in files]
    for (name, _), given, expected in zip(files, answer["predictions"], served.model.predict(images), strict=True):
        assert given["file"] == name and given["class"] == expected.class_name
        best = expected.probabilities.topk(3)
        assert [row["class"] for row in given["probabilities"]] == [served.model.class_names[i] for i in best.indices]
        values = [row["probability"] for row in given["probabilities"]]
        assert values == pytest.approx(best.values.tolist(), abs=1e-3)  # two decoders
        assert list(given["probabilities"][0]) == ["class", "probability"]


def test_a_photo_can_be_the_body_and_is_rotated_as_its_header_says(served: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    with Image.open(io.BytesIO(photo(kind="PNG"))) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    for headers in ({"Content_Type": "image/png"}, {"Content_Type": "application/x-www-form-urlencoded"}, {}):
        status, answer = served.predict(turned.getvalue(), **headers)
        assert status == 200
        assert answer["predictions"][0]["file"] == "body"
        upright = served.predict(photo(kind="PNG"))[1]["predictions"]
        assert answer["predictions"] == upright


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that claims to be large, as decompression bombs do."""
    data = bytearray(photo(kind="PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
PROGRESSIVE = photo(progressive=True)
BAD_FILES = {
    "empty.jpg": (b"", 400, "the file is empty"),
    "page.jpg": (b"<!doctype html><script>alert(1)</script>", 400, "not an image"),
    "drawing.svg": (SVG, 400, "not an image"),
    "truncated.jpg": (photo((400, 300))[:2000], 400, "truncated"),
    "scans.jpg": (PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rfind(b"\xff\xda") : -2] * 40, 400, "JPEG with 50 scans"),
    "bomb.png": (header_only_png(60_000, 60_000), 413, "pixels"),
    "large.jpg": (photo((1300, 1200), quality=10), 413, "more than 1,500,000 pixels"),
    "large.png": (header_only_png(1300, 1200), 413, "more than 1,500,000 pixels"),
    "too_many_bytes.jpg": (photo() + bytes(3_000_000), 413, "bytes, more than 3,000,000"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_json(served: Server, name: str) -> None:
    data, expected, reason = BAD_FILES[name]
    body, headers = form(("good.jpg", photo()), (name, data))
    for status, answer in (served.predict(data), served.predict(body, **headers), served.predict(data, "/heatmap")):
        assert (status, set(answer) - {"file"}) == (expected, {"error"})
        assert reason in answer["error"]
    if "bytes" not in reason:
        assert served.predict(body, **headers)[1]["file"] == name


@pytest.mark.parametrize(
    ("status", "reason", "method", "path", "body", "headers"),
    [
        (400, "no file", "POST", "/predict", *form(fields=["photo"])),
        (400, "Too many files", "POST", "/predict", *form(*[("a.jpg", photo())] * 33)),
        (400, "boundary", "POST", "/predict", b"", {"Content_Type": "multipart/form-data"}),
        (400, "Invalid multipart", "POST", "/predict", b"nonsense", form()[1]),
        (400, "top_k", "POST", "/predict?top_k=0", photo(), {}),
        (400, "top_k", "POST", "/predict?top_k=" + "9" * 5000, photo(), {}),
        (400, "no class 'x'", "POST", "/heatmap?class=x", photo(), {}),
        (400, "one photo", "POST", "/heatmap", *form(*[("a.jpg", photo())] * 2)),
        (403, "other sites", "POST", "/predict", photo(), {"Sec_Fetch_Site": "cross-site"}),
        (404, "Not Found", "GET", "/../page.js", None, {}),
        (404, "Not Found", "GET", "/unknown", None, {}),
        (405, "Method Not Allowed", "GET", "/predict", None, {}),
        (405, "Method Not Allowed", "DELETE", "/model", None, {}),
        (413, "bytes", "POST", "/predict", (bytes(1_000_000) for _ in range(4)), {}),  # of unknown length
    ],
)
def test_bad_requests_are_refused_in_json(
    served: Server, status: int, reason: str, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    found, _, answer = served.request(method, path, body, **headers)
    assert found == status and reason in json.loads(answer)["error"]


def test_pages_whose_name_was_rebound_to_this_computer_are_refused(served: Server) -> None:
    assert [served.request("GET", "/model", Host=host)[0] for host in ("evil.example:80", "", "[::2]")] == [400] * 3
    assert [served.request("GET", "/model", Host=host)[0] for host in ("localhost", "[::1]:8000")] == [200] * 2


def test_a_class_whose_name_is_not_utf_8(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["Bl\udcfcte", *served.model.class_names[1:]]
    monkeypatch.setitem(served.model.hparams, "class_names", names)
    status, answer = served.predict(photo(), "/predict?top_k=10")
    assert status == 200 and {row["class"] for row in answer["predictions"][0]["probabilities"]} == set(names)


def test_an_internal_error_is_not_shown_to_the_client(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(served.model, "predict", fail)
    assert served.predict(photo()) == (500, {"error": "internal error, see the output of the server"})


def test_slow_uploads_do_not_block_others(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.2)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx"
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=30) for _ in range(MAX_IN_MEMORY)]
    for each in slow:
        each.sendall(head)
    assert served.predict(photo())[0] == 200
    for each in slow:
        assert each.recv(12) == b"HTTP/1.1 408"
        each.close()


def test_photos_are_not_written_to_the_disk(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    body, headers = form(("large.jpg", photo() + bytes(2_500_000)))
    assert served.predict(body, **headers)[0] == 200


def test_heat_maps_are_images_of_the_size_of_the_input(served: Server) -> None:
    pytest.importorskip("captum")
    pngs = []
    for path in ("/heatmap", "/heatmap?class=3", "/heatmap?class=8"):
        status, headers, png = served.request("POST", path, photo())
        assert (status, headers["content-type"]) == (200, "image/png")
        size = served.model.preprocessing.image_size
        with Image.open(io.BytesIO(png)) as image:
            assert image.size == (size, size)
        pngs.append(png)
    assert pngs[1] != pngs[2]


def test_the_server_describes_its_model(served: Server) -> None:
    facts = json.loads(served.request("GET", "/model")[2])
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["temperature"] == 1.0 and facts["limits"] == LIMITS
    assert re.fullmatch("[0-9a-f]{64}", facts["checkpoint"]["sha256"])
    assert json.loads(served.request("GET", "/health")[2]) == {"status": "ok"}


def test_the_page_connects_to_no_other_host(served: Server) -> None:
    status, headers, page = served.request("GET", "/")
    assert status == 200 and b"Choose photos" in page
    assert headers["content-security-policy"].startswith("default-src 'self';") and "server" not in headers
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.decode()):
        assert served.request("GET", f"/{name}")[0] == 200
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "//" not in re.sub(r"(^|\s)// .*", "", text, flags=re.MULTILINE), file.name


def test_a_prediction_below_the_threshold_is_unknown(served: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.model, "confidence_threshold", 1.0)
    [answer] = served.predict(photo())[1]["predictions"]
    assert answer["class"] == "unknown" and answer["probabilities"][0]["class"] in served.model.class_names
    assert served.request("POST", "/heatmap", photo())[0] == 200  # of the most probable class


def test_several_classes_per_image() -> None:
    model = classifier(multi_label=True, class_names=["a", "b", "c", "d"])
    model.configure_model()
    model.eval()
    model.preprocessing = Preprocessing(8)
    assert model.thresholds is not None
    model.thresholds.copy_(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    [answer] = Worker(model, 10_000).classify([Photo("x", photo())], top_k=9)
    assert "class" not in answer and sorted(answer["classes"]) == ["a", "c"]
    assert len(answer["probabilities"]) == 4


# ------------------------------------------------------------------------------------ the command
def test_the_command_serves_until_ctrl_c(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(capsys, "serve", "--ckpt_path", copy, "--port", port)
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in message
    answers = []

    def use() -> None:
        for _ in range(600):
            try:
                answers.append(json.loads(request(port, "POST", "/predict", photo())[2]))
                break
            except OSError:
                time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=use)
    thread.start()
    code = main(["serve", "--ckpt_path", "best", "--name", "digits", "--port", str(port)])
    thread.join()
    assert code == 130
    assert answers[0]["predictions"][0]["class"] in "0123456789"
    printed = capsys.readouterr()
    assert f"best.ckpt at http://127.0.0.1:{port}" in printed.out and "warning" not in printed.err


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("localhost", {*LOCAL_HOSTS}), ("127.0.0.2", {*LOCAL_HOSTS, "127.0.0.2"}), ("0.0.0.0", {"*"}), ("pc", {"*"})],
)
def test_which_host_names_a_server_answers_to(host: str, allowed: set[str]) -> None:
    assert set(allowed_hosts(host)) == allowed


def test_a_missing_package_and_wrong_options_are_named(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ["serve", "--ckpt_path", copy, "--port", 0]
    assert "at most 89" in refused(capsys, *start, "--max_megapixels", 100)
    assert "port must be 0-65535" in refused(capsys, *start[:-1], 80000)
    assert "unknown option --prot, did you mean --port?" in refused(capsys, *start[:-2], "--prot", 0)
    assert "serve: max_megabytes: must be >0" in refused(capsys, *start, "--max_megabytes", 0)
    assert "cannot listen at 192.0.2.1" in refused(capsys, *start, "--host", "192.0.2.1")
    assert "--device nonsense" in refused(capsys, *start, "--device", "nonsense")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "serve needs the package uvicorn" in refused(capsys, *start)
