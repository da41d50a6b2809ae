"""`resnet_pl.reports` does not import torch."""

import subprocess
import sys
from pathlib import Path

import pytest

import resnet_pl.reports

PROJECT = Path(__file__).parents[2]
MODULES = sorted(file.stem for file in Path(resnet_pl.reports.__file__).parent.glob("*.py"))


@pytest.mark.process
def test_reports_import_neither_torch_nor_matplotlib():
    imports = "\n".join(f"import resnet_pl.reports.{name}" for name in MODULES if name != "__init__")
    code = f"{imports}\nimport sys\nprint(*sorted({{'torch', 'lightning', 'matplotlib', 'PIL'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["PIL"]
