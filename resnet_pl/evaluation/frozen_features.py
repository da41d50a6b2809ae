"""How well simple classifiers separate the classes of images by the features of a frozen network."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np

from resnet_pl.utils import UserError

FOLDS = 5
NEIGHBORS = 10


def cross_validated(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns the accuracy of each classifier on each of five folds, by the name of the classifier.

    Each fold is predicted by classifiers that are fitted to the others. `largest class` always predicts the class with
    the most images.

    Args:
        features: `(N, C)` float32.
        labels: `(N,)`.
        seed: seed of the folds, which have the same share of each class.

    Raises:
        UserError: a class has fewer than two images, or there are fewer than two classes.
    """
    # Here, because scikit-learn takes a second to import.
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    counts = Counter(labels.tolist())
    if len(counts) < 2 or min(counts.values()) < 2:
        raise UserError("probe: a classifier needs two classes with two images each\nadd images")
    number = min(FOLDS, *counts.values())
    folds = StratifiedKFold(number, shuffle=True, random_state=seed)
    neighbors = min(NEIGHBORS, len(labels) - len(labels) // number - 1)
    classifiers = {
        "largest class": DummyClassifier(strategy="most_frequent"),
        # The cosine similarity of features.
        f"{neighbors} nearest neighbors": make_pipeline(Normalizer(), KNeighborsClassifier(neighbors)),
        # Strongly regularized: there can be more features than images.
        "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy changes little in further iterations
        return {name: cross_val_score(each, features, labels, cv=folds) for name, each in classifiers.items()}


def advice(scores: dict[str, np.ndarray]) -> str:
    """Returns what to expect of fine-tuning, in one sentence.

    Args:
        scores: see `cross_validated`.
    """
    chance = scores["largest class"].mean()
    best = max(each.mean() for each in scores.values())
    if best - chance < 0.25 * (1 - chance):
        return "The features hardly separate the classes: check labels and image size, or try other weights."
    if best >= 0.98:
        return (
            f"Fine-tuning can correct at most {1 - best:.1%} of the predictions: a new head may be enough "
            "(configs/recipes/head-only.yaml)."
        )
    return f"Fine-tuning is likely to pay: {1 - best:.1%} of the predictions are wrong. So may larger images."
