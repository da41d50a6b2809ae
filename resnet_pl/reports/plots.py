"""Plots as arrays: confusion matrix and contact sheets of images with captions; the common style of all plots."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from functools import cache
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
BACKGROUND = (255, 255, 255)
CELL_BACKGROUND = (240, 242, 244)
EMPTY = tuple(level / 255 for level in CELL_BACKGROUND)
# A bluish green and an orange red, which are distinguishable with red-green color blindness.
FRAMES = {"right": (0, 150, 110), "wrong": (214, 58, 40)}

# Contact sheet, in pixels: side of the square for an image, width of its frame, gap between images.
CELL, FRAME, GAP = 160, 4, 13

MAX_CELLS_WITH_COUNTS = 30  # classes of a confusion matrix whose cells are large enough for their count
MAX_CELLS = 1_000  # cells along a side of a confusion matrix; of more classes, blocks of cells are summed
MAX_NAMED_CLASSES = 40  # names that fit along an axis


def save_png(image: np.ndarray, path: Path) -> None:
    """Writes an image `(H, W, 3)` uint8 atomically; raises UserError if `path` cannot be written."""
    with atomic_write(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def new_figure(width: float, height: float, dpi: int = 150) -> Figure:
    """Returns an empty figure with constrained layout; width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")


def style_axes(axes: Axes, x: str = "", y: str = "") -> None:
    """Labels the axes, draws a light grid below the lines and removes the frame."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color="#d8dee4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#afb8c1")


def add_legend(axes: Axes, *lines_and_labels: Sequence[Any], **style: Any) -> None:
    """Adds a legend without a frame and without math text: `$x_1` is a name, not a formula."""
    for text in axes.legend(*lines_and_labels, edgecolor="none", labelcolor=INK, **style).get_texts():
        text.set_parse_math(False)


def render(figure: Figure) -> np.ndarray:
    """Returns a figure as an image `(H, W, 3)` uint8. Does not use pyplot, whose global state is not thread-safe."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Plots a confusion matrix: correct in blue, wrong in red, darker for a larger fraction of the row.

    Of many classes only those are shown that occur, as label or as prediction.

    Args:
        counts: number of images `(K, K)`; rows are true classes, columns predicted classes.
        class_names: K names.

    Returns:
        The plot `(H, W, 3)` uint8, with sides of at most about 1,800 pixels.
    """
    if len(class_names) > MAX_CELLS_WITH_COUNTS:
        occurs = np.flatnonzero(counts.sum(0) + counts.sum(1)) if counts.any() else np.arange(len(counts))
        counts, class_names = counts[np.ix_(occurs, occurs)], [class_names[index] for index in occurs.tolist()]
    classes = len(class_names)
    counted = classes <= MAX_CELLS_WITH_COUNTS
    side = 2.2 + max(3.0, 0.45 * classes) if counted else 12.0
    figure = new_figure(side, side, dpi=110)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    axes = figure.add_subplot()
    cells = counts
    if classes > MAX_CELLS:  # a plot cannot show more cells than it has pixels
        edges = np.arange(0, classes, math.ceil(classes / MAX_CELLS))
        cells = np.add.reduceat(np.add.reduceat(counts, edges, axis=0), edges, axis=1)
    fractions = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    axes.imshow(_confusion_colors(fractions), extent=(-0.5, classes - 0.5, classes - 0.5, -0.5))
    if counted:
        _write_counts(axes, counts, fractions)
    _label_classes(axes, class_names)
    correct, images = int(np.trace(counts)), int(counts.sum())
    title = f"accuracy {correct / images:.2%} ({correct:,} of {images:,})" if images else "no images"
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=10)
    return render(figure)


def _confusion_colors(fractions: np.ndarray) -> np.ndarray:
    """Returns the color `(K, K, 3)` in [0, 1] of each cell, from fractions `(K, K)` of its row."""
    from matplotlib import colormaps

    correct = colormaps["Blues"](0.9 * fractions)
    # The square root makes rare errors visible.
    wrong = colormaps["Reds"](0.03 + 0.87 * np.sqrt(fractions))
    diagonal = np.eye(len(fractions), dtype=bool)[..., None]
    return np.where(fractions[..., None] > 0, np.where(diagonal, correct, wrong)[..., :3], EMPTY)


def _write_counts(axes: Axes, counts: np.ndarray, fractions: np.ndarray) -> None:
    """Writes every count except zero into its cell."""
    size = 11 if len(counts) <= 12 else 8
    for row, column in np.argwhere(counts):
        fraction = fractions[row, column]
        dark = fraction > 0.55 if row == column else fraction > 0.35
        color = "white" if dark else INK
        text = f"{counts[row, column]:,}"
        cell = axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
        cell.set_in_layout(False)  # inside the axes: the layout need not measure it


def _label_classes(axes: Axes, class_names: Sequence[str]) -> None:
    """Writes the class names along both axes, every n-th if there are many, and separates the cells by thin lines."""
    classes = len(class_names)
    ticks = range(0, classes, math.ceil(classes / MAX_NAMED_CLASSES))
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in (drawable(class_names[tick]) for tick in ticks)]
    style = {"fontsize": 10 if classes <= 12 else 8, "color": INK, "parse_math": False}
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(ticks, names, **style)
    axes.set_xlabel("predicted", fontsize=11, color=MUTED)
    axes.set_ylabel("true", fontsize=11, color=MUTED)
    axes.tick_params(length=0, pad=5)
    axes.spines[:].set_visible(False)
    if classes <= MAX_CELLS_WITH_COUNTS:
        edges, end = np.arange(classes + 1) - 0.5, classes - 0.5
        axes.hlines(edges, -0.5, end, color="white", linewidth=2)
        axes.vlines(edges, -0.5, end, color="white", linewidth=2)


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    marks: Sequence[Mark] | None = None,
    title: str = "",
    columns: int | None = None,
) -> np.ndarray:
    """Arranges images in a grid, with captions below them and a colored frame for correct or wrong predictions.

    Each image is resized to fit its cell; it is neither cropped nor stretched.

    Args:
        images: each `(H, W, 3)` uint8, of any size.
        captions: one per image, wrapped into at most two lines; none if not given.
        marks: one per image: `right` for a green frame, `wrong` for a red one, or `none`.
        title: text above the images, wrapped into at most two lines.
        columns: images per row; as many as there are rows by default.

    Returns:
        The sheet `(H, W, 3)` uint8.

    Raises:
        ValueError: the number of captions or marks differs from the number of images.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    font, line, width = ImageFont.truetype(_font_file(), 13), 17, CELL + 2 * FRAME
    height = width + (2 * line + GAP // 2 if captions else 0)
    heading = _wrapped(title, font, columns * (width + GAP) - GAP)
    head = len(heading) * line
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, head + rows * (height + GAP) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(heading):
        draw.text((GAP, GAP // 2 + number * line + font.size), text, INK, font, anchor="ls")
    every = zip(images, captions or repeat("", len(images)), marks or repeat("none", len(images)), strict=True)
    for index, (image, caption, mark) in enumerate(every):
        left, top = GAP + index % columns * (width + GAP), head + GAP + index // columns * (height + GAP)
        draw.rectangle((left, top, left + width - 1, top + width - 1), fill=FRAMES.get(mark, CELL_BACKGROUND))
        sheet.paste(_thumbnail(image), (left + FRAME, top + FRAME))
        for number, text in enumerate(_wrapped(caption, font, width)):
            # Anchored at the baseline, so that lines with and without descenders are aligned.
            draw.text((left, top + width + GAP // 3 + number * line + font.size), text, INK, font, anchor="ls")
    return np.array(sheet)


def _thumbnail(image: np.ndarray) -> Image.Image:
    """The image `(H, W, 3)`, resized and padded to a square."""
    thumbnail = Image.fromarray(np.ascontiguousarray(image))
    longest = max(thumbnail.size)
    if longest <= CELL // 2:
        # An integer factor, so that all pixels of a small image have the same size.
        scale, resample = CELL // longest, Image.Resampling.NEAREST
    else:
        scale, resample = CELL / longest, Image.Resampling.LANCZOS
    width, height = (max(1, round(side * scale)) for side in thumbnail.size)
    square = Image.new("RGB", (CELL, CELL), CELL_BACKGROUND)
    square.paste(thumbnail.resize((width, height), resample), ((CELL - width) // 2, (CELL - height) // 2))
    return square


def _font_file() -> str:
    """DejaVu Sans, which Matplotlib ships and uses: unlike Pillow's default font it has Greek and Cyrillic letters."""
    from matplotlib import get_data_path

    return str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def plot_label(name: str, length: int = 48) -> str:
    """Returns a name that fits into a plot: the middle of a longer one is replaced by an ellipsis."""
    half = length // 2
    return drawable(name if len(name) <= length else f"{name[: half - 1]}…{name[-half:]}")


def drawable(text: str) -> str:
    """Returns a text with an empty square for each character that the font of the plots does not have."""
    return "".join(character if ord(character) in _drawable_characters() else "□" for character in text)


@cache
def _drawable_characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font_file()).get_charmap())


def _wrapped(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The caption in at most two lines of at most `width` pixels, split at line breaks and between words."""
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
    """The text, truncated with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    fitting = bisect(range(1, len(text)), width, key=lambda length: font.getlength(f"{text[:length]}…"))
    return f"{text[:fitting]}…"
