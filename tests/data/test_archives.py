"""Unpacking of good, dangerous and damaged archives."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from resnet_pl.data.download import extract
from resnet_pl.utils import UserError


def tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as package:
        for member in members:
            info, content = (
                (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            info.size = len(content)
            package.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in members:
            package.writestr(name, content)
    return path


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("odd")
    info.type = kind
    info.linkname = target
    return info


def zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("odd")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


GOOD = [("flowers/a/1.jpg", b"one"), ("flowers/b/2.jpg", b"two"), ("./notes: 12:30.txt", b"")]


@pytest.mark.parametrize("name", ["x.tgz", "x.tar", "x.zip"])
def test_good_archives_are_unpacked(name: str, tmp_path: Path) -> None:
    archive = (zipped if name == "x.zip" else tar)(tmp_path / name, *GOOD)
    folder = tmp_path / "data" / "out"
    extract(archive, folder)
    assert contents(folder) == {"flowers/a/1.jpg": b"one", "flowers/b/2.jpg": b"two", "notes: 12:30.txt": b""}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_special_permissions_are_removed(tmp_path: Path) -> None:
    info = tarfile.TarInfo("tool")
    info.mode = 0o6666
    extract(tar(tmp_path / "x.tar", info), tmp_path / "out")
    assert (tmp_path / "out" / "tool").stat().st_mode & 0o7133 == 0
    (tmp_path / "new").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_existing_files_are_replaced_or_remain(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "flowers/a").mkdir(parents=True)
    (folder / "flowers/a/1.jpg").write_bytes(b"old")
    (folder / "flowers/a/mine.jpg").write_bytes(b"mine")
    extract(tar(tmp_path / "x.tgz", *GOOD[:2]), folder)
    assert contents(folder) == {
        "flowers/a/1.jpg": b"one",
        "flowers/a/mine.jpg": b"mine",
        "flowers/b/2.jpg": b"two",
    }


BAD_MEMBERS = {
    "parent": ("../odd", b"x"),
    "hidden parent": ("flowers/../../odd", b"x"),
    "absolute": ("/tmp/odd", b"x"),
    "drive": ("C:odd", b"x"),
    "backslash": ("..\\odd", b"x"),
    "symlink": special(tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": special(tarfile.LNKTYPE, "flowers/a/1.jpg"),
    "pipe": special(tarfile.FIFOTYPE),
    "device": special(tarfile.CHRTYPE),
}


def assert_refused(archive: Path, message: str) -> None:
    """Unpacking raises UserError and leaves no file behind."""
    before = set(archive.parent.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        extract(archive, archive.parent / "out")
    assert str(archive) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert set(archive.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", BAD_MEMBERS)
def test_dangerous_tar_members_are_refused(kind: str, tmp_path: Path) -> None:
    assert_refused(tar(tmp_path / "x.tgz", GOOD[0], BAD_MEMBERS[kind]), "odd")


@pytest.mark.parametrize("member", [("../odd", b"x"), ("/odd", b"x"), ("C:\\odd", b"x"), (zip_link(), b"/etc/passwd")])
def test_dangerous_zip_members_are_refused(member: tuple[str | zipfile.ZipInfo, bytes], tmp_path: Path) -> None:
    assert_refused(zipped(tmp_path / "x.zip", GOOD[0], member), "odd")


@pytest.mark.parametrize("name", ["x.tgz", "x.tar", "x.zip"])
def test_truncated_archives_are_refused(name: str, tmp_path: Path) -> None:
    noise = bytes(range(256)) * 100
    archive = (zipped if name == "x.zip" else tar)(tmp_path / name, *GOOD, ("last", noise))
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * 0.6)])
    assert_refused(archive, "damaged")
    archive.write_bytes(b"<html>404</html>")
    assert_refused(archive, "damaged")


def test_flipped_bits_in_a_zip_are_detected(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", ("a", b"some text that is stored"))
    data = bytearray(archive.read_bytes())
    data[40] ^= 0xFF
    archive.write_bytes(data)
    assert_refused(archive, "damaged")


def test_missing_archive(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone.tgz", "No such file")


@pytest.mark.parametrize("name", ["x.tgz", "x.zip"])
def test_full_disk(name: str, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    archive = (zipped if name == "x.zip" else tar)(tmp_path / name, *GOOD, ("large", bytes(1_000_000)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Like a full disk: a write fails in the middle of the archive.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert_refused(archive, str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
