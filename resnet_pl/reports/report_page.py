"""The HTML page of `report`: one file with all images in it, which requests nothing from any host."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_pl.utils import atomic_write

# Longest side of a photo, and of an image whose pixels are shown enlarged.
PHOTO, SMALL = 240, 64


@dataclass
class PageImage:
    """An image in the page.

    Attributes:
        uri: its file as a `data:` address.
        alt: what it shows.
        small: whether its pixels are enlarged without smoothing.
    """

    uri: str
    alt: str
    small: bool = False


@dataclass
class Table:
    """A table.

    Attributes:
        head: names of the columns.
        rows: the cells.
        text: whether all columns are text; else all except the first one are numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: bool = False


@dataclass
class Card:
    """A photo, or several views of one, with what is wrong and what is right in its caption."""

    images: list[PageImage]
    wrong: str
    right: str
    note: str = ""


@dataclass
class Strip:
    """Some images in a row, with a title."""

    title: str
    note: str
    images: list[PageImage]


@dataclass
class Section:
    """A section of the page: its text is followed by its plots, table, rows of images and cards."""

    title: str
    texts: list[str] = field(default_factory=list)
    plots: list[PageImage] = field(default_factory=list)
    table: Table | None = None
    strips: list[Strip] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)

    @property
    def id(self) -> str:
        """Name of the section in a link."""
        return self.title.lower().replace(" ", "-")


@dataclass
class Figure:
    """One number at the top of the page."""

    name: str
    value: str
    note: str = ""


def photo(image: np.ndarray, alt: str) -> PageImage:
    """Returns an image `(H, W, 3)` uint8 for the page: shrunk, as JPEG; of few pixels, unchanged, as PNG."""
    shown = Image.fromarray(np.ascontiguousarray(image))
    small = max(shown.size) <= SMALL
    shown.thumbnail((PHOTO, PHOTO))
    return PageImage(_data_uri(shown, "PNG" if small else "JPEG"), alt, small)


def plot(image: np.ndarray, alt: str) -> PageImage:
    """Returns a plot `(H, W, 3)` uint8 for the page, as PNG with at most 256 colors."""
    return PageImage(_data_uri(Image.fromarray(image).quantize(256), "PNG"), alt)


def _data_uri(shown: Image.Image, form: str) -> str:
    stream = io.BytesIO()
    shown.save(stream, form, quality=82, optimize=True)
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def write_page(path: Path, title: str, subtitle: str, figures: Sequence[Figure], sections: Sequence[Section]) -> None:
    """Writes the page; raises UserError if `path` cannot be written."""
    from jinja2 import Environment

    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    # Names of files and classes are text, whatever they contain.
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(title=title, subtitle=subtitle, figures=figures, sections=sections)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
