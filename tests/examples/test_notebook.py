"""examples/flowers.ipynb: stored without outputs, and runs on a few generated photos."""

from __future__ import annotations

import csv
import json
from pathlib import Path

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


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1800)
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for package in ("ipykernel", "captum", "onnxscript"):
        pytest.importorskip(package)
    write_photos(tmp_path / "photos", size=40)
    environment = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    environment |= {name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = SMALL
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "error" not in text, text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    folder = tmp_path / "runs" / "notebook" / "version_0"
    with (folder / "predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"].endswith(".jpg") and f"class_name='{row['prediction']}'" in text
