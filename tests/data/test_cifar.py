"""CIFAR-10 and CIFAR-100 from small archives and arrays in the official formats."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_pl.data import CIFAR10, CIFAR100, PadCrop, RandomFlip
from resnet_pl.utils import UserError

RNG = np.random.default_rng(0)
Kind = type[CIFAR10] | type[CIFAR100]
KINDS = {CIFAR10: "cifar-10-batches-bin", CIFAR100: "cifar-100-binary"}
each_kind = pytest.mark.parametrize("kind", KINDS)


def arrays(kind: Kind, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` random images `(N, 32, 32, 3)` and labels 0, 1, 2, …"""
    return RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % len(kind.names)


def write_binaries(kind: Kind, folder: Path, each: int = 40) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes the official format: label bytes, then 1024 red, 1024 green and 1024 blue bytes, row by row."""
    folder.mkdir(parents=True)
    written = {}
    for split, names in kind.binaries.items():
        made = [arrays(kind, each * (5 if kind is CIFAR100 else 1)) for _ in names]
        for name, (images, labels) in zip(names, made, strict=True):
            with (folder / name).open("wb") as file:
                for image, label in zip(images, labels, strict=True):
                    coarse = [] if kind is CIFAR10 else [19]
                    file.write(bytes([*coarse, label]) + image.transpose(2, 0, 1).tobytes())
        written[split] = tuple(np.concatenate(columns) for columns in zip(*made, strict=True))
    return written


def ready(kind: Kind, root: Path, **kwargs: object) -> CIFAR10 | CIFAR100:
    data = kind(str(root), **{"val_split": 0.2, "download": False, **kwargs})
    data.setup("fit")
    return data


def assert_same(data: CIFAR10 | CIFAR100, written: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for name, (images, labels) in written.items():
        splits = [data.splits[split] for split in (("train", "val") if name == "train" else ("test",))]
        indices = [int(image.split("/")[1]) for split in splits for image in split.names]
        assert sorted(indices) == list(range(len(labels)))
        pixels = torch.cat([split.images for split in splits]).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(pixels, images[indices])
        assert np.array_equal(torch.cat([split.labels for split in splits]).numpy(), labels[indices])


@each_kind
@pytest.mark.parametrize("inner", [True, False])
def test_official_binaries(kind: Kind, inner: bool, tmp_path: Path) -> None:
    written = write_binaries(kind, tmp_path / "data" / KINDS[kind] if inner else tmp_path / "data")
    data = ready(kind, tmp_path / "data")
    assert_same(data, written)
    assert len(data.classes) == len(set(data.classes)) == len(kind.names) == (10 if kind is CIFAR10 else 100)
    assert len(data.splits["val"]) == round(0.2 * len(written["train"][1]))


def save_npz(root: Path, kind: Kind = CIFAR10, **changes: object) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    root.mkdir(exist_ok=True)
    written = {"train": arrays(kind, 200), "test": arrays(kind, 100)}
    columns = {
        f"{letter}_{split}": array for split, pair in written.items() for letter, array in zip("xy", pair, strict=True)
    }
    np.savez(root / kind.npz, **{key: value for key, value in {**columns, **changes}.items() if value is not None})
    return written


@each_kind
def test_npz(kind: Kind, tmp_path: Path) -> None:
    written = save_npz(tmp_path, kind)
    assert_same(ready(kind, tmp_path), written)


def test_npz_in_the_keras_format(tmp_path: Path) -> None:
    written = save_npz(tmp_path, y_train=(np.arange(200) % 10)[:, None], y_test=(np.arange(100) % 10)[:, None])
    assert_same(ready(CIFAR10, tmp_path), written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.array([{}] * 200, dtype=object)}, "Object arrays cannot be loaded"),
        ({"x_test": None}, "x_test is not a file"),
        ({"x_train": np.zeros((200, 3, 32, 32), np.uint8)}, r"x_train is uint8 of shape \(200, 3, 32, 32\)"),
        ({"x_train": np.zeros((200, 32, 32, 3), np.float32)}, "x_train is float32"),
        ({"y_train": np.arange(199) % 10}, "x_train is uint8"),
        ({"y_test": np.full(100, 10)}, "y_test has labels 10 to 10, for 10 classes"),
        ({"y_test": np.full(100, -1)}, "y_test has labels -1 to -1"),
    ],
)
def test_bad_npz(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    save_npz(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        ready(CIFAR10, tmp_path)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "pickle", "npy"])
def test_damaged_npz(kind: str, tmp_path: Path) -> None:
    save_npz(tmp_path)
    file = tmp_path / "cifar10.npz"
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    contents = {
        "truncated": file.read_bytes()[:-500],
        "empty": b"",
        "text": b"hello",
        "pickle": b"\x80\x04N.",
        "npy": array.getvalue(),
    }
    file.write_bytes(contents[kind])
    with pytest.raises(UserError, match=r"cannot read .*cifar10\.npz: .+\n.*x_train"):
        ready(CIFAR10, tmp_path)


@pytest.mark.parametrize("length", [0, 3073 * 7 + 1, 3072])
def test_truncated_binary_is_named(length: int, tmp_path: Path) -> None:
    write_binaries(CIFAR10, tmp_path / "data")
    file = tmp_path / "data" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"data_batch_3\.bin .*truncated\n.*cifar-10-binary"):
        ready(CIFAR10, tmp_path / "data")


def test_binaries_with_invalid_labels(tmp_path: Path) -> None:
    write_binaries(CIFAR10, tmp_path / "data")
    (tmp_path / "data" / "test_batch.bin").write_bytes(b"\xff" * 3073)
    with pytest.raises(UserError, match="CIFAR10: y_test has labels 255 to 255"):
        ready(CIFAR10, tmp_path / "data")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CIFAR10 .*cifar10\.npz.*data_batch_1\.bin\n.*--data\.download"):
        ready(CIFAR10, tmp_path)


# ------------------------------------------------------------------------------------ the splits
def test_5000_validation_images_by_default(tmp_path: Path) -> None:
    assert CIFAR10(str(tmp_path)).val_split == CIFAR100(str(tmp_path)).val_split == 5000
    save_npz(tmp_path)
    with pytest.raises(UserError, match="val_split=5000"):
        ready(CIFAR10, tmp_path, val_split=5000)
    data = ready(CIFAR10, tmp_path, val_split=0)
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 200, "test": 100}
    assert data.val_dataloader() == []


def test_the_official_test_split_is_never_changed(tmp_path: Path) -> None:
    save_npz(tmp_path)
    first = ready(CIFAR10, tmp_path)
    for data in (ready(CIFAR10, tmp_path, split_seed=1), ready(CIFAR10, tmp_path, num_folds=4, fold=2)):
        assert data.splits["val"].names != first.splits["val"].names
        assert data.splits["test"].names == [f"test/{i:05d}" for i in range(100)]
        assert {name.split("/")[0] for name in data.splits["train"].names + data.splits["val"].names} == {"train"}


def test_the_defaults_are_those_of_the_paper(tmp_path: Path) -> None:
    data = CIFAR10(str(tmp_path))
    assert [type(transform) for transform in data.batch_transforms] == [RandomFlip, PadCrop]
    assert (data.batch_transforms[1].padding, data.mean, data.std, data.batch_size) == (4, "pixel", None, 128)
    with pytest.raises(ValueError, match="CIFAR10: image_size is 64"):
        CIFAR10(str(tmp_path), image_size=64)


def test_padding_is_zero_after_normalization(tmp_path: Path) -> None:
    save_npz(tmp_path)
    data = ready(CIFAR10, tmp_path)
    mean, _ = data.normalization()
    assert mean.shape == (3, 32, 32)
    batch = data.augment(next(iter(data.train_dataloader())))
    normalized = batch.images - mean
    # A crop that is not centered has a row or column of padding.
    edges = torch.stack([normalized[:, :, 0].abs().amax((1, 2)), normalized[:, :, -1].abs().amax((1, 2))])
    assert 0.7 < float((edges.amin(0) < 1e-6).double().mean()) < 1


# ------------------------------------------------------------------------------------ download
@each_kind
def test_downloaded_once(kind: Kind, tmp_path: Path, serve: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_binaries(kind, tmp_path / "made")
    archive = tmp_path / "web" / Path(kind.urls[0]).name
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made", KINDS[kind])
    server = serve(archive.parent)
    monkeypatch.setattr(kind, "urls", [f"{server.address}/{archive.name}"])
    monkeypatch.setattr(kind, "checksum", f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}")
    root = tmp_path / "data" / "cifar"
    for _ in range(2):
        data = kind(str(root), val_split=20)
        data.prepare_data()
        data.setup("fit")
        assert_same(data, written)
    assert len(server.requests) == 1
    assert [path.name for path in root.parent.iterdir()] == ["cifar"]
    assert [path.name for path in root.iterdir()] == [KINDS[kind]]


def test_download_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "urls", ["http://127.0.0.1:9/cifar-10-binary.tar.gz"])
    with pytest.raises(UserError) as error:
        CIFAR10(str(tmp_path / "data" / "cifar10")).prepare_data()
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert "cannot download CIFAR10" in lines[0]
    assert str(tmp_path / "data" / "cifar-10-binary.tar.gz") in lines[1]


def test_no_download_if_an_npz_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "urls", ["http://127.0.0.1:9/cifar-10-binary.tar.gz"])
    save_npz(tmp_path)
    CIFAR10(str(tmp_path)).prepare_data()
