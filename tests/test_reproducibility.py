"""The tables of a sweep are the same bytes whatever surrounds it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytest.importorskip("papermill", reason="the extra 'notebooks' is not installed")

QUESTION = ["--notebook", "02_batch_size_comparison", "--notebook", "03_subsampling_distribution"]
VALUES = ["--eta", "3.2e-6", "--eta", "1.6e-6", "-p", "num_samples", "20", "-p", "samples_per_eta", "20"]


# What must not matter: workers, working folder, environment, and where the checkout lies.
USUAL = (1, ".", {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"})
UNUSUAL = (
    3,
    "notebooks",
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "1", "TZ": "Asia/Kolkata"},
)


def swept(out: Path, workers: int, folder: str, environment: dict[str, str]) -> bytes:
    """Return `results.csv` of a sweep."""
    root = out / "another place, with spaces"
    for name in ("notebooks", "data_samples"):
        shutil.copytree(REPOSITORY / name, root / name)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    command = [sys.executable, "-m", "analysis_helpers", "sweep", *QUESTION, *VALUES, "--workers", str(workers)]
    places = ["--notebooks", str(root / "notebooks"), "--data-root", str(root / "data_samples"), "--out", str(out)]
    subprocess.run([*command, *places], cwd=root / folder, env=environment, check=True, capture_output=True)
    return (out / "results.csv").read_bytes().replace(str(root).encode(), b"")  # the data root is as given


@pytest.mark.slow  # four kernels for each
def test_results_are_the_same_bytes_whatever_surrounds_the_sweep(tmp_path: Path) -> None:
    usual = swept(tmp_path / "usual", *USUAL)
    assert usual.count(b"\n") == 9  # 2 etas, 2 notebooks, 2 estimators, and the header
    assert swept(tmp_path / "unusual", *UNUSUAL) == usual
