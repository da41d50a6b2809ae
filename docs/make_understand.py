"""Makes the images of docs/understand.md from a finished run on the flower photos; needs Chromium.

    python docs/make_understand.py runs/flowers-scratch/version_0

Each image is written to docs/images/. The tables of the page are written by the scripts that it names.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

import torch
from PIL import Image

from resnet_pl import load_run
from resnet_pl.cli import main as cli
from resnet_pl.data.decode import read_image, to_pixels
from resnet_pl.evaluation.heatmaps import heatmaps, overlay
from resnet_pl.reports.plots import CELL, contact_sheet
from resnet_pl.utils import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def screenshot(page: str, path: Path, width: int, height: int) -> None:
    """Saves what a browser shows of a page as JPEG; raises UserError without a browser."""
    if (browser := next(filter(None, map(shutil.which, BROWSERS)), None)) is None:
        raise UserError(f"no browser found\ninstall one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        words = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"]
        subprocess.run([browser, *words, f"--screenshot={shot}", page], check=True, capture_output=True)
        Image.open(shot).convert("RGB").save(path, quality=80, optimize=True)


def report_images(run: Path) -> None:
    """Makes the image of the report's mistakes."""
    with tempfile.TemporaryDirectory() as folder:
        if cli.main(["report", "--ckpt_path", str(run), "--output", folder]):
            raise SystemExit(1)
        page = Path(folder, "report", "index.html")
        only = "header, section:not(:has(#most-confident-mistakes)) { display: none }\n</style>"
        page.write_text(page.read_text(encoding="utf-8").replace("</style>", only), encoding="utf-8")
        screenshot(page.as_uri(), DOCS / "images" / "report_mistakes.jpg", 1000, 585)


def heatmap_images(run: Path) -> None:
    """Makes the image of heat maps: the surest prediction of each class on the test images, and the surest mistake."""
    model, data = load_run(run)
    images, names = data.split("test"), model.class_names
    photos = [read_image(images.root / name, model.preprocessing.pixel_format) for name in images.names]
    predicted = model.predict([photo.permute(1, 2, 0).numpy() for photo in photos])
    truth = [names[label] for label in images.labels]
    order = sorted(range(len(photos)), key=lambda index: -predicted[index].probability)
    chosen = [next(index for index in order if predicted[index].class_name == name == truth[index]) for name in names]
    chosen.append(next(index for index in order if predicted[index].class_name != truth[index]))
    crop, prepare = model.preprocessing.eval_crop, model.preprocessing.function()
    cells, captions = [], []
    for index in chosen:
        name = predicted[index].class_name
        heatmap = heatmaps(model, prepare(photos[index])[None], torch.tensor([names.index(name)]))
        heatmap = torch.nn.functional.interpolate(heatmap[None], size=(CELL, CELL), mode="bilinear")[0, 0]
        photo = to_pixels(crop(photos[index], CELL))
        cells += [photo, overlay(photo, heatmap.numpy())]
        credit = Path(images.names[index]).stem.partition("_")[0]
        captions += [f"true: {truth[index]}\n{credit}", f"pred: {name} {predicted[index].probability:.0%}"]
    sheet = contact_sheet(cells, captions)
    Image.fromarray(sheet).save(DOCS / "images" / "heatmaps.jpg", quality=85, optimize=True)


def main(args: list[str]) -> None:
    """Makes all images."""
    if len(args) != 1:
        raise UserError("give the folder of a run\nfor example runs/flowers-scratch/version_0")
    heatmap_images(Path(args[0]))
    report_images(Path(args[0]))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
