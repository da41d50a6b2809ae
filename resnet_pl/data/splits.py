"""Training, validation and test parts that depend on nothing but the images and a seed."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from resnet_pl.utils import UserError

_NAMED_CLASHES = 5

Group = list[int]  # indices of images with the same content
Strata = dict[int, list[Group]]  # by label


@dataclass
class Split:
    """Indices of the images of each part, ascending, and what the user should know about them."""

    train: list[int]
    val: list[int]
    test: list[int]
    warnings: list[str] = field(default_factory=list)


def make_split(
    digests: Sequence[str],
    labels: Sequence[int],
    *,
    val: int | float,
    test: int | float,
    seed: int,
    num_folds: int | None = None,
    fold: int = 0,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Split:
    """Divides images into training, validation and test parts, class by class.

    The part of an image follows from the seed, its content and its label, never from the order of the files. Images
    with the same content stay together, in the class of the first by name (without names: of the lowest label). Every
    class gets its share of each part to within one image, every class of three contents or more at least one image in
    each part that is not empty, and every class something to train on; a UserError says where that is impossible.

    Args:
        digests: the content of each image, from `digests.content_digests`.
        labels: the class of each image.
        val: validation images, as a fraction of all (below 1) or as a count; not used with `num_folds`.
        test: test images, likewise.
        seed: another seed is another split.
        num_folds: cut what the test part leaves into so many parts for cross-validation.
        fold: the part to validate on, from 0.
        names: of the images, for warnings and to choose among copies.
        class_names: by label, for messages.
    """
    val_count, test_count = _counts(val, test, len(digests), num_folds, fold)
    class_names = _checked_names(labels, class_names)
    groups = _group(digests, labels, names)
    strata = _stratify(groups, digests, labels, seed)
    split = Split(*map(_indices, _cut(strata, val_count, test_count, num_folds, fold, class_names)))
    _check_training(split, labels, class_names)
    split.warnings += _copy_warnings(groups, labels, names, class_names)
    split.warnings += _size_warnings(split, strata, class_names, test=test_count, val=None if num_folds else val_count)
    return split


def _counts(val: int | float, test: int | float, images: int, num_folds: int | None, fold: int) -> tuple[int, int]:
    val_count = 0 if num_folds else _count("val_split", val, images)
    test_count = _count("test_split", test, images)
    if val_count + test_count >= images:
        raise UserError(f"val_split={val} and test_split={test} take all of {images} images; ask for fewer")
    if num_folds is None and fold != 0:
        raise UserError(f"fold={fold} without num_folds; say how many folds there are")
    if num_folds is not None and not 0 <= fold < num_folds >= 2:
        raise UserError(f"fold={fold} of num_folds={num_folds}; give 2 folds or more and count the fold from 0")
    return val_count, test_count


def _count(part: str, value: int | float, images: int) -> int:
    if isinstance(value, int) and value >= 0:
        return value
    if isinstance(value, float) and 0 <= value < 1:
        return round(value * images)
    raise UserError(f"{part}={value}; give a fraction from 0.0 to below 1.0 or a whole number of images")


def _checked_names(labels: Sequence[int], class_names: Sequence[str] | None) -> Sequence[str]:
    present = set(labels)
    for label, class_name in enumerate(class_names or []):
        if label not in present:
            raise UserError(f"class {class_name} has no images; add some or remove the class")
    return class_names or [str(label) for label in range(max(labels) + 1)]


def _group(digests: Sequence[str], labels: Sequence[int], names: Sequence[str] | None) -> list[Group]:
    same = defaultdict(list)
    for index, digest in enumerate(digests):
        same[digest].append(index)
    rank = names or labels
    return [sorted(same[digest], key=lambda index: rank[index]) for digest in sorted(same)]


def _stratify(groups: list[Group], digests: Sequence[str], labels: Sequence[int], seed: int) -> Strata:
    def drawn(group: Group) -> bytes:
        return hashlib.blake2b(f"{seed}:{digests[group[0]]}".encode(), digest_size=16).digest()

    strata = {label: [] for label in sorted({labels[group[0]] for group in groups})}
    for group in sorted(groups, key=drawn):
        strata[labels[group[0]]].append(group)
    return strata


def _cut(
    strata: Strata, val_count: int, test_count: int, num_folds: int | None, fold: int, class_names: Sequence[str]
) -> tuple[Strata, Strata, Strata]:
    # Contents held back for the later parts, lest one of them goes empty in a small class.
    held = 2 if num_folds or val_count else 1
    test, rest = _take(strata, strata, test_count, held)
    if num_folds:
        val, train = _cut_fold(rest, num_folds, fold, class_names)
    else:
        val, train = _take(strata, rest, val_count, held=1)
    return train, val, test


def _take(whole: Strata, rest: Strata, total: int, held: int) -> tuple[Strata, Strata]:
    """Takes `total` images out of `rest`, in proportion to the classes in `whole`, but never a class's last `held`."""
    free = {label: groups[: max(len(groups) - held, 0)] for label, groups in rest.items()}
    sizes = [sum(map(len, groups)) for groups in whole.values()]
    most = [sum(map(len, groups)) for groups in free.values()]
    least = [min(1, total, high) if len(groups) >= 3 else 0 for high, groups in zip(most, whole.values(), strict=True)]
    if sum(most) < total:
        raise UserError("val and test would leave a class without images to train on; ask for fewer or add images")

    taken: Strata = {}
    left: Strata = {}
    for label, quota in zip(rest, _allocate(total, sizes, least, most), strict=True):
        taken[label] = picked = _pick(free[label], quota)
        chosen = {group[0] for group in picked}
        left[label] = [group for group in rest[label] if group[0] not in chosen]
    return taken, left


def _allocate(total: int, sizes: list[int], least: list[int], most: list[int]) -> list[int]:
    """Largest-remainder method with bounds; `least` may make the sum larger than `total`."""
    images = sum(sizes)
    quotas = [min(max(total * size // images, low), high) for size, low, high in zip(sizes, least, most, strict=True)]
    while difference := total - sum(quotas):
        step = 1 if difference > 0 else -1
        open_classes = [c for c, quota in enumerate(quotas) if least[c] <= quota + step <= most[c]]
        if not open_classes:
            break
        # Whole numbers, so that no rounding error decides between two classes.
        quotas[max(open_classes, key=lambda c: step * (total * sizes[c] - quotas[c] * images))] += step
    return quotas


def _pick(groups: list[Group], quota: int) -> list[Group]:
    picked = []
    room = quota
    for group in groups:
        if len(group) <= room:
            picked.append(group)
            room -= len(group)
    return picked or sorted(groups, key=len)[: min(quota, 1)]


def _cut_fold(strata: Strata, num_folds: int, fold: int, class_names: Sequence[str]) -> tuple[Strata, Strata]:
    val: Strata = {}
    train: Strata = {}
    start = 0
    for label, groups in strata.items():
        if len(groups) < 2:
            raise UserError(f"class {class_names[label]} has too few images for folds; add some or lower test")
        # Each class goes on where the one before ended: the folds' totals stay even.
        val[label] = groups[(fold - start) % num_folds :: num_folds]
        train[label] = [group for place, group in enumerate(groups, start) if place % num_folds != fold]
        start += len(groups)
    return val, train


def _check_training(split: Split, labels: Sequence[int], class_names: Sequence[str]) -> None:
    for label in sorted(set(labels) - {labels[index] for index in split.train}):
        raise UserError(f"class {class_names[label]} has too few different images to train on; add some")


def _indices(strata: Strata) -> list[int]:
    return sorted(index for groups in strata.values() for group in groups for index in group)


def _copy_warnings(
    groups: list[Group], labels: Sequence[int], names: Sequence[str] | None, class_names: Sequence[str]
) -> list[str]:
    def told(index: int) -> str:
        return f"{names[index] if names else f'image {index}'} ({class_names[labels[index]]})"

    warnings = []
    if copies := sum(len(group) - 1 for group in groups):
        warnings.append(f"{copies} of {len(labels)} images are exact copies of others; copies are kept in one part")
    clashes = [group for group in groups if len({labels[index] for index in group}) > 1]
    for group in clashes[:_NAMED_CLASHES]:
        warnings.append("the same image in different classes: " + ", ".join(told(index) for index in group))
    if len(clashes) > _NAMED_CLASHES:
        warnings.append(f"... and {len(clashes) - _NAMED_CLASHES} more images in different classes")
    return warnings


def _size_warnings(split: Split, strata: Strata, class_names: Sequence[str], test: int, val: int | None) -> list[str]:
    warnings = []
    if small := [class_names[label] for label, members in strata.items() if len(members) < 3]:
        warnings.append(f"too few different images to be in every part: {', '.join(small)}")
    for part, found, wanted in (("val", len(split.val), val), ("test", len(split.test), test)):
        if wanted not in (None, found):
            warnings.append(f"{part} has {found} images instead of {wanted}, for copies or for small classes")
    return warnings
