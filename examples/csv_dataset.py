"""Data of a CSV file that needs code: the class is computed from a column, and the newest photos are the test set.

    path,species,observed_on
    photos/0001.jpg,Rosa canina,2023-05-14

    python cli.py fit --config configs/table.yaml --data examples.csv_dataset.Observations \\
        --data.labels my/observations.csv --data.test_from 2024-01-01 --name observations
    python cli.py test --ckpt_path best --name observations

If the file has a column with the class, and perhaps one with train, val and test, configs/table.yaml is enough.
"""

import csv
from datetime import date
from pathlib import Path
from typing import Any

from resnet_pl import ImageFolder, UserError


class Observations(ImageFolder):
    """Photos of plants or animals. The class is the genus: Rosa for Rosa canina.

    Validation images are held out from the training images, as for every folder without a split of its own.

    Args:
        labels: CSV file with the columns path, species and observed_on (YYYY-MM-DD).
        root: folder that the paths in the file are relative to; null: the folder of the file.
        test_from: date from which on a photo is in the test set.
    """

    def __init__(self, labels: str, root: str | None = None, test_from: str = "2024-01-01", **kwargs: Any) -> None:
        super().__init__(root=root or str(Path(labels).parent), **kwargs)
        self.labels, self.test_from = Path(labels), date.fromisoformat(test_from)

    @property
    def source(self) -> Path:
        """What messages and checkpoints name as the data; by default the folder."""
        return self.labels

    def list_splits(self) -> dict[str, dict[str, str]]:
        """Returns the path and class of each image, by split."""
        splits: dict[str, dict[str, str]] = {"train": {}, "test": {}}
        if not self.labels.is_file():
            raise UserError(f"{self.labels} not found\npass the CSV file with --data.labels FILE")
        with self.labels.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    day, genus = date.fromisoformat(row["observed_on"]), row["species"].split()[0]
                    splits["train" if day < self.test_from else "test"][row["path"]] = genus
                except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
                    fix = "it needs the columns path, species and observed_on (YYYY-MM-DD)"
                    raise UserError(f"{self.labels}, row {number}: {error}\n{fix}") from error
        return splits
