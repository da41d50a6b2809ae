"""docs/make_estimate.py computes the table of docs/scale.md from the records in docs/benchmarks.md."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import load_docs_script

PROJECT = Path(__file__).parents[2]
RECORDS = """
## Loader: synthetic JPEGs

| Loader: images/s per core | 500×375 |
| --- | --- |
| `ImageFileLoader` | 1,000 (2.00) |
| `ImageFileLoader`, `cache: true`, `cache_side: 256` | 8,000 (16.00) |

## Streaming: litdata chunks

| Data | Images/s per core | Relative to the folder |
| --- | --- | --- |
| `ImageFolder` | 800 | 1.00 |
| `StreamedImages` | 80 | 0.10 |
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Returns docs/make_estimate.py, which works on copies of the pages."""
    module = load_docs_script("make_estimate")
    for name in ("benchmarks.md", "scale.md"):
        shutil.copy(PROJECT / "docs" / name, tmp_path)
    monkeypatch.setattr(module, "DOCS", tmp_path)
    return module


def test_the_page_is_up_to_date(script: ModuleType, tmp_path: Path) -> None:
    script.main()
    assert (tmp_path / "scale.md").read_text("utf-8") == (PROJECT / "docs/scale.md").read_text("utf-8")


def test_the_slowest_part_decides(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text(RECORDS, encoding="utf-8")
    script.main()
    lines = [line.strip("| ").split(" | ") for line in (tmp_path / "scale.md").read_text("utf-8").splitlines()]
    rows = {(line[0], line[1]): line[2:] for line in lines if len(line) == 7 and line[0].isdigit()}
    assert len(rows) == 9
    # Chunks: 1,000 × 80 / 800 = 100 images/s per core, 12 cores per GPU.
    cores, _, speed, hours, limit = rows["1", script.STORE]
    assert (cores, speed, limit) == ("28.0", "1,200", "CPU")
    assert float(hours) == pytest.approx(1_281_167 * 90 / 1200 / 3600, abs=0.05)
    # The cache: 5 GB/s from the SSDs, 256 × 341 × 3 bytes per image.
    assert rows["8", script.CACHE][2:] == [f"{5e9 / (256 * 341 * 3):,.0f}", "1.7", "SSD"]
    assert rows["8", script.FOLDER][2:] == ["22,088", "1.5", "GPU"]
    assert float(rows["16", script.FOLDER][1]) == pytest.approx(22_088 * 138e9 / 1_281_167 / 1e9, abs=0.01)


def test_a_missing_record_is_named(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text(RECORDS.partition("## Streaming")[0], encoding="utf-8")
    with pytest.raises(SystemExit, match=r"streaming\.py"):
        script.main()
