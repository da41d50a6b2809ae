"""Splits of images that belong to groups, such as patients, videos or bursts: no group is in two splits."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from resnet_pl.utils import UserError

MAX_FOLDS = 20  # a split is a number of these folds; more of them cost time, and hold fewer groups each
SIZE_TOLERANCE = 0.2  # of the size of a split


def match_groups(pattern: str, names: Sequence[str]) -> list[str]:
    """Returns the group of each image: what the first group of a regular expression finds in its path.

    Args:
        pattern: the regular expression.
        names: path of each image. One without a match has the group "", which stands for a group of its own.

    Raises:
        UserError: the pattern is not valid, or finds nothing in any path.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.group_pattern: {pattern} is not a regular expression: {error}") from error
    if not expression.groups:
        raise UserError(
            f"data.group_pattern: {pattern} has no group\nput what identifies a group in parentheses: (patient\\d+)_"
        )
    groups = [(match[1] or "") if (match := expression.search(name)) else "" for name in names]
    if names and not any(groups):
        raise UserError(
            f"data.group_pattern: {pattern} finds nothing in the paths of the images, such as {names[0]}\n"
            "change the pattern; the paths are relative to data.root"
        )
    return groups


def join_duplicates(groups: Sequence[str], digests: Sequence[str]) -> list[str]:
    """Returns a group id per image: images of the same group, or with the same content, have the same one.

    Args:
        groups: group of each image; "" for a group of its own.
        digests: content hash of each image.
    """
    above: dict[str, str] = {}

    def find(key: str) -> str:
        while above.setdefault(key, key) != key:
            above[key] = key = above[above[key]]
        return key

    def key_of(group: str, digest: str) -> str:
        return f"group {group}" if group else f"image {digest}"

    for group, digest in zip(groups, digests, strict=True):
        one, other = find(key_of(group, digest)), find(f"image {digest}")
        above[max(one, other)] = min(one, other)
    return [find(key_of(group, digest)) for group, digest in zip(groups, digests, strict=True)]


def split_groups(
    ids: Sequence[str],
    strata: Sequence[int],
    *,
    val_count: int,
    test_count: int,
    seed: int,
    num_folds: int | None,
    fold: int,
    class_names: Sequence[str],
) -> tuple[list[int], list[int], list[int]]:
    """Splits images by group with scikit-learn's StratifiedGroupKFold.

    The split of a group depends on the seed and on all group ids and class counts, but not on the order of the files.

    Args:
        ids: group id of each image.
        strata: class index of each image.
        val_count: validation images, about; not used with `num_folds`.
        test_count: test images, about.
        seed: seed of the split.
        num_folds: number of folds that the images outside the test split are divided into.
        fold: the fold used for validation, from 0.
        class_names: class names by label, for messages.

    Returns:
        Sorted image indices for training, validation and testing.

    Raises:
        UserError: there are too few groups.
    """
    splitter = _Splitter(ids, strata, seed)
    remaining, test = splitter.take(np.arange(len(ids)), test_count, "test", 2 if num_folds or val_count else 1)
    if num_folds:
        splitter.check_folds(remaining, num_folds, class_names)
        folds = splitter.folds(remaining, num_folds)
        val = folds[fold]
        train = np.concatenate([each for number, each in enumerate(folds) if number != fold])
    else:
        train, val = splitter.take(remaining, val_count, "val", 1)
    return sorted(train.tolist()), sorted(val.tolist()), sorted(test.tolist())


class _Splitter:
    """Takes groups out of arrays of image indices."""

    def __init__(self, ids: Sequence[str], strata: Sequence[int], seed: int) -> None:
        def random_key(name: str) -> bytes:
            return hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=16).digest()

        numbers = {name: number for number, name in enumerate(sorted(set(ids), key=random_key))}
        self.groups, self.strata = np.array([numbers[name] for name in ids]), np.array(strata)
        self.seed = seed

    def folds(self, images: np.ndarray, count: int) -> list[np.ndarray]:
        """Divides images into folds of similar class proportions."""
        from sklearn.model_selection import StratifiedGroupKFold

        strata, groups = self.strata[images], self.groups[images]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes with fewer images than folds
            return [images[chosen] for _, chosen in StratifiedGroupKFold(count).split(strata, strata, groups)]

    def take(self, images: np.ndarray, count: int, split: str, reserved: int) -> tuple[np.ndarray, np.ndarray]:
        """Takes about `count` images in complete groups.

        Returns:
            The remaining images, which have at least `reserved` groups of each class if there are enough; and the
            images taken, which have the class too if there are more.
        """
        if not count:
            return images, images[:0]
        # StratifiedGroupKFold needs a class with at least one image per fold.
        largest_class = max(Counter(self.strata[images].tolist()).values())
        limit = min(MAX_FOLDS, len(np.unique(self.groups[images])), largest_class)
        if limit < 2:
            raise UserError(f"{split}_split={count} images: there are too few groups\nadd groups, or use 0")
        wanted = count / len(images)
        sizes = ((parts, number) for number in range(2, limit + 1) for parts in range(1, number))
        parts, number = min(sizes, key=lambda size: (abs(size[0] / size[1] - wanted), size[1]))
        folds = self.folds(images, number)
        # The seed chooses among the folds of about the right size.
        first = int.from_bytes(hashlib.blake2b(f"{self.seed}:{split}".encode(), digest_size=8).digest())
        candidates = [
            np.concatenate([folds[(first + shift + part) % number] for part in range(parts)]) for shift in range(number)
        ]
        taken = min(candidates, key=lambda each: max(abs(len(each) - count), SIZE_TOLERANCE * count))
        if len(taken) > (1 + SIZE_TOLERANCE) * count:  # less than the smallest fold: groups in random order
            numbers = self.groups[taken]
            taken = taken[numbers <= np.sort(numbers)[count - 1]]
        chosen = self.adjust(images, set(self.groups[taken].tolist()), reserved)
        is_chosen = np.isin(self.groups[images], list(chosen))
        return images[~is_chosen], images[is_chosen]

    def adjust(self, images: np.ndarray, chosen: set[int], reserved: int) -> set[int]:
        """Returns the chosen groups, without or with the smallest ones that a class needs elsewhere or here."""
        pairs = set(zip(self.strata[images].tolist(), self.groups[images].tolist(), strict=True))
        members: dict[int, set[int]] = defaultdict(set)
        classes: dict[int, set[int]] = defaultdict(set)
        for stratum, group in sorted(pairs):
            members[stratum].add(group)
            classes[group].add(stratum)
        size = Counter(self.groups[images].tolist())
        for groups in members.values():
            smallest = sorted(groups & chosen, key=lambda group: (size[group], group))
            chosen = chosen - set(smallest[: max(reserved - len(groups - chosen), 0)])
        for groups in members.values():
            if not groups & chosen:
                free = (g for g in groups if all(len(members[c] - chosen) > reserved for c in classes[g]))
                added = min(free, key=lambda group: (size[group], group), default=None)
                chosen = chosen | ({added} if added is not None else set())
        return chosen

    def check_folds(self, images: np.ndarray, num_folds: int, class_names: Sequence[str]) -> None:
        """Raises UserError if there are fewer groups than folds, or if a class is in a single group."""
        if (number := len(np.unique(self.groups[images]))) < num_folds:
            raise UserError(f"num_folds={num_folds}: there are only {number} groups\nuse fewer folds")
        if (largest := max(Counter(self.strata[images].tolist()).values())) < num_folds:
            raise UserError(f"num_folds={num_folds}: the largest class has only {largest} images\nuse fewer folds")
        for stratum in np.unique(self.strata[images]):
            if len(np.unique(self.groups[images[self.strata[images] == stratum]])) < 2:
                raise UserError(
                    f"class {class_names[stratum]} is in only one group: the fold of this group would not be trained "
                    "on it\nadd images of other groups, or lower test_split"
                )


def describe_groups(
    images: Mapping[str, Collection[str]], groups_of: Callable[[Sequence[str]], list[str] | None]
) -> str | None:
    """Returns how many groups there are, and which of them are in several splits, in one line; None without groups.

    Args:
        images: the names of the images of each split.
        groups_of: returns the groups of images, see `ImageFolder.groups`.
    """
    # Without a test split, that of validation stands for it.
    pairs = [
        (name, split)
        for split in images
        for name in images[split]
        if split != "test" or name not in images.get("val", ())
    ]
    if (groups := groups_of([name for name, _ in pairs])) is None:
        return None
    splits: dict[str, dict[str, None]] = defaultdict(dict)  # dictionaries keep the order
    for group, (_, split) in zip(groups, pairs, strict=True):
        if group:
            splits[group][split] = None
    single = groups.count("")
    leaks = {group: names for group, names in splits.items() if len(names) > 1}
    text = f"{len(splits):,} groups, none in two splits"
    if leaks:
        example = min(leaks)
        text = (
            f"{len(leaks):,} of {len(splits):,} groups are in several splits, for example {example} in "
            f"{' and '.join(leaks[example])}"
        )
    return text + (f"; {single:,} images without a group" if single else "")
