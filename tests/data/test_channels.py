"""Gray images, images of any number of channels, and gray values of more than 8 bits."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pl import ImageClassifier, load_run
from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.decode import PixelFormat, read_image
from tests.cli.commands import PROJECT, refused, run

GRAY = PixelFormat(1)


def write_tiff_of_12_bits(path: Path, values: np.ndarray) -> None:
    """Writes an uncompressed TIFF with two values in three bytes."""
    height, width = values.shape
    first, second = values.reshape(-1, 2).T.astype(np.uint16)
    pixels = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(pixels)}
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4))


def test_gray(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC)
    expected = np.array(image.convert("L")).astype(int)
    for kind in ("jpg", "png"):
        path = tmp_path / f"image.{kind}"
        image.save(path, quality=98)
        gray = read_image(path, GRAY)
        assert gray.shape == (1, 40, 60) and gray.dtype == torch.uint8
        assert np.abs(gray[0].numpy() - expected).mean() < 2
    image.convert("L").save(path)
    assert np.array_equal(read_image(path, GRAY)[0], expected)
    assert np.array_equal(read_image(path)[2], expected)


def test_gray_values_of_more_than_8_bits_have_their_true_range(tmp_path: Path) -> None:
    values = np.arange(0, 4096, 32, dtype=np.uint16).reshape(8, 16)
    expected = np.round(values / 4095 * 255)
    write_tiff_of_12_bits(tmp_path / "12.tif", values)
    assert np.array_equal(read_image(tmp_path / "12.tif", GRAY)[0], expected)
    assert np.array_equal(read_image(tmp_path / "12.tif")[1], expected), "as RGB too"
    # A 12-bit camera that writes 16-bit files: the file does not say so.
    for name in ("16.png", "16.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert read_image(tmp_path / name, GRAY).max() < 17
        assert np.array_equal(read_image(tmp_path / name, PixelFormat(1, 4095))[0], expected)
        with pytest.raises(BadImage, match=r"value 4064, more than 1023 \(data\.max_value\)"):
            read_image(tmp_path / name, PixelFormat(1, 1023))


def test_other_numbers_of_channels_are_those_of_the_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    for name, channels in (("four.png", 4), ("four.tif", 4), ("two.png", 2)):
        Image.fromarray(pixels[:, :, :channels]).save(tmp_path / name)
        assert np.array_equal(
            read_image(tmp_path / name, PixelFormat(channels)).permute(1, 2, 0), pixels[:, :, :channels]
        )
    with pytest.raises(BadImage, match="it has 2 channels, not 4 of 8 bits"):
        read_image(tmp_path / "two.png", PixelFormat(4))


@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run(channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("dark", 0), ("bright", 100)):
        (tmp_path / name).mkdir()
        for number in range(10):
            pixels = rng.integers(level, level + 100, (24, 24, channels), dtype=np.uint8)
            Image.fromarray(pixels.squeeze()).save(tmp_path / name / f"{number}.png")
    data = ["--config", PROJECT / "configs/folder.yaml", "--data.root", tmp_path, "--data.in_channels", channels]
    data += ["--data.image_size", 16, "--data.batch_size", 8, "--data.num_workers", 0, "--trainer.max_epochs", 1]
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--name", "run"]
    measured = ["--data.mean", "channel", "--data.std", "channel"]
    if channels == 1:
        message = refused(capsys, "fit", *data, *model)
        advice = message.partition("set all of ")[2].split()
        assert "data.mean is" in message and "--data.in_channels 3" in message and len(advice) == 10
        run("fit", *data, *model, *advice, "--trainer.fast_dev_run", "true")  # nothing else is missing
        message = refused(capsys, "fit", *data, *model, *measured, "--data.cache", "true")
        assert "data.cache is for RGB" in message and "--data.cache false" in message
        message = refused(capsys, "fit", *data, *model, *measured)
        assert "PCAColor" in message and message.endswith(" ".join(advice))
    measured += ["--data.batch_transforms", "[RandomFlip]"]
    if channels == 1:
        message = refused(capsys, "fit", *data, *model, *measured, "--model.weights", "null")
        assert "takes images with 3 channels" in message and message.endswith(" ".join(advice))
        message = refused(capsys, "fit", *data, *model, *measured, "--model.backbone.in_channels", channels)
        assert "model.weights are for images with 3 channels" in message and message.endswith(" ".join(advice))
    fit = [*data, *model, *measured, "--model.backbone.in_channels", channels, "--model.weights", "null"]
    run("fit", *fit)
    run("test", "--ckpt_path", "last", "--name", "run", "--tta", "10-crop")
    run("predict", "--ckpt_path", "last", "--name", "run", "--images", tmp_path / "dark")
    folder = sorted(Path("runs/run").glob("version_*"))[-1]
    assert (folder / "contact_sheet.png").exists() and json.loads((folder / "results.json").read_text())["images"] == 2
    alone = ImageClassifier.load_from_checkpoint(folder / "checkpoints/last.ckpt", map_location="cpu")
    assert alone.normalize.mean.shape == (channels, 1, 1)
    by_path = alone.predict(str(tmp_path / "bright"))
    model, _ = load_run(folder, options=["--data.root", str(tmp_path)])
    assert [each.probability for each in model.predict(str(tmp_path / "bright"))] == [
        each.probability for each in by_path
    ]
    pixels = np.zeros((24, 24, channels), dtype=np.uint8)
    assert len(alone.predict(pixels)) == 1
