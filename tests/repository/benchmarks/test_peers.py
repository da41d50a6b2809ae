"""The comparison with other tools: every peer trains on the same images, and its predictions are scored alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import peers, report
from tests.conftest import write_photos

CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def test_the_peers_have_the_same_settings() -> None:
    for name, peer in peers.peers(Path("timm")).items():
        text = " ".join(peer.train(Path("DATA"), Path("OUT"), 3, 7))
        text += "".join(path.read_text(encoding="utf-8") for path in peer.files)
        for setting in ("DATA", "OUT", "128", "64", "0.05", "5e-4", "0.25"):
            assert setting in text.replace("0.0005", "5e-4"), (name, setting)
        assert peer.lines() > 5


@pytest.mark.slow
def test_two_peers_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    # Flowers tests on every tenth image.
    photos = write_photos(tmp_path / "photos", CLASSES, count=30)
    words = ["--flowers", str(photos), "--work", str(tmp_path / "work"), "--epochs", "1", "--seeds", "1"]
    words += ["--only", "resnet_pl", "bare PyTorch loop"]
    peers.main(words)
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][-2:]
    assert [line[1].strip() for line in lines] == ["resnet_pl", "bare PyTorch loop"]
    for line in lines:
        minutes, images, memory, accuracy, seconds = (float(cell) for cell in line[2:7])
        assert minutes > 0 and images > 0 and memory > 0.1 and 0 <= accuracy <= 100 and seconds > 0
    with pytest.raises(SystemExit, match="exit code"):
        broken = peers.Peer(lambda *_: ["missing.py"], lambda *_: ["missing.py"], lambda *_: {})
        monkeypatch.setattr(peers, "peers", lambda timm: {"resnet_pl": broken})
        peers.main(words)
