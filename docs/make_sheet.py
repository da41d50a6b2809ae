"""Makes the image at the top of README from a finished run on the flower photos.

    python docs/make_sheet.py runs/flowers-88/version_0

It shows test photos: of each class the three surest right predictions, and the surest mistake.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from PIL import Image

from resnet_pl import load_run
from resnet_pl.data.decode import read_image, to_pixels
from resnet_pl.reports.plots import CELL, contact_sheet
from resnet_pl.utils import UserError

RIGHT = 3  # of each class


def main(args: list[str]) -> None:
    """Makes the image."""
    if len(args) != 1:
        raise UserError("give the folder of a run\nfor example runs/flowers-88/version_0")
    model, data = load_run(args[0])
    images, classes = data.split("test"), model.class_names
    predicted = model.predict([images.root / name for name in images.names])
    order = sorted(range(len(predicted)), key=lambda index: -predicted[index].probability)
    right: dict[str, list[int]] = {name: [] for name in classes}
    wrong = []
    for index in order:
        true = classes[images.labels[index]]
        (right[true] if predicted[index].class_name == true else wrong).append(index)
    chosen = [right[name][place] for place in range(RIGHT) for name in classes] + wrong[:1]
    cells, captions = [], []
    for index in chosen:
        photo = read_image(images.root / images.names[index], model.preprocessing.pixel_format)
        cells.append(to_pixels(model.preprocessing.eval_crop(photo, CELL)))
        prediction, true = predicted[index], classes[images.labels[index]]
        name = true if index not in wrong else f"{prediction.class_name}, not {true}"
        # The file name starts with the number of the photo at Flickr, which is the credit to its photographer.
        captions.append(f"{name}\n{prediction.probability:.0%}, {Path(images.names[index]).stem.partition('_')[0]}")
    marks = ["wrong" if index in wrong else "right" for index in chosen]
    sheet = contact_sheet(cells, captions, marks, columns=(len(chosen) + 1) // 2)
    Image.fromarray(sheet).save(DOCS / "images" / "flowers_sheet.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
