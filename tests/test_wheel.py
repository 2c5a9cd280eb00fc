"""The package as people install it: a wheel, away from the checkout, with every data file it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.sweeping import write_notebook

pytestmark = pytest.mark.slow  # builds a wheel in an environment of its own


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it into a folder of its own."""
    place = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", place, REPOSITORY], check=True, cwd=place)
    [wheel] = place.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", place / "site", wheel], check=True, cwd=place)
    return place


def run(installed: Path, *arguments: str) -> str:
    site = installed / "site"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, *arguments], cwd=installed, env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout


def test_stored_tables_are_found(installed: Path) -> None:
    code = "from analysis_helpers.synthetic import read_calibration; print(read_calibration().batches)"
    assert run(installed, "-c", code) == "10000\n"


def test_pages_of_a_report_and_of_a_sweep_are_written(installed: Path) -> None:
    write_notebook(installed / "tried" / "tiny.ipynb")
    for command in (["report"], ["sweep", "--eta", "1e-6"]):
        out = installed / command[0]
        index = run(installed, "-m", "analysis_helpers", *command, "--notebooks", "tried", "--out", str(out)).strip()
        assert "A question" in Path(index).read_text(encoding="utf-8") or "tiny" in Path(index).read_text("utf-8")
