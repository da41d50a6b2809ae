"""docs/make_results.py makes records of finished runs, and writes the results page and README's table from them."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from docs.paper_records import lesion_table
from docs.run_records import config_digest
from resnet_pl.cli.main import main
from resnet_pl.reports.results import read_results, write_results
from resnet_pl.run_dir import read_sessions
from resnet_pl.utils import UserError
from tests.cli.commands import SMALL, run
from tests.conftest import load_docs_script
from tests.reports.made import write_run

PROJECT = Path(__file__).parents[2]
MARKERS = "before\n\n<!-- results:start -->\n<!-- results:end -->\n\nafter\n"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Returns docs/make_results.py, which works on a copy of the records and on a README without rows."""
    module = load_docs_script("make_results")
    shutil.copytree(PROJECT / "docs" / "results", tmp_path / "docs" / "results")
    (tmp_path / "docs" / "images").mkdir()
    (tmp_path / "README.md").write_text(MARKERS, encoding="utf-8")
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    return module


def table(page: Path) -> list[str]:
    """Returns the rows of the table between the markers of a README."""
    text = page.read_text(encoding="utf-8").partition("<!-- results:start -->\n")[2]
    return [line for line in text.partition("<!-- results:end -->")[0].splitlines() if line]


def test_the_pages_are_up_to_date(script: ModuleType, tmp_path: Path) -> None:
    script.main([])
    assert (tmp_path / "docs/results.md").read_text("utf-8") == (PROJECT / "docs/results.md").read_text("utf-8")
    own = table(PROJECT / "README.md")
    assert own in ([], table(tmp_path / "README.md"))  # a README of the user may have no table


def test_the_commands_of_the_records_have_the_settings_of_the_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a change of a configuration or a default, a record does not count: measure it again, or remove it."""
    monkeypatch.chdir(PROJECT)
    for path in (PROJECT / "docs" / "results").glob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        for entry in record["runs"] if "paper_error" in record else ():
            words = shlex.split(entry["command"])
            if "config" in entry:  # older records have none
                capsys.readouterr()
                assert main([*words[words.index("fit") :], "--print_config"]) == 0
                assert config_digest(yaml.safe_load(capsys.readouterr().out)) == entry["config"], entry["command"]


def test_the_digest_of_a_run_is_that_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *SMALL)
    folder = Path("runs/digits/version_0")
    run_config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    words = shlex.split(read_sessions(folder)[0]["command"])[2:]
    capsys.readouterr()
    for options, same in ([], True), (["--seed_everything", "5"], True), (["--model.label_smoothing", "0.2"], False):
        assert main([*words, *options, "--print_config"]) == 0
        assert (config_digest(yaml.safe_load(capsys.readouterr().out)) == config_digest(run_config)) == same


def test_the_markers_enclose_the_complete_table(script: ModuleType, tmp_path: Path) -> None:
    records = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "docs/results").glob("*.json")]
    for _ in range(2):
        script.main([])
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert text.startswith("before\n\n<!-- results:start -->\n\n|")
        assert text.endswith("|\n\n<!-- results:end -->\n\nafter\n")
        assert len(table(tmp_path / "README.md")) == 2 + sum(
            not {"rows", "paper"} & record.keys() for record in records
        )
    (tmp_path / "README.md").write_text("a README of the user\n", encoding="utf-8")
    script.main([])
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "a README of the user\n"


def test_a_run_becomes_a_record(script: ModuleType, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "mine" / "version_0", top1=0.9)
    first = read_results(run / "results.json")
    for other in ({"protocol": "10-crop", "top1": 0.92}, {"checkpoint": "another.ckpt", "top1": 0.5}):
        write_results(first | other, run / "results.json")
    script.main([str(run)])
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    section = page[page.index("## mine: ResNet-20 on CIFAR-10\n") :]
    assert "91.25% after 64,000 iterations" in section and "20. At its speed" in section
    assert "(`test --tta`): 10-crop 92.00%.\n" in section
    assert (tmp_path / "docs" / "images" / "mine_curves.png").exists()
    row = "| ResNet-20 on CIFAR-10 | 2 epochs (0% of the paper's schedule), 3 minutes, CPU | 90.00% | 1 |"
    assert row in table(tmp_path / "README.md")
    record = tmp_path / "docs" / "results" / "mine.json"
    record.write_text(record.read_text("utf-8").replace('"iterations": 20', '"iterations": 64000'), encoding="utf-8")
    script.main([])
    row = "| ResNet-20 on CIFAR-10 | 2 epochs (the paper's schedule), 3 minutes, CPU | 90.00% (paper: 91.25%) | 1 |"
    assert row in table(tmp_path / "README.md")


def test_a_record_says_which_weights_the_training_started_from(script: ModuleType, tmp_path: Path) -> None:
    folder, options = tmp_path / "runs" / "mine", "model.weights"
    for version, weights in enumerate(("runs/first/version_3/checkpoints/best.ckpt", "IMAGENET1K_V1")):
        run = write_run(folder / f"version_{version}", data="Flowers", options={options: weights}, command=weights)
        script.main([str(run)])
        name = "first" if version == 0 else weights
        rows = [row for row in table(tmp_path / "README.md") if f"from the weights of `{name}` |" in row]
        assert [row.split(" | ")[0] for row in rows] == [f"| ResNet-20 on Flowers, from the weights of `{name}`"]


def test_the_seeds_of_a_training_are_one_record(script: ModuleType, tmp_path: Path) -> None:
    runs, record = tmp_path / "runs" / "mine", tmp_path / "docs" / "results" / "mine.json"
    command = "python cli.py fit --config mine.yaml --seed_everything {} --name mine"
    first, second, again = (
        str(write_run(runs / f"version_{version}", seed=seed, top1=top1, command=command.format(seed)))
        for version, (seed, top1) in enumerate([(0, 0.9), (1, 0.94), (1, 0.96)])
    )
    script.main([first])
    picture = (tmp_path / "docs/images/mine_curves.png").read_bytes()
    script.main([second])
    assert (tmp_path / "docs/images/mine_curves.png").read_bytes() == picture
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "of 2 seeds: **92.00 ± 2.83%**" in page and "These runs performed 20." in page
    # The rows of more runs come first.
    rows = table(tmp_path / "README.md")[2:]
    assert sum(row.endswith("| 92.00 ± 2.83% | 2 |") for row in rows) == 1
    counts = [int(row.split("|")[-2]) for row in rows]
    assert counts == sorted(counts, reverse=True)
    script.main([again])
    assert [run["top1"] for run in json.loads(record.read_text(encoding="utf-8"))["runs"]] == [0.9, 0.96]
    longer = write_run(runs / "version_3", seed=2, top1=0.99, command=command.format(2) + " --trainer.max_epochs 9")
    script.main([str(longer)])  # another training
    assert [run["seed"] for run in json.loads(record.read_text(encoding="utf-8"))["runs"]] == [2]


def test_a_note_about_the_data_outlives_a_new_record(script: ModuleType, tmp_path: Path) -> None:
    run, record = write_run(tmp_path / "runs" / "mine" / "version_0"), tmp_path / "docs" / "results" / "mine.json"
    script.main([str(run)])
    note = {"data_note": "9 of 10 images exact; the other is not"}
    record.write_text(json.dumps(json.loads(record.read_text("utf-8")) | note), encoding="utf-8")
    script.main([str(run)])
    assert "\nData: 9 of 10 images exact; the other is not.\n" in (tmp_path / "docs" / "results.md").read_text("utf-8")
    assert any("| ResNet-20 on CIFAR-10 (9 of 10 images exact) |" in row for row in table(tmp_path / "README.md"))


def test_a_study_becomes_a_record(script: ModuleType, tmp_path: Path) -> None:
    for seed, top1 in enumerate((0.9, 0.94)):
        write_run(tmp_path / "runs" / "a" / f"version_{seed}", seed=seed, top1=top1)
    write_run(tmp_path / "runs" / "b" / "version_0", "cifar_plain")
    (tmp_path / "runs" / "logs").mkdir()
    (tmp_path / "runs" / "logs" / "sweep.log").write_text("$ python cli.py sweep --grid x=1\n3 runs\n")
    script.main([])
    rows_before = table(tmp_path / "README.md")
    script.main(["--study", "depth", str(tmp_path / "runs")])
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    section = page[page.index("## depth: 3 runs on CIFAR10") :]
    assert "python cli.py sweep --grid x=1\n" in section
    assert "cifar_resnet 20 (A)" in section and "92.00 ± 2.83" in section
    assert "20 iterations compared with 64,000 in the paper" in section
    assert "Total training time 9 minutes; commit abc; CPU (a machine); torch 2." in section
    for plot in ("depth_curves.png", "depth_models.png"):
        assert f"images/{plot}" in section and (tmp_path / "docs" / "images" / plot).exists()
    write_run(tmp_path / "untested" / "c" / "version_0", tested=False)
    with pytest.raises(UserError, match="has no tested runs"):
        script.main(["--study", "depth", str(tmp_path / "untested")])
    rows = json.loads((tmp_path / "docs" / "results" / "depth.json").read_text(encoding="utf-8"))["rows"]
    assert sorted(row["n"] for row in rows) == [1, 2]
    assert table(tmp_path / "README.md") == rows_before


def test_a_command_of_paper_becomes_a_record(script: ModuleType, tmp_path: Path) -> None:
    script.main([])
    rows_before = table(tmp_path / "README.md")
    script.main(["--paper", "shattering", "--layers", "1", "--depths", "--seeds", "1"])
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    section = page[page.index("## shattering: autocorrelation") :]
    assert "python cli.py paper shattering --layers 1 --depths --seeds 1\n" in section
    assert "| residual | 1 | 0.9" in section and "| brown noise | – | 0.9" in section
    assert "Means over 1 initializations" in section and "images/shattering.png" in section
    assert (tmp_path / "docs/images/shattering.png").exists() and (tmp_path / "docs/results/shattering.csv").exists()
    assert table(tmp_path / "README.md") == rows_before
    with pytest.raises(UserError, match="needs one of"):
        script.main(["--paper", "responses"])


def test_the_table_of_lesions(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "mine" / "version_0")
    facts = {
        "model": "cifar_resnet 8",
        "checkpoint": str(run / "checkpoints" / "best.ckpt"),
        "measured_on": "9 images, val",
    }
    errors = [("0", "1.5"), ("1", "10"), ("1", "30")]
    text = lesion_table([{**facts, "deleted": deleted, "error": error} for deleted, error in errors])
    assert (
        "| cifar_resnet 8 | 0 | 1 | 1.50 | 1.50 | 1.50 |" in text
        and "| cifar_resnet 8 | 1 | 2 | 20.00 | 10.00 | 30.00 |" in text
    )
    assert "cifar_resnet 8: 2 epochs, seed 0, n = 1; 9 images, val." in text
