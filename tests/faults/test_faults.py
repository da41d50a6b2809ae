"""A few fault-injection trials of each kind, and tests that the campaign detects failures."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults import campaign, checkpoints, config_mutations, configs, images, kills
from tests.faults.forks import ProcessResult


@pytest.mark.process
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "trials",
    [{"checkpoints": 2, "configs": 1, "images": 3}, pytest.param({"kills": 1}, marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_a_few_trials_pass(trials: dict[str, int], tmp_path: Path) -> None:
    # In a new process: one that forks must not have threads.
    command = [sys.executable, campaign.__file__, *(f"{name}={count}" for name, count in trials.items())]
    done = subprocess.run(
        [*command, "--work", str(tmp_path)], capture_output=True, text=True, timeout=1100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name, count in trials.items():
        rows = [json.loads(line) for line in (tmp_path / f"{name}-0.jsonl").read_text().splitlines()]
        assert len(rows) == count and not any(row["failed"] for row in rows)
        assert f"{count} of {count} trials passed." in done.stdout
    if "kills" in trials:
        assert sum(json.loads((tmp_path / "kills-0.jsonl").read_text())["kills"].values()) >= 1


class Section:
    """A section whose trials with odd numbers fail."""

    trials: list[str] = []

    @staticmethod
    def prepare(folder: Path) -> None:
        folder.mkdir(parents=True)

    @classmethod
    def trial(cls, reference: None, rng: random.Random, folder: Path) -> dict[str, Any]:
        cls.trials.append(folder.name)
        return {"drawn": rng.random(), "failed": f"broke\n {folder.name}" if int(folder.name) % 2 else None}

    @staticmethod
    def summary(rows: list[dict[str, Any]]) -> list[str]:
        return [f"- {len(rows)} rows"]


def test_a_campaign_resumes(tmp_path: Path) -> None:
    Section.trials = []
    first = campaign.try_all(Section, "kills", 2, 0, tmp_path)
    more = campaign.try_all(Section, "kills", 5, 0, tmp_path)
    assert Section.trials == ["0", "1", "2", "3", "4"] and more[:2] == first
    assert campaign.try_all(Section, "kills", 5, 1, tmp_path)[0]["drawn"] != first[0]["drawn"]


def test_failures_are_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(campaign.REASONS, "broke 3", "known limitation")
    rows = campaign.try_all(Section, "kills", 4, 0, tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# Reliability\n\nText.\n")
    for name in ("images", "kills", "images"):
        campaign.record(page, name, campaign.format_section(Section, name, rows, 0))
    text = page.read_text()
    assert text.startswith("# Reliability\n\nText.\n\n## ") and text.count("## ") == 2
    assert text.index(campaign.TITLES["kills"]) < text.index(campaign.TITLES["images"])
    assert "2 of 4 trials passed." in text and "- 4 rows" in text
    assert "- 1 × `broke 1`: not fixed yet" in text and "- 1 × `broke 3`: known limitation" in text


@pytest.mark.skipif(not campaign.PAGE.exists(), reason="a project without the docs")
def test_the_recorded_page_matches_the_campaign() -> None:
    page = campaign.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^## (.+)$", page, re.MULTILINE)) <= set(campaign.TITLES.values())


@pytest.mark.parametrize(
    ("codes", "number", "rank", "expected"),
    [
        ((-9,), "SIGKILL", None, True),
        ((143,), "SIGTERM", None, True),
        ((-15,), "SIGTERM", None, True),
        ((130,), "SIGINT", None, True),
        ((143,), "SIGINT", None, False),
        ((1,), "SIGTERM", None, False),
        ((2,), "SIGKILL", None, False),
        ((143, 143), "SIGTERM", None, True),
        ((143, 1), "SIGTERM", None, False),
        ((2, -9), "SIGKILL", 1, True),
        ((-9, 2), "SIGKILL", 1, False),
        ((143, 130), "SIGINT", 1, True),
    ],
)
def test_an_unexpected_exit_code_of_a_killed_run_is_detected(
    codes: tuple[int, ...], number: str, rank: int | None, expected: bool
) -> None:
    result = ProcessResult(codes[0], "", "", 1.0, codes)
    assert (kills.check_exit_codes(result, signal.Signals[number], rank, began=True) is None) == expected
    assert kills.check_exit_codes(replace(result, err="Traceback"), signal.Signals[number], rank, began=True)


def test_distributed_processes_may_abort_on_sigterm_before_the_first_step() -> None:
    result = ProcessResult(-9, "", "", 1.0, (-9, -6))
    assert kills.check_exit_codes(result, signal.SIGTERM, 1, began=False) is None
    assert kills.check_exit_codes(result, signal.SIGTERM, 1, began=True)
    assert kills.check_exit_codes(result, signal.SIGINT, 1, began=False)


def test_any_difference_to_the_uninterrupted_run_is_detected(tmp_path: Path) -> None:
    state = {
        "epoch": 1,
        "global_step": 4,
        "state_dict": {"w": torch.ones(2)},
        "optimizer_states": [],
        "lr_schedulers": [],
        "callbacks": {"TrainLog": {"sums": None}},
    }
    (tmp_path / "checkpoints").mkdir()
    metrics = [{"step": "0", "train/loss": "2.5"}, {"step": "1", "train/loss": "2.25"}]
    reference = kills.Reference(1.0, state, state, metrics)

    def difference(rows: str = "0,2.5,9\n1,2.25,8\n", last: Any = state, best: Any = state) -> str | None:
        (tmp_path / "metrics.csv").write_text(f"step,train/loss,epoch_seconds\n{rows}")
        torch.save(last, tmp_path / "checkpoints/last.ckpt")
        torch.save(best, tmp_path / "checkpoints/best.ckpt")
        return kills.find_difference(reference, tmp_path)

    other = state | {"state_dict": {"w": torch.tensor([1.0, 1.0 + 2**-23])}}
    assert difference() is None
    assert difference(last=other) == "the last checkpoint differs in state_dict.w"
    assert difference(best=other) == "the best checkpoint differs in state_dict.w"
    assert "callbacks.TrainLog.sums" in difference(last=state | {"callbacks": {"TrainLog": {"sums": torch.ones(3)}}})
    assert "callbacks: []" in difference(last=state | {"callbacks": {}})
    assert "epoch: 2, not 1" in difference(last=state | {"epoch": 2})
    assert "steps ['0', '1', '1']" in difference("0,2.5,9\n1,2.25,8\n1,2.25,8\n")
    assert "steps ['0']" in difference("0,2.5,9\n")
    assert "'train/loss': '2.26'" in difference("0,2.5,9\n1,2.26,8\n")


@pytest.mark.parametrize(
    ("code", "err", "rejected", "outcome"),
    [
        (0, "", False, "ran"),
        (2, "warning\nerror: a\nb\n", True, "rejected"),
        (2, "error: a\nb\nc\n", False, "long message"),
        (2, "", False, "long message"),
        (1, "error: KeyError: 'x' (a.py, line 1)\nadd --debug\n", False, "unexpected error"),
        (1, "Traceback (most recent call last):\nKeyError\n", False, "traceback"),
        (2, "Traceback (most recent call last):\nerror: a\n", False, "traceback"),
        (-11, "", False, "killed"),
        (None, "", False, "time-out"),
    ],
)
def test_outcome_of_a_process(code: int | None, err: str, rejected: bool, outcome: str) -> None:
    result = ProcessResult(code, "", err, 1.0)
    assert result.rejected() is rejected and configs.classify(result) == outcome
    assert result.unexpected_error() == (outcome == "unexpected error")


@pytest.mark.parametrize(
    ("given", "option", "ignored"),
    [
        ("model: {backbone: {class_path: cifar_resnet, init_args: {depth: 8}}, weights: null}", [], None),
        ("model: {backbone: {class_path: cifar_plain}}", [], "model.backbone = 'cifar_plain'"),
        ("model: {backbone: {init_args: {depth: 14}}}", [], "model.backbone.depth = 14"),
        ("model: {weights: here}", [], "model.weights = 'here'"),
        ("model: {lr: 1}", [], "model.lr = 1"),
        ("trainer: {callbacks+: [{class_path: Freeze, init_args: {last_frozen: 1e0}}, Timer], max_steps: 9}", [], None),
        ("trainer: {callbacks+: [Freeze]}", [], "trainer.callbacks = ['Freeze']"),
        ("trainer: {callbacks: [Timer, Timer, Timer]}", [], "trainer.callbacks = ['Timer', 'Timer', 'Timer']"),
        ("name: a", ["--model.backbone.depth", "8"], None),
        ("name: a", ["--model.backbone.depth=2"], "--model.backbone.depth 2"),
    ],
)
def test_an_ignored_value_is_detected(tmp_path: Path, given: str, option: list[str], ignored: str | None) -> None:
    (tmp_path / "mutated.yaml").write_text(given)
    (tmp_path / "resolved.yaml").write_text(
        "{name: a, model: {backbone: {class_path: a.cifar_resnet, init_args: {depth: 8.0}}, weights: null},"
        " trainer: {callbacks: [{class_path: a.Freeze, init_args: {last_frozen: 1}}, {class_path: a.Timer}],"
        " max_steps: 1}}"
    )
    assert configs.find_ignored(["fit", "--trainer.max_steps", 1, *option], option, tmp_path) == ignored


def test_execution_of_a_malicious_object_is_detected(tmp_path: Path) -> None:
    torch.save(checkpoints.Malicious(tmp_path / "mark"), tmp_path / "malicious.pt")
    torch.load(tmp_path / "malicious.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


def test_every_mutation_changes_the_file(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(100_000)
    for kind, mutate in checkpoints.BYTES.items():
        mutated = bytearray(data)
        mutate(mutated, random.Random(1), 50_000, 512)
        assert bytes(mutated) != data, kind
    for kind in [*config_mutations.TREE, *config_mutations.TEXT]:
        path, rng = configs.CONFIGS / "digits.yaml", random.Random(2)
        mutated, unchanged = (config_mutations.mutate(path, tmp_path, each, rng)[0] for each in (kind, "none"))
        assert mutated != unchanged, kind


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_image_files_of_every_kind(tmp_path: Path) -> None:
    written = [images.write_image(tmp_path, str(n), random.Random(n)) for n in range(300)]
    assert {kind for kind, _ in written} == {*images.DAMAGE, *images.INTACT}
    assert 60 < sum(images.is_readable(path) for _, path in written) < 240
