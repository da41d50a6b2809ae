"""examples/flowers.ipynb: stored without outputs, and runs on a few generated photos."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from tests.cli.commands import PROJECT
from tests.conftest import write_photos

NOTEBOOK = PROJECT / "examples" / "flowers.ipynb"
# In place of the cell with the tag `parameters`.
SMALL = 'root, runs, weights, epochs, image_size = "photos", "runs", None, 1, 32'


def test_the_notebook_is_stored_without_outputs_and_with_one_cell_of_parameters() -> None:
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert [cell for cell in cells if cell["metadata"]] == [cells[0]] and cells[0]["metadata"] == {
        "tags": ["parameters"]
    }
    assert (
        stored["metadata"].keys() == {"kernelspec", "language_info"}
        and stored["metadata"]["kernelspec"]["name"] == "python3"
    )


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes photos for the notebook, and prepares the environment of its processes; returns its working folder."""
    for package in ("captum", "onnxscript"):
        pytest.importorskip(package)
    write_photos(tmp_path / "photos", size=40)
    environment = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    environment |= {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(folder: Path, printed: str) -> None:
    """Checks that the exported file has classified the same photo as the checkpoint."""
    with (folder / "runs/notebook/version_0/predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"].endswith(".jpg") and f"checkpoint: {row['prediction']} " in printed, printed
    assert "error: " not in printed and "top-1 accuracy: checkpoint, file" in printed, printed


@pytest.mark.slow
def test_the_code_runs_without_jupyter(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for code in [SMALL, *("".join(cell["source"]) for cell in cells[1:])]:
        exec(compile(code, NOTEBOOK.name, "exec"), names)
    plt.close("all")
    check(photos, capsys.readouterr().out)


# It needs `pip install nbclient ipykernel`, which are too large for requirements-dev.txt.
@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1800)
def test_every_cell_runs_in_jupyter(photos: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = SMALL
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(photos)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    check(photos, "".join(output.text for output in outputs if output.output_type == "stream"))
