"""Finding, checking and decoding image files."""

import io
import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pl.data import decode
from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.decode import EncodedImage, read_image, verify_image
from resnet_pl.data.image_files import list_images
from resnet_pl.data.jpeg import count_scans, read_header
from resnet_pl.data.workers import BatchReader
from resnet_pl.utils import UserError

RED, BLUE, WHITE = (220, 40, 30), (20, 60, 210), (255, 255, 255)
ORIENTATION = 0x0112

Check = Callable[[Path], object]


def two_colors(left: tuple[int, int, int] = RED, right: tuple[int, int, int] = BLUE) -> Image.Image:
    """Returns 48 x 32 pixels with a left and a right half of one color each."""
    image = Image.new("RGB", (48, 32), left)
    image.paste(right, (24, 0, 48, 32))
    return image


def noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def assert_halves(pixels: torch.Tensor, left: tuple[int, ...], right: tuple[int, ...], tolerance: int = 3) -> None:
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 32, 48)
    for color, half in ((left, pixels[:, 4:28, 4:20]), (right, pixels[:, 4:28, 28:44])):
        difference = half.int() - torch.tensor(color)[:, None, None]
        assert difference.abs().max() <= tolerance, (half[:, 0, 0], color)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "WEBP"])
@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_colors_of_every_format_with_any_extension(kind: str, extension: str, tmp_path: Path) -> None:
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
    path = tmp_path / f"image{extension}"
    path.write_bytes(encoded(two_colors(), kind, **options.get(kind, {})))
    verify_image(path)
    assert_halves(read_image(path), RED, BLUE)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_both_jpeg_decoders_agree(options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(noise(), "JPEG", **options))
    fast = read_image(path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise ValueError

    monkeypatch.setattr(decode, "decode_jpeg", refuse)
    slow = read_image(path)
    assert (fast.int() - slow.int()).abs().max() <= 3
    assert fast.stride() == slow.stride()


def test_jpeg_uses_the_fast_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(noise(), "JPEG"))
    black = torch.zeros(3, 64, 80, dtype=torch.uint8)
    monkeypatch.setattr(decode, "decode_jpeg", lambda *args, **kwargs: black)
    assert torch.equal(read_image(path), black)


def test_jpegs_are_read_without_deprecated_functions(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(noise(), "JPEG"))
    with warnings.catch_warnings(action="error"):
        read_image(path)


def test_jpeg_header() -> None:
    for options in (
        {},
        {"progressive": True},
        {"comment": b"x" * 300},
        {"exif": Image.Exif()},
        {"icc_profile": b"y" * 99},
    ):
        assert read_header(encoded(noise(), "JPEG", **options)) == (64, 80, 3, 1)
    assert read_header(encoded(noise("L"), "JPEG")) == (64, 80, 1, 1)
    assert read_header(encoded(noise("CMYK"), "JPEG")) == (64, 80, 4, 1)
    data = encoded(noise(), "JPEG")
    frame = data.index(b"\xff\xc0")
    twelve_bits = data[: frame + 4] + b"\x0c" + data[frame + 5 :]
    for other in (b"", b"\xff\xd8", data[: frame + 8], data[2:], twelve_bits, encoded(noise(), "PNG")):
        assert read_header(other) is None


@pytest.mark.parametrize("between", [b"\xff", b"\xff\x01", b"\xff\xd0"], ids=bytes.hex)
def test_markers_without_data_hide_no_segment_of_a_jpeg(between: bytes) -> None:
    """libjpeg skips them. A reader that takes the next two bytes for their length finds the size in this segment."""
    segment = bytearray(between + b"\xff\xe1\xff\xf0" + bytes(0xFFEE))
    wrong = 2 + int.from_bytes(segment[2:4])
    segment[wrong : wrong + 10] = b"\xff\xc0\0\x11\x08\0\x10\0\x10\x03"
    data = encoded(noise(), "JPEG", progressive=True)
    crafted = data[:2] + segment + data[2:].replace(b"\xff\xda", between + b"\xff\xda")
    crafted_pixels, pixels = (EncodedImage(Path("image.jpg"), data=each).decode() for each in (crafted, data))
    assert torch.equal(crafted_pixels, pixels)
    assert read_header(crafted) == read_header(data)
    assert count_scans(crafted) == count_scans(data) > 1


def test_a_jpeg_header_with_too_many_pixels(tmp_path: Path) -> None:
    data = encoded(noise(), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    (tmp_path / "image.jpg").write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    with pytest.raises(BadImage, match="pixels"):
        read_image(tmp_path / "image.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_gray(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(two_colors((200,) * 3, (50,) * 3).convert("L"), kind))
    assert_halves(read_image(path), (200,) * 3, (50,) * 3)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    data = encoded(two_colors().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data, "Pillow writes inverted CMYK"
    path.write_bytes(data)
    assert_halves(read_image(path), RED, BLUE, tolerance=6)


def transparent(mode: str) -> Image.Image:
    """Returns an image whose right half is transparent blue."""
    image = two_colors().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (24, 0, 48, 32))
    image.putalpha(alpha)
    return image.convert(mode)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    transparent("RGBA").save(path)
    assert_halves(read_image(path), RED, WHITE)
    transparent("LA").save(path)
    gray = two_colors().convert("L").getpixel((0, 0))
    assert_halves(read_image(path), (gray,) * 3, WHITE)
    two_colors().save(path, transparency=BLUE)
    assert_halves(read_image(path), RED, WHITE)


def test_half_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    image = two_colors().convert("RGBA")
    image.putalpha(128)
    image.save(tmp_path / "image.png")
    halves = [tuple((channel + 255) // 2 for channel in color) for color in (RED, BLUE)]
    assert_halves(read_image(tmp_path / "image.png"), *halves)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_palette(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    palette = two_colors().quantize(4)
    path.write_bytes(encoded(palette, kind))
    assert_halves(read_image(path), RED, BLUE)
    path.write_bytes(encoded(palette, kind, transparency=palette.getpixel((47, 0))))
    assert_halves(read_image(path), RED, WHITE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(kind: str, tmp_path: Path) -> None:
    values = np.full((32, 48), 20000, dtype=np.uint16)
    values[:, 24:] = 60000
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.fromarray(values), kind))
    assert_halves(read_image(path), (78,) * 3, (233,) * 3, tolerance=1)


def test_1_bit(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    two_colors((0, 0, 0), WHITE).convert("1").save(path)
    assert_halves(read_image(path), (0, 0, 0), WHITE, tolerance=0)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    second = two_colors(BLUE, RED)
    path.write_bytes(encoded(two_colors(), kind, save_all=True, append_images=[second]))
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert_halves(read_image(path), RED, BLUE, tolerance=12)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    # How a camera stores the image so that the EXIF orientation rotates it to `upright`.
    stored = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    upright = two_colors()
    upright.paste(WHITE, (0, 0, 24, 16))
    image = upright
    for turn in stored.get(orientation, []):
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "image"
    path.write_bytes(encoded(image, kind, exif=exif))
    pixels = read_image(path)
    assert pixels.shape == (3, 32, 48)
    for (x, y), color in {(8, 8): WHITE, (8, 24): RED, (40, 8): BLUE, (40, 24): BLUE}.items():
        assert (pixels[:, y, x].int() - torch.tensor(color)).abs().max() <= 8


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    two_colors().save(path, exif=b"Exif\0\0rubbish")
    assert_halves(read_image(path), RED, BLUE)


@pytest.mark.parametrize("check", [read_image, verify_image])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
        (encoded(noise(), "JPEG")[:-2], "truncated"),
        (encoded(noise(), "JPEG")[:3000], "truncated"),
        (encoded(noise("CMYK"), "JPEG")[:3000], "truncated"),
        (encoded(noise(), "JPEG")[:2], "not an image"),
        (encoded(noise(), "PNG")[:3000], "truncated"),
        (encoded(noise(), "BMP")[:3000], "truncated"),
        (encoded(noise(), "PPM")[:3000], "truncated"),
        (encoded(noise(), "WEBP")[:1000], "."),
        (encoded(noise(), "GIF")[:1000], "truncated"),
    ],
)
def test_damaged_content_is_named(check: Check, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=reason) as caught:
        check(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1.5, 70000])
def test_pixels_without_a_defined_range(value: float, tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(np.full((4, 4), value, dtype=np.float32 if value < 0 else np.int32)).save(path)
    with pytest.raises(BadImage, match="range"):
        read_image(path)


@pytest.mark.parametrize("check", [read_image, verify_image])
def test_missing_file(check: Check, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="No such file"):
        check(tmp_path / "gone.jpg")
    with pytest.raises(BadImage, match=r"directory|Permission"):
        check(tmp_path)


@pytest.mark.parametrize("check", [read_image, verify_image])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decompression_bomb(check: Check, kind: str, tmp_path: Path) -> None:
    data = bytearray(encoded(noise(), kind))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 60000, 60000)
    else:
        data[16:24] = struct.pack(">II", 60000, 60000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path = tmp_path / "bomb"
    path.write_bytes(data)
    with pytest.raises(BadImage, match="3600000000 pixels"):
        check(path)


@pytest.mark.parametrize("check", [read_image, verify_image])
def test_too_many_pixels(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 80 * 64 - 1)
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(noise(), "JPEG"))
    with pytest.raises(BadImage, match="80 x 64 pixels are more than 5119"):
        check(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_after_the_end_are_ignored(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(noise(), kind) + b"\0\0a film some phones append")
    verify_image(path)
    assert read_image(path).shape == (3, 64, 80)


def test_verify_image_does_not_decode_intact_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "read_image", lambda path: pytest.fail("decoded"))
    for kind in ("JPEG", "PNG"):
        path = tmp_path / kind
        path.write_bytes(encoded(noise(), kind))
        verify_image(path)


def test_bad_image_can_be_pickled() -> None:
    error = BadImage(Path("a.jpg"), "empty")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.path, copy.reason, str(copy)) == (Path("a.jpg"), "empty", str(error))


class BadDataset(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise BadImage(Path("a.jpg"), "empty")


def test_bad_image_raised_in_a_worker() -> None:
    with pytest.raises(BadImage, match=r"a\.jpg: empty"):
        list(BatchReader(BadDataset(), 1, False, list).read([[(0, 0)]]))


def test_list_images(tmp_path: Path) -> None:
    names = ["b/2.JPG", "b/10.jpeg", "a/x.png", "a.webp", "a/deep/er/y.tiff"]
    others = ["readme.txt", "b/.hidden.jpg", ".cache/z.jpg", "b/noextension", "b/x.jpg.part"]
    for name in names + others:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    root = tmp_path / "root"
    assert list_images(root) == sorted(root / name for name in names)


def test_list_images_follows_links_but_not_in_cycles(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "x.jpg").touch()
    (root / "linked").symlink_to(other)
    (root / "again").symlink_to(other)
    (other / "up").symlink_to(root)
    (root / "self").symlink_to(root)
    (root / "dangling.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(root / "pipe.jpg")
    assert list_images(root) == [root / "again/x.jpg", root / "dangling.jpg", root / "linked/x.jpg"]


def test_list_images_of_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert list_images(tmp_path) == []
    with pytest.raises(UserError, match=r"cannot list folder .*gone: No such file"):
        list_images(tmp_path / "gone")
