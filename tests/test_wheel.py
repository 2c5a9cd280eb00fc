"""The package as people install it: a wheel in a fresh environment, used from a folder without a checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow  # builds a wheel, and installs it with all that it needs
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")


def call(place: Path, *command: object, status: int = 0) -> str:
    """Run a command of the fresh environment, and return what it printed (or said on standard error)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JUPYTER"))}
    program, *arguments = map(str, command)
    found = subprocess.run(
        [place / "venv" / "bin" / program, *arguments],
        cwd=place / "work",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == status, found.stderr
    return found.stdout or found.stderr


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a place with the wheel, an environment that has it without extras, and an empty working folder."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, *PIP, "wheel", "--no-deps", "-w", place, REPOSITORY], check=True)
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    (place / "work").mkdir()
    call(place, "python", *PIP, "install", *place.glob("*.whl"), "--constraint", REPOSITORY / "constraints.txt")
    return place


def test_without_extras_all_works_that_needs_no_notebook(fresh: Path) -> None:
    assert call(fresh, "analysis-helpers", "simulate", "mine") == "mine\n"
    assert "run_04" in call(fresh, "analysis-helpers", "inventory", "mine")
    assert "Is the step linear?" in call(fresh, "analysis-helpers", "verdict", "mine", "--eta", "3.2e-6", "-n", "64")
    code = "from analysis_helpers.synthetic import read_calibration; print(*read_calibration())"
    assert {"answers", "flags", "samplers"} <= set(call(fresh, "python", "-c", code).split())
    for command in (["report"], ["sweep", "--out", "sweep"]):
        assert "pip install" in call(fresh, "analysis-helpers", *command, status=1)


def test_with_notebooks_the_report_runs_on_the_sample_data_that_the_wheel_carries(fresh: Path) -> None:
    [wheel] = fresh.glob("*.whl")
    extra = f"{wheel}[notebooks]"
    call(fresh, "python", *PIP, "install", extra, "--constraint", REPOSITORY / "constraints.txt")
    printed = call(fresh, "analysis-helpers", "report")
    assert printed.splitlines()[-1] == str(Path("reports") / "index.html")
    pages = {path.stem for path in (fresh / "work" / "reports" / "pages").glob("*.html")}
    assert pages >= {path.stem for path in REPOSITORY.glob("notebooks/0[0-7]*.ipynb")}
