"""Pictures as arrays: the confusion matrix and sheets of images with captions; the looks that all charts share."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resnet_pl.utils import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mark = Literal["right", "wrong", "none"]

INK = "#24292f"
MUTED = "#6e7781"
PAPER = (255, 255, 255)
MOUNT = (240, 242, 244)
EMPTY = tuple(level / 255 for level in MOUNT)
# A bluish green and an orange red: red-green colour-blind readers can tell them apart.
FRAMES = {"right": (0, 150, 110), "wrong": (214, 58, 40)}

# Of a contact sheet, in pixels: the square for an image, its frame, the space between.
CELL, FRAME, GAP = 160, 4, 13

MAX_CELLS_WITH_COUNTS = 30  # classes up to which every cell of a confusion matrix has room for its count
MAX_NAMED_CLASSES = 40  # names that fit along an axis


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) uint8 whole or not at all; raises UserError if nothing can be written at `path`."""
    with atomic_write(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG", optimize=True)


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """An empty figure of so many inches, whose parts make room for one another."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")


def style_axes(axes: Axes, x: str = "", y: str = "") -> None:
    """Names the axes, puts a light grid below the lines, and takes the frame away."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color="#d8dee4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#afb8c1")


def add_legend(axes: Axes, *lines_and_labels: Sequence[Any], **style: Any) -> None:
    """A legend without a frame, whose names are written as they are: `$x_1` is no formula."""
    for text in axes.legend(*lines_and_labels, edgecolor="none", labelcolor=INK, **style).get_texts():
        text.set_parse_math(False)


def render(figure: Figure) -> np.ndarray:
    """A figure as (H, W, 3) uint8, drawn without pyplot and its global state, so that any thread may."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Show what each class was taken for: right in blue, wrong in red, stronger for a larger share of the row.

    Args:
        counts: (K, K) images, rows are the truth, columns the prediction.
        class_names: K names.

    Returns:
        The picture, (H, W, 3) uint8, at most about 1,800 pixels a side.
    """
    classes = len(class_names)
    counted = classes <= MAX_CELLS_WITH_COUNTS
    side = 2.2 + max(3.0, 0.45 * classes) if counted else 12.0
    figure = new_figure(side, side, dpi=110)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(_confusion_colours(shares))
    if counted:
        _write_counts(axes, counts, shares)
    _name_classes(axes, class_names)
    right, images = int(np.trace(counts)), int(counts.sum())
    title = f"accuracy {right / images:.2%} ({right:,} of {images:,})" if images else "no images"
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=10)
    return render(figure)


def _confusion_colours(shares: np.ndarray) -> np.ndarray:
    """Colours (K, K, 3) in [0, 1] of shares (K, K) in [0, 1]."""
    from matplotlib import colormaps

    right = colormaps["Blues"](0.9 * shares)
    # The root lifts the few per cent of a rare mistake out of the white.
    wrong = colormaps["Reds"](0.03 + 0.87 * np.sqrt(shares))
    diagonal = np.eye(len(shares), dtype=bool)[..., None]
    return np.where(shares[..., None] > 0, np.where(diagonal, right, wrong)[..., :3], EMPTY)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Write every count that is not nought into its cell."""
    size = 11 if len(counts) <= 12 else 8
    for row, column in np.argwhere(counts):
        share = shares[row, column]
        dark = share > 0.55 if row == column else share > 0.35
        colour = "white" if dark else INK
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=size, color=colour)


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    """Put the names on both axes, every n-th where there are too many, and hairlines between the cells."""
    classes = len(class_names)
    ticks = range(0, classes, math.ceil(classes / MAX_NAMED_CLASSES))
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in (class_names[tick] for tick in ticks)]
    style = {"fontsize": 10 if classes <= 12 else 8, "color": INK, "parse_math": False}
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(ticks, names, **style)
    axes.set_xlabel("predicted", fontsize=11, color=MUTED)
    axes.set_ylabel("true", fontsize=11, color=MUTED)
    axes.tick_params(length=0, pad=5)
    axes.spines[:].set_visible(False)
    if classes <= MAX_CELLS_WITH_COUNTS:
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    marks: Sequence[Mark] | None = None,
) -> np.ndarray:
    """Lay images out in a grid, each whole and in proportion, with a caption below and a frame for right or wrong.

    Args:
        images: each (H, W, 3) uint8, of any size.
        captions: one for each image, wrapped into at most two lines; none for a bare grid.
        marks: one for each image: a green frame, a red one or none.

    Returns:
        The sheet, (H, W, 3) uint8, about square.

    Raises:
        ValueError: if there are not as many captions or marks as images.
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    font, line, width = _font(13), 17, CELL + 2 * FRAME
    height = width + (2 * line + GAP // 2 if captions else 0)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    every = zip(images, captions or repeat("", len(images)), marks or repeat("none", len(images)), strict=True)
    for index, (image, caption, mark) in enumerate(every):
        left, top = GAP + index % columns * (width + GAP), GAP + index // columns * (height + GAP)
        draw.rectangle((left, top, left + width - 1, top + width - 1), fill=FRAMES.get(mark, MOUNT))
        sheet.paste(_thumbnail(image), (left + FRAME, top + FRAME))
        for number, text in enumerate(_wrapped(caption, font, width)):
            # Anchored at the baseline, so that lines with and without descenders stand level.
            draw.text((left, top + width + GAP // 3 + number * line + font.size), text, INK, font, anchor="ls")
    return np.array(sheet)


def _thumbnail(image: np.ndarray) -> Image.Image:
    """The whole image (H, W, 3) in the middle of a square."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    longest = max(picture.size)
    if longest <= CELL // 2:
        # By a whole number, so that the pixels of a tiny image stay square and even.
        scale, resample = CELL // longest, Image.Resampling.NEAREST
    else:
        scale, resample = CELL / longest, Image.Resampling.LANCZOS
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], resample)
    square = Image.new("RGB", (CELL, CELL), MOUNT)
    square.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return square


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own DejaVu Sans: the same on every machine, with Greek and Cyrillic, which Pillow's lacks."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _wrapped(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The caption in at most two lines of at most `width` pixels, broken at its own line breaks and between words."""
    lines: list[str] = []
    for paragraph in caption.splitlines():
        started = len(lines)
        for word in paragraph.split():
            if len(lines) == 2 or (len(lines) > started and font.getlength(f"{lines[-1]} {word}") <= width):
                lines[-1] += f" {word}"
            else:
                lines.append(word)
    return [_shortened(text, font, width) for text in lines]


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, or as much of its beginning as fits with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    fitting = bisect(range(1, len(text)), width, key=lambda length: font.getlength(f"{text[:length]}…"))
    return f"{text[:fitting]}…"
