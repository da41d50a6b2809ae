"""A competition: one model per fold, their ensemble with test-time augmentation, a submission like the sample.

    python cli.py cross-validate --config configs/table.yaml -- --data.labels my/train.csv --data.root my/train \\
        --data.test_split 0
    python cli.py predict --ckpt_path runs/folds/fold0/version_0 --ensemble runs/folds/fold*/version_0 \\
        --images my/test --tta flip --top_k 1000 --output my
    python -m examples.competition my/predictions.csv my/sample_submission.csv my/submission.csv

The folds are stratified; runs/folds/cross_validation.json estimates the score. For ids without extension in train.csv
add --data.path_suffix .jpg. For a sample with the columns id and label, `predict --submission FILE` is enough.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path


def read(path: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file."""
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def probabilities(row: dict[str, str]) -> dict[str, str]:
    """Returns the probability of each class in a row of predictions.csv, the most probable class first."""
    further = [name for name in row if name.startswith("class_")]
    rest = {row[name]: row[name.replace("class", "probability")] for name in further}
    return {row["prediction"]: row["probability"]} | rest


def main(argv: Sequence[str] | None = None) -> None:
    """Writes a row for each id of the sample: the predicted class, or the probability of each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", help="predictions.csv of `predict`, with all classes: --top_k 1000")
    parser.add_argument("sample", help="CSV: an id, and either one column for the class or a column for each class")
    parser.add_argument("output", help="the submission")
    given = parser.parse_args(argv)
    found: dict[str, dict[str, str]] = {}
    for row in read(given.predictions):
        if found.setdefault(Path(row["path"]).stem, row) is not row:
            sys.exit(f"error: two test images have the same id, such as {row['path']}")
    lines = read(given.sample)
    key, *columns = lines[0]
    for line in lines:
        if (row := found.get(line[key]) or found.get(Path(line[key]).stem)) is None:
            sys.exit(f"error: {given.predictions} has no image {line[key]}")
        scores = probabilities(row) if len(columns) > 1 else {columns[0]: row["prediction"]}
        if missing := [name for name in columns if name not in scores]:
            sys.exit(f"error: {given.predictions} has no probability of {missing[0]}: use `predict --top_k 1000`")
        line.update({name: scores[name] for name in columns})
    with Path(given.output).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[key, *columns], *(line.values() for line in lines)])
    print(f"Wrote {len(lines):,} rows to {given.output}")


if __name__ == "__main__":
    main()
