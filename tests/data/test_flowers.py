"""flower_photos from a local server."""

import hashlib
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from resnet_pl.data import Flowers, download
from resnet_pl.data import flowers as flowers_module
from resnet_pl.utils import UserError
from tests.data.test_archives import BAD_MEMBERS, tar

CLASSES = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]


@pytest.fixture
def server(tmp_path: Path, make_photos: Callable, serve: Callable, monkeypatch: pytest.MonkeyPatch) -> object:
    """Serves a small flower_photos.tgz with the layout of the real one."""
    make_photos(tmp_path / "made" / "flower_photos", CLASSES, count=4)
    (tmp_path / "made" / "flower_photos" / "LICENSE.txt").write_text("by many photographers")
    archive = tmp_path / "web" / "flower_photos.tgz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "flower_photos", "flower_photos")
    served = serve(archive.parent)
    monkeypatch.setattr(Flowers, "urls", [f"{served.address}/flower_photos.tgz"])
    monkeypatch.setattr(Flowers, "checksum", f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    return served


def flowers(root: Path, **kwargs: object) -> Flowers:
    return Flowers(str(root), image_size=16, num_workers=0, **kwargs)


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_downloaded_once_without_leftovers(server: object, tmp_path: Path) -> None:
    root = tmp_path / "data" / "my flowers"
    for _ in range(2):
        data = flowers(root)
        data.prepare_data()
        data.setup("fit")
        assert data.classes == CLASSES
        assert sum(map(len, data.splits.values())) == 20
    assert server.requests == ["/flower_photos.tgz"]
    assert file_names(root.parent) == ["my flowers"]


def test_an_empty_folder_is_filled(server: object, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    flowers(tmp_path / "data").prepare_data()
    assert file_names(tmp_path / "data") == ["LICENSE.txt", *CLASSES]


def test_concurrent_downloads_request_the_archive_once(server: object, tmp_path: Path) -> None:
    errors = []

    def prepare() -> None:
        try:
            flowers(tmp_path / "data" / "flowers").prepare_data()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert server.requests == ["/flower_photos.tgz"]
    assert file_names(tmp_path / "data") == ["flowers"]


def test_interrupted_unpacking_leaves_no_half_folder(
    server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, extract = tmp_path / "data" / "flowers", flowers_module.extract

    def interrupted(archive: Path, folder: Path) -> None:
        extract(archive, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(flowers_module, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flowers(root).prepare_data()
    assert not root.exists()
    monkeypatch.setattr(flowers_module, "extract", extract)
    flowers(root).prepare_data()
    assert len(list(root.glob("*/*.jpg"))) == 20
    assert file_names(root.parent) == ["flowers"]
    assert len(server.requests) == 1, "the downloaded archive is used again"


def test_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flowers, "urls", ["http://127.0.0.1:9/flower_photos.tgz"])
    root = tmp_path / "data" / "flowers"
    with pytest.raises(UserError) as error:
        flowers(root).prepare_data()
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert "flower_photos.tgz" in lines[0] and "http://127.0.0.1:9/flower_photos.tgz" in lines[0]
    assert str(root.parent / "flower_photos.tgz") in lines[1]
    assert "--data.root FOLDER" in lines[1]
    assert str(root) in lines[1]
    assert not root.exists()


def test_wrong_content_is_refused(server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flowers, "checksum", f"sha256:{'0' * 64}")
    with pytest.raises(UserError, match="wrong content"):
        flowers(tmp_path / "data" / "flowers").prepare_data()
    assert not list((tmp_path / "data").glob("*.tgz"))
    assert not (tmp_path / "data" / "flowers").exists()


@pytest.mark.parametrize("kind", [*BAD_MEMBERS, "truncated", "not an archive"])
def test_a_dangerous_archive_is_not_unpacked(
    server: object, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tar(
        tmp_path / "web/flower_photos.tgz", BAD_MEMBERS.get(kind, ("flower_photos/x", Random(0).randbytes(2000)))
    )
    if kind in ("truncated", "not an archive"):
        archive.write_bytes(archive.read_bytes()[:900] if kind == "truncated" else b"<html>404</html>")
    monkeypatch.setattr(Flowers, "checksum", f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"cannot unpack .*flower_photos.tgz"):
        flowers(tmp_path / "data" / "flowers").prepare_data()
    added = {str(path.relative_to(tmp_path)) for path in set(tmp_path.rglob("*")) - before}
    assert added == {"data", "data/flower_photos.tgz"}


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file: .*\n.*--data.root"):
        flowers(tmp_path / "file" / "flowers").prepare_data()


def test_no_download_if_disabled_or_not_needed(server: object, tmp_path: Path, photo_folder: Path) -> None:
    data = flowers(tmp_path / "data" / "flowers", download=False)
    data.prepare_data()
    with pytest.raises(UserError, match=r"data\.root.*flowers.*\n.*--data\.download true"):
        data.setup("fit")
    data = flowers(tmp_path / "data" / "flowers")
    data.set_predict_files(sorted(photo_folder.glob("*/*.jpg")))
    data.prepare_data()
    data.setup("predict")
    assert sum(len(batch.images) for batch in data.predict_dataloader()) == 30
    assert server.requests == []
