"""Plots and contact sheets, checked by their pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_pl.reports import plots
from resnet_pl.reports.plots import (
    BACKGROUND,
    CELL,
    CELL_BACKGROUND,
    FRAME,
    FRAMES,
    GAP,
    confusion_matrix,
    contact_sheet,
    plot_label,
    save_png,
)
from resnet_pl.utils import UserError

SIDE = CELL + 2 * FRAME


def plain(height: int, width: int, color: tuple[int, int, int] = (20, 40, 200)) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def cells(mask: np.ndarray) -> int:
    """Number of rectangles in `mask`, counted by their upper left corners."""
    padded = np.pad(mask, ((1, 0), (1, 0)))
    return int((mask & ~padded[:-1, 1:] & ~padded[1:, :-1]).sum())


def blue(image: np.ndarray) -> np.ndarray:
    red, _, blue = np.moveaxis(image.astype(int), -1, 0)
    return blue - red > 60


def red(image: np.ndarray) -> np.ndarray:
    red, _, blue = np.moveaxis(image.astype(int), -1, 0)
    return red - blue > 15


def names(classes: int) -> list[str]:
    return [f"class {index}" for index in range(classes)]


# The confusion matrix


def test_correct_is_blue_and_wrong_is_red():
    image = confusion_matrix(np.array([[9, 1], [0, 10]]), ["cat", "dog"])
    rows, columns = np.nonzero(blue(image))
    top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()

    def middle_of(row: int, column: int) -> np.ndarray:
        # At a fifth of the cell, outside its count and the lines between cells.
        return image[top + (bottom - top) * (5 * row + 1) // 10, left + (right - left) * (5 * column + 1) // 10]

    assert blue(middle_of(0, 0)) and blue(middle_of(1, 1))
    assert red(middle_of(0, 1))
    assert tuple(middle_of(1, 0)) == CELL_BACKGROUND


def test_a_perfect_matrix_has_no_red_and_an_all_wrong_one_no_blue():
    perfect, hopeless = np.diag([5, 5, 5]), 5 * np.roll(np.eye(3, dtype=int), 1, axis=1)
    assert blue(confusion_matrix(perfect, names(3))).any() and not red(confusion_matrix(perfect, names(3))).any()
    assert red(confusion_matrix(hopeless, names(3))).any() and not blue(confusion_matrix(hopeless, names(3))).any()


def test_blocks_of_many_classes_have_the_colors_of_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "MAX_CELLS", 40)
    perfect, hopeless = np.eye(100, dtype=int), np.roll(np.eye(100, dtype=int), 50, axis=1)
    assert blue(confusion_matrix(perfect, names(100))).any() and not red(confusion_matrix(perfect, names(100))).any()
    assert red(confusion_matrix(hopeless, names(100))).any() and not blue(confusion_matrix(hopeless, names(100))).any()


def test_a_larger_fraction_of_the_row_is_darker():
    often = confusion_matrix(np.array([[5, 5], [0, 1]]), names(2))
    seldom = confusion_matrix(np.array([[95, 5], [0, 1]]), names(2))
    assert often[red(often)].mean() < seldom[red(seldom)].mean() - 20


def test_the_color_depends_on_the_fraction_not_on_the_count():
    few = confusion_matrix(np.array([[1, 0], [0, 1]]), names(2))
    many = confusion_matrix(np.array([[1, 0], [0, 900]]), names(2))
    assert abs(np.median(few[blue(few)], axis=0) - np.median(many[blue(many)], axis=0)).max() <= 2


def test_a_class_without_images_is_no_division_by_zero():
    with np.errstate(all="raise"):
        image = confusion_matrix(np.array([[4, 0], [0, 0]]), names(2))
        empty = confusion_matrix(np.zeros((2, 2), int), names(2))
    assert blue(image).any()
    assert not blue(empty).any() and not red(empty).any()


@pytest.mark.parametrize("classes", [1, 2, 10, 30])
def test_counts_are_in_every_cell_of_the_diagonal(classes):
    image = confusion_matrix(7 * np.eye(classes, dtype=int), names(classes))
    rows, columns = np.nonzero(blue(image))
    edges_y = np.linspace(rows.min(), rows.max() + 1, classes + 1)
    edges_x = np.linspace(columns.min(), columns.max() + 1, classes + 1)
    for index in range(classes):
        (top, bottom), (left, right) = edges_y[index : index + 2], edges_x[index : index + 2]
        inset = (bottom - top) / 4
        inner = image[int(top + inset) : int(bottom - inset), int(left + inset) : int(right - inset)]
        assert inner.min(axis=-1).max() > 200, f"no white digit in cell {index}"


def test_many_classes_have_no_counts():
    image = confusion_matrix(7 * np.eye(31, dtype=int), names(31))
    rows, columns = np.nonzero(blue(image))
    assert blue(image[rows.min() + 3 : rows.min() + 12, columns.min() + 3 : columns.min() + 12]).all()


@pytest.mark.parametrize(
    ("classes", "least", "most"), [(1, 400, 700), (30, 1200, 1900), (31, 1000, 1400), (400, 1000, 1400)]
)
def test_size_is_bounded(classes, least, most):
    image = confusion_matrix(np.eye(classes, dtype=int), names(classes))
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert all(least <= side <= most for side in image.shape[:2])


@pytest.mark.parametrize("name", ["žluťoučký kůň", "жираф", "$x_1", r"\frac{", "a_b^c", "", "long " * 50])
def test_any_class_name_can_be_drawn(name):
    image = confusion_matrix(np.diag([3, 4]), [name, "dog"])
    assert blue(image).any()
    assert image.shape[:2] == confusion_matrix(np.diag([3, 4]), ["cat", "dog"]).shape[:2]


def test_names_and_accuracy_are_shown():
    counts = np.diag([3, 4])
    image = confusion_matrix(counts, ["cat", "dog"])
    assert (image != confusion_matrix(counts, ["cow", "dog"])).any()
    rows = np.nonzero(blue(image))[0]
    assert (image[: rows.min()].max(axis=-1) < 100).sum() > 100, "no title above the matrix"


def test_plotting_does_not_use_pyplot():
    import matplotlib.pyplot as plt

    confusion_matrix(np.eye(2, dtype=int), names(2))
    assert plt.get_fignums() == []


def test_labels_are_truncated_in_the_middle():
    assert plot_label("name") == "name" and plot_label("日本_$") == "□□_$"
    label = plot_label("start" + "x" * 100 + "end")
    assert len(label) == 48 and label.startswith("start") and label.endswith("end") and "…" in label


# Contact sheets


def test_frames_mark_correct_and_wrong():
    sheet = contact_sheet([plain(160, 160)] * 9, marks=["right", "wrong", "none"] * 3)
    left = [GAP + index * (SIDE + GAP) for index in range(3)]
    assert [tuple(sheet[GAP + 1, x + 1]) for x in left] == [FRAMES["right"], FRAMES["wrong"], CELL_BACKGROUND]
    for x, color in zip(left, [FRAMES["right"], FRAMES["wrong"], CELL_BACKGROUND], strict=True):
        frame = (sheet[GAP : GAP + SIDE, x : x + SIDE] == color).all(axis=-1)
        assert frame.sum() == SIDE**2 - CELL**2
        assert tuple(sheet[GAP + SIDE // 2, x - 1]) == BACKGROUND
    green, red = np.array(FRAMES["right"]), np.array(FRAMES["wrong"])
    assert green.argmax() == 1 and red.argmax() == 0


@pytest.mark.parametrize(("height", "width"), [(80, 240), (240, 80), (300, 100), (1, 500), (500, 1), (120, 160)])
def test_an_image_is_letterboxed_and_never_stretched(height, width):
    sheet = contact_sheet([plain(height, width)])
    rows, columns = np.nonzero((sheet == (20, 40, 200)).all(axis=-1))
    shown = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    expected = [max(1, round(side * CELL / max(height, width))) for side in (height, width)]
    assert list(shown) == expected
    around = [rows.min() - GAP - FRAME, GAP + FRAME + CELL - 1 - rows.max()]
    assert abs(around[0] - around[1]) <= 1, "not in the middle"
    assert tuple(sheet[GAP + FRAME, GAP + FRAME]) == ((20, 40, 200) if min(expected) == CELL else CELL_BACKGROUND)


def test_the_complete_image_is_visible():
    image = plain(200, 400)
    image[:20, :20], image[:20, -20:], image[-20:, :20], image[-20:, -20:] = (250, 0, 0), (0, 250, 0), 0, 255
    sheet = contact_sheet([image])
    corner, y = GAP + FRAME, GAP + FRAME + 40
    corners = [
        sheet[y + 3, corner + 3],
        sheet[y + 3, corner + 156],
        sheet[y + 76, corner + 3],
        sheet[y + 76, corner + 156],
    ]
    assert np.abs(np.array(corners, int) - [(250, 0, 0), (0, 250, 0), (0, 0, 0), (255, 255, 255)]).max() <= 12


@pytest.mark.parametrize(("size", "factor"), [(8, 20), (16, 10), (28, 5), (32, 5), (64, 2), (80, 2)])
def test_a_small_image_is_enlarged_by_an_integer_factor(size, factor):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    sheet = contact_sheet([image])
    start = GAP + FRAME + (CELL - size * factor) // 2
    shown = sheet[start : start + size * factor, start : start + size * factor]
    assert (shown == image.repeat(factor, 0).repeat(factor, 1)).all()


@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (2, (1, 2)), (7, (3, 3))])
def test_the_grid_has_a_cell_for_every_image(count, grid):
    sheet = contact_sheet([plain(160, 160)] * count, marks=["right"] * count)
    assert (sheet == FRAMES["right"]).all(axis=-1).sum() == count * (SIDE**2 - CELL**2)
    assert cells((sheet != BACKGROUND).any(axis=-1)) == count
    assert sheet.shape == (grid[0] * (SIDE + GAP) + GAP, grid[1] * (SIDE + GAP) + GAP, 3)


def test_images_are_in_reading_order():
    sheet = contact_sheet([plain(160, 160, (value, 0, 0)) for value in (10, 20, 30, 40)])
    middles = [GAP + SIDE // 2, GAP + SIDE // 2 + SIDE + GAP]
    assert [sheet[y, x, 0] for y in middles for x in middles] == [10, 20, 30, 40]


def dark_rows(sheet: np.ndarray) -> np.ndarray:
    """Which rows below the first image have ink."""
    return (sheet[GAP + SIDE :].max(axis=-1) < 110).any(axis=1)


def test_captions_are_below_their_images():
    captions = [*[""] * 6, "daisy 98%", "", "roses 71%\ntrue: tulips"]
    sheet = contact_sheet([plain(160, 160)] * 9, captions)
    one, none, two = (dark_rows(sheet[:, GAP + x : GAP + x + SIDE]) for x in (0, SIDE + GAP, 2 * (SIDE + GAP)))
    lines = [int((np.diff(np.append(False, rows).astype(int)) == 1).sum()) for rows in (one, none, two)]
    assert lines == [1, 0, 2]
    assert not dark_rows(sheet)[-GAP // 2 :].any(), "the caption touches the lower edge"


def test_text_is_antialiased():
    shades = np.unique(contact_sheet([plain(160, 160)], ["roses"])[GAP + SIDE :])
    assert len(shades) > 20


@pytest.mark.parametrize("caption", ["word " * 400, "w" * 2000, "жираф " * 90, "two\n" + "lines " * 80])
def test_a_long_caption_stays_within_its_cell(caption):
    sheet = contact_sheet([plain(160, 160)] * 2, [caption, ""])
    ink = (sheet[GAP + SIDE :].max(axis=-1) < 200).any(axis=0)
    assert ink[GAP : GAP + SIDE].any()
    assert not ink[GAP + SIDE :].any() and not ink[:GAP].any()


def caption_ink(caption: str) -> np.ndarray:
    """Where the caption of a single image has ink, one row per line of text."""
    rows = contact_sheet([plain(160, 160)], [caption])[GAP + SIDE :].max(axis=-1) < 200
    text = rows.any(axis=1)
    starts = np.flatnonzero(text & ~np.append(False, text[:-1]))
    return np.array([rows[start : start + 14].any(axis=0) for start in starts])


def test_a_caption_is_wrapped_between_words_and_truncated():
    assert len(caption_ink("roses")) == 1 and len(caption_ink("")) == 0
    assert (caption_ink("  spaced \t out  ") == caption_ink("spaced out")).all()
    assert (caption_ink("a\nb\nc") == caption_ink("a\nb c")).all() and len(caption_ink("a\nb c")) == 2
    assert len(caption_ink("a caption that does not fit in one line")) == 2
    # The second line fills the width up to the ellipsis; a single word is truncated, not wrapped.
    assert np.flatnonzero(caption_ink("many words " * 9)[1]).max() > 150
    single = caption_ink("w" * 300)
    assert len(single) == 1 and np.flatnonzero(single[0]).max() > 150


@pytest.mark.parametrize("caption", ["花 🌸", "žluťoučký", "עברית", "x\udc80y", "\x00\x07", "e\u0301"])
def test_any_caption_can_be_drawn(caption):
    assert contact_sheet([plain(16, 16)], [caption]).shape[2] == 3


def test_the_number_of_captions_and_marks_must_match():
    with pytest.raises(ValueError):
        contact_sheet([plain(8, 8)] * 2, ["one"])
    with pytest.raises(ValueError):
        contact_sheet([plain(8, 8)] * 2, marks=["right"])


# Files


def test_the_saved_image_is_unchanged(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = tmp_path / "new" / "folder" / "image.png"
    save_png(image, path)
    assert (np.asarray(Image.open(path)) == image).all()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_preserves_the_old_image(tmp_path: Path):
    path = tmp_path / "image.png"
    save_png(plain(3, 3), path)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        save_png(np.zeros((3, 3, 7), np.complex128), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_created_is_a_user_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"image\.png cannot be written"):
        save_png(plain(3, 3), tmp_path / "file" / "image.png")
