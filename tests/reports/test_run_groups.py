"""Grouping of runs over seeds, and the options in which groups differ."""

import math
from pathlib import Path
from typing import Any

import pytest

from resnet_pl.reports.run_groups import Group, group_runs, label_groups, mean_and_deviation, option_headings
from resnet_pl.reports.run_reader import Run, read_run
from tests.reports.made import write_run


def seeds(folder: Path, model: str, depth: int, *top1: float, **facts: Any) -> list[Run]:
    """Runs of one configuration that differ in the seed and the test top-1."""
    made = folder / f"{model}-{depth}-{'-'.join(map(str, facts.values()))}".replace(" ", "")
    paths = [write_run(made / f"version_{i}", model, depth, seed=i, top1=top1, **facts) for i, top1 in enumerate(top1)]
    return [read_run(path) for path in paths]


def one(folder: Path, name: str, **facts: Any) -> Run:
    return read_run(write_run(folder / name, **facts))


def by_name(groups: list[Group]) -> dict[str, dict[str, str]]:
    return {group.name: group.options for group in groups}


def test_statistics_without_the_values_that_are_missing() -> None:
    assert mean_and_deviation([0.5, math.nan, 1.0]) == (0.75, pytest.approx(0.5**0.5 / 2))
    assert all(map(math.isnan, mean_and_deviation([math.nan, math.nan])))


def test_an_argument_called_name_tells_networks_apart(tmp_path: Path) -> None:
    name = "model.backbone.init_args.name"
    runs = [one(tmp_path, f"a/version_{seed}", seed=seed, options={name: f"net{seed}"}) for seed in (0, 1)]
    assert [len(group.runs) for group in group_runs(runs)] == [1, 1]


def test_runs_that_differ_only_in_the_seed_are_one_group(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "cifar_resnet", 20, 0.90, 0.92, 0.94) + seeds(tmp_path, "cifar_plain", 20, 0.8)
    plain, residual = group_runs(runs)
    row = residual.row()
    assert (row["model"], row["data"], row["n"], row["seeds"]) == ("cifar_resnet 20 (A)", "CIFAR10", 3, "0 1 2")
    # Deviations of 0.02, 0 and 0.02 from the mean, over n − 1 = 2.
    assert [row[key] for key in ("test_top1", "test_top1_std")] == pytest.approx([0.92, 0.02])
    assert [row[key] for key in ("val_top1", "val_top1_std")] == pytest.approx([0.7, 0])
    assert [row[key] for key in ("train_top1", "train_top1_std")] == pytest.approx([0.78, 0])
    assert row["paper"] == pytest.approx(0.9125)
    assert (row["iterations"], row["minutes"], row["parameters"]) == (20, 3, 20_000)
    assert (row["images_per_second"], row["commit"]) == (300, "abc")
    assert plain.row()["test_top1_std"] is None and plain.row()["paper"] is None


def test_the_configuration_of_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    options = {
        "model.num_classes": 10,
        "model.class_names": ["a"],
        "trainer.gradient_clip_val": 1.0,
        "data.sizes": [2.0],
    }
    runs = [
        one(tmp_path, "a/version_0", options={"trainer.gradient_clip_val": 1, "data.sizes": [2]}),
        one(tmp_path, "a/version_1", seed=1, options=options),
    ]
    assert by_name(group_runs(runs)) == {"a/version_0,1": {}}


def test_the_best_validation_accuracy_comes_first(tmp_path: Path) -> None:
    runs = [
        one(tmp_path, "a/version_0", lr=0.1, val_top1=0.6, top1=0.9),
        one(tmp_path, "b/version_0", lr=0.2, val_top1=0.8, tested=False),
        one(tmp_path, "c/version_0", lr=0.3, val_top1="", top1=0.99),
        one(tmp_path, "d/version_0", data="AnotherDataset"),
    ]
    assert [group.name[0] for group in group_runs(runs)] == ["d", "b", "a", "c"]


def test_the_best_epoch_counts(tmp_path: Path) -> None:
    assert one(tmp_path, "a/version_0", val_top1=0.3).val_top1 == 0.4


def test_a_second_run_with_the_same_seed_is_another_group(tmp_path: Path) -> None:
    first, second = one(tmp_path, "a/version_0"), one(tmp_path, "a/version_1", commit="def")
    assert by_name(group_runs([first, second])) == {"a/version_0": {}, "a/version_1": {}}
    other_seed = one(tmp_path, "a/version_2", seed=1)
    assert set(by_name(group_runs([first, second, other_seed]))) == {"a/version_0,2", "a/version_1"}
    unseeded = [one(tmp_path, f"b/version_{i}", seed=False) for i in range(2)]
    assert len(group_runs(unseeded)) == 1


def test_only_differing_options_are_listed(tmp_path: Path) -> None:
    runs = [
        one(tmp_path, "a/version_0", lr=0.1, options={"trainer.max_epochs": 5, "dashboard.images": 3}),
        one(tmp_path, "b/version_0", lr=0.05, options={"trainer.max_epochs": 5, "dashboard.images": 4}),
    ]
    assert by_name(group_runs(runs)) == {
        "a/version_0": {"model.optimizer.lr": "0.1"},
        "b/version_0": {"model.optimizer.lr": "0.05"},
    }


def test_arguments_of_different_classes_are_not_compared(tmp_path: Path) -> None:
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "weight_decay": 0.05}}
    runs = [one(tmp_path, "a/version_0"), one(tmp_path, "b/version_0", options={"model.optimizer": adam})]
    assert by_name(group_runs(runs)) == {
        "a/version_0": {"model.optimizer": "SGD", "model.optimizer.lr": "0.1"},
        "b/version_0": {"model.optimizer": "AdamW", "model.optimizer.lr": "0.001"},
    }
    mix = {"class_path": "resnet_pl.data.MixUp", "init_args": {"alpha": 0.2}}
    mixes = [
        one(tmp_path, f"{name}/version_0", options={"data.init_args.mix": mix})
        for name, mix in (("c", None), ("d", mix))
    ]
    assert by_name(group_runs(mixes)) == {"c/version_0": {"data.mix": "null"}, "d/version_0": {"data.mix": "MixUp"}}


def test_null_differs_from_a_section(tmp_path: Path) -> None:
    schedules = {"e": None, "f": {"shape": "cosine", "warmup": 3}}
    runs = [one(tmp_path, f"{name}/version_0", options={"model.schedule": own}) for name, own in schedules.items()]
    assert by_name(group_runs(runs)) == {
        "e/version_0": {"model.schedule": "null"},
        "f/version_0": {"model.schedule": "shape=cosine, warmup=3"},
    }


def test_lists_of_classes_show_their_arguments_only_if_those_differ(tmp_path: Path) -> None:
    def transforms(*padding: int) -> dict[str, Any]:
        items = [{"class_path": "resnet_pl.data.RandomCrop", "init_args": {"padding": number}} for number in padding]
        return {"data.init_args.batch_transforms": [*items, "RandomHorizontalFlip"]}

    runs = [one(tmp_path, f"{name}/version_0", options=transforms(*args)) for name, args in (("a", [4]), ("b", [2]))]
    key = "data.batch_transforms"
    assert [group.options[key] for group in group_runs(runs)] == [
        "RandomCrop(padding=4), RandomHorizontalFlip",
        "RandomCrop(padding=2), RandomHorizontalFlip",
    ]
    other = one(tmp_path, "c/version_0", options={"data.init_args.batch_transforms": []})
    assert [group.options[key] for group in group_runs([runs[0], other])] == ["RandomCrop, RandomHorizontalFlip", "[]"]


def test_both_forms_of_the_model_section_are_one_group(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "cifar_resnet", 20, 0.9)
    named = seeds(tmp_path, "cifar_resnet", 20, 0.8, 0.7, classifier="resnet_pl.ImageClassifier")[1:]
    assert len(group_runs(runs + named)) == 1
    custom = seeds(tmp_path, "cifar_resnet", 20, 0.7, classifier="mine.Classifier")
    assert sorted(group.options["model.class_path"] for group in group_runs(runs + named + custom)) == [
        "Classifier",
        "ImageClassifier",
    ]


def test_other_images_are_another_group(tmp_path: Path) -> None:
    runs = [
        one(tmp_path, f"{name}/version_0", seed=seed, digests={"train": name}, options={"data.init_args.root": name})
        for seed, name in enumerate(("cats", "dogs"))
    ]
    assert by_name(group_runs(runs)) == {
        "cats/version_0": {"data.root": "cats"},
        "dogs/version_0": {"data.root": "dogs"},
    }
    runs = [one(tmp_path, f"{name}/version_0", digests={"train": name}) for name in ("ants", "bees")]
    assert by_name(group_runs(runs)) == {"ants/version_0": {}, "bees/version_0": {}}


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["a/version_3"], "a/version_3"),
        (["a/version_0", "a/version_1"], "a/version_0,1"),
        ([f"a/version_{number}" for number in range(5)], "a/version_0…4"),
        (["seed0-depth20/version_0", "seed1-depth20/version_0"], "seed*-depth20"),
        (["depth20-seed0/version_0", "depth20-seed1/version_0"], "depth20-seed*"),
        (["abc/version_0", "xyz/version_1"], "abc/version_0, xyz/version_1"),
        (["copied"], "copied"),
    ],
)
def test_names_of_groups(tmp_path: Path, paths: list[str], name: str) -> None:
    (group,) = group_runs([one(tmp_path, path, seed=seed) for seed, path in enumerate(paths)])
    assert group.name.removeprefix(f"{tmp_path.name}/") == name


def test_groups_whose_names_have_the_same_parts_in_common_are_distinguished(tmp_path: Path) -> None:
    names = {"trial-1": 0.1, "trial-2": 0.1, "trial-3": 0.2, "trial-4": 0.2}
    runs = [one(tmp_path, f"{name}/version_0", lr=lr, seed=seed) for seed, (name, lr) in enumerate(names.items())]
    assert by_name(group_runs(runs)) == {
        "trial-1/version_0, trial-2/version_0": {"model.optimizer.lr": "0.1"},
        "trial-3/version_0, trial-4/version_0": {"model.optimizer.lr": "0.2"},
    }


def test_the_name_of_a_run_that_is_given_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "a" / "version_0")
    monkeypatch.chdir(tmp_path / "a")
    assert [group.name for group in group_runs([read_run(Path("version_0"))])] == ["a/version_0"]


def test_headings_are_short_and_unique() -> None:
    keys = ["model.optimizer.lr", "model.loss.alpha", "data.mix.alpha", "model.n", "model.class_path"]
    assert option_headings(keys) == {
        "model.optimizer.lr": "lr",
        "model.loss.alpha": "loss.alpha",
        "data.mix.alpha": "mix.alpha",
        "model.n": "model.n",
        "model.class_path": "LightningModule",
    }


def test_equal_names_in_different_folders_are_distinguished(tmp_path: Path) -> None:
    runs = [one(tmp_path, "x/a/version_0", lr=0.1), one(tmp_path, "y/a/version_0", lr=0.2)]
    assert set(by_name(group_runs(runs))) == {"x/a/version_0", "y/a/version_0"}


def test_labels_for_plots_name_what_distinguishes_the_groups(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "cifar_plain", 20, 0.9, 0.8) + seeds(tmp_path, "cifar_plain", 20, 0.9, data="Digits")
    labels = label_groups(group_runs(runs + seeds(tmp_path, "cifar_resnet", 20, 0.9)))
    assert set(labels) == {"cifar_plain 20, CIFAR10", "cifar_plain 20, Digits", "cifar_resnet 20 (A), CIFAR10"}
    assert len(labels["cifar_plain 20, CIFAR10"]) == 2
    assert set(label_groups(group_runs(runs[:2]))) == {"cifar_plain 20"}
    rates = seeds(tmp_path, "cifar_plain", 56, 0.9, lr=0.1) + seeds(tmp_path, "cifar_plain", 56, 0.9, lr=0.2)
    assert set(label_groups(group_runs(rates))) == {"cifar_plain 56, lr 0.1", "cifar_plain 56, lr 0.2"}
    repeated = [one(tmp_path, "r/version_0"), one(tmp_path, "r/version_1")]
    assert set(label_groups(group_runs(repeated))) == {"cifar_resnet 20 (A)", "cifar_resnet 20 (A), r/version_1"}


def test_loggers_with_the_name_of_the_seed_are_no_difference(tmp_path: Path) -> None:
    loggers = [[{"class_path": "WandbLogger", "init_args": {"name": f"seed{seed}"}}] for seed in (0, 1)]
    runs = [
        one(tmp_path, f"{seed}/version_0", seed=seed, options={"trainer.logger": own})
        for seed, own in enumerate(loggers)
    ]
    assert [len(group.runs) for group in group_runs(runs)] == [2]
