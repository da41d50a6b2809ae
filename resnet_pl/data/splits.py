"""Stratified training, validation and test splits that depend only on the images and a seed."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from resnet_pl.data.group_splits import SIZE_TOLERANCE, join_duplicates, split_groups
from resnet_pl.utils import UserError

_MAX_NAMED_CONFLICTS = 5

Label = int | tuple[int, ...]  # class index; class indices of an image with several labels
Group = list[int]  # indices of images with the same content
Strata = dict[int, list[Group]]  # by label


@dataclass
class Split:
    """Sorted image indices of each split, and warnings for the user."""

    train: list[int]
    val: list[int]
    test: list[int]
    warnings: list[str] = field(default_factory=list)


def make_split(
    digests: Sequence[str],
    labels: Sequence[Label],
    *,
    val: int | float,
    test: int | float,
    seed: int,
    num_folds: int | None = None,
    fold: int = 0,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Split:
    """Splits images into training, validation and test images, stratified by class.

    The split of an image depends on the seed, its content and its label, but not on the order of the files. Duplicates
    stay together, in the class of the first by name (without names: of the lowest label). Each class has its
    proportion of each split, to within one image. Each class with three or more different images is in every split
    that is not empty. An image with several labels is stratified by the rarest of them.

    With groups, see `group_splits.split_groups`: sizes and proportions are as near as complete groups allow.

    Args:
        digests: content hash of each image, see `digests.content_digests`.
        labels: class index of each image, or a tuple of class indices.
        val: validation images, as a fraction of all images (below 1) or a count; not used with `num_folds`.
        test: test images, as a fraction of all images (below 1) or a count.
        seed: seed of the split.
        num_folds: number of folds that the images outside the test split are divided into.
        fold: the fold used for validation, from 0.
        names: image names, for warnings and to choose the class of duplicates.
        class_names: class names by label, for messages.
        groups: group of each image, which is never in two splits; "" for a group of its own.

    Raises:
        UserError: the sizes do not fit the images, or a class has too few images or groups to train on.
    """
    val_count, test_count = _counts(val, test, len(digests), num_folds, fold)
    label_sets = [(label,) if isinstance(label, int) else label for label in labels]
    class_names = _check_class_names(label_sets, class_names)
    rarest = _rarest_labels(label_sets, len(class_names))
    stratum_names = [*class_names, "no label"]
    duplicates = _group(digests, labels, names)
    if groups is None:
        strata = _stratify(duplicates, digests, rarest, seed)
        train, val_images, test_images = _split(strata, val_count, test_count, num_folds, fold, stratum_names)
        split = Split(_indices(train), _indices(val_images), _indices(test_images))
        size_warnings = _size_warnings(split, strata, stratum_names, test_count, None if num_folds else val_count)
    else:
        counts = {"val_count": val_count, "test_count": test_count}
        folds = {"num_folds": num_folds, "fold": fold, "class_names": stratum_names}
        split = Split(*split_groups(join_duplicates(groups, digests), rarest, **counts, seed=seed, **folds))
        size_warnings = _group_warnings(split, label_sets, class_names, test_count, None if num_folds else val_count)
    _check_training(split, label_sets, class_names)
    split.warnings += _duplicate_warnings(duplicates, label_sets, names, class_names) + size_warnings
    return split


def _rarest_labels(label_sets: Sequence[tuple[int, ...]], no_label: int) -> list[int]:
    """The label that each image is stratified by."""
    count = Counter(chain.from_iterable(label_sets))
    return [min(labels, key=lambda label: (count[label], label), default=no_label) for labels in label_sets]


def _counts(val: int | float, test: int | float, images: int, num_folds: int | None, fold: int) -> tuple[int, int]:
    val_count = 0 if num_folds else _count("val_split", val, images)
    test_count = _count("test_split", test, images)
    if val_count + test_count >= images:
        raise UserError(f"val_split={val} and test_split={test} take all of {images} images\nlower one of them")
    if num_folds is None and fold != 0:
        raise UserError(f"fold={fold} needs num_folds\nset the number of folds with num_folds")
    if num_folds is not None and not 0 <= fold < num_folds >= 2:
        raise UserError(
            f"fold={fold} is not valid for num_folds={num_folds}\n"
            "use 2 or more folds, and a fold from 0 to num_folds - 1"
        )
    return val_count, test_count


def _count(option: str, value: int | float, images: int) -> int:
    if isinstance(value, int) and value >= 0:
        return value
    if isinstance(value, float) and 0 <= value < 1:
        return round(value * images)
    raise UserError(
        f"{option}={value} is not valid\nuse a fraction from 0.0 to below 1.0, or an integer number of images"
    )


def _check_class_names(label_sets: Sequence[tuple[int, ...]], class_names: Sequence[str] | None) -> Sequence[str]:
    present = set(chain.from_iterable(label_sets))
    for label, class_name in enumerate(class_names or []):
        if label not in present:
            raise UserError(f"class {class_name} has no images\nadd images or remove the class")
    return class_names or [str(label) for label in range(max(present) + 1)]


def _group(digests: Sequence[str], labels: Sequence[Label], names: Sequence[str] | None) -> list[Group]:
    duplicates = defaultdict(list)
    for index, digest in enumerate(digests):
        duplicates[digest].append(index)
    rank: Sequence[Any] = names or labels
    return [sorted(duplicates[digest], key=lambda index: rank[index]) for digest in sorted(duplicates)]


def _stratify(groups: list[Group], digests: Sequence[str], labels: Sequence[int], seed: int) -> Strata:
    def random_key(group: Group) -> bytes:
        return hashlib.blake2b(f"{seed}:{digests[group[0]]}".encode(), digest_size=16).digest()

    strata: Strata = {label: [] for label in sorted({labels[group[0]] for group in groups})}
    for group in sorted(groups, key=random_key):
        strata[labels[group[0]]].append(group)
    return strata


def _split(
    strata: Strata, val_count: int, test_count: int, num_folds: int | None, fold: int, class_names: Sequence[str]
) -> tuple[Strata, Strata, Strata]:
    """Returns the groups of the training, validation and test images."""
    # Reserves one group per class for each later split, so that none of them is empty in a small class.
    reserved = 2 if num_folds or val_count else 1
    test, remaining = _take(strata, strata, test_count, reserved)
    if num_folds:
        val, train = _take_fold(remaining, num_folds, fold, class_names)
    else:
        val, train = _take(strata, remaining, val_count, reserved=1)
    return train, val, test


def _take(strata: Strata, available: Strata, total: int, reserved: int) -> tuple[Strata, Strata]:
    """Takes `total` images out of `available`, in proportion to the class sizes in `strata`.

    Returns:
        The groups taken, and the remaining groups: at least `reserved` per class.
    """
    candidates = {label: groups[: max(len(groups) - reserved, 0)] for label, groups in available.items()}
    sizes = [sum(map(len, groups)) for groups in strata.values()]
    most = [sum(map(len, groups)) for groups in candidates.values()]
    least = [min(1, total, high) if len(groups) >= 3 else 0 for high, groups in zip(most, strata.values(), strict=True)]
    if sum(most) < total:
        raise UserError("val_split and test_split leave a class without training images\nlower them or add images")

    taken: Strata = {}
    remaining: Strata = {}
    for label, quota in zip(available, _allocate(total, sizes, least, most), strict=True):
        taken[label] = picked = _pick(candidates[label], quota)
        first_indices = {group[0] for group in picked}
        remaining[label] = [group for group in available[label] if group[0] not in first_indices]
    return taken, remaining


def _allocate(total: int, sizes: list[int], least: list[int], most: list[int]) -> list[int]:
    """Allocates `total` images to classes by the largest-remainder method, within `least` and `most` per class.

    The sum is larger than `total` if `least` requires it.
    """
    images = sum(sizes)
    quotas = [min(max(total * size // images, low), high) for size, low, high in zip(sizes, least, most, strict=True)]
    while difference := total - sum(quotas):
        step = 1 if difference > 0 else -1
        open_classes = [c for c, quota in enumerate(quotas) if least[c] <= quota + step <= most[c]]
        if not open_classes:
            break
        # In integers: a rounding error must not decide between two classes.
        quotas[max(open_classes, key=lambda c: step * (total * sizes[c] - quotas[c] * images))] += step
    return quotas


def _pick(groups: list[Group], quota: int) -> list[Group]:
    """Picks groups of `quota` images in total, or fewer if no group fits; at least one group for a nonzero quota."""
    picked = []
    remaining = quota
    for group in groups:
        if len(group) <= remaining:
            picked.append(group)
            remaining -= len(group)
    return picked or sorted(groups, key=len)[: min(quota, 1)]


def _take_fold(strata: Strata, num_folds: int, fold: int, class_names: Sequence[str]) -> tuple[Strata, Strata]:
    val: Strata = {}
    train: Strata = {}
    start = 0
    for label, groups in strata.items():
        if len(groups) < 2:
            raise UserError(f"class {class_names[label]} has too few images for folds\nadd images or lower test_split")
        # Each class starts at the fold after the previous class's last one, so that the folds have equal sizes.
        val[label] = groups[(fold - start) % num_folds :: num_folds]
        train[label] = [group for position, group in enumerate(groups, start) if position % num_folds != fold]
        start += len(groups)
    return val, train


def _check_training(split: Split, label_sets: Sequence[tuple[int, ...]], class_names: Sequence[str]) -> None:
    trained = {label for index in split.train for label in label_sets[index]}
    for label in sorted(set(chain.from_iterable(label_sets)) - trained):
        raise UserError(f"class {class_names[label]} has too few different images to train on\nadd images")


def _indices(strata: Strata) -> list[int]:
    return sorted(index for groups in strata.values() for group in groups for index in group)


def _duplicate_warnings(
    groups: list[Group],
    label_sets: Sequence[tuple[int, ...]],
    names: Sequence[str] | None,
    class_names: Sequence[str],
) -> list[str]:
    def describe(index: int) -> str:
        classes = ", ".join(class_names[label] for label in label_sets[index]) or "no label"
        return f"{names[index] if names else f'image {index}'} ({classes})"

    warnings = []
    if duplicates := sum(len(group) - 1 for group in groups):
        warnings.append(
            f"{duplicates} of {len(label_sets)} images are exact duplicates; they are put in the same split"
        )
    conflicts = [group for group in groups if len({label_sets[index] for index in group}) > 1]
    for group in conflicts[:_MAX_NAMED_CONFLICTS]:
        warnings.append("the same image in different classes: " + ", ".join(describe(index) for index in group))
    if len(conflicts) > _MAX_NAMED_CONFLICTS:
        warnings.append(f"... and {len(conflicts) - _MAX_NAMED_CONFLICTS} more images in different classes")
    return warnings


def _size_warnings(split: Split, strata: Strata, class_names: Sequence[str], test: int, val: int | None) -> list[str]:
    warnings = []
    if small := [class_names[label] for label, members in strata.items() if len(members) < 3]:
        listed = ", ".join(small[:10]) + (f" and {len(small) - 10:,} more" if len(small) > 10 else "")
        warnings.append(f"classes with too few different images to be in every split: {listed}")
    for name, actual, requested in (("val", len(split.val), val), ("test", len(split.test), test)):
        if requested not in (None, actual):
            warnings.append(f"{name} has {actual} images instead of {requested}: duplicates or small classes")
    return warnings


def _group_warnings(
    split: Split, label_sets: Sequence[tuple[int, ...]], class_names: Sequence[str], test: int, val: int | None
) -> list[str]:
    warnings = []
    for name, indices, requested in (("val", split.val, val), ("test", split.test, test)):
        if requested and abs(len(indices) - requested) > SIZE_TOLERANCE * requested:
            warnings.append(f"{name} has {len(indices)} images instead of {requested}: groups are not divided")
        absent = set(range(len(class_names))) - {label for index in indices for label in label_sets[index]}
        if indices and absent:
            listed = ", ".join(class_names[label] for label in sorted(absent)[:10]) + (" …" if len(absent) > 10 else "")
            warnings.append(f"{name} has no images of {listed}: there are too few groups")
    return warnings
